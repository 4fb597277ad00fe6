"""Losses as weighted terms: over ragged batches the same as torch's over all data at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import cut
from torch import Tensor, nn
from torch.nn import functional
from zoo import classes, drawn

from curvcli.batches import Batch, Loss
from curvcli.errors import CurvError
from curvcli.load.loss import as_loss, custom, losses, named, returned, tensor_of

N = 7
Pair = Callable[[], tuple[Tensor, Tensor]]


def mean(loss: Loss, out: Tensor, target: Any, sizes: tuple[int, ...] = (3, 3, 1)) -> float:
    """Take the weighted mean over ragged batches of outputs."""
    total = weight = 0.0
    for batch in cut(Batch(out, target, len(out)), sizes):
        terms = loss(batch.inputs, batch)
        total, weight = total + float(terms.total), weight + float(terms.weight)
    return total / weight


def logits() -> tuple[Tensor, Tensor]:
    return drawn(N, 3), classes(3, N)


def numbers(*shape: int) -> Pair:
    return lambda: (drawn(N, *shape), drawn(N, *shape, seed=5))


def shares() -> tuple[Tensor, Tensor]:
    return drawn(N, 3), drawn(N, 3, seed=5).softmax(dim=1)


def signs() -> tuple[Tensor, Tensor]:
    return drawn(N, 3), drawn(N, 3, seed=5).sign()


def labels() -> tuple[Tensor, Tensor]:
    return drawn(N, 3), (drawn(N, 3, seed=5) > 0).double()


def ignored() -> tuple[Tensor, Tensor]:
    out, target = logits()
    target[[0, 1, 6]] = -100
    return out, target


def positions() -> tuple[Tensor, Tensor]:
    target = classes(3, N, 4)
    target[2:4] = -100
    return drawn(N, 3, 4), target


WEIGHT = [0.2, 1.0, 4.0]
CASES: list[tuple[str, Pair, dict[str, Any]]] = [
    ("cross_entropy", logits, {}),
    ("cross_entropy", ignored, {}),
    ("cross_entropy", positions, {}),
    ("cross_entropy", logits, {"ignore_index": 2}),
    ("cross_entropy", ignored, {"weight": WEIGHT}),
    ("cross_entropy", positions, {"weight": WEIGHT, "label_smoothing": 0.2}),
    ("cross_entropy", ignored, {"label_smoothing": 0.1}),
    ("cross_entropy", shares, {}),
    ("cross_entropy", shares, {"weight": WEIGHT}),
    ("nll_loss", lambda: (drawn(N, 3).log_softmax(dim=1), classes(3, N)), {"weight": WEIGHT}),
    ("nll_loss", lambda: (positions()[0].log_softmax(dim=1), positions()[1]), {}),
    ("mse_loss", numbers(), {}),
    ("mse_loss", numbers(3, 2), {}),
    ("l1_loss", numbers(3), {}),
    ("smooth_l1_loss", numbers(3), {"beta": 0.5}),
    ("huber_loss", numbers(3), {"delta": 0.3}),
    ("poisson_nll_loss", lambda: (drawn(N), drawn(N, seed=5).abs()), {"full": True}),
    ("gaussian_nll_loss", numbers(3), {"var": 0.7}),
    ("kl_div", lambda: (drawn(N, 3).log_softmax(dim=1), shares()[1]), {}),
    ("kl_div", lambda: (drawn(N, 3).log_softmax(dim=1), shares()[1]), {"reduction": "batchmean"}),
    ("binary_cross_entropy", lambda: (drawn(N).sigmoid(), labels()[1][:, 0]), {}),
    ("binary_cross_entropy", lambda: (drawn(N, 3).sigmoid(), labels()[1]), {"weight": WEIGHT}),
    ("binary_cross_entropy_with_logits", labels, {"pos_weight": WEIGHT}),
    ("hinge_embedding_loss", signs, {"margin": 0.5}),
    ("soft_margin_loss", signs, {}),
    ("multilabel_margin_loss", lambda: (drawn(N, 3), classes(3, N, 3)), {}),
    ("multilabel_soft_margin_loss", labels, {"weight": WEIGHT}),
    ("multi_margin_loss", logits, {"p": 2, "weight": WEIGHT}),
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")
@pytest.mark.parametrize("sizes", [(3, 3, 1), (1, 6), (7,)])
@pytest.mark.parametrize(("name", "pair", "args"), CASES)
def test_every_named_loss(
    name: str, pair: Pair, args: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    out, target = pair()
    options = {k: torch.tensor(v).double() if isinstance(v, list) else v for k, v in args.items()}
    expected = getattr(functional, name)(out, target, **options)
    assert mean(named(name, args), out, target, sizes) == pytest.approx(float(expected), rel=1e-13)


def test_no_loss_is_left_out() -> None:
    assert set(losses()) == {name for name, _, _ in CASES}


def test_a_column_beside_a_row() -> None:
    out, target = drawn(N, 1), drawn(N, seed=5)
    assert mean(named("mse_loss", {}), out, target) == pytest.approx(
        float(functional.mse_loss(out[:, 0], target))
    )


def test_integer_targets_of_losses_by_entry() -> None:
    out, target = drawn(N), classes(2, N)
    expected = functional.binary_cross_entropy_with_logits(out, target.double())
    found = mean(named("binary_cross_entropy_with_logits", {}), out, target)
    assert found == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_classes_last_as_language_models_have_them(name: str) -> None:
    out, target = drawn(N, 4, 5).log_softmax(dim=-1), classes(5, N, 4)
    target[1, 2:] = -100
    expected = functional.nll_loss(out.flatten(0, 1), target.flatten())
    assert mean(named(name, {}), out, target) == pytest.approx(float(expected))


def test_classes_last_in_two_dimensions() -> None:
    out, target = drawn(N, 4, 3, 5), classes(5, N, 4, 3)
    expected = functional.cross_entropy(out.flatten(0, 2), target.flatten())
    assert mean(named("cross_entropy", {}), out, target) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("out", "target", "name", "message"),
    [
        (drawn(N, 2), drawn(N, 3), "mse_loss", r"output is \(7, 2\) and the target \(7, 3\)"),
        (drawn(N), drawn(N, 1), "mse_loss", r"output is \(7,\) and the target \(7, 1\)"),
        (drawn(N, 3), classes(9, N) + 3, "cross_entropy", "cross_entropy refuses .* out of bounds"),
        (drawn(N, 3), drawn(N), "cross_entropy", r"refuses output float64 \(7, 3\), target float"),
        (drawn(N, 3), None, "cross_entropy", "needs a target"),
        (drawn(N), drawn(N), "binary_cross_entropy", "refuses"),
        (drawn(N), drawn(N), "gaussian_nll_loss", "var"),
        ({"a": drawn(N), "b": drawn(N)}, drawn(N), "mse_loss", "dict of a, b"),
        (None, drawn(N), "mse_loss", "returns a NoneType"),
        ((), drawn(N), "mse_loss", "returns a tuple"),
    ],
)
def test_what_does_not_fit(out: Any, target: Any, name: str, message: str) -> None:
    with pytest.raises(CurvError, match=message) as failed:
        named(name, {})(out, Batch(None, target, N))
    assert failed.value.code in ("E_LOSS", "E_DATA")
    assert "\n" not in str(failed.value)
    assert failed.value.hint


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("cross_entropi", {}, "did you mean 'cross_entropy'"),
        ("relu", {}, "loss: 'relu' is not known"),
        ("cross_entropy", {"label_smooth": 1}, "did you mean 'label_smoothing'"),
        ("cross_entropy", {"reduction": "sum"}, "grows with the data"),
        ("cross_entropy", {"reduction": "none"}, "gives no single loss"),
        ("mse_loss", {"reduction": "batchmean"}, "gives no single loss"),
        ("mse_loss", {"reduce": False}, "'reduce' is not known"),
        ("mse_loss", {"size_average": True}, "'size_average' is not known"),
        ("mse_loss", {"weight": [1.0]}, "'weight' is not known"),
    ],
)
def test_what_is_no_loss(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvError, match=message) as failed:
        named(name, args)
    assert failed.value.code == "E_LOSS"


def test_the_tensor_of_an_output() -> None:
    x, y = drawn(2), drawn(3)
    assert tensor_of((x, y)) is x
    assert tensor_of([(x,), y]) is x
    assert tensor_of({"logits": x, "past": y}) is x
    assert tensor_of({"anything": x, "flag": True}) is x


def test_a_loss_that_the_model_returns() -> None:
    batch = Batch(None, None, 3)
    good: list[tuple[Any, str]] = [
        ({"loss": torch.tensor(2.0)}, "loss"), ((0, torch.tensor([2.0])), "1")
    ]  # fmt: skip
    for output, key in good:
        terms = returned(key)(output, batch)
        assert float(terms.total) / float(terms.weight) == 2.0
        assert terms.weight == 3.0
    bad: list[tuple[Any, str]] = [
        ({"los": torch.tensor(2.0)}, "loss"), ((torch.zeros(2),), "0"), (5, "3")
    ]  # fmt: skip
    for output, key in bad:
        with pytest.raises(CurvError, match=f"holds no scalar '{key}'"):
            returned(key)(output, batch)


def test_a_function_of_the_user() -> None:
    out, target = drawn(N, 2), drawn(N, 2, seed=5)

    def scalar(a: Tensor, b: Tensor, power: int = 2) -> Tensor:
        return ((a - b).abs() ** power).mean()

    def terms(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square()

    def weighted(a: Tensor, b: Tensor) -> tuple[Tensor, float]:
        return (a - b).square().sum(), 2.0 * a.numel()

    expected = functional.mse_loss(out, target).item()
    assert mean(custom(scalar, {}), out, target) == pytest.approx(expected)
    assert mean(custom(terms, {}), out, target) == pytest.approx(expected)
    assert mean(custom(weighted, {}), out, target) == pytest.approx(expected / 2)
    l1 = functional.l1_loss(out, target).item()
    assert mean(custom(scalar, {"power": 1}), out, target) == pytest.approx(l1)
    with pytest.raises(CurvError, match="returned a float"):
        custom(lambda a, b: 1.0, {})(out, Batch(out, target, N))


MODULES: list[tuple[nn.Module, Pair]] = [
    (nn.CrossEntropyLoss(weight=torch.tensor(WEIGHT)), ignored),
    (nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1), logits),
    (nn.NLLLoss(), lambda: (drawn(N, 3).log_softmax(dim=1), classes(3, N))),
    (nn.MSELoss(), numbers(3)),
    (nn.HuberLoss(delta=0.2), numbers(3)),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHT)), labels),
    (nn.MultiMarginLoss(margin=0.5), logits),
    (nn.MultiLabelSoftMarginLoss(), labels),
    (nn.KLDivLoss(reduction="batchmean"), lambda: (drawn(N, 3).log_softmax(1), shares()[1])),
]


@pytest.mark.parametrize(("module", "pair"), MODULES)
def test_modules(module: nn.Module, pair: Pair) -> None:
    out, target = pair()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    reduction = module.reduction
    found = mean(as_loss(module), out, target)
    assert module.reduction == reduction
    assert all(t.dtype == before[n].dtype for n, t in module.state_dict().items())
    expected = module.double()(out, target)
    module.float()
    assert found == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("index", [-100, 1])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_ignored_targets_are_counted(index: int, weight: list[float] | None) -> None:
    out, target = positions()
    target[0, :3] = index
    args: dict[str, Any] = {"ignore_index": index} | ({"weight": weight} if weight else {})
    given = torch.tensor(weight).double() if weight else None
    module = nn.CrossEntropyLoss(weight=given, ignore_index=index)
    target = target.clamp_min(0) if index == 1 else target
    expected = int((target == index).sum())
    assert expected > 0
    batch = Batch(None, target, N)
    assert int(named("cross_entropy", args)(out, batch).ignored) == expected
    assert int(named("nll_loss", args)(out.log_softmax(1), batch).ignored) == expected
    assert int(as_loss(module)(out, batch).ignored) == expected


def test_nothing_else_is_ignored() -> None:
    out, target = shares()
    assert named("cross_entropy", {})(out, Batch(None, target, N)).ignored == 0
    assert named("mse_loss", {})(out, Batch(None, target, N)).ignored == 0
    assert custom(lambda a, b: a.mean(), {})(out, Batch(None, target, N)).ignored == 0
    assert int(named("cross_entropy", {})(out, Batch(None, classes(3, N), N)).ignored) == 0


def test_functionals_and_what_else_python_has() -> None:
    out, target = ignored()
    expected = functional.cross_entropy(out, target).item()
    assert mean(as_loss(functional.cross_entropy), out, target) == pytest.approx(expected)
    kept = nn.CrossEntropyLoss(reduction="none")
    assert mean(as_loss(kept), *logits()) == pytest.approx(
        functional.cross_entropy(*logits()).item()
    )
    with pytest.raises(CurvError, match="grows with the data"):
        as_loss(nn.MSELoss(reduction="sum"))


class Focal(nn.CrossEntropyLoss):
    """A user's own loss that is a kind of torch's."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        p = torch.exp(-functional.cross_entropy(input, target, reduction="none"))
        return (-((1 - p) ** 2) * p.log()).mean()


def test_a_module_derived_from_torchs_is_the_users() -> None:
    out, target = logits()
    assert mean(as_loss(Focal()), out, target) == pytest.approx(float(Focal()(out, target)))
