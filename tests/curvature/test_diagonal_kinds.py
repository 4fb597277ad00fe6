"""The exact diagonal of every kind of layer equals the dense Hessian's, by layer and by entry."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diagonals import diagonal
from oracles import dense_hessian, gap
from torch import Tensor, nn
from zoo import classes, drawn, posed

from curvcli.batches import Batch
from curvcli.curvature.diagonals.exact import ExactDiagonal


class Around(nn.Module):
    """A layer between a layer before it and a smooth function after it that mixes everything."""

    def __init__(self, layer: nn.Module, act: nn.Module, mixing: bool = True) -> None:
        super().__init__()
        self.layer, self.act, self.mixing = layer, act, mixing
        self.shift = nn.Parameter(torch.randn(()))  # acts upstream of the layer, and is no layer's

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = torch.sin(x + self.shift)
        h = self.act(self.layer(x)).flatten(1)
        weights = torch.linspace(-1, 1, 2 * h.shape[1], dtype=h.dtype).view(2, -1) / h.shape[1]
        return nn.functional.linear(h, weights)


def normalised(layer: nn.Module) -> nn.Module:
    """Move a normalisation's weights and statistics away from what they begin with."""
    for t in (*layer.parameters(), *layer.buffers()):
        if t.is_floating_point():
            t.data += torch.rand_like(t)
    return layer


PLANE, LINE, SPACE = (2, 5, 6), (4, 7), (2, 3, 4, 3)
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear, positions": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear, more positions than inputs": (lambda: nn.Linear(2, 3), (3, 3, 2)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 2, stride=2, padding=1, dilation=2), LINE),
    "conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2)), PLANE),
    "conv2d, same": (lambda: nn.Conv2d(2, 2, 3, padding="same", bias=False), PLANE),
    "conv2d, reflected": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), PLANE),
    "conv2d, circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), PLANE),
    "conv2d, groups": (lambda: nn.Conv2d(2, 4, 3, stride=2, groups=2), PLANE),
    "conv2d, depthwise": (lambda: nn.Conv2d(2, 2, 2, dilation=(1, 2), groups=2), PLANE),
    "conv2d, one position": (lambda: nn.Conv2d(2, 4, (5, 6), groups=2), PLANE),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, padding=(0, 1, 0)), SPACE),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, padding=1), PLANE),
    "transposed, groups": (
        lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, groups=2, output_padding=1, dilation=2), LINE
    ),
    "layer norm": (lambda: normalised(nn.LayerNorm(7)), LINE),
    "layer norm, plane": (lambda: normalised(nn.LayerNorm((5, 6))), PLANE),
    "rms norm": (lambda: normalised(nn.RMSNorm(7)), LINE),
    "group norm": (lambda: normalised(nn.GroupNorm(2, 4)), LINE),
    "batch norm": (lambda: normalised(nn.BatchNorm2d(2)), PLANE),
    "batch norm, vectors": (lambda: normalised(nn.BatchNorm1d(4)), (4,)),
    "instance norm": (lambda: normalised(nn.InstanceNorm1d(4, affine=True)), LINE),
    "instance norm, tracking": (
        lambda: normalised(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)), LINE
    ),
    "prelu": (lambda: nn.PReLU(4), LINE),
    "prelu, one for all": (nn.PReLU, LINE),
}  # fmt: skip


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("sizes", [(7,), (4, 2, 1)])
@pytest.mark.parametrize("name", KINDS)
def test_kind(name: str, sizes: tuple[int, ...], act: type[nn.Module]) -> None:
    make, shape = KINDS[name]
    batch = Batch(drawn(7, *shape), classes(2, 7), 7)
    problem = posed(lambda: Around(make(), act()), batch, sizes)
    found, ways = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-11
    assert ways["shift"] == "one-hot"
    layer = {way for n, way in ways.items() if n != "shift"}
    assert layer <= ({"gauss-newton"} if act is nn.ReLU else {"positions", "fan-in"})


@pytest.mark.parametrize("way", ["positions", "fan-in"])
@pytest.mark.parametrize("name", KINDS)
def test_both_ways_are_right(name: str, way: Any) -> None:
    make, shape = KINDS[name]
    batch = Batch(drawn(7, *shape), classes(2, 7), 7)
    problem = posed(lambda: Around(make(), nn.Tanh()), batch, (4, 3))
    exact = ExactDiagonal(problem)
    truth = problem.layout.named(dense_hessian(problem).diagonal())
    for part in exact.parts:
        if part.layers:
            for n in part.names:
                found = exact.compute(replace(part, names=(n,), way=way))[n]
                assert found.way == way
                assert gap(found.diagonal, truth[n]) < 1e-11
