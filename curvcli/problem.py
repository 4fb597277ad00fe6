"""The weighted mean loss of a model over fixed data, as a function of its named parameters."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, Loss, Terms, arguments, select
from curvcli.derivatives import derivatives, optional_derivatives
from curvcli.errors import CurvError
from curvcli.optimizer import SavedOptimizer
from curvcli.params import Layout, matching

Mode = Literal["eval", "train"]


@dataclass(frozen=True, eq=False)
class Problem:
    """L(theta) = sum_b total_b / sum_b weight_b, over the same batches in the same order always.

    Batches are only a way to compute L: no figure depends on how the examples are cut.
    `names` are the parameters that theta consists of, trainable, each once, in the model's order.
    """

    model: nn.Module
    loss: Loss
    batches: tuple[Batch, ...]
    names: tuple[str, ...]
    mode: Mode = "eval"
    optimizer: Callable[[], SavedOptimizer | None] = lambda: None
    """Finds the saved optimizer; called where it is needed, since it may be refused."""
    heldout: tuple[Batch, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    """What the training loop did besides the optimizer's step: `grad_clip`, ..."""
    _held: list[bool] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Batch],
        params: Sequence[str] = ("*",),
        **rest: Any,
    ) -> "Problem":
        """Select the trainable parameters that `params` (glob patterns) match.

        Raises: CurvError where nothing matches or there is no data.
        """
        model = unwrapped(model)
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        for pattern in params:
            if not matching(trainable, [pattern]):
                shown = ", ".join(trainable[:4]) + (", ..." if len(trainable) > 4 else "")
                raise CurvError(
                    "E_MODEL",
                    f"no trainable parameter matches {pattern!r}",
                    f"the model's are {shown}" if trainable else "every parameter is frozen",
                )
        batches = tuple(batches)
        if not batches:
            raise CurvError("E_DATA", "there are no examples", "check data: in the spec")
        normalised = any(isinstance(m, _BatchNorm) for m in model.modules())
        if rest.get("mode") == "train" and normalised and len(batches) > 1:
            raise CurvError(
                "E_USAGE",
                f"in train mode BatchNorm makes the loss depend on how the {len(batches)} batches "
                "are cut",
                "use a --batch-size that holds all --samples, or --mode eval",
            )
        return cls(model, loss, batches, tuple(matching(trainable, params)), **rest)

    # --- what it consists of -----------------------------------------------------------------

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        own = dict(self.model.named_parameters())
        return {n: own[n] for n in self.names}

    @cached_property
    def layout(self) -> Layout:
        """Where each parameter lies in the vector theta."""
        return Layout.of(dict(self.params))

    @property
    def like(self) -> Tensor:
        """A vector of theta's size, dtype and device, without storage of its own."""
        first = next(iter(self.params.values()))
        return torch.empty(1, dtype=first.dtype, device=first.device).expand(self.layout.size)

    @property
    def examples(self) -> int:
        """How many examples the batches hold."""
        return sum(b.size for b in self.batches)

    def vector(self) -> Tensor:
        """Copy theta into one vector (n,)."""
        return self.layout.flatten(p.detach() for p in self.params.values()).clone()

    # --- other problems like it ----------------------------------------------------------------

    def to(self, dtype: torch.dtype) -> "Problem":
        """Copy the model and the data into another floating-point type."""

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        return replace(
            self,
            model=copied(self.model).to(dtype),
            batches=tuple(b.map(cast) for b in self.batches),
            heldout=tuple(b.map(cast) for b in self.heldout),
        )

    def sampled(self, examples: int, rng: torch.Generator) -> "Problem":
        """Keep that many examples, chosen by `rng`, in their order, and in one batch if they fit.

        They do unless the examples of different batches have different shapes.
        """
        if examples >= self.examples and len(self.batches) == 1:
            return self
        chosen = torch.randperm(self.examples, generator=rng)[:examples].sort().values
        return replace(self, batches=select(self.batches, chosen), heldout=())

    # --- evaluation ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model in this problem's mode, and leave it and the process as found.

        Modes, `requires_grad`, buffers and the generators' states are restored, also after an
        exception; `.grad` is never touched. It may be entered again while it is held.
        """
        if self._held:
            yield
            return
        self._held.append(True)
        try:
            with self._as_wanted():
                yield
        finally:
            self._held.pop()

    @contextlib.contextmanager
    def _as_wanted(self) -> Iterator[None]:
        modes = [(m, m.training) for m in self.model.modules()]
        wanted = set(self.names)
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        devices = [self.like.device.index] if self.like.is_cuda else []
        with torch.random.fork_rng(devices=devices), self._own_buffers():
            try:
                self.model.train(self.mode == "train")
                for name, p in self.model.named_parameters():
                    p.requires_grad_(name in wanted)
                yield
            finally:
                for module, training in modes:
                    module.training = training
                for p, flag in flags:
                    p.requires_grad_(flag)

    @contextlib.contextmanager
    def _own_buffers(self) -> Iterator[None]:
        """Let forward passes write to copies of the buffers: graphs may hold on to those."""
        found = [(m, n, b) for m in self.model.modules() for n, b in m._buffers.items()
                 if b is not None]  # fmt: skip
        copies = {id(b): b.detach().clone() for _, _, b in found}
        try:
            for module, name, buffer in found:
                module._buffers[name] = copies[id(buffer)]
            yield
        finally:
            for module, name, buffer in found:
                module._buffers[name] = buffer

    @contextlib.contextmanager
    def displaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold parameters at other values, also for what a backward pass computes again."""
        # torch.func.functional_call gives activation checkpointing the old values in its backward.
        params = self.params
        saved = {n: params[n].data for n in values}
        try:
            for n, value in values.items():
                params[n].data = value
            yield
        finally:
            for n, value in saved.items():
                params[n].data = value

    def terms(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Terms:
        """Evaluate one batch, at the model's own parameters or with some replaced by `values`."""
        args, kwargs = arguments(batch.inputs)
        if values is None:
            output = self.model(*args, **kwargs)
        else:
            output = functional_call(self.model, dict(values), args, kwargs)
        return self.loss(output, batch)

    def share(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate this batch's share of L, a scalar with its graph; the shares add up to L."""
        return self.terms(batch, values).total / self.measure.weight

    @cached_property
    def measure(self) -> "Measure":
        """L and the total weight, from one pass over the data.

        Raises: CurvError (E_NONFINITE, E_DATA) where L is not a number or has no terms.
        """
        return self._measured(self.batches)

    @cached_property
    def heldout_loss(self) -> float | None:
        """L over the held-out examples, where there are some."""
        return self._measured(self.heldout).loss if self.heldout else None

    def _measured(self, batches: Sequence[Batch]) -> "Measure":
        total = weight = 0.0
        with self.engaged(), torch.no_grad():
            for i, batch in enumerate(batches):
                terms = self.terms(batch)
                if not math.isfinite(float(terms.total)):
                    raise CurvError("E_NONFINITE", self._blame(i, batch, float(terms.total)))
                total, weight = total + float(terms.total), weight + float(terms.weight)
        if not weight > 0:
            raise CurvError("E_DATA", "the loss has no terms over these examples (weight 0)")
        return Measure(total / weight, weight)

    def _blame(self, index: int, batch: Batch, value: float) -> str:
        """Say where a non-finite loss first appeared."""
        found: list[str] = []

        def look(name: str, module: nn.Module) -> Callable[..., None]:
            def hook(_m: nn.Module, _i: Any, output: Any) -> None:
                bad = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)
                       and t.is_floating_point() and not t.isfinite().all()]  # fmt: skip
                if bad and not found:
                    found.append(f", first in {name or 'the model'} ({type(module).__name__})")

            return hook

        handles = [m.register_forward_hook(look(n, m)) for n, m in self.model.named_modules()]
        try:
            self.terms(batch)
        finally:
            for handle in handles:
                handle.remove()
        where = found[0] if found else ", in the loss itself: the model's outputs are finite"
        return f"the loss is {value} at batch {index}{where}"

    def gradients(self, batch: Batch, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Differentiate this batch's share by reverse mode; an unused parameter gives zeros."""
        share, params = self.share(batch), tuple(self.params.values())
        if not share.requires_grad:
            return tuple(torch.zeros_like(p) for p in params)
        return derivatives([share], params, create_graph=create_graph)

    def gradient(self) -> Tensor:
        """Differentiate L: a vector (n,); costs one gradient."""
        with self.engaged():
            total = torch.zeros_like(self.like, memory_format=torch.contiguous_format)
            for batch in self.batches:
                total += self.layout.flatten(g.detach() for g in self.gradients(batch))
        return total

    def unused(self) -> list[str]:
        """Name the parameters that the loss of the first batch does not depend on."""
        with self.engaged():
            share = self.share(self.batches[0])
            if not share.requires_grad:
                return list(self.names)
            found = optional_derivatives([share], tuple(self.params.values()))
        return [n for n, g in zip(self.names, found, strict=True) if g is None]

    def probe(self) -> None:
        """Evaluate the first batch's gradient twice and hold the two against each other.

        Raises: CurvError (E_NONDET) where they differ: differences and products would be noise.
        """
        with self.engaged():
            first, second = (
                self.layout.flatten(g.detach() for g in self.gradients(self.batches[0]))
                for _ in range(2)
            )
        if not (first.isfinite().all() and second.isfinite().all()):
            raise CurvError("E_NONFINITE", "the gradient of the first batch is not finite")
        if torch.equal(first, second):
            return
        gap = float((first - second).norm() / first.norm().clamp_min(1e-300))
        # Atomic additions on an accelerator reorder sums; that is rounding, not randomness.
        if first.is_cuda and gap < 100 * torch.finfo(first.dtype).eps:
            return
        training = self.mode == "train"
        names = [f"{n} ({type(m).__name__})" for n, m in self.model.named_modules()
                 if training and isinstance(m, RANDOM)]  # fmt: skip
        raise CurvError(
            "E_NONDET",
            f"two evaluations of one gradient differ by {gap:.1e}"
            + (f"; random in train mode: {', '.join(names[:3])}" if names else ""),
            "use --mode eval" if training else "seed or remove the randomness in forward()",
        )


class Measure(NamedTuple):
    """L and the weight that its terms add up to."""

    loss: float
    weight: float


RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def copied(model: nn.Module) -> nn.Module:
    """Copy a model with the hooks on its parameters, which a deep copy alone would lose.

    Raises: CurvError (E_MODEL) for a model that holds what cannot be copied.
    """
    # What a module computed from its parameters and keeps, as old-style weight norm does, has a
    # graph and cannot be copied with it; its values can, and every forward pass renews it.
    kept = [t for m in model.modules() for t in vars(m).values()
            if isinstance(t, Tensor) and not t.is_leaf]  # fmt: skip
    try:
        copy = deepcopy(model, {id(t): t.detach().clone() for t in kept})
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise CurvError("E_MODEL", f"the model cannot be copied: {first}") from error
    for p, q in zip(model.parameters(), copy.parameters(), strict=True):
        for hook in (p._backward_hooks or {}).values():
            q.register_hook(hook)  # type: ignore[no-untyped-call]
    return copy


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off the wrappers that only change how a model runs: compiled, data-parallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
