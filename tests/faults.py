"""Planted bugs, each a small model with a wrong gradient, and right models that look like it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def function(
    forward: Callable[[Any, Tensor], Tensor], backward: Callable[[Any, Tensor], Tensor | None]
) -> type[nn.Module]:
    """Make a module of a custom autograd Function."""
    made: Any = type(
        "Planted",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = made.apply(x)
            return out

    return Module


def keep(y: Tensor, ctx: Any) -> Tensor:
    ctx.save_for_backward(y)
    return y


def tanh_with(slope: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """Make a tanh whose backward multiplies by `slope(tanh(x))`."""
    return function(
        lambda ctx, x: keep(x.tanh(), ctx), lambda ctx, g: g * slope(ctx.saved_tensors[0])
    )


class Detached(nn.Module):
    """Detaches a factor that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.detach())


class DataEdit(nn.Module):
    """Changes a value behind autograd's back."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.data.mul_(1.5)
        return y


class Hooked(nn.Module):
    """Scales the gradient in a hook."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(lambda g: 0.9 * g)  # type: ignore[no-untyped-call]
        return y.tanh()


class TiedOnceDetached(nn.Module):
    """Uses one weight twice, one use without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).tanh() @ self.w.detach()


class Overwriting(nn.Module):
    """Its backward overwrites the gradient that it is given, which a residual path needs too."""

    def __init__(self) -> None:
        super().__init__()
        made: Any = type(
            "InPlace",
            (torch.autograd.Function,),
            {
                "forward": staticmethod(lambda ctx, x: x * 2.0),
                "backward": staticmethod(lambda ctx, g: g.mul_(2.0)),
            },
        )
        self.made = made
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        out: Tensor = h.tanh() + self.made.apply(h)  # the last made is differentiated first
        return out


BUGS: dict[str, Callable[[], nn.Module]] = {
    "a factor 2": tanh_with(lambda y: 2 * (1 - y * y)),
    "one per cent": tanh_with(lambda y: 1.01 * (1 - y * y)),
    "a sign": tanh_with(lambda y: -(1 - y * y)),
    "a forgotten square": tanh_with(lambda y: 1 - y),
    "a wrong saved tensor": function(
        lambda ctx, x: (ctx.save_for_backward(x), x.tanh())[1],
        lambda ctx, g: g * (1 - ctx.saved_tensors[0] ** 2),
    ),
    "an average over the batch": function(
        lambda ctx, x: x * 1.0, lambda ctx, g: g.mean(0, keepdim=True).expand_as(g)
    ),
    "a rare branch": function(
        lambda ctx, x: keep(x.clamp(-1, 1), ctx),
        lambda ctx, g: g * (ctx.saved_tensors[0] > -1).to(g),
    ),
    "None for a used input": function(lambda ctx, x: x.tanh(), lambda ctx, g: None),
    "low precision": function(
        lambda ctx, x: keep(x.tanh(), ctx),
        lambda ctx, g: (g.bfloat16() * (1 - ctx.saved_tensors[0].bfloat16() ** 2)).to(g),
    ),
    "straight through": function(lambda ctx, x: (4 * x).round() / 4 + x, lambda ctx, g: 3 * g),
    "a detached factor": Detached,
    "an edit of .data": DataEdit,
    "a hook": Hooked,
    "tied, once detached": TiedOnceDetached,
    "an overwritten incoming gradient": Overwriting,
}


class Residual(nn.Module):
    """Adds an inner module to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


class Abs(nn.Module):
    """|x|, kinked at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Pooled(nn.Module):
    """Max-pooling over pairs of features."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool1d(x.unsqueeze(1), 2).squeeze(1).repeat(1, 2)


class Checkpointed(nn.Module):
    """Recomputes an inner module in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return out


class Recurrent(nn.Module):
    """The last state of a recurrent layer that reads features as a sequence."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.rnn = kind(1, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x.unsqueeze(-1))[0][:, -1]
        return out


class Attention(nn.Module):
    """Fused self-attention over features as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(1, 12)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(-1)).chunk(3, -1)
        mixed: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v)).squeeze(-1)
        return mixed


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh())
        return out


class Scaled(nn.Module):
    """A model whose activations are of another size."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.size = size
        with torch.no_grad():
            self.fc.weight.mul_(size)
            self.fc.bias.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.fc(x) / self.size).tanh()
        return out


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "wide relu": lambda: nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 6)),
    "relu in place": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)),
    "leaky": lambda: nn.LeakyReLU(0.01),
    "abs": Abs,
    "max-pooling": Pooled,
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "residual": lambda: Residual(nn.Sequential(nn.Linear(6, 6), nn.ELU())),
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "reentrant checkpoint": lambda: Checkpointed(reentrant=True),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attention,
    "tied": Tied,
    "scale 1e-8": lambda: Scaled(1e-8),
    "scale 1e8": lambda: Scaled(1e8),
    "dropout": lambda: nn.Dropout(0.5),
}
