"""The model that a spec describes, built fresh: layers of torch.nn by name, or a user's factory."""

import inspect

import torch
from torch import nn

from curvcli.errors import CurvError
from curvcli.load.code import call, find
from curvcli.load.weights import tie
from curvcli.modules import seeded
from curvcli.options import unknown
from curvcli.spec import Layer, Layers, Target


def build(model: Layers | Target) -> nn.Module:
    """Build the module with its own initial weights, the same every time.

    Raises: CurvError (E_MODEL, E_IMPORT) where it cannot be built.
    """
    # Fresh weights must not depend on what ran before, nor change what runs after.
    with seeded(0):
        factory = find(model.module, model.name) if isinstance(model, Target) else None
        # Again, since an import may draw, and does so the first time only; and on an accelerator,
        # too, that the factory is the first to use.
        torch.manual_seed(0)
        if isinstance(model, Layers):
            return nn.Sequential(
                *(_layer(x, f"model.layers[{i}]") for i, x in enumerate(model.layers))
            )
        made = call("E_MODEL", f"{model.module}:{model.name}", factory, (), model.args)
    if not isinstance(made, nn.Module):
        raise CurvError(
            "E_MODEL",
            f"{model.module}:{model.name} gave a {type(made).__name__}, not a torch.nn.Module",
            "name a class or a function that returns the model",
        )
    return made


def rebuild(model: Layers | Target, loaded: nn.Module) -> nn.Module:
    """Build the module again beside the one that was loaded.

    Raises: CurvError (E_MODEL) where the factory does not make a new one.
    """
    made = build(model)
    tie(made)
    if {id(p) for p in made.parameters()} & {id(p) for p in loaded.parameters()}:
        message = "the factory gives the parameters that were loaded, not fresh ones"
        raise CurvError("E_MODEL", message, "let it make a new model at every call")
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
