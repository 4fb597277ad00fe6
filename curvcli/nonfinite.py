"""Where a loss that is no number comes from: the weights, the data, a module, the loss itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvcli.batches import Batch
from curvcli.modules import titled, watchable


class Source(NamedTuple):
    """A place, to be said after what is wrong, and what to do about it."""

    where: str
    advice: str


ARITHMETIC = "look there for a logarithm of zero, a division by zero, or an overflow"


def of_weights(model: nn.Module) -> Source:
    """Look in the parameters and buffers alone."""
    infinite = [(n, _count(p), p.numel()) for n, p in model.named_parameters()]
    # A mask of attention is infinite by design.
    infinite += [(n, int(b.isnan().sum()), b.numel()) for n, b in model.named_buffers()]
    for name, bad, size in infinite:
        if bad:
            where = f": {bad:,} of {size:,} entries of {name} are no numbers"
            return Source(where, "the run has diverged: take an earlier checkpoint")
    return Source("", ARITHMETIC)


def source(model: nn.Module, batch: Batch, before: int, evaluate: Callable[[], Any]) -> Source:
    """Look along the way from the weights to the loss; `before` counts the examples before."""
    weights = of_weights(model)
    if weights.where:
        return weights
    for name, tree in (("inputs", batch.inputs), ("targets", batch.target)):
        for t in pytree.tree_leaves(tree):
            if isinstance(t, Tensor) and (bad := _count(t)):
                first, *rest = t.isfinite().logical_not().nonzero()[0].tolist() or [0]
                entry = "".join(f", {i}" for i in rest)
                value = float(t[(first, *rest)] if t.ndim else t)
                where = f": the {name} hold {value} at [{before + first}{entry}]"
                return Source(where, f"clean the data: {bad:,} of this batch's are no numbers")
    found = _module(model, evaluate)
    itself = "in the loss itself: the model's outputs are finite"
    return Source(f", first in {found}" if found else f", {itself}", ARITHMETIC)


def _count(t: Tensor) -> int:
    return int(t.isfinite().logical_not().sum()) if t.is_floating_point() else 0


def _module(model: nn.Module, evaluate: Callable[[], Any]) -> str:
    """Name the module that makes no numbers of numbers; empty where none does.

    The last such one, since what is infinite by design, as a masked score is, comes before; but no
    module that holds it.
    """
    found: list[tuple[str, nn.Module]] = []

    def look(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_m: nn.Module, inputs: Any, output: Any) -> None:
            if _bad(output) and not _bad(inputs):
                inside = found and (not name or found[-1][0].startswith(f"{name}."))
                if not inside:
                    found.append((name, module))

        return hook

    handles = [m.register_forward_hook(look(n, m)) for n, m in watchable(model)]
    try:
        evaluate()
    finally:
        for handle in handles:
            handle.remove()
    return titled(*found[-1]) if found else ""


def _bad(tree: Any) -> bool:
    return any(isinstance(t, Tensor) and _count(t) for t in pytree.tree_leaves(tree))
