"""Models as people have them: wrapped, hooked, normalised, in half precision, from a library."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from oracles import built, cut, rng
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from wild_modules import (
    ByHand,
    Last,
    Nested,
    Numbered,
    Offsets,
    Redrawn,
    Reentrant,
    Split,
    Spoken,
    Tail,
    Weights,
    dropping,
)
from zoo import Distances, classes, drawn, mlp, posed, sequences, vectors

from curvcli.batches import Batch, Loss
from curvcli.load.loss import custom, named
from curvcli.problem import Problem

EXACT = 1e-9


@dataclass(frozen=True)
class Kind:
    """A problem, its dense oracle's, and what is promised of products with its Hessian."""

    problem: Callable[[], Problem]
    plain: Callable[[], Problem] | None = None  # what the oracle differentiates, where it differs
    method: str = "kept"
    tolerance: float = EXACT
    said: str = ""  # in the notes
    gauss_newton: bool = True


def bag(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Tail(nn.EmbeddingBag(5, 3, **options), 3)


def words() -> Batch:
    return Batch(classes(5, 7, 4, seed=1), classes(2, 7), 7)


def weighted() -> Batch:
    return Batch((classes(5, 7, 4, seed=1), Weights.none(), drawn(7, 4)), classes(2, 7), 7)


def nested(output: Any, target: Tensor) -> Tensor:
    squares: Tensor = output["more"][0].sum(dim=1)
    return functional.cross_entropy(output["logits"], target, reduction="none") + 0.1 * squares


def spoken() -> Problem:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        steps, count = output.shape[:2]
        lengths = torch.full((count,), steps), torch.full((count,), target.shape[1])
        return functional.ctc_loss(output, target, *lengths, reduction="none")

    return over(Spoken, custom(loss, {}), Batch(drawn(7, 5, 3), 1 + classes(3, 7, 2), 7))


def over(
    make: Callable[[], nn.Module], loss: Loss, batch: Batch, wrap: Any = None, **rest: Any
) -> Problem:
    model = seasoned(built(make))
    return Problem.of(wrap(model) if wrap else model, loss, cut(batch, (3, 3, 1)), **rest)


def seasoned(model: nn.Module) -> nn.Module:
    """Give running statistics values that they do not start with."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            cast(Tensor, m.running_mean).copy_(drawn(m.num_features, seed=7))
            m.running_var.copy_(0.5 + drawn(m.num_features, seed=8).square())
    return model


def quietly(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Use what torch advises against, and people have."""

    def wrapped(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(module)

    return wrapped


def normal_last(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))


def activated(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 5), make(), nn.Linear(5, 2))


def convolved(*layers: Callable[[], nn.Module], ndim: int) -> Problem:
    x = drawn(7, 2, *[3] * ndim)

    def make() -> nn.Module:
        return nn.Sequential(*(make() for make in layers), nn.Flatten(), nn.LazyLinear(2))

    def ready() -> nn.Module:
        model = make().double()
        with torch.no_grad():
            model(x)  # the last layer learns its size
        return model

    return over(ready, named("cross_entropy", {}), Batch(x, classes(2, 7), 7))


CE = named("cross_entropy", {})


def simple(make: Callable[[], nn.Module], batch: Callable[[], Batch] = vectors) -> Kind:
    return Kind(lambda: over(make, CE, batch()))


def replaying() -> Problem:
    return replace(over(dropping, CE, vectors(), mode="train"), replay=3)


def halved() -> Problem:
    """Round weights and data to bfloat16, and compute with them in float64."""
    return posed(mlp, vectors()).to(torch.bfloat16).to(torch.float64)


BAGS = "EmbeddingBag by an embedding"
WILD: dict[str, Kind] = {
    **{
        f"bag, {mode}": replace(simple(bag(mode=mode), words), said=BAGS)
        for mode in ("sum", "mean", "max")
    },
    **{
        f"bag, {mode}, offsets": replace(simple(partial(Offsets, mode), words), said=BAGS)
        for mode in ("sum", "mean", "max")
    },
    "bag, sparse": replace(simple(bag(mode="sum", sparse=True), words), said=BAGS),
    "bag, weighted words": Kind(lambda: over(Weights, CE, weighted()), said=BAGS),
    "batch norm after a linear layer": simple(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    ),
    "batch norm before it": simple(
        lambda: nn.Sequential(
            nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2)
        )
    ),
    "convolution and batch norm, 1-d": Kind(
        lambda: convolved(
            lambda: nn.Conv1d(2, 3, 2, bias=False), lambda: nn.BatchNorm1d(3), nn.GELU, ndim=1
        )
    ),
    "convolution and batch norm, 2-d": Kind(
        lambda: convolved(
            lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2),
            lambda: nn.BatchNorm2d(4),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.Conv2d(4, 2, 3, padding="same"),
            lambda: nn.BatchNorm2d(2, affine=False),
            nn.Mish,
            ndim=2,
        )
    ),
    "convolution and batch norm, 3-d": Kind(
        lambda: convolved(lambda: nn.Conv3d(2, 2, 2), lambda: nn.BatchNorm3d(2), nn.Tanh, ndim=3)
    ),
    "padding": simple(
        lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(12, 2)),
        words,
    ),
    "gelu": simple(activated(nn.GELU)),
    "gelu by tanh": simple(activated(lambda: nn.GELU("tanh"))),
    "silu in place": simple(activated(lambda: nn.SiLU(inplace=True))),
    "mish": simple(activated(nn.Mish)),
    "softplus": simple(activated(nn.Softplus)),
    "checkpoint after a convolution": Kind(
        lambda: over(Split, CE, vectors()), lambda: over(lambda: Split(use=False), CE, vectors())
    ),
    "reentrant checkpoint": Kind(
        lambda: over(Reentrant, CE, vectors()),
        lambda: over(lambda: Reentrant(use=False), CE, vectors()),
        method="differences",
        tolerance=1e-6,
        said="not by reverse over reverse",
    ),
    "dropout": simple(dropping),
    "dropout, replayed": Kind(replaying, lambda: over(Redrawn, CE, vectors())),
    "spectral norm": simple(lambda: normal_last(parametrizations.spectral_norm(nn.Linear(4, 3)))),
    "spectral norm by a hook": simple(
        lambda: normal_last(quietly(nn.utils.spectral_norm)(nn.Linear(4, 3)))
    ),
    "weight norm by a hook": simple(
        lambda: normal_last(quietly(nn.utils.weight_norm)(nn.Linear(4, 3)))
    ),
    "orthogonal": simple(lambda: normal_last(parametrizations.orthogonal(nn.Linear(4, 3)))),
    "integers": simple(Numbered),
    "nested outputs": Kind(lambda: over(Nested, custom(nested, {}), vectors())),
    "compiled": Kind(
        lambda: over(mlp, CE, vectors(), lambda m: torch.compile(m, backend="eager")),
        lambda: over(mlp, CE, vectors()),
    ),
    "data parallel": Kind(
        lambda: over(mlp, CE, vectors(), nn.DataParallel), lambda: over(mlp, CE, vectors())
    ),
    "bfloat16 weights": Kind(halved),
    "bidirectional lstm of two layers": replace(
        simple(
            lambda: Last(nn.LSTM(2, 2, 2, batch_first=True, bidirectional=True)),
            lambda: sequences(2),
        ),
        said="recurrent layers by torch's own kernels",
    ),
    "cdist": Kind(
        lambda: over(Distances, CE, vectors()),
        lambda: over(ByHand, CE, vectors()),
        method="differences",
        tolerance=1e-6,
        said="not by reverse over reverse",
    ),
    "ctc": Kind(spoken, method="differences", tolerance=1e-6, said="not by", gauss_newton=False),
}


LOSSES: dict[str, tuple[str, dict[str, Any], Tensor]] = {
    "cross entropy, ignored": ("cross_entropy", {"ignore_index": 1}, classes(3, 7)),
    "cross entropy, smoothed": ("cross_entropy", {"label_smoothing": 0.2}, classes(3, 7)),
    "cross entropy, class weights": (
        "cross_entropy", {"weight": [0.2, 1.0, 4.0]}, classes(3, 7)
    ),
    "cross entropy, shares": ("cross_entropy", {}, drawn(7, 3, seed=5).softmax(dim=1)),
    "binary cross entropy": (
        "binary_cross_entropy_with_logits", {"pos_weight": [0.2, 1.0, 4.0]},
        (drawn(7, 3, seed=5) > 0).double(),
    ),
    "squares": ("mse_loss", {}, drawn(7, 3, seed=5)),
    "absolute": ("l1_loss", {}, drawn(7, 3, seed=5)),
    "huber": ("huber_loss", {"delta": 0.3}, drawn(7, 3, seed=5)),
    "smooth absolute": ("smooth_l1_loss", {"beta": 0.3}, drawn(7, 3, seed=5)),
    "negative log likelihood": ("nll_loss", {}, classes(3, 7)),
}  # fmt: skip


def lossy(name: str) -> Problem:
    """Pose a loss over a model of three outputs."""
    loss, options, target = LOSSES[name]

    def make() -> nn.Module:
        logits = (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        return nn.Sequential(*logits, *([nn.LogSoftmax(1)] if loss == "nll_loss" else []))

    return over(make, named(loss, options), Batch(drawn(7, 4), target, 7))


def tokens() -> Tensor:
    return torch.randint(7, (5, 4), generator=rng(1))
