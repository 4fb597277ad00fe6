"""Tell the class of a saved optimizer, which the file does not name, by the keys of its groups."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from curvcli.errors import CurvError
from curvcli.load.names import listed, shown
from curvcli.optimizer import bare, classes, optimizer_class, traits

CLASS = "set optimizer.class in the spec"
DECOUPLED = "decoupled_weight_decay"
# Options that came later than the classes; old files lack them, so no class needs them.
LATER = frozenset({"maximize", "foreach", "capturable", "differentiable", "fused", DECOUPLED})
# What schedulers and trainers write into groups beside the optimizer's own options.
BOOKKEEPING = frozenset(
    {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale",
     "lr_mult", "name", "group_name", "param_group_name"}
)  # fmt: skip
# Keys of the spec's optimizer block that are no options of the class.
OWN = ("class", "groups", "grad_clip", "grad_clip_value", "accumulate")


def identify(
    groups: Sequence[Mapping[str, Any]],
    states: Iterable[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> str:
    """Return the class's name: the spec's where it fits the file, else the only one that fits."""
    keys = frozenset(key for group in groups for key in group if isinstance(key, str))
    entries = [frozenset(state) for state in states]
    named = options.get("class")
    if named is not None:
        return _checked(str(named).removeprefix("torch.optim."), groups, keys, entries)
    fitting = [kind for kind in classes() if _fits(kind, keys, entries)]
    best = [kind for kind in fitting if not any(_own(kind) < _own(other) for other in fitting)]
    if {"Adam", "AdamW"} <= set(best):
        return _adam(groups)
    exact = [kind for kind in best if keys - BOOKKEEPING == traits(kind).defaults.keys()]
    if len(best) > 1 and len(exact) == 1:
        return exact[0]
    if len(best) > 1:
        message = f"the optimizer's group keys fit {listed(best, 5)}"
        raise CurvError("E_OPTIMIZER", message, CLASS)
    if not best:
        message = f"the optimizer's group keys ({listed(sorted(keys), 8)}) fit no class of torch"
        raise CurvError("E_OPTIMIZER", message, f"{CLASS} if it is one of torch.optim")
    return best[0]


def hyperparameters(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec's options for this class, lists as torch's tuples."""
    known = traits(kind).defaults
    chosen = {}
    for key, value in options.items():
        if key in OWN or value is None:
            continue
        if key not in known:
            raise _no_option(kind, key, known)
        chosen[key] = tuple(value) if isinstance(value, list) else value
    return chosen


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse what is an option of no class at all, where none is named yet."""
    known = sorted({key for kind in classes() for key in traits(kind).defaults})
    for key in options:
        if key not in (*OWN, *known):
            raise _no_option("no class of torch.optim", key, known)


def _no_option(kind: str, key: str, known: Iterable[str]) -> CurvError:
    close = difflib.get_close_matches(key, [*OWN, *known], n=1)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
    verb = "has" if kind.startswith("no ") else "has no"
    return CurvError("E_OPTIMIZER", f"{kind} {verb} option {shown(key)}", hint)


def filled(kind: str, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a group's options: the file's, then the spec's, then torch's defaults."""
    return {**traits(kind).defaults, **spec, **saved}


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Let torch's own constructor judge the values."""
    make: Any = bare(kind)
    accepted = inspect.signature(make).parameters
    try:
        make(
            [torch.nn.Parameter(torch.zeros(1, 1))],
            **{key: value for key, value in options.items() if key in accepted},
        )
    except Exception as error:  # a value from a file can be of any type
        message = f"{kind} rejects the optimizer's options: {shown(str(error))}"
        hint = "correct the optimizer block of the spec"
        raise CurvError("E_OPTIMIZER", message, hint) from error


def _own(kind: str) -> frozenset[str]:
    """Return the options that every file of this class has."""
    return frozenset(traits(kind).defaults) - LATER


def _fits(kind: str, keys: frozenset[str], entries: Sequence[frozenset[str]]) -> bool:
    known = frozenset(traits(kind).defaults) | LATER - {DECOUPLED} | BOOKKEEPING
    return _own(kind) <= keys <= known and not _odd_entries(kind, entries)


def _odd_entries(kind: str, entries: Sequence[frozenset[str]]) -> frozenset[str]:
    """Return the state's entries that this class does not have, or that it needs and misses."""
    if kind == "LBFGS":  # its other entries depend on how far it got
        return frozenset().union(*({"func_evals", "n_iter"} - entry for entry in entries))
    known = traits(kind)
    return frozenset().union(*((e - known.allowed) | (known.required - e) for e in entries if e))


def _checked(
    kind: str,
    groups: Sequence[Mapping[str, Any]],
    keys: frozenset[str],
    entries: Sequence[frozenset[str]],
) -> str:
    """Return the spec's class where the file does not contradict it."""
    optimizer_class(kind)
    missing = _own(kind) - keys if groups else frozenset()
    odd = _odd_entries(kind, entries)
    decoupled = {bool(group[DECOUPLED]) for group in groups if DECOUPLED in group}
    if missing:
        fault = f"the saved groups lack {listed(sorted(missing))}"
    elif odd:
        fault = f"the saved state differs in {listed(sorted(odd))}"
    elif decoupled and DECOUPLED not in traits(kind).defaults:
        fault = f"the saved groups have {DECOUPLED}"
    elif kind in ("Adam", "AdamW") and decoupled and (True in decoupled) != (kind == "AdamW"):
        fault = f"the file says {DECOUPLED}: {True in decoupled}"
    else:
        return kind
    message = f"optimizer.class is {kind} in the spec, but {fault}"
    raise CurvError("E_OPTIMIZER", message, "correct optimizer.class, or leave it out")


def _adam(groups: Sequence[Mapping[str, Any]]) -> str:
    """Split Adam from AdamW, which differ in how they decay weights and in nothing else."""
    said = [group.get(DECOUPLED) for group in groups]
    if None not in said:
        return "AdamW" if all(said) else "Adam"
    if any(group.get("weight_decay") for group in groups):
        message = "the file does not say whether its weight decay is Adam's or AdamW's"
        raise CurvError("E_OPTIMIZER", message, f"{CLASS} to Adam or AdamW")
    return "Adam"
