"""The curvature matrices by name, each as an operator with an account of how it is computed."""

from typing import Literal

import torch

from curvcli.curvature.compat import stands_in
from curvcli.curvature.fisher import EmpiricalFisher, Fisher
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.hessian import TITLES, Chosen, hessian
from curvcli.curvature.jacobian import Pullback
from curvcli.determinism import probe
from curvcli.errors import CurvError
from curvcli.problem import Problem
from curvcli.work import Work

Matrix = Literal["hessian", "ggn", "fisher", "empirical-fisher"]

NAMES: dict[Matrix, str] = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher information matrix, Monte-Carlo",
    "empirical-fisher": "empirical Fisher matrix",
}


def matrix(name: Matrix, problem: Problem, work: Work, samples: int = 1) -> Chosen:
    """Build the operator; `samples` labels are drawn for each term of the Monte-Carlo Fisher.

    Raises: CurvError (E_NONDET) where gradients are random, (E_LOSS) where the loss has no such
        matrix, (E_NO_HVP) where products cannot be computed, (E_USAGE) for a method of the
        Hessian's beside another matrix.
    """
    if name == "hessian":
        return hessian(problem, work)
    if work.method not in ("auto", "kept", "rebuilt"):
        raise CurvError(
            "E_USAGE",
            f"--hvp {work.method} is a way to multiply by the Hessian, not by the {NAMES[name]}",
            "use --hvp auto, kept or rebuilt",
        )
    probe(problem)
    memory = 0.0 if work.method == "rebuilt" else work.memory
    operator: Pullback
    if name == "ggn":
        operator = GaussNewton(problem, memory)
    elif name == "fisher":
        # A generator of its own: what the labels are must not depend on how they are used.
        seed = int(torch.randint(2**62, (), generator=work.rng))
        operator = Fisher(problem, torch.Generator().manual_seed(seed), samples, memory)
    else:
        operator = EmpiricalFisher(problem, memory)
    method = "differences" if operator.step is not None else "kept"
    few = problem.sampled(2, torch.Generator().manual_seed(0))
    with problem.engaged():
        notes = stands_in(problem.model, lambda: few.terms(few.batches[0]))
    return Chosen(operator, method, None, (), (*notes, *operator.notes))


def described(name: Matrix, chosen: Chosen) -> list[str]:
    """Say which matrix it is and how its products are computed, as notes of a report."""
    if name == "hessian":
        return [f"products by {TITLES[chosen.method]}", *chosen.notes]
    return [f"of the {NAMES[name]}: J^T M J by reverse mode", *chosen.notes]
