"""Numerical derivatives along directions, each with its own error, and the verdict on a claim.

The rule follows the CS231n notes on gradient checks (centred differences, relative error, float64,
kinks) and adds what decides: for every step the mismatch D, the rounding floor R = 4 eps |L| / h
and the kink gap K, how far the two one-sided differences are apart. Cost: 2 evaluations where the
first step tells, 14 where all are needed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Verdict = Literal["pass", "fail", "unresolved", "vacuous"]

STEPS = tuple(10.0**-k for k in range(1, 8))
"""Steps relative to the parameter's size: over six decades."""


@dataclass(frozen=True)
class Comparison:
    """A claimed derivative against differences, with what the verdict rests on.

    relative: |a - n| / max(|a|, |n|), at the step that speaks best
    error:    uncertainty of `numeric`: rounding, kinks and what neighbouring steps disagree by
    floor:    the smallest derivative that these evaluations could certify
    """

    verdict: Verdict
    analytic: float
    numeric: float
    relative: float
    error: float
    step: float
    kink: float
    floor: float


@dataclass(frozen=True)
class Accuracy:
    """What is asked of claims, and what evaluations are good for.

    tolerance: relative error up to which a claim passes; may differ from place to place (k,)
    eps:       unit of rounding of the evaluations
    scale:     what that is relative to, where it is more than the values: (k,) or for all
    nil:       size up to which a claim counts as none
    """

    tolerance: Tensor | float
    eps: float
    scale: Tensor | float = 0.0
    nil: float = math.inf


def compare(
    analytic: Tensor,
    steps: Tensor,
    plus: Tensor,
    minus: Tensor,
    centre: Tensor | float,
    accuracy: Accuracy,
) -> list[Comparison]:
    """Judge claimed derivatives (k,) by values at +-h.

    steps: (s,) float64, descending; plus, minus: (k, s) float64, the functions' values there, NaN
    where there is none; `centre` (k,) is their value at 0.
    """
    eps, nil = accuracy.eps, accuracy.nil
    if not len(analytic):
        return []
    given = (centre, accuracy.scale, accuracy.tolerance)
    centre, scale, tolerance = (
        torch.as_tensor(t, dtype=torch.float64).expand(len(analytic))[:, None] for t in given
    )  # (k, 1)
    a = analytic[:, None].abs()
    seen = plus.isfinite() & minus.isfinite()  # (k, s)
    n = torch.where(seen, (plus - minus) / (2 * steps), torch.nan)
    values = torch.where(seen, torch.maximum(plus.abs(), minus.abs()), 0.0)
    largest = values.amax(1, keepdim=True).maximum(centre.abs()).maximum(scale)
    R = torch.where(seen, 4 * eps * largest / steps, torch.inf)
    K = torch.where(seen, (plus - 2 * centre + minus).abs() / steps, torch.inf)
    D = (analytic[:, None] - n).abs()
    M = torch.maximum(n.abs(), a)
    error = _errors(n)
    certified = (tolerance * M >= R) & (M > 0)
    # A claim may meet one step by chance, where truncation makes up for what is wrong with it: a
    # neighbouring step must tell the same, or the two sides of this one.
    passes = certified & (tolerance * M >= D) & (3 * tolerance * M >= torch.minimum(error, K))
    # What rounding does may exceed R by much; where the tolerance does not drown that, D has to.
    blames = (M > 0) & (torch.where(certified, 20.0, 1000.0) * R + tolerance * M < D)
    failed = _consistent(analytic, steps, n, D, K, blames, passes)
    passed = passes.any(1) & ~failed
    least = R.amin(1)
    # Where every value is zero there is no telling what they are rounded to.
    blind = (largest[:, 0] == 0) & (a[:, 0] > 0)
    failed &= ~blind
    uncertainty = torch.where(error.isfinite(), error, K) + R
    surest = uncertainty.argmin(1)
    flat = (seen & (n.abs() <= R)).gather(1, surest[:, None])[:, 0]
    vacuous = (a[:, 0] <= least.clamp_max(nil)) & flat
    # Of the steps that certify, the one that agrees best is the one to show.
    best = torch.where(passed, torch.where(passes, D / M, torch.inf).argmin(1), surest)

    def at_best(t: Tensor) -> list[float]:
        found: list[float] = t.expand_as(n).gather(1, best[:, None])[:, 0].tolist()
        return found

    words: list[Verdict] = [
        "fail" if f else "pass" if p else "vacuous" if v else "unresolved"
        for f, p, v in zip(failed.tolist(), passed.tolist(), vacuous.tolist(), strict=True)
    ]
    relative = torch.where(M > 0, D / M, torch.where(seen, 0.0, torch.nan))
    columns = (n, relative, uncertainty, steps[None], K)
    rows = zip(
        words,
        analytic.tolist(),
        *map(at_best, columns),
        (least / tolerance[:, 0]).tolist(),
        strict=True,
    )
    return [Comparison(*row) if math.isfinite(row[2]) else _blind(row[1]) for row in rows]


def _blind(analytic: float) -> Comparison:
    """Say that no value was finite."""
    nan = math.nan
    return Comparison("unresolved", analytic, nan, nan, nan, nan, nan, nan)


def _errors(n: Tensor) -> Tensor:
    """Estimate each step's truncation: its distance to the nearer neighbour's value (k, s)."""
    gaps = (n[:, 1:] - n[:, :-1]).abs().nan_to_num(torch.inf)
    inf = torch.full_like(n[:, :1], torch.inf)
    return torch.minimum(torch.cat([inf, gaps], 1), torch.cat([gaps, inf], 1))


def _consistent(
    analytic: Tensor, steps: Tensor, n: Tensor, D: Tensor, K: Tensor, blames: Tensor, passes: Tensor
) -> Tensor:
    """Decide whether two neighbouring steps agree with one another against the claim (k,).

    Truncation alone makes steps disagree with one another as much as with a right claim; and where
    a finer step than both certifies the claim, it is they that are too coarse. A gap between the
    one-sided differences excuses the claim as a kink does, unless it shrinks as the step does:
    then it is curvature, of which centred differences are free.
    """
    fine, coarse = slice(1, None), slice(None, -1)
    curved = (K[:, coarse] - steps[coarse] / steps[fine] * K[:, fine]).abs() <= 0.1 * K[:, coarse]
    kinked = 10 * torch.maximum(K[:, coarse], K[:, fine]) >= torch.minimum(D[:, coarse], D[:, fine])
    # Values that do not move at all may be a staircase's, which coarser steps see the slope of.
    sloped = ((0.5 * analytic[:, None].abs() >= D) & (n != 0)).any(1, keepdim=True)
    stairs = (n[:, coarse] == 0) & (n[:, fine] == 0) & sloped
    both = blames[:, coarse] & blames[:, fine] & (curved | ~kinked) & ~stairs
    alike = (n[:, fine] - n[:, coarse]).abs() <= 0.1 * torch.minimum(D[:, fine], D[:, coarse])
    order = torch.arange(n.shape[1])
    finest = torch.where(passes, order, -1).amax(1, keepdim=True)
    return (both & alike & (order[fine] > finest)).any(1)


Sample = Callable[[Tensor, Tensor], Tensor]
"""Values (m,) float64 at places (m,) int64, displaced by signed steps (m,) float64."""


def judge(
    analytic: Tensor, size: float, centre: float, sample: Sample, accuracy: Accuracy
) -> list[Comparison]:
    """Judge claimed derivatives (k,), evaluating no more than it takes.

    Each place is first asked at the one step that suits the size of its claim: 2 evaluations, all
    that a right claim needs as a rule. Where that does not certify it the neighbouring steps
    follow, and then all that rounding leaves. Steps are STEPS times `size`; `accuracy.scale` is
    one number here.
    """
    steps = size * torch.tensor(STEPS, dtype=torch.float64)  # (s,)
    given = torch.as_tensor(accuracy.tolerance, dtype=torch.float64)
    tolerance = given.expand(len(analytic))
    noise = 4 * accuracy.eps * max(abs(centre), float(accuracy.scale))
    first = _first_step(analytic, steps, noise / tolerance)  # (k,)
    values = torch.full((2, len(analytic), len(steps)), torch.nan, dtype=torch.float64)
    asked = torch.zeros(len(analytic), len(steps), dtype=torch.bool)
    found: list[Comparison] = [_blind(x) for x in analytic.tolist()]
    left = torch.arange(len(analytic))
    for reach in (0, 1, len(STEPS)):
        near = (torch.arange(len(steps)) - first[left, None]).abs() <= reach
        if reach > 1:
            near &= _telling(
                analytic[left], [found[i].numeric for i in left.tolist()], steps, noise
            )
        where, which = torch.nonzero(near & ~asked[left], as_tuple=True)
        if not len(where):
            break
        places, h = left[where], steps[which]
        new = sample(torch.cat([places, places]), torch.cat([h, -h])).view(2, -1)
        values[:, places, which], asked[places, which] = new, True
        plus, minus = values[0, left], values[1, left]
        mine = replace(accuracy, tolerance=tolerance[left])
        fresh = compare(analytic[left], steps, plus, minus, centre, mine)
        for place, comparison in zip(left.tolist(), fresh, strict=True):
            found[place] = comparison
        left = torch.tensor(
            [i for i in left.tolist() if not _settled(found[i], float(tolerance[i]))]
        )
        if not len(left):
            break
    return found


def _settled(c: Comparison, tolerance: float) -> bool:
    flat = c.verdict == "vacuous" and c.kink <= c.floor * tolerance
    return flat or c.verdict == "pass" or (c.verdict == "fail" and c.numeric != 0)


def _telling(analytic: Tensor, numeric: list[float], steps: Tensor, noise: float) -> Tensor:
    """Pick the steps whose rounding does not drown what is there: no other can tell (k, s)."""
    n = torch.tensor(numeric, dtype=torch.float64).nan_to_num(torch.inf)
    return 20 * noise / steps <= (analytic.abs() + n.abs())[:, None]


def _first_step(analytic: Tensor, steps: Tensor, need: Tensor) -> Tensor:
    """Choose where to begin: the smallest step whose rounding is far below the tolerance (k,).

    A claim too small for any step to certify, as of zero, is looked at from 0.01 of the size.
    """
    h = need / analytic.abs()
    enough = (steps >= 10 * h[:, None]).sum(1) - 1
    return torch.where(steps[0] >= h, enough.clamp_min(0), 1)
