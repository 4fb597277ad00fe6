"""Penalties on the parameters, which training adds to the loss and curv checks apart from it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import CurvError
from curvcli.load.code import call, find
from curvcli.problem import Penalty, Problem
from curvcli.spec import Target


def penalties(given: Mapping[str, float | Target], names: Sequence[str]) -> dict[str, Penalty]:
    """Build each penalty as a function of the model; those of a norm are over the named parameters.

    Raises: CurvError (E_IMPORT) where a function of the user's is not found.
    """
    return {
        name: _own(name, value) if isinstance(value, Target) else _norm(name, value, tuple(names))
        for name, value in given.items()
    }


def _norm(name: str, weight: float, names: tuple[str, ...]) -> Penalty:
    """Weigh a norm: l2 has the gradient weight * p, as torch's weight_decay adds it."""

    def penalty(model: nn.Module) -> Tensor:
        own = dict(model.named_parameters())
        chosen = [own[n] for n in names]
        if name == "l1":
            return weight * torch.stack([p.abs().sum() for p in chosen]).sum()
        return weight / 2 * torch.stack([p.square().sum() for p in chosen]).sum()

    return penalty


def _own(name: str, target: Target) -> Penalty:
    """Call the user's function(model, **args), which must give one number."""
    function = find(target.module, target.name)

    def penalty(model: nn.Module) -> Tensor:
        found = function(model, **target.args)
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            raise CurvError(
                "E_LOSS",
                f"the penalty {name} ({target.module}:{target.name}) returned {_kind(found)}",
                "return a scalar tensor",
            )
        return found.reshape(())

    return penalty


def _kind(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
    return f"a {type(found).__name__}"


def tried(problem: Problem) -> None:
    """Evaluate each penalty once, so that what does not work is told before any work starts.

    Raises: CurvError (E_LOSS) where one raises or gives no number, (E_NONFINITE).
    """
    for name in problem.penalties:
        posed = problem.penalised(name)
        call("E_LOSS", f"the penalty {name}", partial(getattr, posed, "measure"), (), {})
