"""The matching of intervals with points against every assignment there is."""

from itertools import permutations

import pytest
import torch
from oracles import rng

from curvcli.linalg.matching import matched


def most(centres: torch.Tensor, radii: torch.Tensor, points: torch.Tensor) -> int:
    """Try every way to give the intervals points of their own."""
    holds = (points[None] - centres[:, None]).abs() <= radii[:, None]
    count, m = holds.shape
    return max(
        sum(bool(holds[i, j]) for i, j in enumerate(chosen))
        for chosen in permutations(range(m), count)
    )


@pytest.mark.parametrize("seed", range(20))
def test_as_many_are_matched_as_can_be(seed: int) -> None:
    g = rng(seed)
    centres = torch.rand(3, generator=g, dtype=torch.float64)
    radii = 0.3 * torch.rand(3, generator=g, dtype=torch.float64)
    points = torch.rand(4, generator=g, dtype=torch.float64).sort().values
    found = matched(centres, radii, points)
    taken = [j for j in found if j is not None]
    assert len(taken) == len(set(taken)) == most(centres, radii, points)
    for i, j in enumerate(found):
        assert j is None or abs(points[j] - centres[i]) <= radii[i]


def test_a_wide_interval_leaves_a_point_to_a_narrow_one() -> None:
    centres, radii = torch.tensor([0.5, 0.1]), torch.tensor([0.5, 0.05])
    assert matched(centres, radii, torch.tensor([0.1, 0.9])) == [1, 0]


def test_one_point_serves_one_interval() -> None:
    centres, radii = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert sorted(matched(centres, radii, torch.tensor([0.5])), key=str) == [0, None]
