"""`ratio`: norms of real updates over norms of tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import curv, imports, project, refused, small_model
from questions import ask, classify, inputs, mlp
from torch import nn

from curvcli.analyses.ratio import Ratio
from curvcli.errors import CurvError
from curvcli.load.optimizer import resolve
from curvcli.problem import Problem


def trained(
    kind: type[torch.optim.Optimizer], **options: object
) -> tuple[Problem, nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """Train three full-batch steps; give the problem, the optimizer, and the weights before."""
    model = mlp(6, 8, 3).double()
    optimizer = kind(model.parameters(), **options)  # type: ignore[arg-type]
    p = classify(model, inputs(20, 6).double())
    before: dict[str, torch.Tensor] = {}
    for _ in range(3):
        before = {n: t.detach().clone() for n, t in model.named_parameters()}
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    p = Problem(p.model, p.loss, p.batches, p.names, optimizer=lambda: saved)
    return p, model, optimizer, before


def step(p: Problem, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(p.share(p.batches[0]))
    optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.9}),
    ],
)
def test_last_and_next_ratio_are_those_of_the_trainer(
    kind: type[torch.optim.Optimizer], options: dict[str, object]
) -> None:
    p, model, optimizer, before = trained(kind, **options)
    rows = {str(r["tensor"]): r for r in ask(Ratio(), p).rows}
    now = {n: t.detach().clone() for n, t in model.named_parameters()}
    step(p, model, optimizer)
    for name, after in model.named_parameters():
        last = float((now[name] - before[name]).norm() / now[name].norm())
        following = float((after.detach() - now[name]).norm() / now[name].norm())
        assert rows[name]["last"] == pytest.approx(last, rel=1e-6)
        assert rows[name]["next"] == pytest.approx(following, rel=1e-12)


def test_plain_sgd_has_no_last_ratio_and_says_that_it_is_unverified() -> None:
    p, *_ = trained(torch.optim.SGD, lr=0.1)
    result = ask(Ratio(), p)
    assert all(r["last"] is None for r in result.rows)
    assert any("unverified" in n for n in result.notes)
    assert any("does not determine" in n for n in result.notes)


def test_a_large_learning_rate_is_warned_about() -> None:
    p, *_ = trained(torch.optim.SGD, lr=10.0, momentum=0.9)
    result = ask(Ratio(), p)
    assert result.status == "warn"
    assert any(c.name == "ratio high" for c in result.checks)


def test_without_an_optimizer_it_says_what_to_write() -> None:
    with pytest.raises(CurvError, match="optimizer: ") as refused:
        ask(Ratio(), classify(mlp(6, 8, 3), inputs(20, 6)))
    assert refused.value.code == "E_OPTIMIZER"


def test_the_model_is_left_as_it_was() -> None:
    p, model, *_ = trained(torch.optim.AdamW, lr=1e-2)
    weights = {n: t.detach().clone() for n, t in model.named_parameters()}
    grads = [t.grad for t in model.parameters()]
    ask(Ratio(), p)
    for n, t in model.named_parameters():
        assert torch.equal(t, weights[n])
    assert all(a is b for a, b in zip(grads, [t.grad for t in model.parameters()], strict=True))


def test_a_random_model_is_refused() -> None:
    p, model, *_ = trained(torch.optim.SGD, lr=0.1, momentum=0.9)
    noisy = nn.Sequential(*model.children(), nn.Dropout())
    p = Problem(noisy, p.loss, p.batches, p.names, mode="train", optimizer=p.optimizer)
    with pytest.raises(CurvError) as refused:
        ask(Ratio(), p)
    assert refused.value.code == "E_NONDET"


def test_groups_of_several_have_rows_of_their_own() -> None:
    model = mlp(6, 8, 3).double()
    decayed = [t for t in model.parameters() if t.ndim == 2]
    rest = [t for t in model.parameters() if t.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    p = classify(model, inputs(20, 6).double())
    for _ in range(3):
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    rows = ask(Ratio(), replace(p, optimizer=lambda: saved)).rows
    tensors = [r for r in rows if r["scope"] == "tensor"]
    assert [r["tensor"] for r in tensors] == list(p.names)
    assert [r["tensor"] for r in rows[4:]] == ["group 0: 2 tensors", "group 1: 2 tensors"]
    for row in rows[4:]:
        members = [r for r in tensors if r["group"] == row["group"]]
        for key in ("norm", "gradient", "last_update", "next_update"):
            whole = sum(float(r[key]) ** 2 for r in members) ** 0.5
            assert row[key] == pytest.approx(whole, rel=1e-12)
        assert row["last"] == pytest.approx(row["last_update"] / row["norm"])
    assert len(ask(Ratio(), trained(torch.optim.SGD, lr=0.1)[0]).rows) == 4  # a lone group has none


def test_the_effective_learning_rate_of_gradient_descent_is_its_own() -> None:
    p, *_ = trained(torch.optim.SGD, lr=0.125)
    for row in ask(Ratio(), p).rows:
        assert row["effective"] == pytest.approx(0.125, rel=1e-12)


def test_clipping_lowers_the_effective_learning_rate() -> None:
    p, *_ = trained(torch.optim.SGD, lr=0.125)
    norm = float(p.gradient().norm())
    result = ask(Ratio(), replace(p, training={"grad_clip": norm / 2, "accumulate": 2}))
    for row in result.rows:
        assert row["effective"] == pytest.approx(0.125 / 4, rel=1e-4)
    said = " / ".join(result.notes)
    assert "clipped by grad_clip" in said
    assert "sum over 2 micro-batches" in said


@pytest.mark.parametrize("missing", ["data", "loss"])
def test_without_data_the_last_update_is_told(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path, without=[missing, "optimizer"]))
    optimizer = saved_state(torch.optim.Adam, lr=1e-2)
    whole = curv("ratio", "--spec", full(tmp_path), "--format", "json", "-q").report
    found = curv("ratio", "--format", "json", "-q")
    assert found.code == 0
    result = found.report.results["ratio"]
    assert [r["last"] for r in result.rows] == [r["last"] for r in whole.results["ratio"].rows]
    assert all(r["next"] is None and r["last"] > 0 for r in result.rows)
    assert result.headline.startswith("the last step moved")
    assert any("needs data and loss" in n for n in result.notes)
    refused(curv("eig"), "E_SPEC", 2, f"there is no {missing}:", f"add {missing}: to the spec")
    refused(curv("gradcheck"), "E_SPEC", 2, f"there is no {missing}:")
    assert optimizer.state


def test_without_data_a_state_that_says_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path, without=["data", "optimizer"]))
    saved_state(torch.optim.SGD, lr=0.1)
    refused(curv("ratio"), "E_SPEC", 2, "SGD does not determine the last update", "add data:")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad])
def test_without_data_torch_compiles_nothing(
    kind: type[torch.optim.Optimizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path, without=["data", "loss", "optimizer"]))
    saved_state(kind, lr=1e-2)
    # A second's import, which torch makes when one of its optimizers is made or steps.
    asked = "from curvcli.__main__ import run; run(['ratio'])"
    assert imports(asked, "torch", "torch._dynamo") == {"torch"}


def test_a_state_before_the_first_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path, without=["optimizer"]))
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "model.pt")
    assert "no last ratio: there is no state of a step" in curv("ratio").out
    project(tmp_path, without=["data", "optimizer"])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "model.pt")
    refused(curv("ratio"), "E_SPEC", 2, "Adam has no saved state of a last update")


def test_an_optimizer_of_the_spec_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    assert "note: SGD as the spec says, before its first step" in curv("ratio").out


def test_bounds_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    refused(curv("ratio", "--low", "1", "--high", "0.1"), "E_USAGE", 2, "low is 1, which is not")


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    p, *_ = trained(torch.optim.Adam, lr=1e-2)
    model = p.model
    optimizer = torch.optim.Adam(model.get_submodule("2").parameters(), lr=1e-2)
    saved = resolve(optimizer.state_dict(), model, {"groups": [["2.*"]]})
    body = replace(p, names=("0.weight", "0.bias"), optimizer=lambda: saved)
    with pytest.raises(CurvError, match="Adam moves none of the parameters") as refused:
        ask(Ratio(), body)
    assert refused.value.code == "E_OPTIMIZER"


def test_an_undetermined_last_update_is_unknown() -> None:
    p, model, optimizer, _ = trained(torch.optim.Adam, lr=1e-2)
    del optimizer.state[model.get_submodule("2").get_parameter("bias")]
    saved = resolve(optimizer.state_dict(), model, {})
    result = ask(Ratio(), replace(p, batches=(), optimizer=lambda: saved))
    rows = {r["tensor"]: r for r in result.rows}
    assert rows["2.bias"]["last"] is None
    assert rows["2.bias"]["remark"] == "not trained"
    assert not any("2.bias" in c.message for c in result.checks)
    only = replace(p, batches=(), names=("2.bias",), optimizer=lambda: saved)
    with pytest.raises(CurvError, match="does not determine the last update"):
        ask(Ratio(), only)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_what_no_step_had_a_gradient_of_does_not_move(clip: float | None) -> None:
    model = mlp(6, 8, 3).double()
    model.get_submodule("0").requires_grad_(False)
    p = classify(model.requires_grad_(), inputs(20, 6).double())
    model.get_submodule("0").requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    assert saved.idle == {"0.weight", "0.bias"}
    training = {} if clip is None else {"grad_clip": clip}
    # A checkpoint does not say what was frozen: all of the model is trainable here.
    result = ask(Ratio(), replace(p, optimizer=lambda: saved, training=training))
    before = {n: t.detach().clone() for n, t in model.named_parameters()}
    optimizer.zero_grad()
    torch.autograd.backward(p.share(p.batches[0]))
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    for row in result.rows[2:]:
        moved = model.get_parameter(str(row["tensor"])).detach() - before[str(row["tensor"])]
        assert row["next_update"] == pytest.approx(float(moved.norm()), rel=1e-9)
    for row in result.rows[:2]:
        assert (row["next"], row["gradient"], row["remark"]) == (None, None, "not trained")
    assert "no step has had a gradient of 0.weight, 0.bias: frozen or unused" in result.notes
    assert not any("0.weight" in c.message for c in result.checks)


def test_a_group_without_momentum_moves_beside_one_with_it() -> None:
    model = mlp(6, 8, 3).double()
    first, last = (list(model.get_submodule(n).parameters()) for n in "02")
    groups: list[dict[str, Any]] = [{"params": first, "momentum": 0.9}, {"params": last}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    p = classify(model, inputs(20, 6).double())
    for _ in range(3):
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    rows = ask(Ratio(), replace(p, optimizer=lambda: saved)).rows
    assert saved.idle == frozenset()
    assert all(float(r["next"] or 0) > 0 for r in rows)


def test_a_state_of_no_step_is_no_last_update() -> None:
    p, model, optimizer, _ = trained(torch.optim.Adam, lr=1e-2)
    for state in optimizer.state.values():
        state["step"] = torch.tensor(0.0)
    saved = resolve(optimizer.state_dict(), model, {})
    rows = ask(Ratio(), replace(p, optimizer=lambda: saved)).rows
    assert {r["last"] for r in rows} == {None}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_held_against_states() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Embedding(20, 8, sparse=True) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.a(x) * self.b(x)
            return out

    torch.manual_seed(0)
    model = Two()
    x = torch.randint(20, (30,), generator=torch.Generator().manual_seed(0))
    p = classify(model, x, classes=8)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    for _ in range(2):
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    assert saved.alike == (("a.weight", "b.weight"),)
    result = ask(Ratio(), replace(p, optimizer=lambda: saved))
    assert not [c for c in result.checks if c.name == "optimizer state"]


def test_what_the_optimizer_does_not_hold_is_told() -> None:
    p, model, *_ = trained(torch.optim.Adam, lr=1e-2)
    last = model.get_submodule("2")
    optimizer = torch.optim.Adam(last.parameters(), lr=1e-2)
    step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {"groups": [["2.*"]]})
    notes = ask(Ratio(), replace(p, optimizer=lambda: saved)).notes
    assert "not in the optimizer, and left out: 0.weight, 0.bias" in notes


def test_a_learning_rate_of_zero_tells_nothing_of_the_last_step() -> None:
    p, model, optimizer, _ = trained(torch.optim.Adam, lr=1e-2)
    optimizer.param_groups[0]["lr"] = 0.0
    saved = resolve(optimizer.state_dict(), model, {})
    result = ask(Ratio(), replace(p, optimizer=lambda: saved))
    assert {r["last"] for r in result.rows} == {None}
    assert {r["remark"] for r in result.rows} == {"rate is zero"}
    (check,) = result.checks
    assert (check.name, check.status) == ("ratio rate is zero", "warn")


def test_a_weight_that_is_no_number_is_told() -> None:
    p, model, _, _ = trained(torch.optim.Adam, lr=1e-2)
    with torch.no_grad():
        model.get_submodule("2").get_parameter("bias")[0] = torch.inf
    rows = ask(Ratio(), replace(p, batches=())).rows
    assert [r["remark"] for r in rows if r["tensor"] == "2.bias"] == ["not finite"]


def test_a_step_that_is_no_number_is_warned_about() -> None:
    p, model, optimizer, _ = trained(torch.optim.Adam, lr=1e-2)
    optimizer.state[model.get_submodule("2").get_parameter("bias")]["exp_avg"].fill_(torch.inf)
    saved = resolve(optimizer.state_dict(), model, {})
    result = ask(Ratio(), replace(p, optimizer=lambda: saved))
    (check,) = [c for c in result.checks if c.name == "ratio not finite"]
    assert (check.status, check.message) == ("warn", "no number in 2.bias")


def saved_state(kind: type[torch.optim.Optimizer], **options: float) -> torch.optim.Optimizer:
    """Save a model after a step, with its optimizer."""
    model = small_model()
    optimizer = kind(model.parameters(), **options)  # type: ignore[arg-type]
    for t in model.parameters():
        t.grad = torch.ones_like(t)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, "model.pt")
    return optimizer


def full(folder: Path) -> Path:
    """Write a spec with everything beside the one that lacks something."""
    kept = (folder / "model.pt").read_bytes()
    project(folder, name="full.yaml", without=["optimizer"])
    (folder / "model.pt").write_bytes(kept)
    return folder / "full.yaml"
