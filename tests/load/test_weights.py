"""Weights reach a model under one prefix, with ties, buffers and casts as said."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvcli.errors import CurvError
from curvcli.load.weights import fit

Weights = dict[str, Tensor]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    """A language model's two ends, as one parameter."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        if not late:
            self.tie()

    def tie(self) -> None:
        self.lm_head.weight = self.wte.weight


class TiedLate(Tied):
    def __init__(self) -> None:
        super().__init__(late=True)

    def tie_weights(self) -> None:
        self.tie()


def weights(model: nn.Module, prefix: str = "") -> Weights:
    return {prefix + name: value.clone() for name, value in model.state_dict().items()}


def equal(model: nn.Module, other: nn.Module) -> bool:
    left, right = model.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def refused(model: nn.Module, given: Weights, code: str, *words: str) -> None:
    before = weights(model)
    with pytest.raises(CurvError) as info:
        fit(model, given)
    assert info.value.code == code, str(info.value)
    for word in words:
        assert word in str(info.value)
    assert "\n" not in str(info.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "0.", "x"]), max_size=3)
)
def test_prefixes_alone_and_stacked(parts: list[str]) -> None:
    source, target, prefix = net(), net(), "".join(parts)
    notes = fit(target, weights(source, prefix))
    assert equal(source, target)
    assert len(notes) == bool(prefix)


def test_foreign_keys_are_counted() -> None:
    source, target = net(), net()
    given = weights(source, "model.") | {"metric.total": torch.ones(1), "0.w": torch.ones(3)}
    notes = fit(target, given)
    assert equal(source, target)
    assert any(note.startswith("2 keys of the file are not in the model") for note in notes)


def test_averaged_copies_yield_to_raw_ones() -> None:
    source, average, target = net(), net(), net()
    fit(target, weights(source, "model.") | weights(average, "model_ema."))
    assert equal(source, target)


def test_equal_candidates_are_refused() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    refused(nn.Linear(2, 2), weights(a, "0.") | weights(b, "1."), "E_AMBIGUOUS", '"0."', '"1."')
    target = nn.Linear(2, 2)
    fit(target, weights(a, "0.") | weights(a, "1."))  # two names of one module
    assert equal(a, target)
    fit(target, weights(b) | weights(a, "1."))  # no prefix beats one
    assert equal(b, target)


@pytest.mark.parametrize("kind", [Tied, TiedLate])
def test_tied(kind: type[Tied]) -> None:
    source, target = kind(), kind()
    given = weights(source)
    del given["lm_head.weight"]
    if kind is TiedLate:
        given["wte.weight"] = source.wte.weight.detach().clone()
    notes = fit(target, given)
    assert torch.equal(target.wte.weight, source.wte.weight)
    assert target.lm_head.weight is target.wte.weight
    assert any("tied" in note for note in notes)


def test_tied_in_the_model_but_not_in_the_file() -> None:
    refused(Tied(), weights(Tied(late=True)), "E_KEYS", "differ")


def test_a_missing_key_that_is_not_tied() -> None:
    given = weights(Tied())
    del given["lm_head.weight"]
    refused(Tied(late=True), given, "E_KEYS", "1 missing (lm_head.weight)")


def test_nearest_misses() -> None:
    given = weights(net(), "module.")
    del given["module.0.bias"]
    given["module.2.weight"] = torch.ones(7, 4)
    given["module.other"] = torch.ones(1)
    refused(
        net(), given, "E_KEYS", "of the model's 9 tensors fit", '"module."', "1 missing (0.bias)",
        "1 unexpected (module.other)", "2.weight: (7, 4) in the file, (2, 4) in the model",
    )  # fmt: skip


def test_another_model_entirely() -> None:
    given = {"conv1.weight": torch.ones(8, 3, 3, 3)}
    refused(net(), given, "E_KEYS", "none of the file's 1", "conv1.weight (8, 3, 3, 3)",
            "0.weight (4, 3)", "check model:")  # fmt: skip
    refused(net(), {}, "E_KEYS", "none of the file's 0")


def test_counters_may_be_absent() -> None:
    given = weights(net())
    del given["1.num_batches_tracked"]
    assert any("num_batches_tracked" in note for note in fit(net(), given))
    del given["1.running_mean"]
    refused(net(), given, "E_KEYS", "running_mean")


def test_buffers_that_are_not_persistent() -> None:
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    for model in (source, target):
        model.register_buffer("mask", torch.ones(2), persistent=False)
    assert fit(target, weights(source)) == []
    notes = fit(target, weights(source) | {"mask": torch.zeros(2)})
    assert any("mask" in note for note in notes)
    assert torch.equal(target.get_buffer("mask"), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_are_said(dtype: torch.dtype) -> None:
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    notes = fit(target, {k: v.to(dtype) for k, v in weights(source).items()})
    assert notes == [f"2 tensors cast from {str(dtype)[6:]} to float32"]
    assert target.weight.dtype is torch.float32
    assert torch.equal(target.weight, source.weight.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_casts_that_lose_the_number(dtype: torch.dtype) -> None:
    given = {k: v.to(dtype) for k, v in weights(nn.Linear(2, 2)).items()}
    refused(nn.Linear(2, 2), given, "E_DTYPE", "weight", str(dtype)[6:])
