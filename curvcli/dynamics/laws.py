"""torch's optimizers as linear step laws, read off their saved state.

The second moment of an adaptive method is taken as it is saved: it changes slowly beside the modes
at the edge, and the law is that of the iteration with it held [Cohen et al. 2022,
arXiv:2207.14484]. Every form here is that of torch.optim, bias corrections included.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from curvcli.dynamics.law import Law
from curvcli.errors import CurvError
from curvcli.optimizer import Group, SavedOptimizer, State


@dataclass(frozen=True)
class Stepped:
    """How one tensor is stepped: its law in coordinates where P = diag(preconditioner) is 1."""

    group: int
    law: Law
    preconditioner: Tensor | None  # of the tensor's shape, float64; None stands for 1


def stepped(saved: SavedOptimizer) -> dict[str, Stepped]:
    """Give the laws of all parameters that the optimizer moves, by name.

    A parameter without state, where the class keeps one, has never had a gradient and is left out.

    Raises: CurvError (E_OPTIMIZER) for a class that no linear law describes, or without state.
    """
    if saved.kind not in _READ:
        why, instead = _REFUSED.get(saved.kind, ("is no class whose step curv knows", RATIO))
        raise CurvError("E_OPTIMIZER", f"{saved.kind} {why}: it has no threshold", instead)
    read = _READ[saved.kind]
    found: dict[str, Stepped] = {}
    for index, group in enumerate(saved.groups):
        for name in group.names:
            if keeps_state(saved, name):
                law, preconditioner = read(saved.kind, saved.state.get(name, {}), group)
                found[name] = Stepped(index, law, _positive(name, preconditioner))
    if not found:
        raise CurvError(
            "E_OPTIMIZER",
            f"the checkpoint holds no state of {saved.kind}, whose preconditioner is in it",
            "save optimizer.state_dict() after some steps",
        )
    _checked(saved.kind, list(found.values()))
    return found


def keeps_state(saved: SavedOptimizer, name: str) -> bool:
    """Tell whether what the step needs to know of a parameter is there."""
    if name in saved.idle:
        return False
    if saved.kind in STATELESS:
        return True
    state = saved.state.get(name) or {}
    # Adagrad makes its state before the first step.
    return bool(state) and float(state.get("step", 1)) > 0


RATIO = "ask curv ratio for its next step, and curv eig for the sharpness"
STATELESS = ("SGD", "ASGD")

_REFUSED = {
    "Adadelta": ("scales its step by the steps before, which adapt as fast as the modes", RATIO),
    "Adafactor": ("scales every step by the size of the tensor and of the step", RATIO),
    "LBFGS": ("makes a new quadratic model at every step", RATIO),
    "Muon": ("makes every step orthogonal, whatever the size of the gradient", RATIO),
    "Rprop": ("uses the signs of the gradient alone", RATIO),
}


def _checked(kind: str, found: list[Stepped]) -> None:
    """Refuse laws to which the theory does not apply."""
    laws = [s.law for s in found]
    if len({law.sign for law in laws}) > 1:
        message = f"some groups of {kind} maximize the loss and others minimize it"
        raise CurvError("E_OPTIMIZER", message, "the game of the two has no sharpness")
    for law in laws:
        sound = law.alpha >= 0 and law.beta >= 0 and law.gain > 0 and 0 <= law.momentum < 1
        if not (sound and law.rate >= 0 and 0 <= law.decay < 1):
            message = f"{kind} with these options is no damped momentum method: {_said(law)}"
            raise CurvError("E_OPTIMIZER", message, "check momentum, dampening and weight_decay")


def _said(law: Law) -> str:
    return (
        f"rate {law.rate:g}, momentum {law.momentum:g}, weights {law.alpha:g} and {law.beta:g}, "
        f"decay {law.decay:g}"
    )


def _positive(name: str, preconditioner: Tensor | None) -> Tensor | None:
    if preconditioner is not None and not bool((preconditioner > 0).all()):
        message = f"the preconditioner of {name} is not positive in every entry"
        raise CurvError("E_OPTIMIZER", message, "eps of 0, or a damaged second moment?")
    return preconditioner


def _number(group: Group, key: str, default: float = 0.0) -> float:
    return float(group.options.get(key, default))


def _law(kind: str, group: Group) -> Law:
    """Read what all classes share: the rate, the sign, and weight decay coupled or not."""
    lr, decay = _number(group, "lr"), _number(group, "weight_decay")
    apart = kind == "AdamW" or bool(group.options.get("decoupled_weight_decay"))
    return Law(
        rate=lr,
        decay=lr * decay if apart else 0.0,
        coupled=0.0 if apart else decay,
        sign=-1.0 if group.options.get("maximize") else 1.0,
    )


Read = tuple[Law, Tensor | None]


def _sgd(kind: str, state: State, group: Group) -> Read:
    law, mu = _law(kind, group), _number(group, "momentum")
    if not mu:
        return law, None
    if group.options.get("nesterov"):
        return replace(law, alpha=1.0, beta=mu, momentum=mu), None
    return replace(law, alpha=0.0, beta=1 - _number(group, "dampening"), momentum=mu), None


def _asgd(kind: str, state: State, group: Group) -> Read:
    """ASGD is SGD with a decay of its own; the average that it keeps beside does not act back."""
    law = _law(kind, group)
    rate = float(state["eta"]) if "eta" in state else law.rate
    return replace(law, rate=rate, decay=_number(group, "lambd") * rate), None


def _averaged(kind: str, state: State, group: Group) -> Law:
    """Read an exponential average of gradients with its bias correction, as Adam's."""
    law, beta1 = _law(kind, group), float(group.options["betas"][0])
    rate = law.rate / (1 - beta1 ** float(state["step"]))
    return replace(law, rate=rate, alpha=0.0, beta=1 - beta1, momentum=beta1)


def _root(second: Tensor, state: State, group: Group) -> Tensor:
    """Take the square root of a bias-corrected second moment."""
    correction = 1 - float(group.options["betas"][1]) ** float(state["step"])
    root: Tensor = (second.double() / correction).sqrt()
    return root


def _adam(kind: str, state: State, group: Group) -> Read:
    second = state["max_exp_avg_sq" if group.options.get("amsgrad") else "exp_avg_sq"]
    return _averaged(kind, state, group), _root(second, state, group) + _number(group, "eps")


def _nadam(kind: str, state: State, group: Group) -> Read:
    """Nesterov's look-ahead in Adam [Dozat 2016], with torch's schedule of the momentum."""
    law, beta1 = _law(kind, group), float(group.options["betas"][0])
    t, product = float(state["step"]), float(state["mu_product"])
    fall = _number(group, "momentum_decay")
    mu, ahead = (beta1 * (1 - 0.5 * 0.96 ** (s * fall)) for s in (t, t + 1))
    law = replace(
        law,
        alpha=(1 - mu) / (1 - product),
        beta=(1 - beta1) * ahead / (1 - product * ahead),
        momentum=beta1,
    )
    return law, _root(state["exp_avg_sq"], state, group) + _number(group, "eps")


def _radam(kind: str, state: State, group: Group) -> Read:
    """Rectified Adam [Liu et al. 2020]; until the variance is tractable, an averaged gradient."""
    law, beta2 = _averaged(kind, state, group), float(group.options["betas"][1])
    t = float(state["step"])
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 5:
        return law, None
    rect = math.sqrt(
        (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    )
    root = state["exp_avg_sq"].double().sqrt() + _number(group, "eps")
    return replace(law, rate=law.rate * rect), root / math.sqrt(1 - beta2**t)


def _adamax(kind: str, state: State, group: Group) -> Read:
    return _averaged(kind, state, group), state["exp_inf"].double()


def _rmsprop(kind: str, state: State, group: Group) -> Read:
    second = state["square_avg"].double()
    if group.options.get("centered"):
        second = (second - state["grad_avg"].double().square()).clamp_min(0)
    mu = _number(group, "momentum")
    law = _law(kind, group)
    if mu > 0:
        law = replace(law, alpha=0.0, beta=1.0, momentum=mu)
    return law, second.sqrt() + _number(group, "eps")


def _adagrad(kind: str, state: State, group: Group) -> Read:
    """Adagrad's rate falls with the steps taken; its sum only grows, so this is an upper bound."""
    law = _law(kind, group)
    rate = law.rate / (1 + (float(state["step"]) - 1) * _number(group, "lr_decay"))
    return replace(law, rate=rate), state["sum"].double().sqrt() + _number(group, "eps")


_READ: dict[str, Callable[[str, State, Group], Read]] = {
    "SGD": _sgd,
    "ASGD": _asgd,
    "Adam": _adam,
    "AdamW": _adam,
    "NAdam": _nadam,
    "RAdam": _radam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}


def reference(found: Mapping[str, Stepped]) -> Law:
    """Give the law that acts most strongly on curvature, in whose units the others are told."""
    return max((s.law for s in found.values()), key=lambda law: law.scale)


def uniform(found: Mapping[str, Stepped]) -> bool:
    """Tell whether one law moves all parameters, weight decay apart."""
    return len({replace(s.law, decay=0.0, coupled=0.0) for s in found.values()}) == 1


def adaptive(found: Mapping[str, Stepped]) -> bool:
    """Tell whether any parameter has a preconditioner."""
    return any(s.preconditioner is not None for s in found.values())
