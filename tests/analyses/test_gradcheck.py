"""`gradcheck`: no planted bug passes, no right gradient fails, and the evidence is true."""

import pytest
import torch
from faults import BUGS, RIGHT, Checkpointed, Overwriting, Spoiled, around
from questions import ask, classify, inputs, mlp
from torch import Tensor, nn

from curvcli.analyses.gradcheck import Gradcheck
from curvcli.errors import CurvError
from curvcli.report import Result

FEW = Gradcheck(samples=12)


def verdicts(result: Result) -> dict[str, str]:
    return {str(r["tensor"]): str(r["verdict"]) for r in result.rows}


def test_float32_never_fails_a_right_gradient_and_certifies_little() -> None:
    loose = Gradcheck(samples=12, dtype="float32", tolerance=1e-2)
    for seed in range(3):
        torch.manual_seed(seed)
        result = ask(loose, around(nn.Tanh(), seed), seed)
        assert "fail" not in verdicts(result).values()
    strict = Gradcheck(samples=12, dtype="float32", tolerance=1e-7)
    result = ask(strict, around(nn.Tanh(), 0))
    assert "pass" not in verdicts(result).values()
    assert result.status == "undecided"


def test_reentrant_checkpointing_loses_gradients_and_is_caught() -> None:
    # Its input does not require a gradient, so autograd silently gives none to the inner layer.
    model = nn.Sequential(Checkpointed(reentrant=True), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match="None of the inputs"):
        result = ask(FEW, classify(model, inputs(20, 6)))
    assert verdicts(result)["0.inner.0.weight"] == "fail"


def test_the_joint_backward_is_what_is_checked() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Overwriting(), nn.Linear(6, 3))
    result = ask(FEW, classify(model, inputs(20, 6)))
    assert result.status == "fail"


@pytest.mark.parametrize("name", ["tanh", "a factor 2"])
def test_a_verdict_does_not_depend_on_batching(name: str) -> None:
    made = BUGS[name].make() if name in BUGS else RIGHT[name].make()
    result = ask(FEW, around(made, 0))
    looped = [n for n in result.notes if "one by one" in n]
    assert bool(looped) == (name in BUGS)  # vmap refuses a custom Function of the old style


def test_unused_and_dead_tensors_are_vacuous_and_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.spare = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out

    result = ask(FEW, classify(Unused(), inputs(20, 6)))
    assert verdicts(result)["spare.weight"] == "vacuous"
    assert any("no gradient reaches: spare.weight, spare.bias" in n for n in result.notes)
    assert result.status == "warn"


def test_nothing_to_check_is_undecided() -> None:
    model = nn.Linear(6, 3)
    p = classify(model, inputs(20, 6), loss=lambda out, y: (out * 0.0).sum())
    result = ask(FEW, p)
    assert set(verdicts(result).values()) == {"vacuous"}
    assert result.status == "undecided"


def test_randomness_is_told_apart_from_a_wrong_gradient() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(CurvError) as refused:
        ask(FEW, around(Noisy(), 0))
    assert refused.value.code == "E_NONDET"


def test_samples_are_few_seeded_and_said() -> None:
    p = classify(mlp(6, 5, 3), inputs(50, 6))
    first, again = (ask(Gradcheck(samples=8), p, seed=3) for _ in range(2))
    assert first.rows == again.rows
    assert first.rows != ask(Gradcheck(samples=8), p, seed=4).rows
    assert any(n.startswith("8 of 50 examples") for n in first.notes)


def test_the_worst_entry_of_a_wrong_tensor_is_named() -> None:
    torch.manual_seed(0)
    # No entry is sampled: the directions see that it is wrong, bisection sees where.
    result = ask(
        Gradcheck(samples=20, entries=0), classify(Spoiled(3, (1, 4), 40.0), inputs(20, 6))
    )
    row = result.rows[0]
    assert row["verdict"] == "fail"
    assert row["at"] == "[1, 4]"


@pytest.mark.parametrize(
    ("relative", "name"), [(1e-8, "good"), (1e-5, "fine"), (1e-3, "doubtful"), (0.1, "wrong")]
)
def test_grades_are_the_bands_of_the_notes(relative: float, name: str) -> None:
    from curvcli.gradients.reading import grade as found

    assert found(relative) == name
