"""The blocks of `eig`, tensor by tensor and module by module, against those of a dense matrix."""

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from oracles import dense_gauss_newton
from questions import ask, classify, dense_hessian, inputs, mlp
from torch import Tensor, nn
from zoo import ZOO

from curvcli.analyses.blocks import ROOT, grouped
from curvcli.analyses.eig import Eig
from curvcli.problem import Problem
from curvcli.work import Watch


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


class Scaled(nn.Module):
    """A parameter of its own around a layer, whose tensors it parts in the model's order."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.3]))
        self.inner = nn.Linear(4, 3)
        self.none = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * torch.tanh(self.inner(x))
        return out


def block_of(H: Tensor, p: Problem, names: Sequence[str]) -> Tensor:
    at = torch.cat([torch.arange(s.start, s.stop) for s in (p.layout.slices[n] for n in names)])
    return H[at][:, at]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_tensor_has_its_block(seed: int) -> None:
    p = problem()
    dense = dense_hessian(p)
    result = ask(Eig(top=2, per_layer=True, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    assert [r["block"] for r in result.rows] == ["", "", *p.names]
    for row in result.rows[2:]:
        truth = float(torch.linalg.eigvalsh(block_of(dense, p, [row["block"]]))[-1])
        assert row["low"] <= truth <= row["high"]
        assert row["sampling"] > 0
    sharpest = max(result.rows[2:], key=lambda r: float(r["eigenvalue"]))["block"]
    assert result.headline.endswith(f"; sharpest block {sharpest}")
    assert result.metrics["block_matvecs"].value > len(p.names)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_module_has_its_block(seed: int) -> None:
    p = problem()
    dense = dense_hessian(p)
    result = ask(Eig(top=1, layers="module", tolerance=1e-3), p, seed)
    assert result.status == "pass"
    assert [r["block"] for r in result.rows] == ["", "0", "2"]
    for row in result.rows[1:]:
        names = [f"{row['block']}.weight", f"{row['block']}.bias"]
        truth = float(torch.linalg.eigvalsh(block_of(dense, p, names))[-1])
        assert row["low"] <= truth <= row["high"]


@pytest.mark.parametrize("method", ["lanczos", "block"])
def test_both_ends_of_every_block(method: Literal["lanczos", "block"]) -> None:
    p = problem()
    dense = dense_hessian(p)
    result = ask(Eig(top=2, which="both", layers="module", method=method, tolerance=1e-3), p)
    inner = result.rows[4:]
    assert [(r["block"], r["end"]) for r in inner] == [
        (name, end) for name in ("0", "2") for end in ("largest", "smallest")
    ]
    for row in inner:
        names = [f"{row['block']}.weight", f"{row['block']}.bias"]
        theta = torch.linalg.eigvalsh(block_of(dense, p, names))
        truth = float(theta[-1 if row["end"] == "largest" else 0])
        assert row["low"] <= truth <= row["high"]


def test_other_matrices_have_blocks_too() -> None:
    p = problem().to(torch.float64)
    dense = dense_gauss_newton(p)
    result = ask(Eig(top=1, matrix="ggn", layers="module", tolerance=1e-3), p)
    for row in result.rows[1:]:
        names = [f"{row['block']}.weight", f"{row['block']}.bias"]
        truth = float(torch.linalg.eigvalsh(block_of(dense, p, names))[-1])
        assert row["low"] <= truth <= row["high"]


def test_the_sampling_error_of_a_block_is_that_of_its_problem_alone() -> None:
    p = problem().to(torch.float64)
    result = ask(Eig(top=1, layers="module", tolerance=1e-9), p)
    alone = Problem.of(p.model, p.loss, p.batches, ["2"])
    (row,) = ask(Eig(top=1, tolerance=1e-9), alone).rows
    assert result.rows[-1]["eigenvalue"] == pytest.approx(row["eigenvalue"])
    assert result.rows[-1]["sampling"] == pytest.approx(row["sampling"], rel=1e-6)


def test_the_models_own_parameters_are_a_block_and_empty_ones_are_none() -> None:
    torch.manual_seed(0)
    p = classify(Scaled(), inputs(20, 4))
    assert p.names == ("scale", "inner.weight", "inner.bias")
    assert grouped(p, "module") == {ROOT: ("scale",), "inner": ("inner.weight", "inner.bias")}
    assert list(grouped(p, "tensor")) == list(p.names)
    result = ask(Eig(top=1, layers="module"), p)
    assert [r["block"] for r in result.rows] == ["", ROOT, "inner"]
    truth = float(dense_hessian(p)[0, 0])
    assert result.rows[1]["eigenvalue"] == pytest.approx(truth, rel=1e-4)


def test_a_tied_tensor_is_its_first_modules() -> None:
    p = ZOO["tied, ignored tokens"]()
    assert grouped(p, "module") == {
        "embedding": ("embedding.weight",), "mix": ("mix.weight", "mix.bias")
    }  # fmt: skip


def test_ctrl_c_keeps_the_blocks_that_are_known() -> None:
    done: list[int] = []

    def announce(doing: str) -> Watch:
        def watch(
            count: int, total: int | None, estimate: float | None, error: float | None
        ) -> None:
            if doing == "eigenvalues of every block" and count == 2:
                done.append(count)
                raise KeyboardInterrupt

        return watch

    result = ask(Eig(top=1, per_layer=True), problem(), announce=announce)
    assert done
    assert result.interrupted
    assert [r["block"] for r in result.rows][:3] == ["", "0.weight", "0.bias"]
    assert "3 of 4 blocks are known" in result.notes
    assert any(c.name == "block 2.weight" and c.status == "undecided" for c in result.checks)


def test_a_block_that_did_not_converge_says_so() -> None:
    result = ask(Eig(top=1, per_layer=True, tolerance=1e-7, max_matvecs=4), problem())
    said = [c for c in result.checks if c.name == "block 0.weight"]
    assert [c.status for c in said] == ["undecided"]
    assert "raise --max-matvecs" in said[0].advice
