"""A model as a chain of modules, each of which takes what the one before it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from curvcli.batches import Batch
from curvcli.curvature.jacobian import Outputs
from curvcli.errors import CurvError
from curvcli.problem import Problem


@dataclass(frozen=True)
class Link:
    """One module of the chain, with what went in and came out."""

    path: str
    module: nn.Module
    x: Tensor
    out: Tensor

    @property
    def title(self) -> str:
        """Name it for a message."""
        return f"{self.path} ({type(self.module).__name__})"


def refused(why: str) -> CurvError:
    """Say that a model is no chain that second derivatives could be passed along."""
    return CurvError(
        "E_MODEL",
        f"becker-lecun needs a chain of linear layers, elementwise activations and pools: {why}",
        "use --method exact, ggn or hutchinson",
    )


def chain(problem: Problem, batch: Batch) -> tuple[list[Link], Outputs]:
    """Evaluate a batch and note the modules in their order.

    Raises: CurvError (E_MODEL) where a module takes anything but what the one before it gave, but
        for its shape.
    """
    links: list[Link] = []
    last: list[tuple[Tensor, int]] = []  # what the module before gave, itself, and its version
    taken: list[Tensor] = []

    def noting(path: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def before(module: nn.Module, args: Any) -> Any:
            if len(args) != 1 or not isinstance(args[0], Tensor):
                raise refused(f"{path} ({type(module).__name__}) takes more than one tensor")
            if last and not _same(*last[0], args[0]):
                raise refused(f"{path} ({type(module).__name__}) takes more than what goes before")
            taken[:] = [args[0].detach()]
            # A copy, since what works in place would overwrite what the module before gave.
            return (args[0].clone(),)

        def after(module: nn.Module, _: Any, out: Any) -> None:
            if not isinstance(out, Tensor):
                raise refused(f"{path} ({type(module).__name__}) gives no tensor")
            links.append(Link(path, module, taken[0], out.detach().clone()))
            last[:] = [(out, out._version)]

        return before, after

    leaves = [(n, m) for n, m in problem.model.named_modules() if not [*m.children()]]
    handles: list[Any] = []
    for path, module in leaves:
        before, after = noting(path or "the model")
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        outputs = Outputs(problem, batch)
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs.tensors) != 1 or not links:
        raise refused(f"the model gives {len(outputs.tensors)} tensors")
    if not _same(*last[0], outputs.tensors[0]):
        raise refused(f"what {links[-1].title} gives is not what the model gives")
    return links, outputs


def _same(a: Tensor, version: int, b: Tensor) -> bool:
    """Tell whether b is what a was at that version: in its memory, in its order, unchanged since.

    Views share the count of what was done in place.
    """
    whole = a.is_contiguous() and b.is_contiguous() and a.numel() == b.numel()
    return b._version == version and (a is b or (whole and a.data_ptr() == b.data_ptr()))
