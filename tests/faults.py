"""Planted bugs, each a small model with a wrong gradient, and right models that look like it."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from questions import classify, inputs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from curvcli.problem import Mode, Problem
from curvcli.selftest import Of, Residual, op, saving

Loss = Callable[..., Tensor]


def around(
    middle: nn.Module, seed: int, loss: Loss = functional.cross_entropy, mode: Mode = "eval"
) -> Problem:
    """Put a module between two right ones, and pose a problem that reaches both its sides."""
    model = nn.Sequential(nn.Linear(6, 6), middle, nn.Linear(6, 3))
    return replace(classify(model, 2 * inputs(20, 6, seed=seed), loss=loss), mode=mode)


# --- how small models are made of functions ----------------------------------------------------


def batched(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make one of the new style, which vmap takes: forward(x) and backward(g, x, y)."""

    def remember(ctx: Any, given: tuple[Tensor], y: Tensor) -> None:
        ctx.save_for_backward(given[0], y)

    statics: dict[str, Any] = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(remember),
        "backward": staticmethod(lambda ctx, g: backward(g, *ctx.saved_tensors)),
        "generate_vmap_rule": True,
    }
    made: Any = type("Planted", (torch.autograd.Function,), statics)
    apply: Callable[..., Any] = made.apply
    return apply


def tanh_with(slope: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Make a tanh whose backward multiplies by `slope(tanh(x))`."""
    tanh = saving(torch.tanh, lambda g, y, x: g * slope(y))
    return lambda: Of(tanh)


Piece = Callable[[Tensor, Tensor, Tensor], Tensor]


def linear_with(
    by_input: Piece = lambda g, x, w: g @ w,
    by_weight: Piece = lambda g, x, w: g.T @ x,
    by_bias: Piece = lambda g, x, w: g.sum(0),
) -> Callable[[], nn.Module]:
    """Make x W^T + b, square, whose backward is put together from three pieces."""
    linear = saving(
        lambda x, w, b: x @ w.T + b,
        lambda g, y, x, w, b: (by_input(g, x, w), by_weight(g, x, w), by_bias(g, x, w)),
    )
    return lambda: Of(linear, weight=(6, 6), bias=(6,))


def bins(x: Tensor) -> Tensor:
    """Sort the first feature of each example into four bins."""
    return (x.detach()[..., :1] > torch.tensor([-1.0, 0.0, 1.0])).sum(-1)


class Repeated(nn.Module):
    """Calls one inner module several times."""

    def __init__(self, inner: nn.Module, times: int) -> None:
        super().__init__()
        self.inner = inner
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.inner(x)
        return x


class Passing(nn.Module):
    """Hands an inner module what `given` makes of x, and takes the sum of what it returns."""

    def __init__(self, inner: nn.Module, given: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = inner
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        args, kwargs = self.given(x)
        out = self.inner(*args, **kwargs)
        if isinstance(out, dict):
            out = out["sum"] + out["rest"][0]
        total: Tensor = x + out
        return total


def layered(act: nn.Module) -> nn.Module:
    """Put an activation behind a layer of its own."""
    return nn.Sequential(OrderedDict(fc=nn.Linear(6, 6), act=act))


# --- bugs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """One wrong backward, and what a check must find.

    make:    builds the module for the middle of `around`
    error:   how wrong the worst tensor is at least, relative to its gradient
    wrong:   patterns of the tensors whose gradient is wrong; all others are right
    culprit: the module whose own backward is wrong
    mode:    the mode in which it is wrong
    """

    make: Callable[[], nn.Module]
    error: float = 0.1
    wrong: tuple[str, ...] = ("0.*",)
    culprit: str = "1"
    mode: Mode = "eval"

    def __call__(self) -> nn.Module:
        return self.make()


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
        self.made = op(lambda ctx, x: x * 2.0, lambda ctx, g: g.mul_(2.0))
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        out: Tensor = h.tanh() + self.made(h)  # the last made is differentiated first
        return out


class Spoiled(nn.Module):
    """Multiplies by a weight whose gradient is wrong in one entry."""

    def __init__(self, rows: int, place: tuple[int, int], factor: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(rows, 6))
        self.w.register_hook(lambda g: times_at(g, place, factor))  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.T


class Truncated(nn.Module):
    """Goes back one step in time only."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for t in range(6):
            h = self.cell(x[:, t : t + 1], h.detach())
        return h


class Remembering(nn.Module):
    """A tanh that keeps what its backward needs where the next call overwrites it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

        def forward(ctx: Any, x: Tensor, kept: dict[str, Tensor]) -> Tensor:
            ctx.kept = kept
            kept["y"] = x.tanh()
            return kept["y"].clone()

        self.tanh = op(forward, lambda ctx, g: (g * (1 - ctx.kept["y"] ** 2), None))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tanh(x, self.kept)
        return out


class Recomputed(nn.Module):
    """A checkpoint whose second pass computes something else, as one that forgets its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def block(self, x: Tensor) -> Tensor:
        second = torch.is_grad_enabled()
        out: Tensor = self.fc(1.5 * x if second else x).tanh()
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, x, use_reentrant=True)
        return out


class Sharing(nn.Module):
    """Two modules with one weight, the second with a wrong gradient for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = linear_with(by_weight=lambda g, x, w: 2 * g.T @ x)()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).tanh())
        return out


class Gathering(nn.Module):
    """Takes a tuple that holds a dict, and returns a dict that holds a tuple."""

    def forward(self, both: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Any]:
        return {"sum": both[0], "rest": (minus(both[0].tanh(), both[1]["other"]),)}


class Gated(nn.Module):
    """Takes keywords."""

    def forward(self, *, value: Tensor, gate: Tensor) -> Tensor:
        out: Tensor = product(value, gate)
        return out


def hooked(method: str, hook: Callable[..., Any], on: str = "") -> Callable[[], nn.Module]:
    """Make a layer with a hook, registered by a method of it or of its parameter `on`."""

    def make() -> nn.Module:
        layer = nn.Linear(6, 6)
        getattr(getattr(layer, on) if on else layer, method)(hook)
        return layer

    return make


def edited(edit: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """Make a tanh whose result, which its backward needs, is changed behind autograd's back."""

    def f(x: Tensor) -> Tensor:
        y = x.tanh()
        edit(y)
        return y

    return lambda: Of(f)


def halved_in_numpy(y: Tensor) -> None:
    view = y.detach().numpy()
    view *= 0.5


def without_tracking(x: Tensor) -> Tensor:
    y = x * 1.0
    with torch.no_grad():
        y *= 1.5
    return y


def untracked(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.tanh()


def by_the_last_step(x: Tensor, w: Tensor) -> Tensor:
    """Find a fixed point without a graph, and differentiate one step from there."""
    z = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(40):
            z = (z @ w / 5 + x).tanh()
    return (z @ w / 5 + x).tanh()


def with_hook(x: Tensor) -> Tensor:
    y = x * 1.0
    if y.requires_grad:
        y.register_hook(lambda g: 0.8 * g)  # type: ignore[no-untyped-call]
    return y.tanh()


def times_at(g: Tensor, place: Any, factor: float) -> Tensor:
    """Multiply a gradient at one place."""
    g = g.clone()
    g[place] *= factor
    return g


def at_the_largest(g: Tensor, x: Tensor) -> Tensor:
    """Be wrong at the largest element of the batch, and only there."""
    return times_at(g.reshape(-1), x.argmax(), 3.0).view_as(g)


def mask(x: Tensor, seed: int) -> Tensor:
    """Draw a dropout mask for half of x."""
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return 2 * (drawn < 0.5).to(x)


def pooled(x: Tensor) -> Tensor:
    """Take the largest of each pair of features."""
    return x.view(-1, 3, 2).amax(-1)


def to_the_other(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Send the gradient of a maximum over pairs to the smaller one."""
    smaller = x.view(-1, 3, 2).argmin(-1)
    return (functional.one_hot(smaller, 2).to(g) * g.unsqueeze(-1)).flatten(-2)


def detached_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean, size = x.mean(-1, keepdim=True), x.std(-1, keepdim=True) + 0.1
    return (x - mean.detach()) / size.detach() * gain + bias


def detached_attention(x: Tensor) -> Tensor:
    tokens = x.unsqueeze(-1)  # (batch, 6, 1)
    weights = (tokens @ tokens.mT).softmax(-1)
    return (weights.detach() @ tokens).squeeze(-1)


def length(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True).sqrt()


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def clipped(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    g = (g * (1 - y * y)).reshape(1, -1)
    return (g * (1e-3 / length(g)).clamp(max=1.0)).view_as(x)


def overwritten(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Set, where it should add, the gradients of columns that were taken twice."""
    out = torch.zeros_like(g)
    for k, column in enumerate(TWICE):
        out[:, column] = g[:, k]
    return out


def looked_up(by_table: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Make a lookup of bins, added to the input, whose backward is `by_table(g, index)`."""

    def forward(ctx: Any, index: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return table[index]

    rows = op(forward, lambda ctx, g: (None, by_table(g, *ctx.saved_tensors)))
    return lambda: Passing(Of(rows, table=(4, 6)), lambda x: ((bins(x),), {}))


def rows_added(g: Tensor, index: Tensor) -> Tensor:
    return g.new_zeros(4, 6).index_add(0, index, g)


def in_low_precision(dtype: torch.dtype) -> Callable[[], nn.Module]:
    """Make a tanh whose backward multiplies in another precision, of a gradient scaled to fit."""
    tanh = saving(
        torch.tanh,
        lambda g, y, x: ((64 * g).to(dtype) * (1 - y.to(dtype) ** 2)).to(g) / 64,
    )
    return lambda: Of(tanh)


TWICE = [0, 0, 1, 2, 3, 3]
CYCLE = [1, 2, 3, 4, 5, 0]

double = batched(lambda x: x.tanh(), lambda g, x, y: 2 * g * (1 - y * y))
minus = op(lambda ctx, a, b: a - b, lambda ctx, g: (g, g))
product = saving(torch.mul, lambda g, y, a, b: (g * b, None))
scaled_rows = saving(
    lambda x, w, s: x @ (w * s).T,
    lambda g, y, x, w, s: (g @ (w * s), g.T @ x * s, (g.T @ x * w).sum(0)[:, None]),
)
gained = saving(torch.mul, lambda g, y, x, s: (g * s, (g * x).mean().expand_as(s)))


def wrong_from(low: float, high: float = 1e9) -> Callable[..., Any]:
    """Make a step by about 2 that is wrong where the mean of what it is given is in between."""
    return saving(
        lambda x: x + 2 + 0.1 * x.tanh(),
        lambda g, y, x: g * (1.1 - 0.1 * x.tanh() ** 2) * (2 if low < x.mean() < high else 1),
    )


def sine_and_cosine(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(x)
    sine, cosine = x.sin(), x.cos()
    ctx.mark_non_differentiable(cosine)
    return sine, cosine


both = op(sine_and_cosine, lambda ctx, g, _: g * ctx.saved_tensors[0].cos())


BUGS: dict[str, Planted] = {
    # Factors and signs.
    "a factor 2": Planted(tanh_with(lambda y: 2 * (1 - y * y))),
    "a factor 2, batched": Planted(lambda: Of(double)),
    "one per cent": Planted(tanh_with(lambda y: 1.01 * (1 - y * y)), 9e-3),
    "one per mille": Planted(tanh_with(lambda y: 1.001 * (1 - y * y)), 9e-4),
    "one in ten thousand": Planted(tanh_with(lambda y: 1.0001 * (1 - y * y)), 9e-5),
    "a sign": Planted(tanh_with(lambda y: -(1 - y * y))),
    "a forgotten square": Planted(tanh_with(lambda y: 1 - y)),
    "a forgotten inner factor": Planted(
        lambda: Of(saving(lambda x: (2 * x).tanh(), lambda g, y, x: g * (1 - y * y)))
    ),
    "a wrong saved tensor": Planted(
        lambda: Of(saving(torch.tanh, lambda g, y, x: g * (1 - x * x)))
    ),
    "the second operand's sign": Planted(lambda: Of(lambda x: minus(x.tanh(), x.sigmoid()))),
    "half of the product rule": Planted(
        lambda: Of(saving(lambda x: x * x.sigmoid(), lambda g, y, x: g * x.sigmoid()))
    ),
    # Transposes, axes, reductions.
    "a transposed weight": Planted(linear_with(by_input=lambda g, x, w: g @ w.T)),
    "a transposed weight gradient": Planted(
        linear_with(by_weight=lambda g, x, w: x.T @ g), wrong=("1.weight",)
    ),
    "a weight gradient averaged": Planted(
        linear_with(by_weight=lambda g, x, w: g.T @ x / len(x)), wrong=("1.weight",)
    ),
    "a bias gradient averaged": Planted(
        linear_with(by_bias=lambda g, x, w: g.mean(0)), wrong=("1.bias",)
    ),
    "one wrong row": Planted(
        linear_with(by_weight=lambda g, x, w: times_at(g.T @ x, 2, 2.0)), wrong=("1.weight",)
    ),
    "one wrong entry": Planted(
        linear_with(by_weight=lambda g, x, w: times_at(g.T @ x, (1, 4), 3.0)), 1e-2, ("1.weight",)
    ),
    # The mean over the batch has the sum of the batch: the bias before it gets what it should.
    "an average over the batch": Planted(
        lambda: Of(op(lambda ctx, x: x * 1.0, lambda ctx, g: g.mean(0, True).expand_as(g))),
        wrong=("0.weight",),
    ),
    "a sum over the batch": Planted(
        lambda: Of(op(lambda ctx, x: x * 1.0, lambda ctx, g: g.sum(0, True).expand_as(g)))
    ),
    "a broadcast operand, wrong axis": Planted(
        lambda: Of(scaled_rows, weight=(6, 6), scale=(6, 1)), wrong=("1.scale",)
    ),
    "a broadcast operand, averaged": Planted(lambda: Of(gained, gain=(1,)), wrong=("1.gain",)),
    "a normalisation without its projection": Planted(
        lambda: Of(saving(lambda x: x / length(x), lambda g, y, x: g / length(x)))
    ),
    "a softmax by its diagonal": Planted(
        lambda: Of(saving(lambda x: x.softmax(-1), lambda g, y, x: g * y * (1 - y)))
    ),
    "a batch norm without its variance term": Planted(
        lambda: Of(saving(standardised, lambda g, y, x: (g - g.mean(0)) / x.std(0, correction=0))),
        mode="train",
        wrong=("0.weight",),
    ),
    "a cumulative sum not reversed": Planted(
        lambda: Of(op(lambda ctx, x: x.cumsum(-1), lambda ctx, g: g.cumsum(-1)))
    ),
    "a permutation not undone": Planted(
        lambda: Of(op(lambda ctx, x: x[:, CYCLE], lambda ctx, g: g[:, CYCLE]))
    ),
    "columns taken twice, given back once": Planted(
        lambda: Of(saving(lambda x: x[:, TWICE], overwritten))
    ),
    "a Fourier transform's scale": Planted(
        lambda: Of(op(lambda ctx, x: torch.fft.fft(x).real, lambda ctx, g: torch.fft.ifft(g).real))
    ),
    "a lookup's gradient in the next row": Planted(
        looked_up(lambda g, index: rows_added(g, (index + 1) % 4)),
        wrong=("1.inner.table",),
        culprit="1.inner",
    ),
    "a lookup's last example only": Planted(
        looked_up(lambda g, index: g.new_zeros(4, 6).index_put((index,), g)),
        wrong=("1.inner.table",),
        culprit="1.inner",
    ),
    # Cut out of the graph.
    "a detached factor": Planted(lambda: Of(lambda x: x * x.detach().sigmoid())),
    "a detached mean and variance": Planted(lambda: Of(detached_norm, gain=(6,), bias=(6,))),
    "a detached normaliser": Planted(
        lambda: Of(lambda x: x.exp() / x.exp().sum(-1, keepdim=True).detach())
    ),
    "detached attention weights": Planted(lambda: Of(detached_attention)),
    "a residual branch without gradient": Planted(
        lambda: Of(lambda x, w: x + (x @ w).tanh().detach(), weight=(6, 6)),
        wrong=("0.*", "1.weight"),
    ),
    "a weight without gradient": Planted(
        lambda: Of(lambda x, w: x @ w.detach(), weight=(6, 6)), wrong=("1.weight",)
    ),
    "computed without a graph": Planted(lambda: Of(untracked)),
    "a fixed point by its last step": Planted(
        lambda: Of(by_the_last_step, weight=(6, 6)), wrong=("0.*", "1.weight")
    ),
    "truncated in time": Planted(Truncated, wrong=("0.*", "1.cell.*")),
    "tied, once detached": Planted(TiedOnceDetached, wrong=("1.w",)),
    "None for a used input": Planted(lambda: Of(op(lambda ctx, x: x.tanh(), lambda ctx, g: None))),
    "None for one of two inputs": Planted(lambda: Of(lambda x: product(x.tanh(), x.sigmoid()))),
    "an output marked as constant": Planted(lambda: Of(lambda x: sum(both(x)))),
    # Straight through what has another slope.
    "straight through": Planted(
        lambda: Of(op(lambda ctx, x: (4 * x).round() / 4 + x, lambda ctx, g: 3 * g))
    ),
    "straight through a rounding": Planted(lambda: Of(lambda x: x + (x.round() - x).detach())),
    "straight through a sign": Planted(lambda: Of(op(lambda ctx, x: x.sign(), lambda ctx, g: g))),
    "straight through a clamp": Planted(
        lambda: Of(op(lambda ctx, x: x.clamp(-1, 1), lambda ctx, g: g))
    ),
    # Rare places, precision, sizes.
    "a rare branch": Planted(
        lambda: Of(saving(lambda x: x.clamp(-1, 1), lambda g, y, x: g * (y > -1).to(g)))
    ),
    "one element of the batch": Planted(
        lambda: Of(saving(torch.sin, lambda g, y, x: at_the_largest(g * x.cos(), x))), 5e-3
    ),
    "the other one of each pair": Planted(
        lambda: nn.Sequential(Of(saving(pooled, to_the_other)), nn.Linear(3, 6)), culprit="1.0"
    ),
    "bfloat16 in the backward": Planted(in_low_precision(torch.bfloat16), 1e-3),
    "float16 in the backward": Planted(in_low_precision(torch.float16), 1e-4),
    "clipped in the backward": Planted(lambda: Of(saving(torch.tanh, clipped))),
    # Changed behind autograd's back.
    "an edit of .data": Planted(edited(lambda y: y.data.mul_(0.5))),
    "an edit through numpy": Planted(edited(halved_in_numpy)),
    "an edit without tracking": Planted(lambda: Of(without_tracking)),
    "an overwritten incoming gradient": Planted(Overwriting, wrong=("0.*", "1.fc.*")),
    # What is differentiated is then another function than the one that has the value.
    "another value without a graph": Planted(
        lambda: Of(lambda x: x.tanh() * (1.0 if torch.is_grad_enabled() else 2.0)),
        wrong=("0.*", "2.*"),
    ),
    "another mask in the backward": Planted(
        lambda: Of(op(lambda ctx, x: x * mask(x, 0), lambda ctx, g: g * mask(g, 1)))
    ),
    "recomputed with other values": Planted(Recomputed, wrong=("0.*", "1.fc.*")),
    # Hooks.
    "a tensor's hook": Planted(lambda: Of(with_hook)),
    "a parameter's hook": Planted(
        hooked("register_hook", lambda g: 1.2 * g, on="weight"), wrong=("1.weight",)
    ),
    "a hook on a bias": Planted(
        hooked("register_hook", torch.zeros_like, on="bias"), wrong=("1.bias",)
    ),
    "a module's backward hook": Planted(
        hooked("register_full_backward_hook", lambda m, inward, outward: (0.8 * inward[0],))
    ),
    "a module's backward pre-hook": Planted(
        hooked("register_full_backward_pre_hook", lambda m, outward: (1.2 * outward[0],)),
        wrong=("0.*", "1.*"),
    ),
    # Where the module is, and how it is called.
    "nested": Planted(
        lambda: Residual(layered(tanh_with(lambda y: 2 * (1 - y * y))())),
        wrong=("0.*", "1.inner.fc.*"),
        culprit="1.inner.act",
    ),
    "called three times": Planted(
        lambda: Repeated(layered(tanh_with(lambda y: 1.1 - y * y)()), 3),
        wrong=("0.*", "1.inner.fc.*"),
        culprit="1.inner.act",
    ),
    "wrong in its last call": Planted(lambda: Repeated(Of(wrong_from(7)), 5), culprit="1.inner"),
    "wrong in its fifth call of seven": Planted(
        lambda: Repeated(Of(wrong_from(7, 9)), 7), culprit="1.inner"
    ),
    # Each call alone is right: the module that makes both is the first that is wrong.
    "one memory for two calls": Planted(
        lambda: Repeated(layered(Remembering()), 2), wrong=("0.*", "1.inner.fc.*")
    ),
    "a tuple in, a dict out": Planted(
        lambda: Passing(Gathering(), lambda x: (((x, {"other": x.sigmoid()}),), {})),
        culprit="1.inner",
    ),
    "keywords": Planted(
        lambda: Passing(Gated(), lambda x: ((), {"value": x.tanh(), "gate": x.sigmoid()})),
        culprit="1.inner",
    ),
    "modules that share a weight": Planted(Sharing, wrong=("1.a.weight",), culprit="1.b"),
}


# --- right models --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Right:
    """One right model that a check must not accuse.

    make:  builds the module for the middle of `around`
    doubt: why float64 may leave tensors unresolved; empty where it must resolve all
    """

    make: Callable[[], nn.Module]
    doubt: str = ""
    loss: Loss = functional.cross_entropy
    mode: Mode = "eval"

    def __call__(self) -> nn.Module:
        return self.make()


class Checkpointed(nn.Module):
    """Recomputes an inner module in the backward."""

    def __init__(self, reentrant: bool, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return out


class Recurrent(nn.Module):
    """The last state of a recurrent layer that reads pairs of features as a sequence."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x.view(-1, 3, 2))[0][:, -1]
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


class SelfAttention(nn.Module):
    """torch's own attention over three tokens of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 3, 2)
        out: Tensor = self.attention(tokens, tokens, tokens)[0].flatten(-2)
        return out


class Twofold(nn.Module):
    """A bilinear layer of its input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bilinear(x, x.tanh())
        return out


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


class Spare(nn.Module):
    """Parameters that are not used, and frozen ones that are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(self.fc(x).tanh())
        return out


class Packed(nn.Module):
    """A recurrent layer that reads sequences of unequal length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 3 + 1
        packed = pack_padded_sequence(x.view(-1, 3, 2), lengths, True, enforce_sorted=False)
        out: Tensor = self.rnn(packed)[1][0]
        return out


class Force(nn.Module):
    """The derivative of an energy by its input, taken in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(x).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


class Counting(nn.Module):
    """Counts its calls in a buffer that nothing depends on."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.fc(x).tanh()
        return out


class LowRank(nn.Module):
    """A right layer with an addition of low rank that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.down = nn.Parameter(torch.randn(2, 6))
        self.up = nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) + x @ self.down.T @ self.up.T
        return out


class Routed(nn.Module):
    """Sends each example to one of three layers, the one that a gate likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        odds = self.gate(x).softmax(-1)  # (batch, 3)
        best = functional.one_hot(odds.argmax(-1), 3).to(x)
        each = torch.stack([e(x) for e in self.experts], -1)  # (batch, 6, 3)
        out: Tensor = (each * (odds * best).unsqueeze(-2)).sum(-1)
        return out


def shaped(*shape: int, layers: Sequence[nn.Module]) -> nn.Module:
    """Put layers behind a layer and a change of shape."""
    return nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, shape), *layers, nn.Flatten())


def deep() -> nn.Module:
    widths = (6, 64, 64, 64, 6)
    return nn.Sequential(*(m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())))


def batch_norm_with_statistics() -> nn.Module:
    layer = nn.BatchNorm1d(6)
    with torch.no_grad():
        for _ in range(5):
            layer(3 * torch.randn(32, 6) + 1)
    return layer


def of_sizes() -> nn.Module:
    """Make a layer whose weights are of six orders of magnitude."""
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight *= 10.0 ** torch.arange(-5, 1)
    return layer


def kinked(act: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Make an activation of what is exactly zero."""

    def make() -> nn.Module:
        module = Of(lambda x, w: x + act(x @ w), weight=(6, 6))
        nn.init.zeros_(module.get_parameter("weight"))
        return module

    return make


def gain(size: float) -> Callable[[], nn.Module]:
    """Make a tanh times a gain."""

    def make() -> nn.Module:
        module = Of(lambda x, s: s * x.tanh(), gain=(1,))
        nn.init.constant_(module.get_parameter("gain"), size)
        return module

    return make


def spread(out: Tensor, y: Tensor) -> Tensor:
    """Measure how far outputs are apart: zero, its minimum, where they are all the same."""
    return (out - out.mean(0)).square().mean()


def sure_by(margin: float) -> Loss:
    """Make the cross-entropy of logits that are right by a margin."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(margin * functional.one_hot(y, 3) + out / 10, y)

    return loss


def rounded_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Normalise in float32 whatever the precision, as the large language models do."""
    z = x.to(torch.float32)
    return gain * (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-6)).to(x)


def written_in_place(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :3] = x[:, 3:].sin()
    y[:, 3:] = x[:, :3]
    return y.add_(x).mul_(0.5)


def logistic(x: Tensor) -> Tensor:
    """Iterate the logistic map, which doubles a difference each time."""
    x = x.sigmoid()
    for _ in range(12):
        x = 3.9 * x * (1 - x)
    return x


SOME = torch.tensor([0, 0, 1, 2, 3, 3])

right_old = saving(torch.tanh, lambda g, y, x: g * (1 - y * y))
right_new = batched(lambda x: x.tanh(), lambda g, x, y: g * (1 - y * y))

RIGHT: dict[str, Right] = {
    # Activations.
    "tanh": Right(nn.Tanh),
    "gelu": Right(nn.GELU),
    "silu": Right(nn.SiLU),
    "mish": Right(nn.Mish),
    "softplus": Right(nn.Softplus),
    "leaky": Right(lambda: nn.LeakyReLU(0.01)),
    "prelu": Right(lambda: nn.PReLU(6)),
    "relu6": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU6())),
    "hardtanh": Right(nn.Hardtanh),
    "hardswish": Right(nn.Hardswish),
    "abs": Right(lambda: Of(torch.abs)),
    "wide relu": Right(lambda: nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 6))),
    "deep relu": Right(deep),
    "relu in place": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True))),
    "softmax": Right(lambda: nn.Softmax(-1)),
    "logsumexp": Right(lambda: Of(lambda x: x - x.logsumexp(-1, keepdim=True))),
    "dropout": Right(lambda: nn.Dropout(0.5)),
    # Layers.
    "max-pooling": Right(lambda: shaped(1, 6, layers=[nn.MaxPool1d(2), nn.Upsample(6)])),
    "average pooling": Right(lambda: shaped(1, 6, layers=[nn.AvgPool1d(2), nn.Upsample(6)])),
    "convolution": Right(
        lambda: shaped(1, 6, layers=[nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)])
    ),
    "convolution in two dimensions": Right(
        lambda: shaped(
            1, 2, 3, layers=[nn.Conv2d(1, 2, 3, padding=1), nn.SiLU(), nn.MaxPool2d((2, 1))]
        )
    ),
    "bilinear": Right(Twofold),
    "residual": Right(lambda: Residual(nn.Sequential(nn.Linear(6, 6), nn.ELU()))),
    "layer norm": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))),
    "rms norm": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6))),
    "group norm": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.GroupNorm(2, 6))),
    "instance norm": Right(lambda: shaped(2, 3, layers=[nn.InstanceNorm1d(2, affine=True)])),
    "batch norm": Right(lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))),
    "batch norm with statistics": Right(batch_norm_with_statistics),
    "batch norm in train mode": Right(lambda: nn.BatchNorm1d(6), mode="train"),
    "weight norm": Right(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
    "spectral norm": Right(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))),
    "gru": Right(lambda: Recurrent(nn.GRU(2, 6, batch_first=True))),
    "gru of two layers": Right(lambda: Recurrent(nn.GRU(2, 6, num_layers=2, batch_first=True))),
    "lstm": Right(lambda: Recurrent(nn.LSTM(2, 6, batch_first=True))),
    "lstm both ways": Right(lambda: Recurrent(nn.LSTM(2, 3, bidirectional=True, batch_first=True))),
    "sequences of unequal length": Right(Packed),
    "attention": Right(Attention),
    "torch's attention": Right(SelfAttention),
    "transformer": Right(
        lambda: shaped(2, 3, layers=[nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)])
    ),
    "embedding": Right(lambda: Passing(nn.Embedding(4, 6), lambda x: ((bins(x),), {}))),
    "sparse embedding": Right(
        lambda: Passing(nn.Embedding(4, 6, sparse=True), lambda x: ((bins(x),), {}))
    ),
    "embedding bag": Right(
        lambda: Passing(nn.EmbeddingBag(4, 6), lambda x: ((bins(x.unsqueeze(-1)),), {}))
    ),
    "routed": Right(Routed),
    # Structure.
    "checkpoint": Right(lambda: Checkpointed(reentrant=False)),
    "reentrant checkpoint": Right(lambda: Checkpointed(reentrant=True)),
    "checkpoint in a checkpoint": Right(lambda: Checkpointed(False, Checkpointed(False))),
    "tied": Right(Tied),
    "unused and frozen": Right(Spare),
    "low rank from zero": Right(LowRank),
    "one layer, called three times": Right(lambda: Repeated(layered(nn.Tanh()), 3)),
    "a derivative in the forward pass": Right(Force),
    "a buffer that counts": Right(Counting),
    "a scalar parameter": Right(lambda: Of(torch.mul, gain=())),
    "an empty parameter": Right(lambda: Of(lambda x, none: x.tanh() + none.sum(), none=(0,))),
    "several outputs": Right(lambda: Of(lambda x: sum(x.tanh().chunk(2, -1)).repeat(1, 2))),
    "a Function": Right(lambda: Of(right_old)),
    "a Function, batched": Right(lambda: Of(right_new)),
    "a layer by hand": Right(linear_with()),
    "a lookup by hand": Right(looked_up(rows_added)),
    "written in place": Right(lambda: Of(written_in_place)),
    "copies of one example": Right(lambda: Of(lambda x: x[:1].expand_as(x).tanh())),
    # Indexing and algebra.
    "gather": Right(lambda: Of(lambda x: x.gather(-1, SOME.expand(len(x), 6)).tanh())),
    "scatter": Right(
        lambda: Of(lambda x: torch.zeros_like(x).scatter_add(-1, SOME.expand(len(x), 6), x))
    ),
    "top three": Right(lambda: Of(lambda x: x.topk(3).values.repeat(1, 2))),
    "sort": Right(lambda: Of(lambda x: x.sort(-1).values)),
    "cumulative sum": Right(lambda: Of(lambda x: x.cumsum(-1))),
    "einsum": Right(
        lambda: Of(lambda x, w: torch.einsum("bi,ijk,bk->bj", x, w, x), weight=(6, 6, 6))
    ),
    "complex weights": Right(
        lambda: Of(
            lambda x, w: torch.fft.ifft(torch.fft.fft(x) * torch.view_as_complex(w)).real,
            weight=(6, 2),
        )
    ),
    "a matrix exponential": Right(
        lambda: Of(lambda x, w: x @ torch.linalg.matrix_exp(w), weight=(6, 6))
    ),
    "Fourier": Right(lambda: Of(lambda x: torch.fft.fft(x).abs())),
    "a linear solve": Right(
        lambda: Of(
            lambda x, w: torch.linalg.solve(w @ w.T + torch.eye(6).to(w), x.T).T, weight=(6, 6)
        )
    ),
    "eigenvalues": Right(
        lambda: Of(lambda x, w: torch.linalg.eigvalsh(x.diag_embed() + w + w.mT), weight=(6, 6))
    ),
    # Sizes and precision.
    "scale 1e-8": Right(lambda: Scaled(1e-8)),
    "scale 1e-4": Right(lambda: Scaled(1e-4)),
    "scale 1e4": Right(lambda: Scaled(1e4)),
    "scale 1e8": Right(lambda: Scaled(1e8)),
    "weights of many sizes": Right(of_sizes),
    "bfloat16 weights": Right(lambda: nn.Linear(6, 6).bfloat16()),
    "a loss near zero": Right(
        nn.Tanh, "a loss of 4e-9 is rounded to 1e-16, as the logits of 20 are", sure_by(20)
    ),
    "a loss that rounds to zero": Right(nn.Tanh, "1 + exp(-40) is 1", sure_by(40)),
    "at a minimum": Right(gain(0.0), loss=spread),
    "near a minimum": Right(
        gain(1e-6), "the last bias moves all outputs alike: its derivative is rounding", spread
    ),
    "a loss with a large constant": Right(
        nn.Tanh, loss=lambda out, y: 1e2 + functional.cross_entropy(out, y)
    ),
    "a loss of size 1e-30": Right(
        nn.Tanh, loss=lambda out, y: 1e-30 * functional.cross_entropy(out, y)
    ),
    "high frequency": Right(lambda: Of(lambda x: (50 * x).sin())),
    "a logistic map": Right(lambda: Of(logistic)),
    "saturated": Right(lambda: Of(lambda x: (20 * x).tanh())),
    "relu at its kink": Right(kinked(torch.relu), "both sides of zero have a slope of their own"),
    "abs at its kink": Right(kinked(torch.abs), "both sides of zero have a slope of their own"),
    "a norm in float32": Right(
        lambda: Of(rounded_norm, gain=(6,)), "values are rounded to float32 on their way"
    ),
    "a softmax in float32": Right(
        lambda: Of(lambda x: x.softmax(-1, dtype=torch.float32).to(x)),
        "values are rounded to float32 on their way",
    ),
}
