"""`stability`: what it says is held against training, and against dense spectra."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import curv, project, refused
from oracles import dense_hessian, rng
from questions import ask, classify, inputs, interrupted_at, mlp
from torch import Tensor, nn
from torch.nn import functional
from zoo import unchecked

import curvcli
from curvcli.analyses.stability import Stability
from curvcli.batches import Batch
from curvcli.errors import CurvError
from curvcli.load.assemble import assemble
from curvcli.load.loss import as_loss
from curvcli.load.optimizer import resolve
from curvcli.optimizer import SavedOptimizer
from curvcli.problem import Problem
from curvcli.spec import Run, load
from curvcli.updates import optimizer_of


def regression(seed: int = 0) -> Problem:
    """Pose a quadratic: linear regression with an input of every size."""
    g = rng(seed)
    x = torch.randn(12, 4, generator=g, dtype=torch.float64) * torch.tensor([0.3, 0.6, 1.0, 2.0])
    y = torch.randn(12, 2, generator=g, dtype=torch.float64)
    torch.manual_seed(seed)
    return Problem.of(nn.Linear(4, 2).double(), as_loss(functional.mse_loss), [Batch(x, y, 12)])


def optimized(
    problem: Problem, kind: str, steps: int = 1, **options: Any
) -> tuple[Problem, torch.optim.Optimizer]:
    """Step on the problem's own gradient and back, and give the optimizer to it."""
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    optimizer = make(list(problem.model.parameters()), **options)
    before = [p.detach().clone() for p in problem.model.parameters()]
    for _ in range(steps):
        descend(problem, optimizer)
    for p, value in zip(problem.model.parameters(), before, strict=True):
        p.data.copy_(value)
    settle(optimizer)
    saved = resolve(optimizer.state_dict(), problem.model, {"class": kind})
    return replace(problem, optimizer=lambda: saved), optimizer


def descend(problem: Problem, optimizer: torch.optim.Optimizer) -> None:
    gradient = problem.layout.named(problem.gradient())
    for name, p in problem.params.items():
        p.grad = gradient[name]
    optimizer.step()


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Give adaptive methods a large second moment that the steps to come do not change."""
    for p, state in optimizer.state.items():
        for key in ("exp_avg_sq", "square_avg"):
            if key in state:
                state[key] = 1e9 * (0.5 + torch.rand(p.shape, generator=rng(3)).double())
                state["step"] = torch.tensor(1e12)
        if "square_avg" in state and "momentum_buffer" in state:
            state["momentum_buffer"] *= 0  # it was made with another preconditioner


STEADY = {"betas": (0.9, 1 - 1e-12)}
QUADRATIC: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.3}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {**STEADY, "weight_decay": 0.3}),
    ("AdamW", {**STEADY, "weight_decay": 1e-6}),
    ("RMSprop", {"alpha": 1 - 1e-12, "momentum": 0.8}),
]


@pytest.mark.parametrize(("kind", "options"), QUADRATIC, ids=str)
@pytest.mark.parametrize("share", [0.99, 1.01])
def test_training_diverges_above_the_largest_stable_learning_rate(
    kind: str, options: dict[str, Any], share: float
) -> None:
    problem, _ = optimized(regression(), kind, lr=1e-3, **options)
    result = ask(Stability(top=1, tolerance=1e-4), problem)
    rate = share * result.metrics["lr_max"].value
    problem, optimizer = optimized(regression(), kind, lr=rate, **options)
    said = ask(Stability(top=1, tolerance=1e-4, edge=0), problem)
    assert said.metrics["ratio"].value == pytest.approx(share, rel=1e-3)
    assert said.status == ("pass" if share < 1 else "warn")
    # What grows fast is not left to grow until it changes the second moment.
    window = (20, 50) if said.rows[0]["radius"] > 1.1 else (100, 600)
    sizes = []
    for step in range(window[1] + 1):
        before = problem.vector()
        descend(problem, optimizer)
        if step in window:
            sizes.append(float((problem.vector() - before).norm()))
    growth = (sizes[1] / sizes[0]) ** (1 / (window[1] - window[0]))
    assert (growth < 1) is (share < 1)
    if share > 1:
        assert growth == pytest.approx(said.rows[0]["radius"], rel=5e-3)


@pytest.mark.parametrize(
    ("share", "verdict", "status"),
    [(0.5, "stable", "pass"), (0.95, "at the edge", "warn"), (1.05, "at the edge", "warn"),
     (1.5, "beyond", "warn")],
)  # fmt: skip
def test_verdicts(share: float, verdict: str, status: str) -> None:
    top = float(torch.linalg.eigvalsh(dense_hessian(regression()))[-1])
    problem, _ = optimized(regression(), "SGD", lr=share * 2 / top)
    result = ask(Stability(), problem)
    assert result.headline.startswith(verdict)
    assert result.status == status
    assert result.metrics["threshold"].value == pytest.approx(top / share)
    assert result.metrics["margin"].value == pytest.approx(1 - share, abs=1e-3)
    assert result.metrics["lr_max"].value == pytest.approx(2 / top, rel=1e-3)


@pytest.mark.parametrize(("at_most", "status"), [(0.5, "fail"), (0.9, "pass"), (0.8, "undecided")])
def test_a_limit(at_most: float, status: str) -> None:
    top = float(torch.linalg.eigvalsh(dense_hessian(regression()))[-1])
    problem, _ = optimized(regression(), "SGD", lr=0.8 * 2 / top)
    if status == "undecided":  # within the interval, whatever rounding makes of it
        at_most = float(ask(Stability(), problem).metrics["ratio"].value)
    assert ask(Stability(at_most=at_most), problem).status == status


@pytest.mark.parametrize(
    "name", ["mlp", "convolution, eval", "fused attention", "frozen and unused"]
)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_the_modes_are_those_of_the_dense_matrix(name: str, kind: str) -> None:
    problem = unchecked(name)
    trainable = [p for p in problem.model.parameters() if p.requires_grad]
    groups = [{"params": trainable[:1], "lr": 0.02, "weight_decay": 0.1}, {"params": trainable[1:]}]
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    options = {"momentum": 0.9} if kind == "SGD" else {"eps": 1e-3}
    optimizer = make(groups, lr=0.01, weight_decay=0.0, **options)
    for _ in range(3):
        descend(problem, optimizer)
    listed = [list(problem.names[:1]), list(problem.names[1:])]
    saved = resolve(optimizer.state_dict(), problem.model, {"class": kind, "groups": listed})
    problem = replace(problem, optimizer=lambda: saved)
    theta = torch.linalg.eigvalsh(by_hand(problem)).flip(0)
    result = ask(Stability(tolerance=1e-3), problem)
    assert result.metrics["threshold"].value == pytest.approx(THRESHOLD[kind], rel=1e-3)
    sharpest = [r for r in result.rows if r["end"] == "sharpest"]
    for row, value in zip(sharpest, theta.tolist(), strict=False):
        assert row["low"] - 1e-9 <= value <= row["high"] + 1e-9
    (least,) = [r for r in result.rows if r["end"] == "smallest"]
    assert float((theta - least["eigenvalue"]).abs().min()) <= least["error"] + 1e-9
    assert "lr_factor" in result.metrics
    assert any("differ from tensor to tensor" in n for n in result.notes)


# Of the group with the larger rate: after three steps, Adam's is 0.02 / (1 - 0.9^3).
THRESHOLD = {"SGD": 2 * 1.9 / 0.02, "Adam": 38 * 0.271 / 0.02, "AdamW": 38 * 0.271 / 0.02}


def by_hand(problem: Problem) -> Tensor:
    """Put P^-1/2 (H + decay) P^-1/2 together, in units of the larger learning rate."""
    saved = problem.optimizer()
    assert saved is not None
    moved = [n for n in problem.names if saved.kind == "SGD" or n in saved.state]
    D, extra, plain = [], [], []
    for name in moved:
        (group,) = [g.options for g in saved.groups if name in g.names]
        state, shape = saved.state.get(name, {}), problem.params[name].shape
        P = torch.ones(shape, dtype=torch.float64)
        if saved.kind != "SGD":
            P = (state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-3
        D.append((group["lr"] / 0.02 / P).flatten())
        decay = torch.full_like(D[-1], group["weight_decay"])
        apart = saved.kind == "AdamW"
        extra.append(19 * 0.271 * group["lr"] / 0.02 * decay if apart else 0 * decay)
        plain.append(0 * decay if apart else decay)
    half = torch.cat(D).sqrt()
    part = replace(problem, names=tuple(moved))
    H = dense_hessian(part) + torch.diag(torch.cat(plain))
    return half[:, None] * H * half + torch.diag(torch.cat(extra))


def test_negative_curvature_is_told_and_not_judged() -> None:
    problem, _ = optimized(classify(mlp(6, 8, 3), inputs(40, 6)), "SGD", lr=1e-3)
    theta = torch.linalg.eigvalsh(dense_hessian(problem.to(torch.float64)))
    assert float(theta[0]) < -1e-3
    result = ask(Stability(), problem)
    row = result.rows[-1]
    assert (row["end"], row["kind"]) == ("smallest", "monotone, growing")
    assert row["radius"] == pytest.approx(1 - 1e-3 * row["eigenvalue"])
    assert float((theta - row["eigenvalue"]).abs().min()) <= row["error"] + 1e-6
    assert any("a step off grows by e in" in n for n in result.notes)
    assert result.status == "pass"


def test_a_learning_rate_of_zero() -> None:
    problem, _ = optimized(regression(), "SGD", lr=0.0, momentum=0.9)
    result = ask(Stability(at_most=0.5), problem)
    assert result.status == "pass"
    assert result.headline == "the learning rate is zero, so nothing moves"
    assert "threshold" not in result.metrics
    assert {row["steps"] for row in result.rows} == {None}
    assert not any(note.startswith("threshold") for note in result.notes)


def test_too_few_products() -> None:
    start = classify(mlp(6, 8, 3), inputs(40, 6))
    for rate, status in ((1e-3, "undecided"), (1e3, "warn")):
        problem, _ = optimized(start, "SGD", steps=0, lr=rate)
        result = ask(Stability(tolerance=1e-6, max_matvecs=5), problem)
        assert result.status == status  # being beyond needs one eigenvalue there, and no more


def test_ctrl_c_leaves_a_marked_partial_answer() -> None:
    problem, _ = optimized(classify(mlp(6, 8, 3), inputs(40, 6)), "SGD", lr=0.1)
    result = ask(Stability(), problem, announce=interrupted_at(3))
    assert result.interrupted
    assert result.rows


def test_the_sampling_error_is_that_of_the_preconditioned_quotient() -> None:
    """With a P of one number everywhere, it is that of the Hessian over this number."""
    found = []
    for size in (1.0, 100.0):
        problem, optimizer = optimized(regression(), "Adam", lr=1e-3, eps=0.0)
        for state in optimizer.state.values():
            state["exp_avg_sq"] = torch.full_like(state["exp_avg_sq"], size)
        saved = resolve(optimizer.state_dict(), problem.model, {"class": "Adam"})
        result = ask(Stability(top=1), replace(problem, optimizer=partial(_same, saved)))
        found.append(result.rows[0])
    assert found[0]["sampling"] > 0
    assert found[0]["sampling"] == pytest.approx(10 * found[1]["sampling"], rel=1e-3)
    assert found[0]["eigenvalue"] == pytest.approx(10 * found[1]["eigenvalue"], rel=1e-3)


def _same(saved: SavedOptimizer) -> SavedOptimizer:
    return saved


def test_caveats() -> None:
    problem, _ = optimized(unchecked("frozen and unused"), "AdamW", lr=0.1, weight_decay=0.5)
    settled = problem.optimizer()
    assert settled is not None
    for state in settled.state.values():
        state["step"] = torch.tensor(3.0)
    problem = replace(problem, training={"grad_clip": 0.5, "accumulate": 2})
    notes = " / ".join(ask(Stability(), problem).notes)
    for said in (
        "no measure of this optimizer",
        "grad_clip 0.5 bounds a step",
        "decoupled weight decay takes 0.05",
        "after 3 steps the bias correction",
        "over 7 examples",
    ):
        assert said in notes, notes
    some = replace(problem, names=("last.weight",))
    assert any("2 more tensors" in n for n in ask(Stability(), some).notes)


def test_what_the_optimizer_does_not_move_is_left_out() -> None:
    problem = unchecked("mlp")
    part = replace(problem, names=("2.weight", "2.bias"))
    found, _ = optimized_part(part)
    result = ask(Stability(tolerance=1e-4), replace(problem, optimizer=found.optimizer))
    top = float(torch.linalg.eigvalsh(dense_hessian(part))[-1])
    assert result.metrics["sharpness"].value == pytest.approx(top, rel=1e-3)
    assert any("left out: 0.weight, 0.bias" in n for n in result.notes)
    alone = replace(problem, names=("0.weight",), optimizer=found.optimizer)
    with pytest.raises(CurvError, match="moves none of the parameters"):
        ask(Stability(), alone)


def optimized_part(part: Problem) -> tuple[Problem, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(list(part.params.values()), lr=0.1)
    saved = resolve(optimizer.state_dict(), part.model, {"groups": [list(part.names)]})
    return replace(part, optimizer=lambda: saved), optimizer


def test_a_basis_that_does_not_fit_is_refused() -> None:
    problem, _ = optimized(regression(), "SGD", lr=0.1)
    with pytest.raises(CurvError) as failed:
        ask(Stability(), problem, memory=100.0)
    assert failed.value.code == "E_MEMORY"


def test_without_an_optimizer() -> None:
    with pytest.raises(CurvError, match="class: SGD"):
        ask(Stability(), regression())
    batches = [(torch.ones(2, 4), torch.zeros(2, 2))]
    with pytest.raises(CurvError, match="no optimizer state"):
        curvcli.stability(nn.Linear(4, 2), functional.mse_loss, batches)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, optimizer={"class": "SGD", "lr": 0.1, "momentum": 0.9}))
    done = curv("stability", "--top", "1")
    assert done.code == 0
    assert re.search(r"stable: sharpness .* of the threshold 38\b", done.out)
    assert curv("stability", "--at-most", "1e-6").code == 1
    project(tmp_path, optimizer={"class": "Muon", "lr": 0.1})
    refused(curv("stability"), "E_OPTIMIZER", 2, "Muon", "curv ratio")


@pytest.mark.parametrize(
    ("name", "factor"),
    [("digits_cnn", 1.0), ("digits_cnn", 0.5), ("modular_transformer", 3.5)],
)
def test_what_is_said_of_a_sample_comes_true(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go on training on all of the data: the loss explodes beyond the threshold alone."""
    monkeypatch.chdir(SAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    problem = assemble(load(Path(f"{name}.yaml")), Path(f"{name}.pt"), Run(), None, 400).problem
    saved = optimizer_of(problem)
    for group in saved.groups:
        group.options["lr"] *= factor
    verdict = ask(Stability(top=1), replace(problem, optimizer=partial(_same, saved)))
    before = problem.measure.loss
    optimizer = saved.rebuild(problem.params)
    for _ in range(6):
        descend(problem, optimizer)
    after = replace(problem).measure.loss
    if verdict.headline.startswith("beyond"):
        assert after > 10 * before
    else:
        assert verdict.headline.startswith("stable")
        assert after < before


SAMPLES = Path(__file__).parents[2] / "sample_models"


def test_the_model_is_left_as_it_was() -> None:
    problem, _ = optimized(unchecked("convolution, eval"), "AdamW", lr=0.1)
    model = problem.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    ask(Stability(), problem)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(a is p.grad for a, p in zip(grads, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("most", [2, 4])
def test_a_search_that_does_not_end_gives_a_lower_bound(most: int) -> None:
    p = classify(mlp(6, 20, 3).double(), inputs(40, 6).double())
    p, _ = optimized(p, "SGD", lr=0.1)
    top = float(torch.linalg.eigvalsh(dense_hessian(p))[-1])
    result = ask(Stability(top=1, max_matvecs=most), p)
    assert result.status == "undecided"
    sharpness = result.metrics["sharpness"]
    assert (sharpness.title, sharpness.error) == ("sharpness, at least", None)
    assert 0 < float(sharpness.value) <= top * (1 + 1e-12)
    assert not {"margin", "lr_max"} & result.metrics.keys()
    assert result.headline.startswith("undecided: sharpness at least")


def test_a_state_that_is_no_number_is_undecided() -> None:
    p = classify(mlp(6, 5, 3).double(), inputs(20, 6).double())
    p, optimizer = optimized(p, "SGD", lr=0.1, momentum=0.9)
    bias = p.model.get_parameter("2.bias")
    optimizer.state[bias]["momentum_buffer"][0] = torch.nan
    saved = resolve(optimizer.state_dict(), p.model, {})
    result = ask(Stability(top=1), replace(p, optimizer=lambda: saved))
    (check,) = [c for c in result.checks if c.name == "optimizer state"]
    assert (check.status, check.message) == ("undecided", "no numbers in momentum_buffer of 2.bias")


def test_a_sum_over_micro_batches_is_told() -> None:
    p = classify(mlp(6, 5, 3).double(), inputs(20, 6).double())
    p, _ = optimized(p, "SGD", lr=0.1)
    once = ask(Stability(top=1), p)
    four = ask(Stability(top=1), replace(p, training={"accumulate": 4}))
    ratio = [float(r.metrics["sharpness"].value) for r in (once, four)]
    assert ratio[1] == pytest.approx(4 * ratio[0], rel=1e-2)
    assert any("sum over 4 micro-batches" in n for n in four.notes)
    assert not any("micro-batches" in n for n in once.notes)
