"""The laws read off saved states, against steps of torch's own optimizers."""

import copy
from typing import Any

import pytest
import torch
from oracles import rng, symmetric
from torch import Tensor, nn

from curvcli.dynamics.laws import Stepped, reference, stepped
from curvcli.errors import CurvError
from curvcli.optimizer import Group, SavedOptimizer, classes

Options = dict[str, Any]

FORMS: list[tuple[str, Options]] = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("ASGD", {"lambd": 0.1, "weight_decay": 0.05}),
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.6), "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 0.01}),
    ("AdamW", {"weight_decay": 0.5, "amsgrad": True, "betas": (0.8, 0.99)}),
    ("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.3}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.5, 0.9)}),
    ("RAdam", {"weight_decay": 0.1}),
    ("RAdam", {"betas": (0.8, 0.6), "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"betas": (0.5, 0.9), "maximize": True}),
    ("Adamax", {"weight_decay": 0.1, "betas": (0.7, 0.8)}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "alpha": 0.7, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
]


def made(kind: str, params: list[Any], **options: Any) -> torch.optim.Optimizer:
    make: Any = classes()[kind]
    optimizer: torch.optim.Optimizer = make(params, **{"lr": 0.05, **options})
    return optimizer


def saved(kind: str, optimizer: torch.optim.Optimizer) -> SavedOptimizer:
    """Name the parameters of every group a, b, ... in their order."""
    names = iter("abcdefgh")
    groups, state = [], {}
    for group in optimizer.param_groups:
        mine = []
        for p in group["params"]:
            mine.append(next(names))
            if optimizer.state[p]:
                state[mine[-1]] = copy.deepcopy(dict(optimizer.state[p]))
        groups.append(Group(tuple(mine), {k: v for k, v in group.items() if k != "params"}))
    return SavedOptimizer(kind, tuple(groups), state, "test", True)


def memory(state: Options, step: Stepped, options: Options) -> Tensor:
    """Give m of the law from what torch keeps."""
    if "exp_avg" in state:
        found: Tensor = state["exp_avg"] / (1 - options["betas"][0])
        return found
    if state.get("momentum_buffer") is None:
        return torch.zeros(())
    buffer: Tensor = state["momentum_buffer"] / (1 - options.get("dampening", 0))
    # RMSprop's buffer is preconditioned already.
    return buffer if step.preconditioner is None else buffer * step.preconditioner


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize(("kind", "options"), FORMS, ids=str)
def test_torchs_step_is_the_laws(kind: str, options: Options, steps: int) -> None:
    g = rng(steps)
    p = nn.Parameter(torch.randn(4, 3, generator=g, dtype=torch.float64))
    optimizer = made(kind, [p], **options)
    for _ in range(steps + 1):
        before, earlier = p.detach().clone(), saved(kind, optimizer)
        p.grad = torch.randn(4, 3, generator=g, dtype=torch.float64)
        optimizer.step()
    after = saved(kind, optimizer)
    # ASGD keeps the rate of the step to come.
    step = stepped(earlier if kind == "ASGD" else after)["a"]
    law = step.law
    assert p.grad is not None
    gradient = law.sign * p.grad + law.coupled * before
    m = memory(after.state.get("a", {}), step, after.groups[0].options)
    move = law.alpha * gradient + law.beta * m
    scale = torch.ones(()) if step.preconditioner is None else step.preconditioner
    expected = (1 - law.decay) * before - law.rate * move / scale
    assert torch.allclose(p.detach(), expected, rtol=1e-10, atol=1e-12)


STEADY = {"betas": (0.9, 1 - 1e-9)}
THRESHOLDS: list[tuple[str, Options]] = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 2.0}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "maximize": True, "weight_decay": 1.0}),
    ("ASGD", {"lambd": 0.1, "alpha": 0.0}),
    ("Adam", STEADY),
    ("Adam", {**STEADY, "amsgrad": True, "weight_decay": 5.0}),
    ("AdamW", {**STEADY, "weight_decay": 30.0}),
    ("NAdam", {**STEADY, "weight_decay": 1.0}),
    ("RAdam", STEADY),
    ("Adamax", STEADY),
    ("RMSprop", {"alpha": 1 - 1e-12}),
    ("RMSprop", {"alpha": 1 - 1e-12, "momentum": 0.9, "centered": True}),
    ("Adagrad", {"lr_decay": 1e-6}),
]


def steady(optimizer: torch.optim.Optimizer, p: Tensor, g: torch.Generator) -> None:
    """Put a second moment into the state that the steps to come are too small to change."""
    state = optimizer.state[p]
    for key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf"):
        if key in state:
            state[key] = 0.5 + torch.rand(p.shape, generator=g, dtype=torch.float64)
    if "max_exp_avg_sq" in state:  # or it would be replaced by the other at once
        state["max_exp_avg_sq"] += state["exp_avg_sq"]
    if "grad_avg" in state:
        state["grad_avg"] = 0.3 * torch.ones_like(p)
    if "step" in state and "eta" not in state:
        state["step"] = torch.tensor(1e12 if "sum" not in state else 1e6)
    if "mu_product" in state:
        state["mu_product"] = torch.tensor(0.0)


TINY = 1e-100


def growth(kind: str, options: Options, rates: list[float], share: float, seed: int) -> float:
    """Scale a quadratic to a share of the threshold, and step on it: the factor in 500 steps."""
    g = rng(seed)
    params = [nn.Parameter(TINY * torch.randn(n, generator=g, dtype=torch.float64)) for n in (3, 2)]
    groups = [{"params": [p], "lr": r} for p, r in zip(params, rates, strict=True)]
    optimizer = made(kind, groups if len(set(rates)) > 1 else params, **{"lr": rates[0], **options})
    H = symmetric([0.1, 0.2, 0.4, 0.7, 1.0], seed)

    def step(H: Tensor) -> None:
        x = torch.cat([p.detach() for p in params])
        for p, part in zip(params, torch.split(H @ x, [3, 2]), strict=True):
            p.grad = part.clone()
        optimizer.step()

    sign = -1.0 if options.get("maximize") else 1.0
    step(sign * H)
    for p in params:
        steady(optimizer, p, g)
    found = stepped(saved(kind, optimizer))
    size = scaled(found, H, share)
    for _ in range(100):
        step(sign * size * H)
    first = float(torch.cat([p.detach() for p in params]).norm())
    for _ in range(500):
        step(sign * size * H)
    return float(torch.cat([p.detach() for p in params]).norm()) / first


def scaled(found: dict[str, Stepped], H: Tensor, share: float) -> float:
    """Find by what H is to be multiplied for a lead of 2 * share, from dense matrices alone."""
    laws = [found["a"]] * 3 + [found["b"]] * 2
    P = torch.cat([
        torch.ones(n, dtype=torch.float64) if s.preconditioner is None else s.preconditioner
        for s, n in ((found["a"], 3), (found["b"], 2))
    ])  # fmt: skip
    D = torch.tensor([s.law.scale for s in laws], dtype=torch.float64) / P
    coupled = torch.tensor([s.law.coupled for s in laws], dtype=torch.float64)
    decay = torch.tensor([s.law.decay for s in laws], dtype=torch.float64)
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        S = D.sqrt()[:, None] * (middle * H + torch.diag(coupled)) * D.sqrt() + torch.diag(decay)
        top = float(torch.linalg.eigvalsh(S)[-1])
        low, high = (middle, high) if top < 2 * share else (low, middle)
    return low


@pytest.mark.parametrize("rates", [[0.01, 0.01], [0.01, 0.03]], ids=["one rate", "two rates"])
@pytest.mark.parametrize(("kind", "options"), THRESHOLDS, ids=str)
def test_torch_converges_below_the_threshold_and_diverges_above(
    kind: str, options: Options, rates: list[float]
) -> None:
    assert growth(kind, options, rates, 0.99, seed=0) < 0.1
    assert growth(kind, options, rates, 1.01, seed=0) > 10


@pytest.mark.parametrize("kind", ["Adadelta", "Adafactor", "LBFGS", "Muon", "Rprop"])
def test_what_has_no_threshold_is_refused(kind: str) -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(CurvError, match=rf"{kind} .*: it has no threshold") as refused:
        stepped(saved(kind, made(kind, [p])))
    assert refused.value.code == "E_OPTIMIZER"
    assert "curv ratio" in refused.value.hint


def test_every_class_is_decided() -> None:
    from curvcli.dynamics import laws

    assert laws._READ.keys() | laws._REFUSED.keys() == classes().keys()
    assert not laws._READ.keys() & laws._REFUSED.keys()


def test_a_fresh_optimizer() -> None:
    p = nn.Parameter(torch.ones(2))
    assert stepped(saved("SGD", made("SGD", [p], momentum=0.5)))["a"].law.momentum == 0.5
    with pytest.raises(CurvError, match="no state of Adam"):
        stepped(saved("Adam", made("Adam", [p])))


def test_parameters_without_state_are_left_out() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = made("Adam", [p, q])
    q.grad = torch.ones(2)
    optimizer.step()
    assert list(stepped(saved("Adam", optimizer))) == ["b"]


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("SGD", {"momentum": 0.9, "dampening": 1.0}, "no damped momentum method"),
        ("SGD", {"momentum": 1.0}, "no damped momentum method"),
        ("AdamW", {"weight_decay": 20.0}, "no damped momentum method"),
        ("Adam", {"eps": 0.0}, "preconditioner of a is not positive"),
    ],
)
def test_options_beyond_the_theory(kind: str, options: Options, said: str) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = made(kind, [p], **options)
    p.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    with pytest.raises(CurvError, match=said):
        stepped(saved(kind, optimizer))


def test_groups_that_pull_apart() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = made("SGD", [{"params": [p]}, {"params": [q], "maximize": True}])
    with pytest.raises(CurvError, match="maximize"):
        stepped(saved("SGD", optimizer))


def test_the_strongest_law_gives_the_units() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = made(
        "SGD", [{"params": [p], "lr": 1.0, "momentum": 0.9}, {"params": [q], "lr": 0.6}]
    )
    # 1 / 1.9 against 0.6
    assert reference(stepped(saved("SGD", optimizer))).rate == 0.6
