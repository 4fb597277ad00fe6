"""What benchmarks compute from their measurements, and that peers get the same problem."""

import csv
import math
from pathlib import Path

import pytest
import torch
from bench.alone import measured
from bench.diagonal import exact, one_hot
from bench.eigen import Answer, cheapest, error
from bench.fit import crossing, slope
from bench.gpt2 import Shape
from bench.gpt2 import measured as gpt2_measured
from bench.memory import allocated
from bench.models import GPT, digits, perceptron, pictures, resnet20, sentences
from bench.peers import HESSIANS, CrossEntropy, Task, flat, without_fused
from bench.products import posed, work
from bench.tables import as_csv, as_markdown
from bench.timing import Measured, Setting, interleaved, quartiles, ratio
from bench.trace import quality
from torch.nn import functional

from curvcli.curvature.hessian import hessian


def small() -> Task:
    return Task(perceptron((6, 5, 3)), *pictures(20, 6, classes=3))


def test_a_power_law_is_found_again() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = slope(x, [3 * a**1.5 for a in x])
    assert found.value == pytest.approx(1.5)
    assert found.factor == pytest.approx(3)
    assert found.error == pytest.approx(0, abs=1e-7)


def test_the_error_of_a_slope_is_that_of_least_squares() -> None:
    # Points at u = 0, 1, 2, 3 and v = 0, 1, 1, 2: slope 0.6, residuals' sum of squares 0.2.
    x, y = [math.exp(u) for u in range(4)], [math.exp(v) for v in (0, 1, 1, 2)]
    found = slope(x, y)
    assert found.value == pytest.approx(0.6)
    assert found.error == pytest.approx(math.sqrt(0.2 / 2 / 5))


def test_a_slope_needs_three_points() -> None:
    with pytest.raises(ValueError, match="three points"):
        slope([1, 2], [1, 2])


def test_a_level_is_crossed_between_two_points() -> None:
    x = [1.0, 4.0, 16.0]
    y = [1.0, 0.5, 0.25]  # x^-1/2
    assert crossing(x, y, 0.4) == pytest.approx(0.4**-2)
    assert crossing(x, y, 2.0) == 1.0
    assert crossing(x, y, 0.2) is None


def test_ratios_compare_medians_and_far_quartiles() -> None:
    fast, slow = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]
    assert quartiles(fast) == (2, 3, 4)
    found = ratio(slow, fast)
    assert (found.value, found.low, found.high) == (10, 5, 20)


def test_calls_take_turns_and_every_other_round_goes_backwards() -> None:
    seen: list[str] = []
    times = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2)
    assert "".join(seen) == "ab" + "ab" + "ba"
    assert {n: len(t) for n, t in times.items()} == {"a": 2, "b": 2}


def test_bytes_are_counted_with_what_is_left() -> None:
    found = allocated(lambda: torch.ones(1000) * 2)
    assert found.held == 4000
    assert 8000 <= found.peak < 9000


def test_tables_hold_every_line_and_show_what_is_missed() -> None:
    found = {
        "one": [
            Measured("speed", "2.0", ">= 3", False, of="A"),
            Measured("speed", "4|0", ">= 3", True, of="B"),
            Measured("aside", "1", detail=True),
        ]
    }
    text = as_markdown(found, "a machine")
    assert text.startswith("a machine\n\n| one | A | B |\n")
    assert "| speed | **2.0 [MISSED: >= 3]** | 4\\|0 [>= 3] |" in text
    assert "aside" not in text
    rows = list(csv.reader(as_csv(found).splitlines()))
    assert [r[-1] for r in rows] == ["verdict", "MISSED", "kept", ""]


def test_the_cheapest_solver_is_the_one_with_fewest_products_that_reaches_the_error() -> None:
    truth = torch.tensor([2.0, 1.0], dtype=torch.float64)

    def solver(products: int, gap: float) -> object:
        return lambda seed: Answer(truth.flip(0) * (1 + gap), products)

    tried = [("bad", solver(5, 0.1)), ("dear", solver(30, 0.0)), ("good", solver(20, 1e-3))]
    found = cheapest(tried, truth, 2e-3)  # type: ignore[arg-type]
    assert found is not None
    assert found[0] == "good"
    assert cheapest(tried[:1], truth, 2e-3) is None  # type: ignore[arg-type]
    assert error(truth.flip(0) * 1.5, truth) == pytest.approx(0.5)


def test_quality_is_the_root_mean_square_of_relative_errors() -> None:
    from bench.trace import Answer as Estimate

    found = quality([Estimate(11.0, 4), Estimate(9.0, 6), Estimate(10.0, 8)], 10.0)
    assert found.error == pytest.approx(0.1 * math.sqrt(2 / 3))
    assert found.products == 6


def test_models_have_the_sizes_that_they_are_known_by() -> None:
    assert sum(p.numel() for p in resnet20().parameters()) == 269_722
    shape = Shape()
    with torch.device("meta"):
        model = GPT(shape.words, shape.length, shape.width, shape.blocks, shape.heads)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(124e6, rel=5e-3)
    assert digits()[0].shape == (1437, 64)


def test_the_loss_of_tokens_is_the_mean_over_all_of_them() -> None:
    x, y = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    assert torch.equal(
        CrossEntropy()(x, y), functional.cross_entropy(x.reshape(10, 7), y.reshape(10))
    )


@pytest.mark.parametrize("name", HESSIANS)
def test_peers_multiply_by_the_same_matrix(name: str) -> None:
    for module in {"hessian-eigenthings": "hessian_eigenthings"}.get(name, name.lower()).split():
        pytest.importorskip(module)
    task = small()
    v = torch.randn(posed(task).layout.size)
    ours = hessian(posed(task), work()).operator.matvec(v)
    found = flat(without_fused(HESSIANS[name](task, v))())
    assert float((found - ours).norm() / ours.norm()) < 1e-5
    assert all(p.grad is None for p in task.model.parameters())


def test_one_hot_products_agree_with_the_diagonal() -> None:
    task = small()
    seconds, gap = one_hot(task, exact(task), "cpu")
    assert seconds > 0
    assert gap < 1e-4


def test_gpt2_is_measured_on_a_small_one() -> None:
    shape = Shape(words=50, length=16, width=16, blocks=2, heads=2, examples=2, tokens=8)
    found = {m.what: m for m in gpt2_measured(shape, Setting())}
    assert found["curv.eig"].kept
    assert found["tokens"].value == "2 x 8"
    assert sentences(2, 8, 50)[0].shape == (2, 8)


def test_a_benchmark_that_fails_is_a_line_that_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = measured("no_such_benchmark", Setting(out=str(tmp_path)))
    assert (line.value, line.kept) == ("ModuleNotFoundError", False)
    assert "no_such_benchmark" in capsys.readouterr().err
