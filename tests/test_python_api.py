"""From Python, each analysis is a function; the model is left as it was."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import small_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import curvcli
from curvcli.analyses import registry
from curvcli.errors import CurvError

LOSS = functional.cross_entropy


def loader(batch_size: int = 5) -> "DataLoader[tuple[Tensor, ...]]":
    torch.manual_seed(1)
    return DataLoader(
        TensorDataset(torch.randn(12, 4), torch.randint(2, (12,))), batch_size=batch_size
    )


def touched() -> nn.Sequential:
    """Make a model in the middle of training: mixed modes, gradients, frozen parts, buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)
    )
    model(torch.randn(8, 4)).sum().backward()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[Any, ...]:
    """Take down everything that must stay."""
    return (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [torch.empty(0) if p.grad is None else p.grad.clone() for p in model.parameters()],
        [id(p) for p in model.parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.get_default_dtype() == torch.float32,
    )


OPTIONS: dict[str, dict[str, Any]] = {"diag": {"method": "exact"}}


@pytest.mark.parametrize("name", registry())
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, data = touched(), loader()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = state(model)
    options = {"optimizer": optimizer, **OPTIONS.get(name, {})}
    result = getattr(curvcli, name)(model, LOSS, data, **options)
    assert result.name == name
    torch.testing.assert_close(state(model), before, rtol=0, atol=0, equal_nan=True)


def trained(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, **options)
    for _ in range(3):
        take_a_step(model, optimizer, math.inf)
    return model, optimizer


def take_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
    ((x, y),) = loader(12)
    optimizer.zero_grad()
    torch.autograd.backward(LOSS(model(x), y))
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_the_next_step_of_an_optimizer(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, optimizer = trained(weight_decay=0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    rows = curvcli.ratio(
        wrap(model), LOSS, loader(), optimizer=optimizer, training={"grad_clip": 1e-3}
    ).rows
    torch.testing.assert_close(optimizer.state_dict(), saved, rtol=0, atol=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take_a_step(model, optimizer, 1e-3)
    for row, (name, p) in zip(rows, model.named_parameters(), strict=True):
        assert row["tensor"] == name
        assert row["next_update"] == pytest.approx(
            float((p.detach() - before[name]).norm()), rel=1e-4
        )


def test_an_optimizer_whose_state_was_looked_at() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    for p in (*model.parameters(), nn.Parameter(torch.zeros(2))):
        _ = optimizer.state[p]
    result = curvcli.ratio(model, LOSS, loader(), optimizer=optimizer)
    assert "no last ratio: there is no state of a step" in result.notes


def test_stability_of_an_optimizer() -> None:
    model, optimizer = trained()
    result = curvcli.stability(model, LOSS, loader(), optimizer=optimizer)
    assert result.metrics["margin"].value


@pytest.mark.parametrize("name", ["ratio", "stability"])
def test_optimizers_that_say_nothing_are_refused(name: str) -> None:
    class Own(torch.optim.SGD):
        pass

    ask, model = getattr(curvcli, name), small_model()
    for optimizer, said in (
        (None, "pass optimizer="),
        (Own(model.parameters(), lr=0.1), "Own is no optimizer of torch"),
        (torch.optim.SGD(small_model().parameters(), lr=0.1), r"shape \(3, 4\) that is not the"),
    ):
        with pytest.raises(CurvError, match=said) as refused:
            ask(model, LOSS, loader(), optimizer=optimizer)
        assert refused.value.code == "E_OPTIMIZER"


def test_sanity_with_what_it_can_be_given() -> None:
    def checked(**rest: Any) -> set[str]:
        result = curvcli.sanity(small_model(), LOSS, loader(), **rest)
        return {check.name for check in result.checks} | set(result.metrics)

    more = checked(heldout=loader(), fresh=small_model) - checked()
    assert more >= {"fresh weights at chance", "heldout_loss", "gap"}


def test_also_after_an_exception() -> None:
    model, calls = touched(), iter(range(100))

    def breaks(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) > 6:
            raise ValueError("enough")
        return functional.mse_loss(output[:, 0], target.to(output.dtype))

    batches = list(loader())
    before = state(model)
    with pytest.raises(ValueError, match="enough"):
        curvcli.eig(model, breaks, batches)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "loss", [LOSS, nn.CrossEntropyLoss(), lambda output, target: LOSS(output, target, None)]
)
def test_a_loss_can_be_a_function_or_a_module(loss: Callable[..., Tensor]) -> None:
    expected = curvcli.eig(small_model(), LOSS, loader(), top=2).metrics["lambda_max"].value
    found = curvcli.eig(small_model(), loss, loader(), top=2).metrics["lambda_max"].value
    assert found == pytest.approx(expected, rel=1e-5)


def test_batches_do_not_matter() -> None:
    def largest(batch_size: int) -> Any:
        found = curvcli.eig(small_model(), LOSS, loader(batch_size), top=1, tolerance=1e-6)
        return found.metrics["lambda_max"].value

    assert largest(5) == pytest.approx(largest(12), rel=1e-5)


def test_seed() -> None:
    def trace(seed: int) -> Any:
        found = curvcli.diag(small_model(), LOSS, loader(), method="hutchinson", seed=seed)
        return found.metrics["trace"].value

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_a_bad_option_is_named() -> None:
    for options, said in (
        ({"top": 0}, "E_USAGE: eig(top=): 0 should be greater than or equal to 1"),
        ({"topp": 3}, "E_USAGE: eig(topp=): 'topp' is not known here — did you mean 'top'?"),
        ({"which": "larges"}, "E_USAGE: eig(which=): 'larges' should be"),
        ({"mode": "trian"}, "E_USAGE: eig(mode=): 'trian' should be"),
        ({"training": {"grad_clp": 1.0}}, "E_USAGE: eig(grad_clp=): 'grad_clp' is not known"),
    ):
        with pytest.raises(CurvError) as caught:
            curvcli.eig(small_model(), LOSS, loader(), **options)
        assert str(caught.value).startswith(said)


def test_complex_parameters_are_refused() -> None:
    model = nn.Linear(4, 2, dtype=torch.complex64)
    with pytest.raises(CurvError, match="complex parameters"):
        curvcli.eig(model, LOSS, loader())


def test_no_data() -> None:
    with pytest.raises(CurvError, match="E_DATA"):
        curvcli.eig(small_model(), LOSS, [])


def test_names() -> None:
    assert curvcli.eig.__name__ == "eig"
    assert "extreme eigenvalues" in (curvcli.eig.__doc__ or "")
    assert set(registry()) | {"__version__"} <= set(dir(curvcli))
    with pytest.raises(AttributeError, match="no attribute 'eigg'"):
        _ = curvcli.eigg
