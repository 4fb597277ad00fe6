"""Rebuild the samples from a seed, bit for bit on one machine: `python build.py [FOLDER]`."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from models import BrokenMLP, DigitsCNN, ModularTransformer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

SEED = 0
DIGITS_TRAIN = 1437  # four fifths of 1797; the specs repeat this number
ADDITION_TRAIN = 768  # four fifths of 31 * 31
PRIME = 31


class Split(NamedTuple):
    """Examples to train on, and examples held out."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor


def main() -> None:
    """Build everything into the folder that the command line names, or beside this script."""
    # One thread: a sum over two is added up in another order, hence other last bits.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    out.mkdir(parents=True, exist_ok=True)
    digits, addition = build_digits(out), build_addition(out)
    build_mlp(out, digits)
    build_cnn(out, digits)
    build_broken(out, digits)
    build_transformer(out, addition)
    build_run(out / "edge", digits)


def build_digits(out: Path) -> Split:
    """Write the digits, shuffled, with pixels in [0, 1]."""
    source = load_digits()
    order = permutation(len(source.target))
    images = torch.tensor(source.data / 16, dtype=torch.float32)[order]  # (1797, 64)
    labels = torch.tensor(source.target, dtype=torch.int64)[order]
    np.savez_compressed(out / "digits.npz", images=images.numpy(), labels=labels.numpy())
    return split(images, labels, DIGITS_TRAIN)


def build_addition(out: Path) -> Split:
    """Write all sums of two numbers modulo the prime, shuffled, as tokens `a b =`."""
    a, b = torch.arange(PRIME**2) // PRIME, torch.arange(PRIME**2) % PRIME
    order = permutation(PRIME**2)
    tokens = torch.stack([a, b, torch.full_like(a, PRIME)], dim=1)[order]  # (961, 3)
    sums = ((a + b) % PRIME)[order]
    np.savez_compressed(out / "addition.npz", tokens=tokens.numpy(), sums=sums.numpy())
    return split(tokens, sums, ADDITION_TRAIN)


def build_mlp(out: Path, data: Split) -> None:
    """Train a perceptron; save it as the PyTorch tutorial does."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    epochs = 30
    loss = fit(model, optimizer, data, epochs=epochs, batch_size=128)
    checkpoint = {
        "epoch": epochs,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": loss,
    }
    save(out / "digits_mlp.pt", checkpoint, model, data)


def build_cnn(out: Path, data: Split) -> None:
    """Train a network with batch normalisation; save it as PyTorch's ImageNet example does."""
    torch.manual_seed(SEED)
    model = DigitsCNN(channels=16)
    optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    epochs = 20
    fit(model, optimizer, data, epochs=epochs, batch_size=128)
    checkpoint = {
        "epoch": epochs,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    save(out / "digits_cnn.pt", checkpoint, model, data)


def build_broken(out: Path, data: Split) -> None:
    """Train the perceptron with the wrong backward; save it as torchvision's references do."""
    torch.manual_seed(SEED)
    model = BrokenMLP(width=128)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    epochs = 30
    fit(model, optimizer, data, epochs=epochs, batch_size=128)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epochs,
    }
    save(out / "broken.pt", checkpoint, model, data)


def build_transformer(out: Path, data: Split) -> None:
    """Train the transformer until it generalises; save it as nanoGPT does."""
    torch.manual_seed(SEED)
    model_args = {"p": PRIME, "n_layer": 1, "n_head": 4, "n_embd": 32}
    config = {"learning_rate": 2e-3, "weight_decay": 1.0, "max_iters": 600, **model_args}
    model = ModularTransformer(**model_args)
    # nanoGPT's order: matrices, which decay, come before vectors, which do not.
    groups: list[dict[str, Any]] = [
        {"params": [w for w in model.parameters() if w.ndim >= 2], "weight_decay": 1.0},
        {"params": [w for w in model.parameters() if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    # On the full batch, and no longer than this: at a loss of zero no curvature would be left.
    fit(model, optimizer, data, epochs=600, batch_size=len(data.x))
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": model_args,
        "iter_num": 600,
        "best_val_loss": evaluate(model, data.x_held, data.y_held)[0],
        "config": config,
    }
    save(out / "modular_transformer.pt", checkpoint, model, data)


EDGE_STEPS = (0, 5, 10, 15, 20, 30, 50, 60, 70, 80, 100, 150, 200, 300)


def build_run(out: Path, data: Split) -> None:
    """Descend by the full gradient at a rate that the curvature grows up to; save it on the way."""
    torch.manual_seed(SEED)
    out.mkdir(exist_ok=True)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    optimizer = SGD(model.parameters(), lr=0.5)
    before = 0
    for step in EDGE_STEPS:
        fit(model, optimizer, data, epochs=step - before, batch_size=len(data.x))
        checkpoint = {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save(out / f"step-{step:03}.pt", checkpoint, model, data)
        before = step


def permutation(n: int) -> Tensor:
    """Return a seeded order of n examples."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(SEED))


def split(x: Tensor, y: Tensor, train: int) -> Split:
    """Cut the examples into the first `train` and the rest."""
    return Split(x[:train], y[:train], x[train:], y[train:])


def fit(
    model: nn.Module, optimizer: Optimizer, data: Split, *, epochs: int, batch_size: int
) -> float:
    """Train at a constant learning rate; return the mean loss seen in the last epoch.

    Constant, so that the rate which the optimizer saves is the one that made its last step.
    """
    rng = torch.Generator().manual_seed(SEED + 1)
    model.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for index in torch.split(torch.randperm(len(data.x), generator=rng), batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data.x[index]), data.y[index])
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(index)
    return total / len(data.x)


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy, and leave the model in eval mode."""
    model.eval()
    with torch.no_grad():
        logits = model(x)
    accuracy = (logits.argmax(1) == y).float().mean().item()
    return functional.cross_entropy(logits, y).item(), accuracy


def save(path: Path, checkpoint: object, model: nn.Module, data: Split) -> None:
    """Write the checkpoint, and say how good the model is."""
    torch.save(checkpoint, path)
    loss, _ = evaluate(model, data.x, data.y)
    held_loss, accuracy = evaluate(model, data.x_held, data.y_held)
    size = sum(weight.numel() for weight in model.parameters())
    figures = f"loss {loss:.4f}, held out {held_loss:.4f}, accuracy {100 * accuracy:.1f} %"
    print(f"{path.name}: {size} parameters, {figures}")


if __name__ == "__main__":
    main()
