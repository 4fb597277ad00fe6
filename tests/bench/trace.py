"""The trace of a trained perceptron's Hessian, by curv and by its peers, at equal true error.

Most of curv's peers take the number of products that they are told. So every estimator, curv's too,
runs over the same seeds with more and more products; where the root mean square of its true errors
comes down to 1 %, by a power law between the numbers tried, is what it needs, if its user knew.
Hutchinson's estimates are the same in every library; PyHessian's stand for the peers'.
The times are those of runs of so many products. Then those that stop by themselves do so, by their
defaults: what they used, what being sure has cost, and how far from the truth they were.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from bench.diagonal import exact
from bench.fit import crossing
from bench.models import digits, perceptron, trained
from bench.peers import (
    CountedProducts,
    Task,
    curvlinops_operator,
    eigenthings_operator,
    library,
    pyhessian,
    why,
)
from bench.products import posed, work
from bench.timing import Measured, Setting, Times, interleaved, ratio, spread

from curvcli.curvature.hessian import hessian
from curvcli.linalg.probing import Estimate
from curvcli.linalg.trace import hutchinson, hutchpp, xtrace

WIDTHS = (64, 128, 10)
TOLERANCE, MOST = 1e-2, 300  # the defaults of `curv trace`
LEVEL = 1e-2
SEEDS = 24
UNSURE = 1 / math.sqrt(SEEDS)
"""Relative error of the ratio of two root mean squares, so about of the products needed too."""
TRIED = (24, 48, 96, 192)
CURV: Mapping[str, Callable[..., Estimate]] = {
    "curv, hutch++": hutchpp,
    "curv, xtrace": xtrace,
    "curv, hutchinson": hutchinson,
}


class Answer(NamedTuple):
    """An estimate, and what it took."""

    value: float
    products: int


PRODUCTS = f"products for an error of {LEVEL:.0%}"
Estimator = Callable[[int, int], Answer]
"""Estimates from a seed with about as many products, setting up included."""


@dataclass(frozen=True)
class Quality:
    """Root mean square of the relative errors over the seeds, and the median of the products."""

    error: float
    products: float


def quality(answers: Sequence[Answer], truth: float) -> Quality:
    """Sum up estimates from different seeds."""
    squares = [(a.value / truth - 1) ** 2 for a in answers]
    return Quality(
        math.sqrt(statistics.fmean(squares)), statistics.median(a.products for a in answers)
    )


def run(setting: Setting) -> list[Measured]:
    """Find what every estimator needs, then time those runs in turns."""
    data = digits()
    model = trained(perceptron(WIDTHS), data)
    given = Task(model.to(setting.device), data[0].to(setting.device), data[1].to(setting.device))
    truth = _truth(given)
    lines = [
        Measured("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        Measured("trace", f"{truth:.4g}"),
    ]
    calls: dict[str, Callable[[], object]] = {}
    for name, estimate in {**_ours(given), **_peers(given)}.items():
        try:
            needed = _needed(estimate, truth)
        except Exception as error:
            lines.append(Measured(name, why(error)))
            continue
        lines.append(Measured(name, f"{needed:.0f}" if needed else f"> {TRIED[-1]}", of=PRODUCTS))
        if needed:
            calls[name] = partial(estimate, _divisible(needed), 0)
    times = interleaved(calls, setting.repeats, setting.device)
    return [*lines, *_times(times), *_by_themselves(given, truth)]


def _truth(given: Task) -> float:
    """Sum the exact diagonal, in float64."""
    return float(exact(Task(given.own().model.double(), given.x.double(), given.y)).sum())


def _times(times: Times) -> Iterator[Measured]:
    """Hold every peer against the fastest of curv's estimators."""
    medians = {name: statistics.median(times[name]) for name in times}
    best = min((n for n in medians if n in CURV), key=lambda n: medians[n], default=None)
    for name, seconds in times.items():
        yield Measured(name, spread(seconds), of="time")
        if best is not None and name not in CURV:
            found = ratio(seconds, times[best])
            kept = found.high * (1 + 2 * UNSURE) >= 1
            yield Measured(name, f"{found.value:.2f}", "not ahead", kept, "x curv's best")


def _divisible(products: float) -> int:
    """Round up to what every estimator can divide into its parts."""
    return 6 * math.ceil(products / 6)


def _needed(estimate: Estimator, truth: float) -> float | None:
    """Say how many products bring the error down to the level; None if more than the most tried."""
    errors: list[float] = []
    for i, products in enumerate(TRIED):
        errors.append(quality([estimate(products, s) for s in range(SEEDS)], truth).error)
        if errors[-1] <= LEVEL:
            return crossing(TRIED[: i + 1], errors, LEVEL)
    return None


def _by_themselves(given: Task, truth: float) -> Iterator[Measured]:
    """Let curv's estimators and PyHessian stop when they think fit."""
    stopping: dict[str, Callable[[int], Answer]] = {
        name: partial(_curv, name, given, TOLERANCE, MOST) for name in CURV
    }
    stopping["PyHessian"] = partial(_stopped, given)
    for name, solve in stopping.items():
        label = f"{name}, stopping by itself"
        try:
            found = quality([solve(seed) for seed in range(SEEDS)], truth)
        except Exception as error:
            yield Measured(label, why(error))
            continue
        yield Measured(label, f"{found.products:.0f}, error {found.error:.1e}", of=PRODUCTS)


# --- estimators ---------------------------------------------------------------------------------


def _curv(name: str, given: Task, tolerance: float, most: int, seed: int) -> Answer:
    rng = torch.Generator().manual_seed(seed)
    A = hessian(posed(given), work()).operator
    found = CURV[name](A, tolerance, rng, max_matvecs=most)
    return Answer(found.mean, found.matvecs)


def _stopped(given: Task, seed: int) -> Answer:
    torch.manual_seed(seed)
    with CountedProducts() as counted:
        samples = pyhessian(given).trace()
    return Answer(float(np.mean(samples)), counted.count)


def _pyhessian(given: Task, products: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    # Below zero, its tolerance never ends the search.
    samples = pyhessian(given).trace(maxIter=products, tol=-1.0)
    return Answer(float(np.mean(samples)), products)


def _curvlinops(module: str, function: str, given: Task, products: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    estimate = getattr(library(f"curvlinops.trace.{module}"), function)
    return Answer(float(estimate(curvlinops_operator(given), products)), products)


def _eigenthings(given: Task, products: int, seed: int) -> Answer:
    known, operator = library("hessian_eigenthings"), eigenthings_operator(given)
    found = known.trace(operator, num_matvecs=products, method="hutch++", seed=seed)
    return Answer(found.estimate, products)


def _ours(given: Task) -> Mapping[str, Estimator]:
    """Give curv's estimators, which a tolerance out of reach makes use all that they are given."""
    return {name: partial(_curv, name, given, 1e-12) for name in CURV}


def _peers(given: Task) -> Mapping[str, Estimator]:
    return {
        "PyHessian, told when to stop": partial(_pyhessian, given),
        "curvlinops, hutch++": partial(_curvlinops, "meyer2020hutch", "hutchpp_trace", given),
        "curvlinops, xtrace": partial(_curvlinops, "epperly2024xtrace", "xtrace", given),
        "hessian-eigenthings, hutch++": partial(_eigenthings, given),
    }
