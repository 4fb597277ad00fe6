"""How much a gradient check can afford: few examples are enough, and large models need fewer."""

from typing import Literal, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from curvcli.curvature.compat import second_order
from curvcli.problem import Problem

EXAMPLES = 32
"""The CS231n notes ask for few; these give nearly every unit of a small model some gradient."""

DIRECTIONS, ENTRIES, FEWEST = 2, 6, 2
"""Of each tensor; FEWEST entries and one direction where even one example costs too much."""

OPERATIONS = 2e12
"""Multiplications and additions that a check may take by default: half a minute on two cores."""


class Plan(NamedTuple):
    """How many examples, and how many directions and entries of each tensor; None is every one."""

    examples: int
    directions: int
    entries: int | None


def plan(
    problem: Problem,
    samples: int | None,
    directions: int | None,
    entries: int | Literal["all"] | None,
) -> Plan:
    """Choose what is not given by counted operations, so that it is the same everywhere."""
    most = Plan(
        EXAMPLES if samples is None else samples,
        DIRECTIONS if directions is None else directions,
        ENTRIES if entries is None else None if entries == "all" else entries,
    )
    if None not in (samples, directions, entries):
        return most
    # Two evaluations for each place; what precedes a tensor in the model is shared, which halves.
    room = OPERATIONS / (_operations(problem) * len(problem.names))
    places = most.directions + (most.entries or 0)
    examples = most.examples if samples is not None else int(max(1, min(EXAMPLES, room // places)))
    if examples * places <= room:
        return most._replace(examples=examples)
    fewer_directions = 1 if directions is None else directions
    fewer_entries = FEWEST if entries is None else most.entries
    return Plan(examples, fewer_directions, fewer_entries)


def _operations(problem: Problem) -> int:
    """Count those of the loss of one example, at least one."""
    # Two: some layers refuse a batch of one in train mode.
    two = problem.sampled(2, torch.Generator().manual_seed(0)).to(torch.float64)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad(), two.engaged(), second_order(two.model):
            for batch in two.batches:
                two.terms(batch)
    except RuntimeError:  # the counter's hooks do not bear every model
        return 2 * problem.layout.size
    return max(int(counter.get_total_flops()) // max(two.examples, 1), 1)
