"""Step laws on quadratics: roots, thresholds and criteria against whole iteration matrices."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rng, symmetric
from torch import Tensor

from curvcli.dynamics.law import Law

MU, BETA = 0.9, 0.9
LAWS: dict[str, tuple[Law, float]] = {
    "gradient descent": (Law(0.1), 2 / 0.1),
    "heavy ball": (Law(0.1, 0, 1, MU), 2 * (1 + MU) / 0.1),
    "dampened": (Law(0.1, 0, 0.25, MU), 2 * (1 + MU) / (0.1 * 0.25)),
    "nesterov": (Law(0.1, 1, MU, MU), 2 * (1 + MU) / (0.1 * (1 + 2 * MU))),
    "adam": (Law(0.1, 0, 1 - BETA, BETA), 38 / 0.1),
}


def iteration(laws: list[Law], A: Tensor) -> Tensor:
    """Write one step of (x, m) as a matrix (2n, 2n), with a law for every coordinate.

    In the symmetric coordinates: the rates stand in A already.
    """
    n = len(laws)
    one = torch.eye(n, dtype=torch.float64)
    alpha, beta, b, w = (
        torch.diag(torch.tensor([getattr(law, key) for law in laws], dtype=torch.float64))
        for key in ("alpha", "beta", "momentum", "decay")
    )
    return torch.cat(
        [torch.cat([one - w - (alpha + beta) @ A, -beta @ b], 1), torch.cat([A, b], 1)]
    )


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


@pytest.mark.parametrize("name", LAWS)
def test_the_textbook_threshold(name: str) -> None:
    law, threshold = LAWS[name]
    assert 2 / law.scale == pytest.approx(threshold, rel=1e-12)
    written = re.sub(r"(?<=\d) (?=\()", " * ", law.formula.replace("x", "*"))
    assert eval(written) == pytest.approx(threshold, rel=1e-5)
    for share, stable in ((0.99, True), (1.01, False), (-0.01, False)):
        mode = law.mode(share * threshold * law.scale)
        assert (mode.radius < 1) is stable
        A = torch.tensor([[law.rate * share * threshold]], dtype=torch.float64)
        assert mode.radius == pytest.approx(radius(iteration([law], A)), rel=1e-9)


laws = st.builds(
    Law,
    rate=st.floats(1e-3, 10),
    alpha=st.floats(0, 2),
    beta=st.floats(0.1, 2),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.9),
)


@settings(max_examples=200, deadline=None)
@given(law=laws, lead=st.floats(-5, 5))
def test_the_roots_are_those_of_the_companion_matrix(law: Law, lead: float) -> None:
    pull = (lead - law.decay) / law.gain
    matrix = iteration([law], torch.tensor([[pull]], dtype=torch.float64))
    # Near a double root, the eigenvalues of a matrix are good to half of the digits.
    assert law.mode(lead).radius == pytest.approx(radius(matrix), rel=1e-6, abs=1e-7)
    first, second = law.mode(lead).roots
    assert abs(first) >= abs(second) - 1e-12
    assert abs(first + second - matrix.trace()) < 1e-9 * (1 + abs(first))
    assert abs(first * second - torch.linalg.det(matrix)) < 1e-9 * (1 + abs(first)) ** 2


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("share", [0.999, 1.001])
def test_a_law_for_every_coordinate(seed: int, share: float) -> None:
    """The criterion of the whole matrix is exact where laws differ and nothing commutes."""
    g = rng(seed)
    n = 5
    drawn = torch.rand(n, 5, generator=g, dtype=torch.float64).tolist()
    mixed = [Law(1.0, a, 0.1 + b, 0.98 * m, 0.3 * w) for a, b, m, w, _ in drawn]
    values = torch.rand(n, generator=g, dtype=torch.float64).tolist()
    H = symmetric(values, seed)
    rate = torch.tensor([0.1 + row[4] for row in drawn], dtype=torch.float64).sqrt()
    A = rate[:, None] * H * rate
    gain = torch.tensor([law.gain for law in mixed], dtype=torch.float64).sqrt()
    decay = torch.diag(torch.tensor([law.decay for law in mixed], dtype=torch.float64))
    # lambda_max(gain (s A) gain + decay) = 2 share, solved for s by bisection.
    low, high = 0.0, 1e6
    for _ in range(200):
        s = (low + high) / 2
        top = float(torch.linalg.eigvalsh(gain[:, None] * (s * A) * gain + decay)[-1])
        low, high = (s, high) if top < 2 * share else (low, s)
    assert (radius(iteration(mixed, low * A)) < 1) is (share < 1)


@pytest.mark.parametrize("seed", range(10))
def test_decay_holds_against_negative_curvature(seed: int) -> None:
    """Growth begins where rate G(1) lambda + decay turns negative, monotonely."""
    g = torch.rand(4, generator=rng(seed), dtype=torch.float64).tolist()
    law = Law(0.1 + g[0], g[1], 0.1, 0.9 * g[2], 0.01 + 0.1 * g[3])
    still = law.alpha + law.beta / (1 - law.momentum)  # G(1)
    for share, stable in ((0.99, True), (1.01, False)):
        curvature = -share * law.decay / still  # times the rate
        mode = law.mode(curvature * law.gain + law.decay)
        assert (mode.radius < 1) is stable
        assert mode.kind.startswith("monotone")


def test_motions() -> None:
    law = Law(1.0)
    assert law.mode(0.5).kind == "monotone"
    assert law.mode(1.5).kind == "alternating"
    assert law.mode(2.5).kind == "alternating, growing"
    assert law.mode(-0.5).kind == "monotone, growing"
    assert law.mode(0.5).steps == pytest.approx(1 / math.log(2))
    assert law.mode(-0.5).steps == pytest.approx(-1 / math.log(1.5))
    assert law.mode(1.0).steps is None  # gone after one step
    assert law.mode(0.0).steps is None  # stays
    ball = Law(1.0, 0, 1, 0.25)
    mode = ball.mode(0.5 * ball.gain)
    assert mode.radius == pytest.approx(0.5)
    # z^2 - 0.75 z + 0.25 has the angle acos(0.75).
    assert mode.kind == f"oscillating, period {2 * math.pi / math.acos(0.75):.3g}"
