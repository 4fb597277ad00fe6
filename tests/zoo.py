"""Small models of every kind, with data and a loss, as problems in float64."""

from collections.abc import Callable
from typing import Any

import torch
from oracles import built, cut, rng
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from curvcli.batches import Batch
from curvcli.load.loss import named
from curvcli.problem import Problem


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))
        return out


class Fused(nn.Module):
    """Causal attention by hand, as small GPTs write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.head(y.transpose(1, 2).flatten(2)[:, -1])
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).mean(dim=1))
        return out


class Words(nn.Module):
    """An embedding whose weights are the output layer's too."""

    def __init__(self, sparse: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3, sparse=sparse)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.mix(self.embedding(x))))
        return out


class Extra(nn.Module):
    """A frozen layer and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.randn(2))
        self.last = nn.Linear(3, 2)
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


class Checkpointed(nn.Module):
    def __init__(self, use: bool = True) -> None:
        super().__init__()
        self.use = use
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Sigmoid())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.body, x, use_reentrant=False) if self.use else self.body(x)
        out: Tensor = self.head(h)
        return out


class Pair(nn.Module):
    """Two inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.b = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, *, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.a(a)) * self.b(b))}


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3, mode="sum")
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.bag(x)))
        return out


class Bagged(nn.Module):
    """A bag by the function, which nothing stands in for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(5, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = functional.embedding_bag(x, self.words, mode="sum")
        out: Tensor = self.head(torch.tanh(found))
        return out


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def relu() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2))


def weight_normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def classes(high: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(high, shape, generator=rng(seed))


def sentences(ignored: bool = True) -> Batch:
    x, y = classes(5, 7, 4, seed=1), classes(5, 7, 4)
    if ignored:
        y[0, 1:], y[2, 2:], y[6] = -100, -100, -100
    return Batch(x, y, 7)


def posed(
    make: Callable[[], nn.Module],
    batch: Batch,
    sizes: tuple[int, ...] = (3, 3, 1),
    loss: str = "cross_entropy",
    **rest: Any,
) -> Problem:
    return Problem.of(built(make), named(loss, {}), cut(batch, sizes), **rest)


def vectors() -> Batch:
    return Batch(drawn(7, 4), classes(2, 7), 7)


def sequences(width: int) -> Batch:
    return Batch(drawn(7, 3, width), classes(2, 7), 7)


def images() -> Batch:
    return Batch(drawn(7, 2, 4, 4), classes(2, 7), 7)


ZOO: dict[str, Callable[[], Problem]] = {
    "linear regression": lambda: posed(
        lambda: nn.Linear(4, 1), Batch(drawn(7, 4), drawn(7, seed=2), 7), loss="mse_loss"
    ),
    "mlp": lambda: posed(mlp, vectors()),
    "relu in place": lambda: posed(relu, vectors()),
    "convolution, eval": lambda: posed(convolutional, images()),
    "convolution, train": lambda: posed(convolutional, images(), (7,), mode="train"),
    "layer norm": lambda: posed(normed, vectors()),
    "gru": lambda: posed(lambda: Recurrent(nn.GRU), sequences(3)),
    "lstm": lambda: posed(lambda: Recurrent(nn.LSTM), sequences(3)),
    "multihead attention": lambda: posed(Attention, sequences(4)),
    "transformer encoder": lambda: posed(Encoder, sequences(4)),
    "fused attention": lambda: posed(Fused, sequences(4)),
    "embedding": lambda: posed(lambda: Words(tied=False), sentences(ignored=False)),
    "sparse embedding": lambda: posed(
        lambda: Words(sparse=True, tied=False), sentences(ignored=False)
    ),
    "tied, ignored tokens": lambda: posed(Words, sentences()),
    "frozen and unused": lambda: posed(Extra, vectors()),
    "weight norm": lambda: posed(weight_normed, vectors()),
    "checkpointed": lambda: posed(Checkpointed, vectors()),
    "by keyword": lambda: posed(
        Pair, Batch({"a": drawn(7, 2), "b": drawn(7, 3, seed=3)}, classes(2, 7), 7)
    ),
}


def unchecked(name: str) -> Problem:
    """Pose the same problem without activation checkpointing, which no dense oracle survives."""
    if name == "checkpointed":
        return posed(lambda: Checkpointed(use=False), vectors())
    return ZOO[name]()
