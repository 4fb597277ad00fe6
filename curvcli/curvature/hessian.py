"""The Hessian of a problem by the first way that works, checked once against gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from curvcli.curvature.compat import stands_in
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
PROBE_ENTRIES = 2**23
"""Examples times parameters up to which that many are tried: of a large model two are enough."""
AGREE = 1e-3
"""Relative gap to a float64 difference of gradients up to which a product counts as right."""
UNSETTLED = "differences of gradients do not settle here, so that the product is not checked"
STEPS = (1e-5, 1e-7)
"""Of those differences, relative to theta; the second where the first disagrees."""


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
    notes = small.notes()
    if work.method != "auto":
        gap, why = small.trial(work.method)
        if why:
            raise CurvError(
                "E_NO_HVP", f"--hvp {work.method} fails on this model: {why}", "use --hvp auto"
            )
        wrong = gap is not None and not gap <= AGREE
        doubt = (f"this product is doubtful: it {_differs(gap)}",) if wrong else ()
        doubt = (UNSETTLED,) if gap is None else doubt
        del small  # before the graphs are built
        return _chosen(problem, work, work.method, gap, (), (*notes, *doubt))
    rejected: list[str] = []
    for method in LADDER[:-1]:
        gap, why = small.trial(method)
        if not why and gap is not None and not gap <= AGREE:
            why = f"its product {_differs(gap)}"
        if not why:
            break
        rejected += KIN[method]
        notes.append(f"not by {TITLES[method]}: {why}")
    else:
        method, gap = LADDER[-1], None
    if gap is None and method != LADDER[-1]:
        notes.append(UNSETTLED)
    del small  # before the graphs are built
    return _chosen(problem, work, method, gap, tuple(rejected), tuple(notes))


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
    direction: Tensor

    @classmethod
    def of(cls, problem: Problem) -> "Small":
        """Choose the examples."""
        rng = torch.Generator().manual_seed(0)
        size = max(2, min(PROBE_EXAMPLES, PROBE_ENTRIES // problem.layout.size))
        small = problem.sampled(size, rng).to(torch.float64)
        return cls(small, _learned(small, normal(small.like, rng)))

    @cached_property
    def floor(self) -> float:
        """The gradient's own rounding in a difference: what vanishes against it has no gap."""
        # A hundred units of rounding are 2e-9 over the larger step, and 2e-7 over the smaller.
        p = self.problem
        size = Differences(p, STEPS[0]).scale
        return 1e-8 * float(p.gradient().norm() * self.direction.norm()) / size

    def trial(self, method: str) -> tuple[float | None, str]:
        """Try a method: its relative gap to differences of gradients, and why it failed if so.

        None where it failed, and where differences do not settle as the step shrinks.
        """
        try:
            product = METHODS[method](self.problem, math.inf).matvec(self.direction)
        except CurvError as error:
            return None, error.message
        except torch.OutOfMemoryError:
            raise  # which says nothing about the method
        except (RuntimeError, TypeError, ValueError) as error:
            return None, reason(error)
        # Beside a kink of the loss, a difference is only right where it steps over none.
        first = Differences(self.problem, STEPS[0]).matvec(self.direction)
        size, gap = float(first.norm()), float((first - product).norm())
        if gap > AGREE / 10 * size and gap > self.floor:
            second = Differences(self.problem, STEPS[1]).matvec(self.direction)
            size, gap = max(size, float(second.norm())), min(gap, float((second - product).norm()))
            if gap > AGREE * size and float((second - first).norm()) > gap / 2:
                return None, ""  # differences that differ are no judge
        vanishes = gap <= self.floor and gap > AGREE * size
        return (0.0 if vanishes or not size else gap / size), ""

    def notes(self) -> list[str]:
        """Say what is computed in another way than it was trained."""
        p = self.problem
        with p.engaged():
            return stands_in(p.model, lambda: p.terms(p.batches[0]))


def _learned(problem: Problem, v: Tensor) -> Tensor:
    """Take the rows of padding out of a direction.

    The loss depends on them where padding is not masked, but autograd has them as constants: so
    has the Hessian, while a difference along them would not.
    """
    parts = {id(p): problem.layout.named(v)[n] for n, p in problem.params.items()}
    for m in problem.model.modules():
        if isinstance(m, nn.Embedding) and m.padding_idx is not None and id(m.weight) in parts:
            parts[id(m.weight)][m.padding_idx] = 0
    return v


def reason(error: Exception) -> str:
    """Put a foreign error into one short line."""
    first = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__
