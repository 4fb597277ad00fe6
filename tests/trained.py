"""Models trained on the digits, healthy ones and ones with something wrong, for three seeds."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.load.loss import as_loss, custom
from curvcli.problem import Problem

TRAIN, HELD = 400, 200
DIGITS = Path(__file__).parent.parent / "sample_models" / "digits.npz"


class Made(NamedTuple):
    """How a model is made, trained and posed."""

    make: Callable[[], nn.Module]
    steps: int = 120
    lr: float = 3e-3
    loss: Callable[..., Any] = functional.cross_entropy
    view: Callable[[Tensor], Tensor] = lambda x: x
    target: Callable[[Tensor], Tensor] = lambda y: y
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    given_back: bool = False
    """Whether the targets are the images."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Read 600 digits, as rows of 64 pixels, and their classes."""
    with numpy.load(DIGITS) as found:
        images, labels = found["images"][: TRAIN + HELD], found["labels"][: TRAIN + HELD]
    return torch.from_numpy(images), torch.from_numpy(labels)


def untrained(made: Made, seed: int) -> Problem:
    """Pose the problem at fresh weights, of another seed than those that the factory makes."""
    found = posed(made._replace(steps=0), seed)
    return replace(found, fresh=partial(fresh, made.make, seed + 77))


def posed(made: Made, seed: int, labels: Tensor | None = None) -> Problem:
    """Train a model and pose the problem, with its factory and with held-out examples."""
    x, y = digits()
    x, y = made.view(x), x if made.given_back else made.target(y if labels is None else labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made.make()
        train(model, x[:TRAIN], y[:TRAIN], made, seed)
    cut = [Batch(x[i : i + 128], y[i : i + 128], len(x[i : i + 128])) for i in range(0, TRAIN, 128)]
    data = [Batch(b.inputs[: TRAIN - 128 * k], b.target[: TRAIN - 128 * k],
                  min(128, TRAIN - 128 * k)) for k, b in enumerate(cut)]  # fmt: skip
    held = Batch(x[TRAIN:], y[TRAIN:], HELD)
    return Problem.of(
        model, as_loss(made.loss), data, heldout=(held,), fresh=partial(fresh, made.make, seed)
    )


def fresh(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train(model: nn.Module, x: Tensor, y: Tensor, made: Made, seed: int) -> None:
    """Take steps on batches of 64, chosen by the seed."""
    if not made.steps:
        return
    rng = torch.Generator().manual_seed(seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = made.optimizer(trainable, lr=made.lr)  # type: ignore[call-arg]
    model.train()
    for _ in range(made.steps):
        rows = torch.randint(len(x), (64,), generator=rng)
        optimizer.zero_grad()
        torch.autograd.backward(made.loss(model(x[rows]), y[rows]))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()


# --- models ------------------------------------------------------------------------------------


def perceptron(act: Callable[[], nn.Module], width: int = 64) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 10)
    )


class Functional(nn.Module):
    """Calls its activations as functions, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 48), nn.Linear(48, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.a(x), inplace=True)
        out: Tensor = self.head(self.b(h).relu_())
        return out


class Residual(nn.Module):
    """Twelve normalised residual blocks."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.head(self.norm(h))
        return out


class Rows(nn.Module):
    """Reads an image row by row, with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


class ByHand(nn.Module):
    """A recurrent network by hand: one cell, called eight times."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.again, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(8):
            h = torch.tanh(self.inward(x[:, t]) + self.again(h))
        out: Tensor = self.head(h)
        return out


class Transformer(nn.Module):
    """Reads an image row by row, with attention."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 24), nn.Linear(24, 10)
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.stem(x)).mean(1))
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10),
    )  # fmt: skip


class Autoencoder(nn.Module):
    """Gives the images back, through 24 units."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 24), nn.Linear(24, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(torch.relu(self.encoder(x))))


def zero_head() -> nn.Module:
    """Make a perceptron whose last layer begins at zero, as of many a residual network."""
    model = perceptron(nn.ReLU)
    nn.init.zeros_(model.get_submodule("4").get_parameter("weight"))
    nn.init.zeros_(model.get_submodule("4").get_parameter("bias"))
    return model


class Even(nn.Module):
    """Gives the probability of an even digit."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(self.body(x))
        return out


def rows(x: Tensor) -> Tensor:
    return x.view(-1, 8, 8)


def images(x: Tensor) -> Tensor:
    return x.view(-1, 1, 8, 8)


def even(y: Tensor) -> Tensor:
    return (y % 2 == 0).float().unsqueeze(1)


def angle(y: Tensor) -> Tensor:
    return torch.stack([(y * 0.628).sin(), (y * 0.628).cos()], 1).float()


HEALTHY: dict[str, Made] = {
    "relu": Made(lambda: perceptron(nn.ReLU)),
    "tanh": Made(lambda: perceptron(nn.Tanh)),
    "linear": Made(lambda: nn.Linear(64, 10), lr=1e-2),
    "gelu": Made(lambda: perceptron(nn.GELU)),
    "relu, sgd": Made(lambda: perceptron(nn.ReLU), lr=0.1, optimizer=torch.optim.SGD),
    "functional": Made(Functional),
    "convolutional": Made(convolutional, view=images, lr=1e-2),
    "residual": Made(Residual),
    "residual, untrained depth": Made(lambda: Residual(30), steps=40),
    "lstm": Made(Rows, view=rows, lr=1e-2),
    "by hand": Made(ByHand, view=rows, lr=1e-2),
    "transformer": Made(Transformer, view=rows),
    "probability": Made(Even, loss=functional.binary_cross_entropy, target=even, lr=1e-2),
    "logit": Made(
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
        loss=functional.binary_cross_entropy_with_logits, target=even, lr=1e-2,
    ),
    "zero head": Made(zero_head),
    "autoencoder": Made(
        Autoencoder, loss=functional.mse_loss, steps=300, lr=1e-2, given_back=True
    ),
    "regression": Made(
        lambda: nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2)),
        loss=functional.mse_loss, target=angle, lr=1e-2,
    ),
}  # fmt: skip


# --- faults --------------------------------------------------------------------------------------


def shifted(model: nn.Sequential, bias: float) -> nn.Sequential:
    """Move the biases of the first layer."""
    with torch.no_grad():
        next(m for m in model if isinstance(m, nn.Linear)).bias.add_(bias)
    return model


def scaled(model: nn.Module, factor: float, layers: int | None = None) -> nn.Module:
    """Scale the weights of the first layers."""
    with torch.no_grad():
        for m in [m for m in model.modules() if isinstance(m, nn.Linear)][:layers]:
            m.weight.mul_(factor)
    return model


def deep(act: Callable[[], nn.Module], layers: int, width: int = 32) -> nn.Module:
    parts: list[nn.Module] = [nn.Linear(64, width), act()]
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), act()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


class DeadFunction(Functional):
    """The functions' ReLUs never fire."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.b.bias, -20.0)


class Forgotten(nn.Module):
    """Has a layer that forward() does not call, and one that it detaches."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.body, self.extra = perceptron(nn.ReLU), nn.Linear(64, 10)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + self.extra(x).detach() if self.detached else out


class Centred(nn.Module):
    """Takes the mean over the batch off, by hand; the statistics are in the graph or not."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        self.a, self.head, self.detached = nn.Linear(64, 32), nn.Linear(32, 10), detached

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        mean = h.mean(0, keepdim=True)
        out: Tensor = self.head(torch.relu(h - (mean.detach() if self.detached else mean)))
        return out


class NarrowTokens(nn.Module):
    """Sums embeddings of rounded pixels by place, over the batch's wrong axis of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(17, 16), nn.Linear(64 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = h * torch.softmax(h, 0)  # over the examples
        out: Tensor = self.head(h.flatten(1))
        return out


def frozen() -> nn.Module:
    model = perceptron(nn.ReLU)
    for p in list(model.parameters())[:-1]:
        p.requires_grad_(False)
    return model


def over_the_batch(out: Tensor, y: Tensor) -> Tensor:
    return -out.log_softmax(0)[torch.arange(len(y)), y].mean()


def summed(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, reduction="sum")


def over_the_classes(out: Tensor, y: Tensor) -> Tensor:
    return -(functional.one_hot(y, 10) * out.log_softmax(1)).mean()


def squared(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).square().mean()


def wrecked(seed: int) -> Problem:
    """Train at a learning rate of ten."""
    made = Made(lambda: perceptron(nn.ReLU), lr=10.0, optimizer=torch.optim.SGD, steps=60)
    return posed(made, seed)


def shuffled(seed: int) -> Tensor:
    y = digits()[1]
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(100 + seed))]


def misaligned(seed: int, name: str = "relu") -> Problem:
    """Train on the true labels, and pose the problem with others."""
    found = posed(HEALTHY[name], seed)
    y = HEALTHY[name].target(shuffled(seed))
    cut = [replace(b, target=t) for b, t in
           zip(found.batches, torch.split(y[:TRAIN], 128), strict=True)]  # fmt: skip
    return replace(found, batches=tuple(cut), heldout=())


class DeadBlock(nn.Module):
    """Has a branch that never fires, for biases larger than all other weights together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        nn.init.constant_(self.a.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        out: Tensor = self.head(h + self.b(torch.relu(self.a(h))))
        return out


class Dropping(nn.Module):
    """Drops units by a function that is not told of the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(functional.dropout(torch.relu(self.a(x)), 0.5))
        return out


class Noisy(Dropping):
    """Adds noise to its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.a(x + 0.1 * torch.randn_like(x))))
        return out


class Reshaped(Dropping):
    """Mixes examples and units by a wrong reshape."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        out: Tensor = self.head(h.t().reshape(h.shape))
        return out


def broadcast(seed: int) -> Problem:
    """Compare outputs (N, 1) with targets (N,)."""
    made = Made(
        lambda: nn.Linear(64, 1), steps=0, loss=functional.mse_loss, target=lambda y: y.float() / 9
    )
    return posed(made, seed)


def one_class(seed: int) -> Problem:
    return posed(HEALTHY["relu"], seed, torch.full((TRAIN + HELD,), 3))


def memorised(seed: int) -> Problem:
    """Learn shuffled labels by heart."""
    made = Made(lambda: perceptron(nn.ReLU, 128), steps=1500, lr=2e-3)
    return posed(made, seed, shuffled(seed))


def of(made: Made) -> Callable[[int], Problem]:
    return partial(posed, made)


def with_loss(loss: Callable[..., Any]) -> Callable[[int], Problem]:
    """Train soundly and pose another loss."""
    return lambda seed: replace(posed(HEALTHY["relu"], seed), loss=custom(loss, {}))


def normalising(seed: int) -> Problem:
    """Look at batch normalisation in train mode."""
    found = posed(HEALTHY["convolutional"], seed)
    return replace(found, batches=found.batches[:1], mode="train")


def tokens(x: Tensor) -> Tensor:
    return (x * 16).long()


def penalised(seed: int, penalty: Callable[[nn.Module], Tensor]) -> Problem:
    return replace(posed(HEALTHY["relu"], seed), penalties={"own": penalty})


def squares(model: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


class Fault(NamedTuple):
    """A problem with a fault, and the warnings of which one must be given, by analysis."""

    make: Callable[[int], Problem]
    activations: tuple[str, ...] = ()
    sanity: tuple[str, ...] = ()


def _untrained(make: Callable[[], nn.Module], **rest: Any) -> Callable[[int], Problem]:
    return of(Made(make, steps=0, **rest))


FAULTS: dict[str, Fault] = {
    "dead relus": Fault(
        _untrained(lambda: shifted(perceptron(nn.ReLU), -20.0)), ("dead units",),
        ("tensors with a gradient",),
    ),
    "a dead block beside a living path": Fault(
        of(Made(DeadBlock)), (), ("tensors with a gradient",)
    ),
    "dead relus, as functions": Fault(_untrained(DeadFunction), ("dead units",)),
    "saturated tanh": Fault(
        _untrained(lambda: scaled(perceptron(nn.Tanh), 60.0, 2)), ("saturation",)
    ),
    "saturated sigmoid": Fault(
        _untrained(lambda: scaled(perceptron(nn.Sigmoid), 100.0, 2)), ("saturation",)
    ),
    "thirty sigmoids": Fault(
        _untrained(lambda: deep(nn.Sigmoid, 30)), ("gradient by depth",),
        ("tiny subset overfitted",),
    ),
    "fifteen sigmoids": Fault(_untrained(lambda: deep(nn.Sigmoid, 15)), ("gradient by depth",)),
    "exploding": Fault(
        _untrained(lambda: scaled(deep(nn.ReLU, 20), 6.0)), ("gradient by depth",),
        ("fresh weights at chance",),
    ),
    "a learning rate of ten": Fault(
        wrecked, ("dead units",), ("labels against permuted",),
    ),
    "a forgotten layer": Fault(
        of(Made(lambda: Forgotten(False))), (), ("tensors with a gradient",)
    ),
    "a detached layer": Fault(of(Made(lambda: Forgotten(True))), (), ("tensors with a gradient",)),
    "softmax over the batch": Fault(with_loss(over_the_batch), (), ("mean over examples",)),
    "a sum over the batch": Fault(with_loss(summed), (), ("mean over examples",)),
    "a mean over the classes too": Fault(with_loss(over_the_classes), (), ("equal outputs",)),
    "batch norm in train mode": Fault(normalising, (), ("examples apart",)),
    "a mean over the batch": Fault(of(Made(Centred)), (), ("examples apart",)),
    "a detached mean": Fault(of(Made(lambda: Centred(True))), (), ("examples apart",)),
    "attention across the batch": Fault(
        of(Made(lambda: Transformer(False), view=rows)), (), ("examples apart",)
    ),
    "a softmax over the batch, tokens": Fault(
        of(Made(NarrowTokens, view=tokens)), (), ("examples apart",)
    ),
    "misaligned labels": Fault(misaligned, (), ("labels against permuted",)),
    "memorised shuffled labels": Fault(memorised, (), ("labels against permuted held out",)),
    "misaligned targets, regression": Fault(
        partial(misaligned, name="regression"), (), ("labels against permuted",)
    ),
    "misaligned labels, slow descent": Fault(
        partial(misaligned, name="relu, sgd"), (), ("labels against permuted",)
    ),
    "softmax before cross-entropy": Fault(
        of(Made(lambda: nn.Sequential(perceptron(nn.ReLU), nn.Softmax(1)))), (),
        ("outputs are logits",),
    ),
    "softmax before cross-entropy, fresh": Fault(
        _untrained(lambda: nn.Sequential(perceptron(nn.ReLU), nn.Softmax(1))), (),
        ("outputs are logits",),
    ),
    "sigmoid before cross-entropy with logits": Fault(
        of(HEALTHY["probability"]._replace(loss=functional.binary_cross_entropy_with_logits)), (),
        ("outputs are logits",),
    ),
    "dropout in eval mode": Fault(of(Made(Dropping)), (), ("repeatable",)),
    "noise in eval mode": Fault(of(Made(Noisy)), (), ("repeatable",)),
    "a column against a row": Fault(broadcast, (), ("shapes alike",)),
    "a column against a row, own loss": Fault(
        lambda seed: replace(broadcast(seed), loss=custom(squared, {})),
        (), ("shapes alike",),
    ),
    "one class": Fault(one_class, (), ("targets vary",)),
    "one value": Fault(
        of(HEALTHY["regression"]._replace(target=lambda y: torch.full((len(y), 2), 0.3))), (),
        ("targets vary",),
    ),
    "outputs that mix examples by a reshape": Fault(_untrained(Reshaped), (), ("examples apart",)),
    "a bottleneck": Fault(
        of(Made(lambda: nn.Sequential(nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, 10)))),
        (), ("tiny subset overfitted",),
    ),
    "frozen": Fault(of(Made(frozen)), (), ("tiny subset overfitted",)),
    "initial weights too large": Fault(
        _untrained(lambda: scaled(perceptron(nn.ReLU), 8.0)), (), ("fresh weights at chance",)
    ),
    "a penalty of the wrong sign": Fault(
        lambda seed: penalised(seed, lambda m: -squares(m)), (), ("penalty own",)
    ),
    "a detached penalty": Fault(
        lambda seed: penalised(seed, lambda m: squares(m).detach()), (), ("penalty own",)
    ),
}  # fmt: skip
