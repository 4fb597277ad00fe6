"""`ratio`: norms of real updates over norms of tensors."""

import pytest
import torch
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
