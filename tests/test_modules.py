"""Models are unwrapped, held, given other values and seeded, and left as they were."""

from typing import Any

import pytest
import torch
from oracles import built
from torch import nn
from zoo import Words, convolutional, images, mlp, vectors

from curvcli.modules import (
    held,
    seeded,
    titled,
    unwrapped,
    watchable,
    with_values,
)
from curvcli.nonfinite import source


def test_unwrapping() -> None:
    model = built(mlp)
    assert unwrapped(nn.DataParallel(model)) is model
    wrapped = nn.Module()
    wrapped._orig_mod = model
    assert unwrapped(wrapped) is model
    assert unwrapped(model) is model


def test_held() -> None:
    model: Any = built(convolutional).eval()
    model[1].train()
    model[0].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    buffers = {n: (b, b.clone()) for n, b in model.named_buffers()}

    def failing() -> None:
        with held(model, training=True, trainable={"0.bias"}):
            assert [n for n, p in model.named_parameters() if p.requires_grad] == ["0.bias"]
            assert all(m.training for m in model.modules())
            model(images().inputs)
            assert not torch.equal(model[1].running_mean, buffers["1.running_mean"][1])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    for name, b in model.named_buffers():
        assert b is buffers[name][0]
        assert torch.equal(b, buffers[name][1])


def test_seeded() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    before = torch.get_rng_state()
    with seeded(3):
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_values_reach_tied_parameters() -> None:
    model: Any = built(Words)
    x = torch.tensor([[0, 1]])
    before = model(x)
    values = {"embedding.weight": torch.zeros(5, 3).double()}
    assert torch.equal(with_values(model, values, lambda: model(x)), torch.zeros(1, 2, 5).double())
    assert torch.equal(model(x), before)
    assert model.head.weight is model.embedding.weight


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripts_take_values_and_no_hooks() -> None:
    script = torch.jit.script(built(mlp))
    model = nn.Sequential(script, nn.Tanh())
    values = {f"0.{n}": torch.zeros_like(p) for n, p in script.named_parameters()}
    x = vectors().inputs
    before = model(x)
    assert not with_values(model, values, lambda: model(x)).any()
    assert torch.equal(model(x), before)
    assert [n for n, _ in watchable(model)] == ["", "1"]
    spoiled = {n: t * torch.nan for n, t in values.items()}
    found = source(model, vectors(), 0, lambda: with_values(model, spoiled, lambda: model(x)))
    assert found.where == ", first in the model itself (Sequential)"


def test_titles() -> None:
    assert titled("0.drop", nn.Dropout()) == "0.drop (Dropout)"
    assert titled("", nn.Tanh()) == "the model itself (Tanh)"
