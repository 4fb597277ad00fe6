"""Named losses, user losses and losses that the model returns, as weighted terms.

torch's `reduction="mean"` divides by what each batch holds, so the mean of batch means is another
function than the mean over the data. Here every loss gives the sum of its terms and the sum of
their weights, and L is exact for ragged batches, `ignore_index` and class weights.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.batches import Batch, Loss, Terms
from curvcli.errors import CurvError
from curvcli.options import unknown

INDEXED = ("cross_entropy", "nll_loss")
"""Losses whose mean is over weights of class-index targets."""

BY_ENTRY = ("mse_loss", "l1_loss", "huber_loss")
"""Losses whose `weight` has the shape of one batch, and so depends on how the data is cut."""

SUMMED = (
    "reduction: sum grows with the data, so figures would depend on how much is used",
    "use mean, and multiply the learning rate",
)


def named(name: str, args: Mapping[str, Any]) -> Loss:
    """Build a loss of torch.nn.functional.

    Raises: CurvError (E_LOSS) for a name that is none, or arguments that it does not take.
    """
    if name not in losses():
        raise unknown(name, losses(), "loss", "E_LOSS")
    function = getattr(functional, name)
    replaced = {"input", "target", "size_average", "reduce"}  # the last two by reduction
    replaced |= {"weight"} if name in BY_ENTRY else set()
    accepted = set(inspect.signature(function).parameters) - replaced
    for key in args:
        if key not in accepted:
            raise unknown(key, accepted, f"loss.args of {name}", "E_LOSS")
    options = {k: torch.tensor(v) if isinstance(v, list | tuple) else v for k, v in args.items()}
    reduction = options.pop("reduction", "mean")
    if reduction == "sum":
        raise CurvError("E_LOSS", *SUMMED)
    if reduction != "mean" and (name, reduction) != ("kl_div", "batchmean"):
        raise CurvError("E_LOSS", f"reduction {reduction!r} gives no single loss", "use mean")
    return _Terms(name, function, options, per_example=reduction == "batchmean")


def losses() -> list[str]:
    """List the losses of torch.nn.functional that average terms over (output, target)."""
    found = []
    for name, f in vars(functional).items():
        if name.startswith("_") or not inspect.isfunction(f):
            continue
        parameters = list(inspect.signature(f).parameters)
        if parameters[:2] == ["input", "target"] and "reduction" in parameters:
            found.append(name)
    return found


class _Terms:
    """A functional loss, evaluated term by term."""

    def __init__(
        self, name: str, function: Any, options: dict[str, Any], per_example: bool
    ) -> None:
        self.name = name
        self.function = function
        self.options = options
        self.per_example = per_example

    def __call__(self, output: Any, batch: Batch) -> Terms:
        out = tensor_of(output)
        out, target = _aligned(self.name, out, batch.target)
        options = {k: v.to(out) if isinstance(v, Tensor) else v for k, v in self.options.items()}
        try:
            terms = self._terms(out, target, options)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise _misfit(self.name, out, target, error) from error
        if self.per_example:
            return Terms(terms.sum(), float(batch.size))
        if self.name not in INDEXED or target.is_floating_point():
            return Terms(terms.sum(), float(terms.numel()))
        counts = target != options.get("ignore_index", -100)
        weight = options.get("weight")
        total = counts.sum() if weight is None else weight[target[counts]].sum()
        return Terms(terms.sum(), total, counts.logical_not().sum())

    def _terms(self, out: Tensor, target: Tensor, options: Mapping[str, Any]) -> Tensor:
        terms: Tensor = self.function(out, target, reduction="none", **options)
        return terms


def _misfit(name: str, out: Tensor, target: Tensor, error: Exception) -> CurvError:
    first = str(error).strip().splitlines()[0][:160]
    shapes = f"output {_kind(out)}, target {_kind(target)}"
    return CurvError("E_LOSS", f"{name} refuses {shapes}: {first}", "check data.y, model and loss")


def _kind(t: Any) -> str:
    if not isinstance(t, Tensor):
        return type(t).__name__
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"


def _aligned(name: str, out: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Lay output and target out as torch wants them."""
    if not isinstance(target, Tensor):
        raise CurvError("E_DATA", f"{name} needs a target, and the data has none", "name data.y")
    if name in INDEXED and not target.is_floating_point():
        torch_wants = out.shape[:1] + out.shape[2:]
        if out.ndim >= 3 and target.shape == out.shape[:-1] != torch_wants:
            # Language models put the classes last: (N, T, C) beside (N, T).
            return out.reshape(-1, out.shape[-1]), target.reshape(-1)
        return out, target
    if name in INDEXED or name.lower().startswith("multi"):
        return out, target
    if target.shape == out.shape[:-1] and out.shape[-1] == 1:
        # torch would broadcast (N, 1) with (N,) to (N, N), which nobody means.
        target = target.unsqueeze(-1)
    if target.shape != out.shape:
        raise CurvError(
            "E_LOSS",
            f"{name} compares entry by entry, but the output is {tuple(out.shape)} and the target "
            f"{tuple(target.shape)}",
            "check data.y and the model's last layer",
        )
    return out, target.to(out.dtype)


def tensor_of(output: Any) -> Tensor:
    """Take the tensor that a loss is about out of a model's output: itself, the first, `logits`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        tensors = [v for v in output.values() if isinstance(v, Tensor)]
        found = output.get("logits", tensors[0] if len(tensors) == 1 else None)
        if isinstance(found, Tensor):
            return found
        raise CurvError(
            "E_LOSS",
            f"the model returns a dict of {', '.join(map(str, output))}: which one is the output?",
            "use loss: {target: module:function}",
        )
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0])
    raise CurvError(
        "E_LOSS", f"the model returns a {type(output).__name__}", "use loss: {target: ...}"
    )


def returned(key: str) -> Loss:
    """Take the loss that the model itself returns, a mean over the examples of the batch."""

    def terms(output: Any, batch: Batch) -> Terms:
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(output, tuple | list) and key.isdigit() and int(key) < len(output):
            found = output[int(key)]
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise CurvError(
                "E_LOSS",
                f"the model's {type(output).__name__} holds no scalar {key!r}",
                "check loss: {output: ...}",
            )
        return Terms(found.reshape(()) * batch.size, float(batch.size))

    return terms


def custom(function: Callable[..., Any], args: Mapping[str, Any]) -> Loss:
    """Wrap a user's function(output, target): a mean, a tensor of terms, or (sum, weight)."""

    def terms(output: Any, batch: Batch) -> Terms:
        found = function(output, batch.target, **args)
        if isinstance(found, tuple | list) and len(found) == 2:
            return Terms(found[0], found[1])
        if not isinstance(found, Tensor):
            raise CurvError(
                "E_LOSS",
                f"the loss function returned a {type(found).__name__}",
                "return a scalar tensor, a tensor of terms, or (sum, weight)",
            )
        if found.ndim == 0:
            return Terms(found * batch.size, float(batch.size))
        return Terms(found.sum(), float(found.numel()))

    return terms


def as_loss(given: Any) -> Loss:
    """Make a loss of what Python callers have: a functional, a module of torch.nn, a function."""
    name = getattr(given, "__name__", "")
    if getattr(functional, name, None) is given and name in losses():
        return named(name, {})
    # A class that is derived from torch's may compute anything.
    if isinstance(given, nn.modules.loss._Loss) and type(given).__module__.startswith("torch."):
        if given.reduction == "sum":
            raise CurvError("E_LOSS", *SUMMED)
        if given.reduction == "mean":
            return _Module(given)
    return custom(given, {})


class _Module(_Terms):
    """A loss module of torch.nn, evaluated term by term."""

    def __init__(self, given: Any) -> None:
        by_term = copy.deepcopy(given)
        by_term.reduction = "none"
        options = {k: getattr(given, k) for k in ("weight", "ignore_index") if hasattr(given, k)}
        kind = type(given).__name__
        name = {"CrossEntropyLoss": "cross_entropy", "NLLLoss": "nll_loss"}.get(kind, kind)
        super().__init__(name, by_term, options, per_example=False)

    def _terms(self, out: Tensor, target: Tensor, options: Mapping[str, Any]) -> Tensor:
        terms: Tensor = self.function.to(out)(out, target)
        return terms
