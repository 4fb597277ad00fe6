"""Verdicts on claimed derivatives: never a false failure, never a wrong one passed."""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from curvcli.linalg.differences import STEPS, Accuracy, Comparison
from curvcli.linalg.differences import compare as compare_all
from curvcli.linalg.differences import judge as judge_all

EPS = torch.finfo(torch.float64).eps
Function = Callable[[float], float]


def compare(
    claim: float,
    h: torch.Tensor,
    plus: torch.Tensor,
    minus: torch.Tensor,
    centre: float,
    tolerance: float,
    eps: float,
) -> Comparison:
    claims = torch.tensor([claim], dtype=torch.float64)
    accuracy = Accuracy(tolerance, eps)
    return compare_all(claims, h, plus[None], minus[None], centre, accuracy)[0]


def judge(
    f: Function, x: float, claim: float, tolerance: float = 1e-4, eps: float = EPS
) -> Comparison:
    h = torch.tensor(STEPS, dtype=torch.float64) * (abs(x) or 1.0)
    plus = torch.tensor([f(x + t) for t in h.tolist()], dtype=torch.float64)
    minus = torch.tensor([f(x - t) for t in h.tolist()], dtype=torch.float64)
    return compare(claim, h, plus, minus, f(x), tolerance, eps)


class Known(NamedTuple):
    f: Function
    slope: Function


SMOOTH = {
    "sine": Known(math.sin, math.cos),
    "exponential": Known(math.exp, math.exp),
    "cubic": Known(lambda x: x**3 - x, lambda x: 3 * x * x - 1),
    "softplus": Known(lambda x: math.log1p(math.exp(x)), lambda x: 1 / (1 + math.exp(-x))),
    "linear": Known(lambda x: 3 * x + 1, lambda x: 3.0),
    "fast": Known(lambda x: math.sin(30 * x), lambda x: 30 * math.cos(30 * x)),
}


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(name: str, scale: float) -> None:
    f, slope = SMOOTH[name]
    for x in (-1.3, 0.4, 2.0):
        right = scale * slope(x)
        found = judge(lambda t: scale * f(t), x, right)
        assert found.verdict == "pass"
        assert found.relative <= 1e-4
        assert abs(found.numeric - right) <= 1e-4 * abs(right)
        for factor in (1.01, 0.99, 0.0, -1.0, 2.0, 1e6):
            wrong = judge(lambda t: scale * f(t), x, right * factor)
            assert wrong.verdict == "fail"
            assert wrong.relative > 1e-4


def test_the_numeric_value_comes_with_its_error() -> None:
    for name, (f, slope) in SMOOTH.items():
        found = judge(f, 0.4, 1.01 * slope(0.4))
        assert abs(found.numeric - slope(0.4)) <= found.error, name
        assert found.error < 1e-6 * abs(slope(0.4)), name


@pytest.mark.parametrize("at", [1e-9, 3e-7, 1e-5, 2e-3, 0.05, 0.3, 5.0])
@pytest.mark.parametrize("side", [1, -1])
def test_a_kink_nearby_never_fails_a_right_claim(at: float, side: int) -> None:
    def f(t: float) -> float:
        return abs(t - 1.0 - side * at) + 0.5 * t

    found = judge(f, 1.0, 0.5 - side)
    assert found.verdict == ("pass" if at > 1e-7 else "unresolved")
    # Two steps that stay on this side of the kink are needed to blame anybody.
    assert judge(f, 1.0, 0.5 + side).verdict == ("fail" if at > 1e-6 else "unresolved")


def test_on_a_kink_no_claim_fails() -> None:
    for claim in (-1.0, 0.3, 1.0):  # any of them is a subgradient
        found = judge(abs, 0.0, claim)
        assert found.verdict == "unresolved"
        assert found.kink == pytest.approx(2.0)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e12, 1e-12])
def test_constants(value: float) -> None:
    found = judge(lambda t: value, 1.0, 0.0)
    assert found.verdict == "vacuous"
    assert found.relative == 0.0
    # Of zeros alone nobody knows what they are rounded to.
    expected = "fail" if value else "unresolved"
    assert judge(lambda t: value, 1.0, max(abs(value), 1.0)).verdict == expected


def test_a_claim_of_zero_where_there_is_a_slope() -> None:
    found = judge(lambda t: 3 * t, 1.0, 0.0)
    assert found.verdict == "fail"
    assert found.relative == 1.0
    assert found.numeric == pytest.approx(3.0)


def test_a_slope_below_the_floor_is_unresolved() -> None:
    def f(t: float) -> float:
        return 1e9 + 1e-4 * t

    found = judge(f, 1.0, 1e-4)
    assert found.verdict == "unresolved"
    assert found.floor > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_unresolved(seed: int) -> None:
    source = random.Random(seed)

    def noisy(t: float) -> float:
        return math.sin(t) * (1 + source.uniform(-1, 1) * 1e-3)

    assert judge(noisy, 1.0, math.cos(1.0)).verdict == "unresolved"
    # Told how coarse the values are, it does not decide on what it cannot see.
    assert judge(noisy, 1.0, 1.01 * math.cos(1.0), eps=1e-3).verdict == "unresolved"


def test_float32_evaluations() -> None:
    def f(t: float) -> float:
        return float(torch.tensor(1 + math.sin(t), dtype=torch.float32))

    eps = torch.finfo(torch.float32).eps
    assert judge(f, 1.0, math.cos(1.0), tolerance=1e-2, eps=eps).verdict == "pass"
    assert judge(f, 1.0, 2 * math.cos(1.0), tolerance=1e-2, eps=eps).verdict == "fail"
    assert judge(f, 1.0, math.cos(1.0), tolerance=1e-5, eps=eps).verdict == "unresolved"


def test_what_rounding_may_do_is_no_failure() -> None:
    # Rounding makes 5e-5 here: 5e-4 is more than the tolerance, and not beyond doubt.
    h = torch.tensor([2e-3, 1.8e-3], dtype=torch.float64)
    for off, verdict in ((5e-4, "unresolved"), (5e-3, "fail"), (5e-5, "pass")):
        move = (1 + off) * h
        assert compare(1.0, h, 1 + move, 1 - move, 1.0, 1e-4, 2.5e-8).verdict == verdict


def test_a_single_step() -> None:
    h = torch.tensor([1e-5], dtype=torch.float64)
    found = compare(2.0, h, 2 * (1 + h), 2 * (1 - h), 2.0, 1e-4, EPS)
    assert found.verdict == "pass"
    assert compare(3.0, h, 2 * (1 + h), 2 * (1 - h), 2.0, 1e-4, EPS).verdict == "unresolved"


def random_function(source: random.Random) -> Known:
    a, b = source.uniform(-3, 3), source.uniform(-3, 3)
    size, shift = 10 ** source.uniform(-8, 8), source.choice([0.0, 0.0, 1.0, 10.0])
    f, slope = source.choice([
        Known(lambda x: math.sin(a * x + b), lambda x: a * math.cos(a * x + b)),
        Known(lambda x: math.exp(a * x), lambda x: a * math.exp(a * x)),
        Known(lambda x: a * x**3 + b * x, lambda x: 3 * a * x * x + b),
        Known(lambda x: b * math.tanh(a * x), lambda x: a * b / math.cosh(a * x) ** 2),
        Known(lambda x: 1 / (1 + (a * x) ** 2), lambda x: -2 * a * a * x / (1 + (a * x) ** 2) ** 2),
        Known(lambda x: math.hypot(1, x) + a, lambda x: x / math.hypot(1, x)),
    ])  # fmt: skip
    return Known(lambda x: size * (f(x) + shift), lambda x: size * slope(x))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_sweep_of_random_functions(seed: int, tolerance: float) -> None:
    source = random.Random(seed)
    right, wrong = [], []
    for _ in range(500):
        f, slope = random_function(source)
        x = source.uniform(-3, 3)
        right.append(judge(f, x, slope(x), tolerance).verdict)
        wrong.append(judge(f, x, 0.99 * slope(x), tolerance).verdict)
    assert "fail" not in right
    assert "pass" not in wrong
    assert right.count("pass") >= 490
    assert wrong.count("fail") >= 460


@pytest.mark.parametrize("seed", range(3))
def test_asking_step_by_step_gives_the_verdict_of_all_steps(seed: int) -> None:
    source = random.Random(seed)
    functions = [random_function(source) for _ in range(40)]
    at = [source.uniform(-3, 3) for _ in functions]
    evaluations = 0

    def sample(places: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        nonlocal evaluations
        evaluations += len(places)
        pairs = zip(places.tolist(), steps.tolist(), strict=True)
        moved = [functions[i].f(at[i] + h) / functions[i].slope(at[i]) for i, h in pairs]
        return torch.tensor(moved, dtype=torch.float64)

    for i, (f, slope) in enumerate(functions):
        centre = f(at[i]) / slope(at[i])

        def one(places: torch.Tensor, steps: torch.Tensor, i: int = i) -> torch.Tensor:
            return sample(torch.full_like(places, i), steps)

        for claim, verdict in ((1.0, "pass"), (0.99, "fail"), (-1.0, "fail")):
            (found,) = judge_all(
                torch.tensor([claim], dtype=torch.float64), 1.0, centre, one, Accuracy(1e-4, EPS)
            )
            h = torch.tensor(STEPS, dtype=torch.float64)
            which = torch.full((len(h),), i)
            whole = compare(claim, h, sample(which, h), sample(which, -h), centre, 1e-4, EPS)
            assert found.verdict in (whole.verdict, "unresolved")
            assert found.verdict in (verdict, "unresolved")


def test_a_right_claim_takes_two_evaluations() -> None:
    asked: list[float] = []

    def sample(places: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        asked.extend(steps.tolist())
        return torch.sin(0.4 + steps)

    claim = torch.tensor([math.cos(0.4)], dtype=torch.float64)
    (found,) = judge_all(claim, 1.0, math.sin(0.4), sample, Accuracy(1e-5, EPS))
    assert found.verdict == "pass"
    assert len(asked) == 2


def test_curvature_does_not_excuse_a_wrong_claim_as_a_kink_does() -> None:
    # The one-sided differences are far apart at every step, in proportion to it.
    found = judge(lambda t: 1e-4 * t + t * t, 0.0, 1.1e-4, tolerance=1e-5)
    assert found.verdict == "fail"
    kinked = judge(lambda t: 1e-4 * t + abs(t), 0.0, 1.1e-4, tolerance=1e-5)
    assert kinked.verdict == "unresolved"


def test_each_place_has_its_own_tolerance() -> None:
    h = torch.tensor([1e-5, 1e-6], dtype=torch.float64)
    claims = torch.tensor([2.0002, 2.0002], dtype=torch.float64)
    plus, minus = (2 * (1 + h)).expand(2, 2), (2 * (1 - h)).expand(2, 2)
    found = compare_all(claims, h, plus, minus, 2.0, Accuracy(torch.tensor([1e-3, 1e-5]), EPS))
    assert [c.verdict for c in found] == ["pass", "fail"]
