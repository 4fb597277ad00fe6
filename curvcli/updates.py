"""What an optimizer's last step did, recovered from its state, and what its next one would do."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from curvcli.derivatives import optional_derivatives
from curvcli.errors import CurvError, listed
from curvcli.optimizer import FROM_SPEC, Group, SavedOptimizer, State
from curvcli.problem import Problem

Recover = Callable[[Tensor, State, Group], Tensor | None]


def optimizer_of(problem: Problem) -> SavedOptimizer:
    """Give the saved optimizer, or the spec's before its first step.

    Raises: CurvError (E_OPTIMIZER) where there is neither.
    """
    saved = problem.optimizer()
    if saved is None:
        raise CurvError(
            "E_OPTIMIZER",
            "the checkpoint holds no optimizer state, and the spec does not say class and lr",
            "save optimizer.state_dict() too, or write optimizer: {class: SGD, lr: 0.1} "
            "(from Python, pass optimizer=)",
        )
    return saved


def matched(saved: SavedOptimizer) -> list[str]:
    """Say, as a note, how the optimizer's state found its parameters."""
    if not saved.state and saved.rule == FROM_SPEC:
        return [f"{saved.kind} {saved.rule}", *saved.notes]
    doubt = "" if saved.verified else " (unverified: this optimizer saves nothing to compare)"
    notes = [f"{saved.kind}, state matched to parameters by {saved.rule}{doubt}", *saved.notes]
    if saved.alike:
        some = listed(max(saved.alike, key=len))
        notes.append(f"only their order in the file tells apart tensors of one shape: {some}")
    return notes


def summed(problem: Problem) -> float:
    """Say how many micro-batches' mean losses a gradient of the trainer's is the sum of."""
    return float(problem.training.get("accumulate", 1))


def broken(saved: SavedOptimizer) -> list[str]:
    """Name the entries of the state that hold what is no number."""
    return [
        f"{key} of {name}"
        for name, state in saved.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all()
    ]


def last_updates(saved: SavedOptimizer, params: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Recover theta_t - theta_(t-1) by parameter name; None where the state does not determine it.

    The learning rate is the saved one: where a scheduler has moved on before saving, the update
    scales with the ratio of the two.
    """
    recover = _RECOVER.get(saved.kind, _undetermined)
    found: dict[str, Tensor | None] = {}
    for group in saved.groups:
        for name in group.names:
            state = saved.state.get(name)
            found[name] = None
            if state and float(state.get("step", 1)) > 0:
                found[name] = recover(params[name].detach(), state, group)
    return found


def next_updates(
    problem: Problem, saved: SavedOptimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take one real step of torch's own optimizer on copies: updates and gradients by name.

    The gradient is that of L over the problem's data, clipped as `problem.training` says. A
    parameter that no step had a gradient of, frozen or unused, has none now.
    """
    params = dict(problem.model.named_parameters())
    names = [n for g in saved.groups for n in g.names]
    # Also what --params leaves out takes the step.
    problem = replace(problem, names=tuple(n for n in names if n not in saved.idle))
    copies = {n: params[n].detach().clone().requires_grad_() for n in names}
    optimizer = saved.rebuild(copies)
    gradients: dict[str, Tensor] = {}

    def closure() -> float:
        with problem.engaged():
            loss = _backward(problem, copies)
        if not gradients:  # of the point itself: a line search calls again elsewhere
            gradients.update({n: t.grad.clone() for n, t in copies.items() if t.grad is not None})
        _clip(problem, copies)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return {n: copies[n].detach() - params[n].detach() for n in names}, gradients


def _backward(problem: Problem, copies: Mapping[str, Tensor]) -> float:
    """Put the gradient of L at `copies` into their .grad, as a training loop would."""
    for copy in copies.values():
        copy.grad = None
    total = 0.0
    moved, leaves = [copies[n] for n in problem.names], list(problem.params.values())
    with problem.displaced({n: copies[n].detach() for n in problem.names}):
        for batch in problem.batches:
            share = problem.share(batch) * summed(problem)
            for copy, g in zip(moved, optional_derivatives([share], leaves), strict=True):
                if g is not None:
                    copy.grad = g if copy.grad is None else copy.grad + g
            total += float(share.detach())
    return total


def _clip(problem: Problem, copies: Mapping[str, Tensor]) -> None:
    if norm := problem.training.get("grad_clip"):
        torch.nn.utils.clip_grad_norm_(copies.values(), norm)
    if value := problem.training.get("grad_clip_value"):
        torch.nn.utils.clip_grad_value_(copies.values(), value)


def _undetermined(theta: Tensor, state: State, group: Group) -> Tensor | None:
    return None


def _adam(theta: Tensor, state: State, group: Group, decoupled: bool) -> Tensor:
    """Undo torch's Adam: the moments and the step say all of it [Kingma and Ba 2015]."""
    theta = theta.double()
    options = group.options
    beta1, beta2 = (float(b) for b in options["betas"])
    step, lr = float(state["step"]), float(options["lr"])
    second = state["max_exp_avg_sq"] if options.get("amsgrad") else state["exp_avg_sq"]
    denominator = (second.to(theta) / (1 - beta2**step)).sqrt() + float(options["eps"])
    move = -lr / (1 - beta1**step) * state["exp_avg"].to(theta) / denominator
    return _decayed(theta, move, group) if decoupled else move


def _decayed(theta: Tensor, move: Tensor, group: Group) -> Tensor:
    """Solve theta_t = (1 - decay) theta_(t-1) + move for the difference, without cancellation."""
    decay = float(group.options["lr"]) * float(group.options.get("weight_decay", 0.0))
    return (move - decay * theta) / (1 - decay)


def _adamax(theta: Tensor, state: State, group: Group) -> Tensor:
    """Adam with the norm of infinity [Kingma and Ba 2015, algorithm 2]."""
    beta1, lr = float(group.options["betas"][0]), float(group.options["lr"])
    rate = lr / (1 - beta1 ** float(state["step"]))
    update: Tensor = -rate * state["exp_avg"].to(theta) / state["exp_inf"].to(theta)
    return update


def _radam(theta: Tensor, state: State, group: Group) -> Tensor:
    """Adam, rectified once the variance of its second moment is finite [Liu et al. 2020]."""
    theta, options = theta.double(), group.options
    beta1, beta2 = (float(b) for b in options["betas"])
    step = float(state["step"])
    move = -float(options["lr"]) / (1 - beta1**step) * state["exp_avg"].to(theta)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length > 5:
        top = (length - 4) * (length - 2) * longest
        rectified = (top / ((longest - 4) * (longest - 2) * length)) ** 0.5
        scale = (1 - beta2**step) ** 0.5 / (state["exp_avg_sq"].to(theta).sqrt() + options["eps"])
        move = move * rectified * scale
    return _decayed(theta, move, group) if options.get("decoupled_weight_decay") else move


def _rprop(theta: Tensor, state: State, group: Group) -> Tensor:
    """A step of its own for every entry, along the sign of the gradient, which is kept."""
    update: Tensor = -state["prev"].to(theta).sign() * state["step_size"].to(theta)
    return update


def _adam_coupled(theta: Tensor, state: State, group: Group) -> Tensor:
    return _adam(theta, state, group, bool(group.options.get("decoupled_weight_decay", False)))


def _adamw(theta: Tensor, state: State, group: Group) -> Tensor:
    return _adam(theta, state, group, True)


def _momentum(theta: Tensor, state: State, group: Group) -> Tensor | None:
    """SGD and RMSprop step by -lr times their buffer; Nesterov's also needs the gradient."""
    buffer = state.get("momentum_buffer")
    if buffer is None or group.options.get("nesterov") or not group.options.get("momentum"):
        return None
    update: Tensor = -float(group.options["lr"]) * buffer.to(theta)
    return update


_RECOVER: dict[str, Recover] = {
    "Adam": _adam_coupled,
    "AdamW": _adamw,
    "Adamax": _adamax,
    "RAdam": _radam,
    "Rprop": _rprop,
    "SGD": _momentum,
    "RMSprop": _momentum,
}
