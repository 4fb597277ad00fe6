"""Small problems, and analyses asked of them, for the tests of the analyses."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import oracles
import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.analyses.base import Analysis
from curvcli.batches import Batch
from curvcli.load.loss import as_loss
from curvcli.problem import Problem
from curvcli.report import Result
from curvcli.work import Watch, Work


def ask(analysis: Analysis, problem: Problem, seed: int = 0, **means: Any) -> Result:
    """Answer as the command line does."""
    return analysis.answer(problem, Work(rng=torch.Generator().manual_seed(seed), **means))


def interrupted_at(done: int) -> Callable[[str], Watch]:
    """Announce work that Ctrl-C ends as soon as that much of it is done."""

    def watch(found: int, total: int | None, estimate: float | None, error: float | None) -> None:
        if found >= done:
            raise KeyboardInterrupt

    return lambda doing: watch


def classify(
    model: nn.Module,
    x: Tensor,
    classes: int = 3,
    cut: Sequence[int] = (),
    loss: Callable[..., Any] = functional.cross_entropy,
) -> Problem:
    """Pose the classification of x, with seeded labels, cut into batches of the sizes `cut`."""
    rng = torch.Generator().manual_seed(7)
    y = torch.randint(classes, (len(x),), generator=rng)
    sizes = list(cut) or [len(x)]
    pairs = zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)
    return Problem.of(model, as_loss(loss), [Batch(a, b, len(a)) for a, b in pairs])


def dense_hessian(problem: Problem) -> Tensor:
    """Compute the Hessian (n, n) in float64 by torch's own transforms."""
    return oracles.dense_hessian(problem.to(torch.float64))


def mlp(*widths: int, act: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    """Build a perceptron with seeded weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """Draw seeded normal inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
