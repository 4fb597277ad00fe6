"""Gradients that are meant to differ from the loss's, as a straight-through estimator's are."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.errors import CurvError
from curvcli.params import matching
from curvcli.problem import Problem


@dataclass(frozen=True)
class Allowed:
    """What the patterns of an allow-list match, and why each is there.

    tensors: parameters by name, with the pattern that allows them
    modules: modules by name, with theirs
    """

    reasons: Mapping[str, str]
    tensors: Mapping[str, str]
    modules: Mapping[str, str]

    @classmethod
    def of(cls, problem: Problem, reasons: Mapping[str, str]) -> "Allowed":
        """Match the patterns against parameters and modules.

        Raises: CurvError (E_USAGE) for one that matches neither: the model has moved on.
        """
        named = [n for n, _ in problem.model.named_modules() if n]
        tensors: dict[str, str] = {}
        modules: dict[str, str] = {}
        for pattern in reasons:
            # `quantizer.*` is meant for the module quantizer as well as for what it holds.
            patterns = [pattern, pattern.removesuffix(".*")]
            mine, inside = matching(problem.names, [pattern]), matching(named, patterns)
            if not mine and not inside:
                raise CurvError(
                    "E_USAGE",
                    f"ignore: {pattern!r} matches no parameter and no module of this model",
                    "remove it, or write the name that it has now",
                )
            tensors |= dict.fromkeys(mine, pattern)
            modules |= dict.fromkeys(inside, pattern)
        return cls(dict(reasons), tensors, modules)

    @property
    def outermost(self) -> list[str]:
        """The modules that lie in no other one of them: what is inside those goes with them."""
        return [n for n in self.modules if not any(n.startswith(m + ".") for m in self.modules)]

    def unneeded(self, ignored: Collection[str]) -> list[str]:
        """Say which patterns excuse nothing, given the tensors that were ignored."""
        if not self.reasons:
            return []
        used = {self.tensors[n] for n in ignored if n in self.tensors}
        # What a module excuses lies upstream of it, wherever that is.
        used |= set(self.modules.values()) if any(n not in self.tensors for n in ignored) else set()
        return [f"ignore: {p!r} excused nothing here" for p in self.reasons if p not in used]


def upstream(problem: Problem, modules: Iterable[str]) -> set[str]:
    """Name the parameters whose gradients pass through the backward of any of the modules."""
    plain = problem.layout.named(problem.gradient())
    with _doubled(problem, set(modules)):
        changed = problem.layout.named(problem.gradient())
    # Atomic additions on an accelerator may round the same gradient otherwise.
    return {n for n, g in plain.items() if (changed[n] - g).norm() > 1e-6 * g.norm()}


@contextmanager
def _doubled(problem: Problem, modules: set[str]) -> Iterator[None]:
    """Double every gradient that enters the modules from behind."""

    def hook(module: Any, args: Any, output: Any) -> None:
        for t in pytree.tree_leaves(output):
            if isinstance(t, Tensor) and t.requires_grad:
                t.register_hook(lambda g: 2 * g)  # type: ignore[no-untyped-call]

    named = problem.model.named_modules()
    handles = [m.register_forward_hook(hook) for n, m in named if n in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
