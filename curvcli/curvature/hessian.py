"""The Hessian of a problem by the first way that works, checked once against gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from curvcli.curvature.products import (
    Differences,
    Forward,
    Kept,
    Linearized,
    Products,
    Rebuilt,
)
from curvcli.determinism import probe
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.problem import Problem
from curvcli.work import Method, Work

METHODS: dict[str, Callable[[Problem, float | None], Products]] = {
    "kept": Kept,
    "rebuilt": lambda problem, memory: Rebuilt(problem),
    "forward": lambda problem, memory: Forward(problem),
    "linearize": lambda problem, memory: Linearized(problem),
    "differences": lambda problem, memory: Differences(problem),
}
KIN = {"kept": ("kept", "rebuilt"), "forward": ("forward", "linearize")}
"""Methods that stand or fall together."""
LADDER: tuple[Method, ...] = ("kept", "forward", "differences")

TITLES = {
    "kept": "reverse over reverse, graph kept",
    "rebuilt": "reverse over reverse, graph rebuilt",
    "forward": "forward over reverse",
    "linearize": "linearized gradient (traced)",
    "differences": "central difference of gradients",
}

PROBE_EXAMPLES = 16
AGREE = 1e-3
"""Relative gap to a float64 difference of gradients up to which a product counts as right."""


@dataclass(frozen=True)
class Chosen:
    """The operator that computes Hessian-vector products, and how it came to be chosen."""

    operator: Products
    method: str
    agreement: float | None  # relative gap to a difference of gradients; None where not checked
    rejected: tuple[str, ...]  # methods of the ladder that fail or are wrong on this model
    notes: tuple[str, ...]


def hessian(problem: Problem, work: Work) -> Chosen:
    """Build the operator by `work.method`, or by the first rung of the ladder that holds.

    Before that the gradient is probed for randomness. Products are tried and held against
    differences of gradients on a few examples in float64, so this costs little beside the graph.

    Raises: CurvError (E_NO_HVP) where the method asked for does not work on this model,
        (E_NONDET) where gradients are random.
    """
    probe(problem)
    small = Small.of(problem)
    if work.method != "auto":
        gap, why = small.trial(work.method)
        if why:
            raise CurvError(
                "E_NO_HVP", f"--hvp {work.method} fails on this model: {why}", "use --hvp auto"
            )
        wrong = gap is not None and not gap <= AGREE
        doubt = (f"this product is doubtful: it {_differs(gap)}",) if wrong else ()
        return _chosen(problem, work, work.method, gap, (), doubt)
    notes: list[str] = []
    rejected: list[str] = []
    for method in LADDER[:-1]:
        gap, why = small.trial(method)
        if not why and gap is not None and not gap <= AGREE:
            why = f"its product {_differs(gap)}"
        if not why:
            return _chosen(problem, work, method, gap, tuple(rejected), tuple(notes))
        rejected += KIN[method]
        notes.append(f"not by {TITLES[method]}: {why}")
    return _chosen(problem, work, LADDER[-1], None, tuple(rejected), tuple(notes))


def doubts(problem: Problem) -> list[str]:
    """Say where the model's second derivative cannot be trusted, on a few examples in float64."""
    gap, why = Small.of(problem).trial("kept")
    if not why and gap is not None and not gap <= AGREE:
        why = f"a product {_differs(gap)}"
    return [f"not by {TITLES['kept']}: {why}"] if why else []


def _differs(gap: float | None) -> str:
    return f"differs from a difference of gradients by {gap:.1e}"


def _chosen(
    problem: Problem,
    work: Work,
    method: str,
    gap: float | None,
    rejected: tuple[str, ...],
    notes: tuple[str, ...],
) -> Chosen:
    operator = METHODS[method](problem, work.memory)
    if isinstance(operator, Kept) and method == "kept":
        kept, batches = len(operator.graphs), len(problem.batches)
        if kept < batches:
            size = operator.bytes_per_batch / 1e6
            # Told, not noted: what is free is not the same from run to run.
            work.tell(
                f"graphs of {kept} of {batches} batches are kept ({size:.1f} MB each, by --memory "
                "or what is free), the others are rebuilt for every product"
            )
    if method == "differences":
        notes += ("products are differences of gradients, good to a few digits only",)
    return Chosen(operator, method, gap, rejected, notes)


@dataclass(frozen=True)
class Small:
    """A few of the problem's examples in float64, on which a method is tried."""

    problem: Problem
    direction: torch.Tensor
    truth: tuple[torch.Tensor, ...]  # differences of gradients at two steps

    @classmethod
    def of(cls, problem: Problem) -> "Small":
        """Choose the examples and difference their gradients."""
        rng = torch.Generator().manual_seed(0)
        small = problem.sampled(PROBE_EXAMPLES, rng).to(torch.float64)
        v = normal(small.like, rng)
        # Two steps: beside a kink of the loss, a difference is only right where it steps over none.
        truth = tuple(Differences(small, step).matvec(v) for step in (1e-5, 1e-7))
        return cls(small, v, truth)

    def trial(self, method: str) -> tuple[float | None, str]:
        """Try a method: its relative gap to the differences, and why it failed if it did."""
        try:
            product = METHODS[method](self.problem, None).matvec(self.direction)
        except CurvError as error:
            return None, error.message
        except (RuntimeError, TypeError, ValueError) as error:
            return None, reason(error)
        size = max(float(t.norm()) for t in self.truth)
        gaps = [float((product - t).norm()) for t in self.truth]
        # A Hessian that vanishes against the gradient's own rounding has no relative gap.
        floor = 1e-7 * float(self.problem.gradient().norm() * self.direction.norm())
        return (0.0 if min(gaps) <= floor else min(gaps) / size), ""


def reason(error: Exception) -> str:
    """Put a foreign error into one short line."""
    first = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__
