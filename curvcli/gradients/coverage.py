"""What a gradient check on this data did not exercise, and how deep the model is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvcli.problem import Problem


@dataclass(frozen=True)
class Coverage:
    """What the chosen examples leave unseen.

    unused:  parameters that the loss does not depend on
    dead:    rows (output units, words) without gradient, and all rows, by tensor
    ignored: targets that `ignore_index` leaves out
    depth:   operations in the longest chain of derivatives
    """

    unused: tuple[str, ...]
    dead: Mapping[str, tuple[int, int]]
    ignored: int
    depth: int

    @property
    def notes(self) -> list[str]:
        """Say it in lines for the report."""
        said = [f"no gradient reaches: {', '.join(self.unused)}"] if self.unused else []
        if self.dead:
            parts = [f"{dead:,} of {rows:,} of {name}" for name, (dead, rows) in self.dead.items()]
            more = f" and of {len(parts) - 6} more tensors" if parts[6:] else ""
            said.append(f"rows without gradient, not checked: {', '.join(parts[:6])}{more}")
        if self.ignored:
            said.append(f"targets left out by ignore_index: {self.ignored:,}")
        return [*said, f"depth: {self.depth} operations in the longest chain of derivatives"]


def late_hooks(problem: Problem) -> list[str]:
    """Name the parameters with hooks that run after accumulation, which no check here sees."""
    # torch has no public way to ask, and copies of a parameter are without them.
    found = [n for n, p in problem.params.items() if getattr(p, "_post_accumulate_grad_hooks", {})]
    return [f"not checked: hooks after accumulation on {', '.join(found)}"] if found else []


def coverage(problem: Problem, gradient: Mapping[str, Tensor]) -> Coverage:
    """Look at the gradient for what is zero throughout, and at the graph of the first batch."""
    unused = tuple(problem.unused())
    dead = {}
    for name, g in gradient.items():
        if g.ndim > 1 and name not in unused:
            rows = g.flatten(1).any(1)
            if not rows.all():
                dead[name] = (int((~rows).sum()), len(rows))
    share = problem.share(problem.batches[0])
    return Coverage(unused, dead, problem.ignored(), _longest(share.grad_fn))


def _longest(root: Any) -> int:
    """Count the operations on the longest way from a node of the autograd graph to a leaf."""
    longest: dict[Any, int] = {}
    ahead = [root] if root is not None else []
    while ahead:
        node = ahead[-1]
        before = [n for n, _ in node.next_functions if n is not None]
        missing = [n for n in before if n not in longest]
        if missing:
            ahead.extend(missing)
        else:
            ahead.pop()
            leaf = not before
            longest[node] = 0 if leaf else 1 + max(longest[n] for n in before)
    return longest.get(root, 0)
