"""A rebuilt optimizer keeps every bit of the saved one, and shares nothing with it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.optimizer import Group, SavedOptimizer, bare, classes, traits


def stepped(
    kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    torch.manual_seed(0)
    params = {n: torch.nn.Parameter(torch.randn(3, 2).to(dtype)) for n in "ab"}
    make: Any = classes()[kind]
    optimizer = make(list(params.values()), lr=0.1, **options)
    for _ in range(2):
        for p in params.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return dict(params), optimizer


def saved_as(kind: str, optimizer: torch.optim.Optimizer, **changes: Any) -> SavedOptimizer:
    state = copy.deepcopy(optimizer.state_dict())
    options = {k: v for k, v in state["param_groups"][0].items() if k != "params"} | changes
    named = {"ab"[i]: entries for i, entries in state["state"].items()}
    return SavedOptimizer(kind, (Group(("a", "b"), options),), named, "test", True)


def copies(params: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    out = {}
    for name, p in params.items():
        out[name] = p.detach().to(dtype or p.dtype, copy=True).requires_grad_()
        out[name].grad = torch.ones_like(out[name])
    return out


def next_values(params: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    for p in params.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return params


KINDS = sorted(set(classes()) - {"LBFGS"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_next_step_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    params, optimizer = stepped(kind, dtype)
    saved = saved_as(kind, optimizer)
    twins = copies(params)
    saved.rebuild(twins).step()
    expected = next_values(params, optimizer)
    assert all(torch.equal(twins[n], expected[n]) for n in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stepping_leaves_the_saved_state_alone(kind: str) -> None:
    params, optimizer = stepped(kind)
    saved = saved_as(kind, optimizer)
    before = copy.deepcopy(saved.state)
    saved.rebuild(copies(params)).step()
    for name, entries in before.items():
        for key, value in entries.items():
            assert torch.equal(saved.state[name][key], value)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_state_steps_wider_parameters(kind: str) -> None:
    params, optimizer = stepped(kind, torch.bfloat16)
    twins = copies(params, torch.float32)
    saved_as(kind, optimizer).rebuild(twins).step()
    assert all(torch.isfinite(t).all() and t.dtype is torch.float32 for t in twins.values())


@pytest.mark.parametrize("option", ["fused", "foreach"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_implementations_are_kept_where_they_work(kind: str, option: str) -> None:
    chosen: dict[str, Any] = {option: True}
    params, optimizer = stepped(kind, **chosen)
    twins = copies(params)
    rebuilt = saved_as(kind, optimizer).rebuild(twins)
    assert rebuilt.param_groups[0][option] is True
    rebuilt.step()
    expected = next_values(params, optimizer)
    assert all(torch.equal(twins[n], expected[n]) for n in expected)


@pytest.mark.parametrize("kind", ["Adam", "RMSprop", "NAdam"])
def test_what_the_device_lacks_is_switched_off(kind: str) -> None:
    params, optimizer = stepped(kind)
    saved = saved_as(
        kind, optimizer, capturable=True, differentiable=True, foreach=True, lr=torch.tensor(0.1)
    )
    twins = copies(params)
    rebuilt = saved.rebuild(twins)
    assert rebuilt.param_groups[0]["capturable"] is False
    rebuilt.step()
    expected = next_values(params, optimizer)
    assert all(torch.allclose(twins[n], expected[n]) for n in expected)
    assert saved.groups[0].options["capturable"] is True


def test_groups_keep_their_own_options_and_order() -> None:
    params, _ = stepped("SGD")
    groups = (Group(("b",), {"lr": 0.5, "initial_lr": 1.0}), Group(("a",), {"lr": 0.25}))
    rebuilt = SavedOptimizer("SGD", groups, {}, "test", False).rebuild(params)
    assert [group["lr"] for group in rebuilt.param_groups] == [0.5, 0.25]
    assert rebuilt.param_groups[0]["initial_lr"] == 1.0
    assert rebuilt.param_groups[0]["params"][0] is params["b"]
    before = params["a"].detach().clone()
    params["a"].grad = torch.ones(3, 2)
    rebuilt.step()
    assert torch.equal(params["a"], before - 0.25)


def test_empty_groups() -> None:
    params, optimizer = stepped("Adam")
    saved = saved_as("Adam", optimizer)
    groups = (*saved.groups, Group((), dict(saved.groups[0].options)))
    rebuilt = SavedOptimizer("Adam", groups, saved.state, "test", True).rebuild(copies(params))
    assert rebuilt.param_groups[1]["params"] == []


def test_a_parameter_that_is_not_given() -> None:
    params, optimizer = stepped("Adam")
    with pytest.raises(CurvError, match="b is not among"):
        saved_as("Adam", optimizer).rebuild({"a": params["a"]})


@pytest.mark.parametrize("kind", sorted(classes()))
def test_a_bare_class_steps_as_torch_does(kind: str) -> None:
    states, values = [], []
    makes: list[Any] = [classes()[kind], bare(kind)]
    for make in makes:
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(3, 2))
        optimizer = make([param], lr=0.1)
        for _ in range(2):
            param.grad = torch.randn_like(param)
            optimizer.step(lambda: 1.0)
        states.append(optimizer.state[param])
        values.append(param.detach())
        assert optimizer.defaults == makes[0]([param], lr=0.1).defaults
    assert torch.equal(*values)
    assert states[0].keys() == states[1].keys()


def test_traits_come_from_torch() -> None:
    assert traits("Adam").required == {"step", "exp_avg", "exp_avg_sq"}
    assert traits("Adam").allowed - traits("Adam").required == {"max_exp_avg_sq"}
    assert traits("NAdam").scalars == {"step", "mu_product"}
    assert traits("SGD").required == frozenset()
    assert {"row_var", "col_var", "variance"} <= traits("Adafactor").allowed
