"""`activations` and `sanity`: every planted fault gets its warning, and no healthy model any."""

from dataclasses import replace
from functools import cache

import pytest
from questions import ask
from trained import FAULTS, HEALTHY, posed, untrained
from zoo import ZOO

from curvcli.analyses.activations import Activations
from curvcli.analyses.base import Analysis
from curvcli.analyses.sanity import Sanity
from curvcli.problem import Problem

SEEDS = [0, 1, 2]
ANALYSES: list[Analysis] = [Activations(), Sanity(steps=200)]

TRUE = {
    "convolution, train": {"examples apart"},
    "frozen and unused": {"tensors with a gradient"},
    "embedding": {"tiny subset overfitted"},
    "sparse embedding": {"tiny subset overfitted"},
    "linear regression": {"shapes alike"},
}
"""What is so in the zoo: batch statistics, a parameter that nothing uses, models of one token that
are asked for several targets of one token, and outputs (7, 1) for targets (7,)."""


def warned(analysis: Analysis, problem: Problem, seed: int) -> set[str]:
    return {c.name for c in ask(analysis, problem, seed).checks if c.status != "pass"}


@cache
def faulty(name: str, seed: int) -> Problem:
    return FAULTS[name].make(seed)


@cache
def healthy(name: str, seed: int) -> Problem:
    return posed(HEALTHY[name], seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.activations])
def test_a_fault_shows_in_the_activations(name: str, seed: int) -> None:
    assert warned(Activations(), faulty(name, seed), seed) & set(FAULTS[name].activations)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.sanity])
def test_a_fault_is_no_sane_model(name: str, seed: int) -> None:
    expected = set(FAULTS[name].sanity)
    steps = 150 if "tiny subset overfitted" in expected else 0
    assert warned(Sanity(steps=steps), faulty(name, seed), seed) & expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda a: a.name)
def test_a_healthy_model_is_not_warned_of(analysis: Analysis, name: str, seed: int) -> None:
    assert warned(analysis, healthy(name, seed), seed) == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_fresh_weights_of_a_healthy_model_are_not_warned_of(name: str, seed: int) -> None:
    assert warned(Sanity(steps=100), untrained(HEALTHY[name], seed), seed) == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_fresh_weights_without_a_factory_are_not_warned_of(name: str, seed: int) -> None:
    problem = replace(untrained(HEALTHY[name], seed), fresh=None)
    alike = {"labels against permuted"} if name == "zero head" else set()
    assert warned(Sanity(steps=0), problem, seed) <= alike


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_model_is_told_what_is_so(name: str) -> None:
    # There is nothing random in these but the permutations.
    assert warned(Activations(), ZOO[name](), 0) == set()
    assert warned(Sanity(), ZOO[name](), 0) == TRUE.get(name, set())
