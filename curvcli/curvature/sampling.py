"""How much a Rayleigh quotient owes to the examples that were drawn.

With y fixed, y^T A y is the weighted mean of y^T A_g y over groups g of examples, whose scatter
gives its standard error over the data. Cost: one product for each vector, and one gradient.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from curvcli.batches import Batch, select
from curvcli.curvature.fisher import EmpiricalFisher
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.hessian import METHODS
from curvcli.curvature.matrices import Matrix
from curvcli.errors import CurvError
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.work import Watch, silent

GROUPS = 32
"""Of examples, as equal in number as can be: enough for a standard error good to an eighth."""


PLENTY = math.inf
"""Bytes for the graph of one group: it is smaller than a batch's, which fitted."""


def sampling_errors(
    name: Matrix,
    method: str,
    problem: Problem,
    vectors: Tensor,
    watch: Watch = silent,
    *,
    memory: float | None = None,
) -> list[float] | None:
    """Give each vector's (k, n) standard error over the data; None where examples interact.

    That is in any mode but eval, and where the matrix draws labels of its own.
    """
    count = min(GROUPS, problem.examples)
    if problem.mode != "eval" or name == "fisher" or count < 2:
        return None
    values, weights = [], []
    for done, chosen in enumerate(torch.arange(problem.examples).tensor_split(count), 1):
        watch(done, count, None, None)
        group = replace(problem, batches=_gathered(problem.batches, chosen), heldout=())
        if not _weighs(group):
            continue
        A = _operator(name, method, group, memory)
        products = [float(y.double() @ A.matvec(y).double()) for y in vectors]
        values.append(torch.tensor(products, dtype=torch.float64))
        weights.append(group.measure.weight)
    count = len(values)
    if count < 2:
        return None
    w = torch.tensor(weights, dtype=torch.float64)
    shares = (w / w.sum())[:, None]
    x = torch.stack(values)  # (groups, k)
    squares = (shares * (x - (shares * x).sum(0))).square().sum(0)
    errors: list[float] = (squares * (count / (count - 1))).sqrt().tolist()
    return errors


def _weighs(group: Problem) -> bool:
    """Tell whether any of the group's targets counts: all may be ones that the loss ignores."""
    try:
        return group.measure.weight > 0
    except CurvError as error:
        if error.code != "E_DATA":
            raise
        return False


def _gathered(batches: Sequence[Batch], chosen: Tensor) -> tuple[Batch, ...]:
    """Gather a group in batches that are no larger than those that fitted before."""
    found: list[Batch] = []
    start = 0
    for batch in batches:
        inside = chosen[(chosen >= start) & (chosen < start + batch.size)] - start
        found += select([batch], inside) if len(inside) else []
        start += batch.size
    return tuple(found)


def _operator(
    name: Matrix, method: str, group: Problem, memory: float | None = None
) -> LinearOperator:
    """Build the matrix of one group, whose graph lives for a few products."""
    if name == "ggn":
        return GaussNewton(group, memory)
    if name == "empirical-fisher":
        return EmpiricalFisher(group, memory)
    # A trace pays after many products only; forward mode gives the same ones untraced.
    return METHODS["forward" if method == "linearize" else method](group, memory)
