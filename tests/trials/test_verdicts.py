"""Verdicts on losses that may be negative."""

import pytest

from curvcli.analyses import levels
from curvcli.trials.answers import Examined
from curvcli.trials.chance import Chance
from curvcli.trials.subset import Fitted

BELOW_ZERO = Chance(equal=-1.0, best=None, classes=None)


@pytest.mark.parametrize(
    ("level", "times", "moved"),
    [(2.0, 1.5, 3.0), (2.0, 0.75, 1.5), (-2.0, 1.5, -1.0), (-2.0, 0.75, -2.5), (0.0, 10.0, 0.0)],
)
def test_a_level_moves_by_its_own_size(level: float, times: float, moved: float) -> None:
    assert levels.scaled(level, times) == moved


@pytest.mark.parametrize(("loss", "verdict"), [(-1.0, "pass"), (-1.3, "warn"), (8.5, "warn")])
def test_fresh_weights_at_a_negative_chance(loss: float, verdict: str) -> None:
    assert levels.fresh_loss(loss, None, BELOW_ZERO).row.verdict == verdict


@pytest.mark.parametrize(
    ("loss", "verdict"), [(-2.0, "pass"), (-0.9, "not below chance"), (9.0, "warn")]
)
def test_a_loss_against_a_negative_chance(loss: float, verdict: str) -> None:
    found = Examined(loss, None, 0, 0, [])
    assert levels.loss(found, BELOW_ZERO).row.verdict == verdict


def test_a_subset_without_a_known_goal_is_not_judged() -> None:
    found = Fitted(-0.5, -0.5, chance=-1.0, floor=0.0, rate=0.01, steps=0, examples=20)
    assert levels.subset(found, 0.05, fresh=True).row.verdict == "not run"
