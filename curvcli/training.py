"""The problem as a training step meets it."""

from dataclasses import replace

import torch

from curvcli.batches import select
from curvcli.curvature.memory import held, spare
from curvcli.errors import CurvError
from curvcli.problem import Problem, normalisations

GRAPHS = 6
"""What products with the Hessian hold of a batch at most, in graphs of its loss: measured, 4.6 in
an MLP and 5.7 in a CNN."""


def as_trained(problem: Problem, memory: float | None = None) -> Problem:
    """Normalise batches by their own statistics, as a step does, where no mode was asked for.

    All examples become one batch, so that no figure depends on how they are cut; dropout stays off.
    Running statistics are constants to a gradient: they leave a bias before BatchNorm a gradient
    that training never sees, and a Hessian of another function.

    Raises: CurvError (E_MEMORY) where one batch of all examples does not fit in `memory` bytes,
        by default half of what is free.
    """
    if not problem.free or problem.examples < 2 or not normalisations(problem.model):
        return problem
    merged = select(problem.batches, torch.arange(problem.examples))
    if len(merged) > 1:  # of different shapes
        return problem
    if len(problem.batches) > 1:
        _check(problem, memory)
    return replace(problem, mode="batchnorm", batches=merged, heldout=())


def _check(problem: Problem, memory: float | None) -> None:
    """Weigh the graph of the largest batch, and refuse what many of them would not fit into."""
    device = problem.like.device
    largest = max(problem.batches, key=lambda b: b.size)
    with problem.engaged():
        size = held(lambda: problem.share(largest), device) / largest.size
    room = spare(device) if memory is None else memory
    if GRAPHS * size * problem.examples > room:
        raise CurvError(
            "E_MEMORY",
            f"BatchNorm's statistics over all {problem.examples:,} examples at once need about "
            f"{GRAPHS * size * problem.examples / 1e9:.2g} GB",
            "lower --samples, or --mode eval for its running statistics",
        )


def normalised(problem: Problem) -> list[str]:
    """Say, as a note, by what batch normalisation went."""
    if not normalisations(problem.model):
        return []
    if problem.mode == "eval":
        return [
            "BatchNorm by its running statistics, as in use; steps of training go by those of "
            "their batch (--mode batchnorm)"
        ]
    dropout = "" if problem.mode == "train" else ", dropout off"
    return [
        f"BatchNorm by the statistics of all {problem.examples:,} examples{dropout}; --mode eval "
        "takes the running ones"
    ]
