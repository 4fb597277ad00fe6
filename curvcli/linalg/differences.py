"""Numerical derivatives along directions, each with its own error, and the verdict on a claim.

The rule follows the CS231n notes on gradient checks (centred differences, relative error, float64,
kinks) and adds what decides: for every step the mismatch D, the rounding floor R = 4 eps |L| / h
and the kink gap K, how far the two one-sided differences are apart. Cost: 2 evaluations a step.
"""

from dataclasses import dataclass
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


def compare(
    analytic: float,
    steps: Tensor,
    plus: Tensor,
    minus: Tensor,
    centre: float,
    tolerance: float,
    eps: float,
) -> Comparison:
    """Judge a claimed derivative by values at +-h.

    steps, plus, minus: (s,) float64, steps descending and the function's values there; `centre`
    is its value at 0, `eps` the unit of rounding of the evaluations.
    """
    finite = plus.isfinite() & minus.isfinite()
    if not finite.any():
        nan = float("nan")
        return Comparison("unresolved", analytic, nan, nan, nan, nan, nan, nan)
    steps, plus, minus = steps[finite], plus[finite], minus[finite]
    n = (plus - minus) / (2 * steps)  # (s,)
    largest = max(abs(centre), float(plus.abs().max()), float(minus.abs().max()))
    R = 4 * eps * largest / steps
    K = (plus - 2 * centre + minus).abs() / steps
    D = (analytic - n).abs()
    M = n.abs().clamp_min(abs(analytic))
    error = _errors(n, R)
    certified = (tolerance * M >= R) & (M > 0)
    # A claim may meet one step by chance, where truncation makes up for what is wrong with it: a
    # neighbouring step must tell the same, or the two sides of this one.
    passes = certified & (tolerance * M >= D) & (3 * tolerance * M >= torch.minimum(error, K))
    blames = certified & (20 * R + 10 * K + tolerance * M < D)
    best = int((error + R).argmin())
    verdict: Verdict = "unresolved"
    if _consistent(n, D, blames):
        verdict = "fail"
    elif bool(passes.any()):
        verdict = "pass"
        # Of the steps that certify, the one that agrees best is the one to show.
        best = int(torch.where(passes, D / M, torch.inf).argmin())
    elif abs(analytic) <= float(R.min()) and bool((n.abs() <= R + K).any()):
        verdict = "vacuous"
    numeric = float(n[best])
    size = max(abs(analytic), abs(numeric))
    return Comparison(
        verdict=verdict,
        analytic=analytic,
        numeric=numeric,
        relative=abs(analytic - numeric) / size if size else 0.0,
        error=float(error[best] + R[best]),
        step=float(steps[best]),
        kink=float(K[best]),
        floor=float(R.min()) / tolerance,
    )


def _errors(n: Tensor, R: Tensor) -> Tensor:
    """Estimate each step's truncation: its distance to the nearer neighbour's value."""
    if len(n) == 1:
        return torch.full_like(n, torch.inf)
    gaps = (n[1:] - n[:-1]).abs()
    inf = torch.full_like(gaps[:1], torch.inf)
    return torch.minimum(torch.cat([inf, gaps]), torch.cat([gaps, inf]))


def _consistent(n: Tensor, D: Tensor, blames: Tensor) -> bool:
    """Decide whether two neighbouring steps agree with one another against the claim.

    Truncation alone makes steps disagree with one another as much as with a right claim.
    """
    both = blames[1:] & blames[:-1]
    return bool((both & ((n[1:] - n[:-1]).abs() <= 0.1 * torch.minimum(D[1:], D[:-1]))).any())
