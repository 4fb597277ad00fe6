"""The problem as a training step meets it."""

from dataclasses import replace

import torch

from curvcli.batches import select
from curvcli.curvature.memory import held, spare
from curvcli.errors import CurvError
from curvcli.problem import Problem, normalisations

GRAPHS, GRADIENT = 6, 2
"""What products with the Hessian hold of a batch at most, in graphs of its loss: measured, 4.6 in
an MLP and 5.7 in a CNN; and what a gradient holds."""


def as_trained(problem: Problem, memory: float | None = None, graphs: float = GRAPHS) -> Problem:
    """Normalise batches by their own statistics, as a step does, where no mode was asked for.

    All examples become one batch, so that no figure depends on how they are cut; dropout stays off.
    Running statistics are constants to a gradient: they leave a bias before BatchNorm a gradient
    that training never sees, and a Hessian of another function.

    Raises: CurvError (E_MEMORY) where so many graphs of one batch of all examples do not fit in
        `memory` bytes, by default half of what is free.
    """
    if not problem.free or problem.examples < 2 or not normalisations(problem.model):
        return problem
    if len(problem.batches) > 1:
        _check(problem, memory, graphs)
        merged = select(problem.batches, torch.arange(problem.examples))
        if len(merged) > 1:  # of different shapes
            return problem
        problem = replace(problem, batches=merged)
    return replace(problem, mode="batchnorm", heldout=())


def _check(problem: Problem, memory: float | None, graphs: float) -> None:
    """Weigh the graph of the largest batch, and refuse what many of them would not fit into."""
    device = problem.like.device
    largest = max(problem.batches, key=lambda b: b.size)
    with problem.engaged():
        size = held(lambda: problem.share(largest), device) / largest.size
    room, needed = spare(device) if memory is None else memory, graphs * size * problem.examples
    if needed > room:
        raise CurvError(
            "E_MEMORY",
            f"BatchNorm's statistics over all {problem.examples:,} examples at once need about "
            f"{needed / 1e9:.2g} GB",
            "lower --samples, or --mode eval for its running statistics",
        )


def normalised(problem: Problem) -> list[str]:
    """Say, as a note, by what batch normalisation went."""
    if not any(m.running_mean is not None for m in normalisations(problem.model)):
        return []
    if problem.mode == "eval":
        why = " (examples of different shapes make no batch)" if problem.free else ""
        return [
            "BatchNorm by its running statistics, as in use; steps of training go by those of "
            f"their batch{why}"
        ]
    dropout = "" if problem.mode == "train" else ", dropout off"
    return [
        f"BatchNorm by the statistics of all {problem.examples:,} examples{dropout}; --mode eval "
        "takes the running ones"
    ]
