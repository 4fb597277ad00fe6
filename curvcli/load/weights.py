"""Fit the tensors of a file to a model: one prefix rule, tied weights, and casts that are said.

Everything is compared before anything is loaded: torch's load_state_dict drops imaginary parts and
casts in silence.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvcli.errors import CurvError
from curvcli.load.container import Weights
from curvcli.load.names import listed, prefixes, shown

FIT = "check model: in the spec, or pass the checkpoint that belongs to it"


@dataclass(frozen=True)
class Match:
    """Which key of the file stands for which tensor of the model, under one prefix."""

    prefix: str
    pairs: dict[str, str]  # model's name -> file's key, same shape
    shapes: tuple[str, ...]  # model's names whose key has another shape
    missing: tuple[str, ...]  # model's names without a key, that nothing excuses
    counters: tuple[str, ...]  # missing num_batches_tracked of BatchNorm
    foreign: tuple[str, ...]  # file's keys without a place in the model


def fit(model: nn.Module, weights: Weights) -> list[str]:
    """Load the weights into the model, buffers included, and return what there is to say about it.

    Raises E_KEYS where a tensor of the model finds no match, E_AMBIGUOUS where several prefixes
    match equally well, E_DTYPE where a cast would lose more than precision. Then the model keeps
    its values.
    """
    tie(model)
    wanted = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    match = _match(wanted, weights)
    if match.missing or match.shapes:
        raise _misfit(match, wanted, weights)
    _check_tied(match, wanted, weights)
    notes = _said(match, wanted) + _casts(match, wanted, weights)
    loaded = {name: weights[key] for name, key in match.pairs.items()}
    model.load_state_dict(loaded, strict=False)  # strictness was checked above, prefix and ties too
    tie(model)
    return notes


def tie(model: nn.Module) -> None:
    """Tie what the model itself ties after its weights are made or loaded."""
    method = getattr(model, "tie_weights", None)
    if callable(method):
        method()


def _match(wanted: Weights, weights: Weights) -> Match:
    prefix = _prefix(wanted, weights)
    pairs = {
        name: prefix + name
        for name, tensor in wanted.items()
        if prefix + name in weights and weights[prefix + name].shape == tensor.shape
    }
    loaded = {id(wanted[name]) for name in pairs}
    shapes = tuple(n for n in wanted if n not in pairs and prefix + n in weights)
    absent = [n for n in wanted if prefix + n not in weights and id(wanted[n]) not in loaded]
    counters = tuple(n for n in absent if n.rpartition(".")[2] == "num_batches_tracked")
    used = {prefix + name for name in (*pairs, *shapes)}
    return Match(
        prefix=prefix,
        pairs=pairs,
        shapes=shapes,
        missing=tuple(name for name in absent if name not in counters),
        counters=counters,
        foreign=tuple(key for key in weights if key not in used),
    )


def _prefix(wanted: Weights, weights: Weights) -> str:
    """Return the string p for which most keys p + name match in name and shape."""
    found = prefixes(weights, wanted, lambda key, name: weights[key].shape == wanted[name].shape)
    most = max(found.values(), default=0)
    best = sorted(p for p, count in found.items() if count == most)
    if "" in best or not best:
        return ""
    raw = [p for p in best if "ema" not in p.lower().replace("_", ".").split(".")] or best
    if len(raw) > 1 and not _same(raw, wanted, weights):
        message = f"{most} of the model's {len(wanted)} tensors fit under each of the prefixes "
        message += listed([f'"{p}"' for p in raw])
        raise CurvError("E_AMBIGUOUS", message, "save the part that you mean in a file of its own")
    return raw[0]


def _same(candidates: list[str], wanted: Weights, weights: Weights) -> bool:
    """Tell whether all prefixes lead to the same tensors, as two names of one module do."""
    first, *others = candidates
    return all(
        p + name in weights
        and first + name in weights
        and torch.equal(weights[p + name], weights[first + name])
        for p in others
        for name in wanted
    )


def _check_tied(match: Match, wanted: Weights, weights: Weights) -> None:
    """Refuse two different tensors for one parameter: the last one loaded would win."""
    first: dict[int, str] = {}
    for name, key in match.pairs.items():
        other = match.pairs[first.setdefault(id(wanted[name]), name)]
        a, b = weights[key], weights[other]
        if a.data_ptr() != b.data_ptr() and not torch.equal(a, b):
            message = (
                f"{shown(key)} and {shown(other)} differ in the file, but are tied in the model"
            )
            raise CurvError(
                "E_KEYS", message, "untie them in the model, or pass its own checkpoint"
            )


def _misfit(match: Match, wanted: Weights, weights: Weights) -> CurvError:
    if not match.pairs:
        has = listed([_with_shape(key, weights[key]) for key in list(weights)[:3]])
        wants = listed([_with_shape(name, wanted[name]) for name in list(wanted)[:3]])
        message = f"none of the file's {len(weights)} tensors fits the model's {len(wanted)}: "
        return CurvError("E_KEYS", f"{message}the file has {has}; the model wants {wants}", FIT)
    parts = []
    if match.missing:
        parts.append(f"{len(match.missing)} missing ({listed(match.missing)})")
    if match.foreign:
        parts.append(f"{len(match.foreign)} unexpected ({listed(match.foreign)})")
    if match.shapes:
        wrong = [
            f"{shown(n)}: {tuple(weights[match.prefix + n].shape)} in the file, "
            f"{tuple(wanted[n].shape)} in the model"
            for n in match.shapes[:3]
        ]
        more = ", ..." if len(match.shapes) > 3 else ""
        parts.append(f"{len(match.shapes)} of another shape ({', '.join(wrong)}{more})")
    under = f' under the prefix "{shown(match.prefix)}"' if match.prefix else ""
    message = f"{len(match.pairs)} of the model's {len(wanted)} tensors fit{under}; "
    return CurvError("E_KEYS", message + ", ".join(parts), FIT)


def _with_shape(name: str, tensor: Tensor) -> str:
    return f"{shown(name)} {tuple(tensor.shape)}"


def _said(match: Match, wanted: Weights) -> list[str]:
    notes = []
    if match.prefix:
        notes.append(f'removed the prefix "{shown(match.prefix)}" from the file\'s keys')
    tied = [n for n in wanted if n not in match.pairs and n not in match.counters]
    if tied:
        notes.append(f"tied to loaded parameters, absent from the file: {listed(tied)}")
    if match.counters:
        notes.append(
            f"{len(match.counters)} num_batches_tracked absent from the file, left as built"
        )
    if match.foreign:
        count = len(match.foreign)
        notes.append(
            f"{count} keys of the file are not in the model, ignored: {listed(match.foreign)}"
        )
    return notes


def _casts(match: Match, wanted: Weights, weights: Weights) -> list[str]:
    """Refuse the casts that change what a number is; return a note for the others."""
    casts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
    for name, key in match.pairs.items():
        source, target = weights[key].dtype, wanted[name].dtype
        if source == target:
            continue
        if _sort(source) != _sort(target):
            message = f"{shown(key)} is {_short(source)} in the file, {_short(target)} in the model"
            raise CurvError("E_DTYPE", message, "build the model in the dtype of its weights")
        casts[source, target] += 1
    return [
        f"{count} tensors cast from {_short(source)} to {_short(target)}"
        for (source, target), count in casts.items()
    ]


def _sort(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "real"
    return "bool" if dtype is torch.bool else "integer"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
