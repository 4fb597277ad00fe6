"""Standard errors over the data: from their definition, and against the scatter of fresh data."""

from dataclasses import replace

import pytest
import torch
from oracles import dense_hessian
from questions import classify, inputs, mlp
from torch import Tensor
from zoo import ZOO

from curvcli.batches import Batch, select
from curvcli.curvature.matrices import Matrix
from curvcli.curvature.sampling import sampling_errors
from curvcli.problem import Problem


def posed(examples: int, seed: int = 1) -> Problem:
    x = inputs(examples, 4, seed=seed).double()
    return classify(mlp(4, 3, 3).double(), x, cut=(examples // 3, examples - examples // 3))


def directions(problem: Problem, k: int) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    V = torch.randn(k, problem.layout.size, generator=rng, dtype=torch.float64)
    units: Tensor = V / V.square().sum(1, keepdim=True).sqrt()
    return units


def test_the_definition() -> None:
    p = posed(10)
    V = directions(p, 3)
    # Ten examples are ten groups.
    terms = []
    for i in range(10):
        one = replace(p, batches=select(p.batches, torch.tensor([i])))
        terms.append((V @ dense_hessian(one) * V).sum(1))
    expected = torch.stack(terms).std(0) / 10**0.5
    found = sampling_errors("hessian", "kept", p, V)
    assert found == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical-fisher"])
def test_fresh_data_scatter_as_much_as_is_said(name: Matrix) -> None:
    from curvcli.curvature import sampling

    values, said = [], []
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 4, generator=rng, dtype=torch.float64)
        y = torch.randint(3, (64,), generator=rng)
        p = replace(posed(64), batches=(Batch(x, y, 64),))
        (v,) = directions(p, 1)
        A = sampling._operator(name, "kept", p)
        values.append(float(v @ A.matvec(v)))
        found = sampling_errors(name, "kept", p, v[None])
        assert found is not None
        said.append(found[0])
    truth = float(torch.tensor(values).std())
    mean = float(torch.tensor(said).mean())
    # A deviation from 40 samples is itself uncertain by 1 / sqrt(2 * 39), or 11 %.
    assert mean == pytest.approx(truth, rel=4 * 0.113)


def test_none_where_examples_interact_or_labels_are_drawn() -> None:
    p = posed(12)
    V = directions(p, 1)
    assert sampling_errors("fisher", "kept", p, V) is None
    assert sampling_errors("hessian", "kept", replace(p, mode="train"), V) is None
    assert sampling_errors("hessian", "kept", posed(3), V) is not None


def test_a_group_whose_targets_are_all_ignored_has_no_part() -> None:
    p = ZOO["tied, ignored tokens"]()  # of seven sentences the last counts for nothing
    V = directions(p, 2)
    six = replace(p, batches=select(p.batches, torch.arange(6)))
    found = sampling_errors("hessian", "kept", p, V)
    alone = sampling_errors("hessian", "kept", six, V)
    assert found is not None
    assert found == pytest.approx(alone)


def test_a_group_is_cut_no_larger_than_the_batches() -> None:
    from curvcli.curvature.sampling import _gathered

    p = replace(posed(64), batches=tuple(select(posed(64).batches, torch.arange(i, i + 4))[0]
                                         for i in range(0, 64, 4)))  # fmt: skip
    found = _gathered(p.batches, torch.arange(10, 30))
    assert [b.size for b in found] == [2, 4, 4, 4, 4, 2]
