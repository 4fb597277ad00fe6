"""The models that are benchmarked, and data for them: random, from a seed, but for the digits."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
DIGITS = Path(__file__).parents[2] / "sample_models" / "digits.npz"
TRAINING = 1437  # examples of the digits; the samples hold out the others


def mlp() -> nn.Sequential:
    """Make a perceptron of 3,466 parameters, 64 -> 32 -> 32 -> 10, in float64."""
    torch.manual_seed(0)
    layers = (nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return nn.Sequential(*layers).double()


def examples(count: int, features: int = 64, classes: int = 10) -> Batch:
    """Draw examples for the perceptron."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=rng, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=rng)


def perceptron(widths: Sequence[int], between: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Make a perceptron of these widths in float32, input and output included."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for size, out in pairwise(widths):
        layers += [nn.Linear(size, out), between()]
    return nn.Sequential(*layers[:-1])


def pictures(count: int, *shape: int, classes: int = 10) -> Batch:
    """Draw pictures (count, *shape) in float32."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=rng)
    return x, torch.randint(classes, (count,), generator=rng)


def digits() -> Batch:
    """Read the digits that the samples are trained on: (1437, 64)."""
    with np.load(DIGITS) as found:
        x, y = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])
    return x[:TRAINING], y[:TRAINING]


def trained(model: nn.Module, data: Batch, epochs: int = 30, batch: int = 128) -> nn.Module:
    """Train by gradient descent with momentum, as the sample perceptron is."""
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(data[0]), generator=rng), batch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
            torch.autograd.backward(loss)
            optimizer.step()
    optimizer.zero_grad()
    return model


class Residual(nn.Module):
    """Two convolutions beside what goes around them, padded where the width grows."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.grow, self.stride = out - width, out // width
        self.conv1 = nn.Conv2d(width, out, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        around = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grow))
        return functional.relu(inner + around)


def resnet20() -> nn.Sequential:
    """Make ResNet-20 for CIFAR [He et al. 2015, arXiv:1512.03385]: 269,722 parameters."""
    torch.manual_seed(0)
    widths = [16] * 4 + [32] * 3 + [64] * 3
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class Block(nn.Module):
    """Attention to what came before and a perceptron, each behind its normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, width)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, t, width / heads)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.contract(functional.gelu(self.expand(self.norm2(x))))
        return out


class GPT(nn.Module):
    """A decoder of tokens in the style of GPT-2: 10,181,760 parameters with these defaults."""

    def __init__(
        self, words: int = 1000, length: int = 64, width: int = 320, blocks: int = 8, heads: int = 5
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        # The spread of GPT-2's weights; what reads the last layer is the embedding once more.
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:  # (n, t) -> (n, t, words)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.words(tokens) + self.places(at)))
        return functional.linear(x, self.words.weight)


def sentences(count: int, length: int = 64, words: int = 1000) -> Batch:
    """Draw tokens, and as targets the ones that follow them."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(words, (count, length + 1), generator=rng)
    return tokens[:, :-1], tokens[:, 1:]
