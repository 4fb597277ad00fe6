"""What counts as the outputs of a module that returns more than one thing, and of the data."""

from typing import Any

import pytest
import torch
from questions import classify, inputs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo import ZOO

from curvcli.signals.passes import record


class Rows(nn.Module):
    """Goes on with the last output, or with the state; packed or not."""

    def __init__(self, kind: Any, *, state: bool = False, packed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(5, 4, batch_first=True).double(), nn.Linear(4, 3).double()
        self.state, self.packed = state, packed

    def sequence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given: Any = x
        if self.packed:
            given = pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        out, last = self.rnn(given)
        out = pad_packed_sequence(out, batch_first=True)[0] if self.packed else out
        return out, last[0] if isinstance(last, tuple) else last  # (n, t, h), (1, n, h)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.sequence(x)
        found: Tensor = self.head(last[-1] if self.state else out[:, -1])
        return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_gives_its_sequence_alone(kind: Any, state: bool, packed: bool) -> None:
    model, x = Rows(kind, state=state, packed=packed), inputs(9, 6, 5).double()
    p = classify(model, x)
    recording = record(p)
    place = next(q for q in recording.places if q.name == "rnn")
    out, last = (t.detach() for t in model.sequence(x))
    assert place.values.count == out.numel() == 9 * 6 * 4
    assert place.values.mean == pytest.approx(float(out.mean()), rel=1e-9)
    assert place.values.std == pytest.approx(float(out.std(correction=0)), rel=1e-9)
    # Whichever way the gradient comes back, it is that of the last step.
    h = (last[-1] if state else out[:, -1]).clone().requires_grad_()
    loss = functional.cross_entropy(model.head(h), p.batches[0].target)
    (g,) = torch.autograd.grad(loss, h)
    truth = float((9 * g).square().sum(1).mean().sqrt())
    assert recording.norm(place) == pytest.approx(truth, rel=1e-9)
    assert place.zero_gradient == pytest.approx(1.0 if state else 5 / 6)


def test_weights_of_attention_are_no_outputs() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.attention(x, x, x)[0].mean(1))
            return out

    torch.manual_seed(0)
    model, x = Attention(), inputs(9, 4, 6)
    place = next(q for q in record(classify(model, x)).places if q.name == "attention")
    value = model.attention(x, x, x)[0].detach()
    assert place.values.count == value.numel()
    assert place.values.mean == pytest.approx(float(value.mean()), abs=1e-7)


def test_the_inputs_come_first_and_have_no_gradient() -> None:
    x = 1000 * inputs(20, 6)
    recording = record(classify(nn.Sequential(nn.Linear(6, 3)), x, cut=(15, 5)))
    first = recording.places[0]
    assert (first.name, first.kind, first.calls) == ("input", "input", 2)
    assert first.values.mean == pytest.approx(float(x.mean()), rel=1e-5)
    assert first.values.std == pytest.approx(float(x.std(correction=0)), rel=1e-5)
    assert recording.norm(first) is None
    assert first not in recording.layers


def test_several_inputs_are_named_and_tokens_are_none() -> None:
    def names(zoo: str) -> list[str]:
        return [p.name for p in record(ZOO[zoo]()).places if p.kind == "input"]

    assert names("by keyword") == ["input['a']", "input['b']"]
    assert names("embedding") == []
