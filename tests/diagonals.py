"""The whole exact diagonal of a problem, for the tests of its parts."""

from torch import Tensor

from curvcli.curvature.diagonals.exact import ExactDiagonal, Found
from curvcli.problem import Problem


def diagonal(problem: Problem) -> tuple[Tensor, dict[str, str]]:
    """Compute it, and say which way each parameter's was."""
    exact = ExactDiagonal(problem)
    found: dict[str, Found] = {}
    for part in exact.parts:
        found |= exact.compute(part)
    assert set(found) == set(problem.names)
    ways: dict[str, str] = {n: f.way for n, f in found.items()}
    return problem.layout.flatten(found[n].diagonal for n in problem.names), ways
