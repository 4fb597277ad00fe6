"""The diagonal blocks of a curvature matrix, one for each tensor or module, and their ends."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from curvcli.analyses.pairs import EigRow, advised, pair_rows
from curvcli.report import Check

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.linalg.operator import LinearOperator
    from curvcli.linalg.ritz import Ritz, Which
    from curvcli.problem import Problem
    from curvcli.work import Watch, Work

Grain = Literal["tensor", "module"]
Solve = Callable[["LinearOperator", int, "Watch"], "Ritz"]
"""Finds that many pairs of a map, telling its steps."""
Sampling = Callable[["Problem", "Tensor", "Watch"], list[float] | None]
"""Takes the standard errors over the data of vectors' Rayleigh quotients; None without any."""
Groups = dict[str, tuple[str, ...]]
"""The tensors of every block, by its name."""

ROOT = "(root)"
"""The block of the parameters that the model owns itself, outside of every module within it."""


def grouped(problem: "Problem", grain: Grain) -> Groups:
    """List the tensors of every block that has entries; a tied one is its first module's."""
    groups: Groups = {}
    for name, size in zip(problem.names, problem.layout.sizes, strict=True):
        owner = (name.rpartition(".")[0] or ROOT) if grain == "module" else name
        if size:
            groups[owner] = (*groups.get(owner, ()), name)
    return groups


@dataclass
class Blocks:
    """What is known of the blocks: pairs by name, standard errors over the data beside them."""

    count: int = 0
    pairs: "dict[str, Ritz]" = field(default_factory=dict)
    sampling: dict[str, list[float]] = field(default_factory=dict)

    def find(
        self,
        A: "LinearOperator",
        problem: "Problem",
        groups: Groups,
        solve: Solve,
        work: "Work",
    ) -> None:
        """Add the extreme pair of every block, or of either end.

        Raises: KeyboardInterrupt once the work was cut short.
        """
        from curvcli.curvature.blocks import restricted

        self.count = len(groups)
        watch = work.announce("eigenvalues of every block")
        for done, (name, tensors) in enumerate(groups.items()):
            ritz = solve(restricted(A, problem, tensors), 1, _within(watch, done, self.count))
            if len(ritz.values):
                self.pairs[name] = ritz
            if ritz.status == "interrupted":
                raise KeyboardInterrupt
        watch(self.count, self.count, None, None)

    def sample(self, problem: "Problem", groups: Groups, sampling: Sampling, work: "Work") -> None:
        """Add the standard errors over the data.

        A block's is that of a problem in its own tensors, whose products cost only their paths.
        """
        watch = work.announce("sampling errors of every block")
        for done, (name, ritz) in enumerate(self.pairs.items()):
            alone = replace(problem, names=groups[name])
            errors = sampling(alone, ritz.vectors, _within(watch, done, self.count))
            if errors is None:
                return
            self.sampling[name] = errors

    def rows(self, which: "Which") -> list[EigRow]:
        """Make a row of every pair."""
        return [
            row
            for name, ritz in self.pairs.items()
            for row in pair_rows(ritz, which, 1, block=name, sampling=self.sampling.get(name))
        ]

    @property
    def matvecs(self) -> int:
        """Products of all blocks together."""
        return sum(r.matvecs for r in self.pairs.values())

    def checks(self) -> list[Check]:
        """Say of each block whether its eigenvalue is certain."""
        return [_certain(f"block {name}", ritz) for name, ritz in self.pairs.items()]

    def notes(self) -> list[str]:
        """Say how many are not there."""
        missing = self.count - len(self.pairs)
        return [f"{len(self.pairs)} of {self.count} blocks are known"] if missing else []


def _within(watch: "Watch", done: int, count: int) -> "Watch":
    """Count blocks, and show the estimate of the one at work."""
    return lambda products, most, estimate, error: watch(done, count, estimate, error)


def _certain(name: str, ritz: "Ritz") -> Check:
    if ritz.converged:
        return Check(name, "pass", f"converged in {ritz.matvecs} products")
    said, advice = {
        "inexact": (
            f"products are too inexact: a true one leaves {float(ritz.residuals.max()):.1e}",
            "use --dtype float64, another --hvp, or a larger --tolerance",
        ),
        "unverified": (
            f"the search for a missed eigenvalue did not end in {ritz.matvecs} products",
            "raise --max-matvecs",
        ),
    }.get(
        ritz.status,
        (f"not converged in {ritz.matvecs} products", "raise --max-matvecs or --tolerance"),
    )
    return Check(name, "undecided", said, advised(ritz, advice))
