"""Modules as people write them: bags of words, checkpoints, nested outputs, masks drawn anew."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from zoo import Distances, mlp


def dropping(p: float = 0.4) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(p), nn.Linear(5, 2))


class Tail(nn.Module):
    """Any module, and a layer on what it gives."""

    def __init__(self, inner: nn.Module, width: int, outputs: int = 2) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(width, outputs)

    def forward(self, *args: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.inner(*args)))
        return out


class Weights(nn.Module):
    """A bag whose words have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3, mode="sum")
        self.score = nn.Linear(4, 4)
        self.head = nn.Linear(3, 2)

    @staticmethod
    def none() -> None:
        """Stand for the offsets that a rectangle of words does not have."""

    def forward(self, x: Tensor, _: None, w: Tensor) -> Tensor:
        found = self.bag(x, per_sample_weights=self.score(w))
        out: Tensor = self.head(torch.tanh(found))
        return out


class Offsets(nn.Module):
    """Bags of unequal length, one of them empty."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        starts = torch.tensor([0, 3, *range(4, x.numel(), 4)])[: len(x)]
        starts[1:][-1:] = x.numel()  # the last of several is empty
        out: Tensor = self.head(torch.tanh(self.bag(x.reshape(-1), starts)))
        return out


class Numbered(nn.Module):
    """A buffer and a frozen parameter of integers, and a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.order = nn.Parameter(torch.tensor([3, 1, 0, 2]), requires_grad=False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        cast(Tensor, self.calls).add_(1)
        out: Tensor = self.body(x[:, self.order])
        return out


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        return {"logits": logits, "more": (logits.square(), [None, torch.arange(len(x))])}


class Reentrant(nn.Module):
    def __init__(self, use: bool = True) -> None:
        super().__init__()
        self.use = use
        self.first, self.body, self.head = nn.Linear(4, 4), mlp(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        inner = checkpoint(self.body, h, use_reentrant=True) if self.use else self.body(h)
        out: Tensor = self.head(inner)
        return out


class Split(nn.Module):
    """A checkpoint that begins between a convolution and its BatchNorm."""

    def __init__(self, use: bool = True) -> None:
        super().__init__()
        self.use = use
        self.conv = nn.Conv1d(1, 3, 2)
        self.body = nn.Sequential(
            nn.BatchNorm1d(3), nn.SiLU(), nn.Conv1d(3, 2, 2), nn.BatchNorm1d(2), nn.GELU()
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.unsqueeze(1))
        inner = checkpoint(self.body, h, use_reentrant=False) if self.use else self.body(h)
        out: Tensor = self.head(inner.flatten(1))
        return out


class Spoken(nn.Module):
    """Log-probabilities of sequences, for CTC: time first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x).log_softmax(dim=-1).transpose(0, 1)
        return out


class Redrawn(nn.Module):
    """Dropout whose mask is the one that a replayed evaluation draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = dropping()

    def forward(self, x: Tensor) -> Tensor:
        first, bend, _, last = cast(nn.Sequential, self.inner)
        h = bend(first(x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            mask = functional.dropout(torch.ones(h.shape, dtype=h.dtype), 0.4)
        out: Tensor = last(h * mask)
        return out


class Last(nn.Module):
    def __init__(self, rnn: nn.LSTM) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


class ByHand(Distances):
    """Distances that can be differentiated twice."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(1) - self.centres).square().sum(dim=2).sqrt()
