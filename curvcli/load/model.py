"""The model that a spec describes, built fresh: layers of torch.nn by name, or a user's factory."""

import inspect

import torch
from torch import nn

from curvcli.errors import CurvError
from curvcli.load.code import call, find
from curvcli.options import unknown
from curvcli.spec import Layer, Layers, Target


def build(model: Layers | Target) -> nn.Module:
    """Build the module with its own initial weights, the same every time.

    Raises: CurvError (E_MODEL, E_IMPORT) where it cannot be built.
    """
    # Fresh weights must not depend on what ran before, nor change what runs after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(model, Layers):
            return nn.Sequential(
                *(_layer(x, f"model.layers[{i}]") for i, x in enumerate(model.layers))
            )
        made = call(
            "E_MODEL",
            f"{model.module}:{model.name}",
            find(model.module, model.name),
            (),
            model.args,
        )
    if not isinstance(made, nn.Module):
        raise CurvError(
            "E_MODEL",
            f"{model.module}:{model.name} gave a {type(made).__name__}, not a torch.nn.Module",
            "name a class or a function that returns the model",
        )
    return made


def _layer(layer: Layer, place: str) -> nn.Module:
    kinds = {n: k for n, k in vars(nn).items() if inspect.isclass(k) and issubclass(k, nn.Module)}
    if layer.name not in kinds:
        raise unknown(layer.name, kinds, place, "E_MODEL")
    inner = [_layer(x, f"{place}.{layer.name}[{i}]") for i, x in enumerate(layer.layers)]
    try:
        made: nn.Module = kinds[layer.name](*inner, *layer.args, **layer.kwargs)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:160]
        shown = ", ".join(
            [*map(repr, layer.args), *(f"{k}={v!r}" for k, v in layer.kwargs.items())]
        )
        raise CurvError(
            "E_MODEL", f"{place}: {layer.name}({shown}): {first}", "see its arguments in torch.nn"
        ) from error
    return made
