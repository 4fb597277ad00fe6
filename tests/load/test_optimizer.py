"""Saved optimizer state finds its parameters: right, or refused, never wrong."""

import copy
import io
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli.errors import CurvError
from curvcli.load.optimizer import fresh, resolve
from curvcli.optimizer import SavedOptimizer, classes


class Block(nn.Module):
    """A small transformer's parts, without its function: matrices, norms, biases, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.ln_1 = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 6)
        self.proj = nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.wte.weight


class Scaled(nn.Module):
    """One-dimensional and zero-dimensional weights beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.conv = nn.Conv2d(2, 3, 2)
        self.bn = nn.BatchNorm2d(3)
        self.out = nn.Linear(5, 2)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "block": Block, "scaled": Scaled}
Grouping = Callable[[nn.Module], list[dict[str, Any]]]


def split(first: Callable[[str, Tensor], bool], wd: tuple[float, float]) -> Grouping:
    def make(model: nn.Module) -> list[dict[str, Any]]:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if first(n, p)], "weight_decay": wd[0]},
            {"params": [p for n, p in named if not first(n, p)], "weight_decay": wd[1]},
        ]

    return make


ORDERS: dict[str, Grouping] = {
    "single": lambda model: [{"params": list(model.parameters()), "weight_decay": 0.01}],
    "nanoGPT": split(lambda n, p: p.ndim >= 2, (0.1, 0.0)),
    "HF": split(lambda n, p: "bias" not in n and "ln_" not in n, (0.1, 0.0)),
    "timm": split(lambda n, p: p.ndim <= 1, (0.0, 0.1)),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True}],
    "AdamW": [{"foreach": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
}
CASES = [
    (kind, options)
    for kind in sorted(classes())
    if kind not in ("LBFGS", "Muon")
    for options in OPTIONS.get(kind, [{}])
]


def build(kind: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    make: Any = getattr(torch.optim, kind)
    optimizer: torch.optim.Optimizer = make(groups, lr=0.05, **options)
    return optimizer


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        gradients(model, step)
        optimizer.step()


def stored(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same_next_step(
    saved: SavedOptimizer, model: nn.Module, optimizer: torch.optim.Optimizer
) -> bool:
    """Step the trainer's optimizer and the rebuilt one on the same gradients."""
    gradients(model, 99)
    copies = {}
    for name, p in model.named_parameters():
        copies[name] = p.detach().clone().requires_grad_(p.requires_grad)
        copies[name].grad = None if p.grad is None else p.grad.clone()
    saved.rebuild(copies).step()
    optimizer.step()
    return all(torch.equal(copies[name], p) for name, p in model.named_parameters())


def refused(saved: dict[str, Any], model: nn.Module, *words: str, **options: Any) -> None:
    with pytest.raises(CurvError) as info:
        resolve(saved, model, options)
    assert info.value.code == "E_OPTIMIZER", str(info.value)
    for word in words:
        assert word in str(info.value), str(info.value)
    assert "\n" not in str(info.value)


def outcome(optimizer: torch.optim.Optimizer, model: nn.Module) -> SavedOptimizer | CurvError:
    try:
        return resolve(stored(optimizer.state_dict()), model, {})
    except CurvError as error:
        return error


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_next_step(kind: str, options: dict[str, Any], model_name: str, order: str) -> None:
    torch.manual_seed(0)
    model = MODELS[model_name]()
    groups = ORDERS[order](model)
    if kind == "Rprop":
        groups = [{"params": group["params"]} for group in groups]
    optimizer = build(kind, groups, **options)
    train(model, optimizer)
    found = resolve(stored(optimizer.state_dict()), MODELS[model_name](), {})
    assert found.kind == kind
    assert found.verified
    assert same_next_step(found, model, optimizer)


@pytest.mark.parametrize("whole", [True, False], ids=["all parameters", "trainable alone"])
@pytest.mark.parametrize("order", ["single", "nanoGPT"])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad"])
def test_frozen_parameters(kind: str, model_name: str, order: str, whole: bool) -> None:
    def make() -> nn.Module:
        model = MODELS[model_name]()
        next(iter(model.parameters())).requires_grad_(False)
        return model

    model = make()
    groups = ORDERS[order](model)
    if not whole:
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
    optimizer = build(kind, groups, **({"momentum": 0.9} if kind == "SGD" else {}))
    train(model, optimizer)
    found = resolve(stored(optimizer.state_dict()), make(), {})
    assert same_next_step(found, model, optimizer)


def test_frozen_in_the_trainer_alone() -> None:
    """The built model does not know what was frozen: the shapes decide, or nothing does."""
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = build("Adam", [{"params": [p for p in model.parameters() if p.requires_grad]}])
    train(model, optimizer)
    found = resolve(stored(optimizer.state_dict()), mlp(), {})
    assert found.groups[0].names == ("2.weight", "2.bias")
    assert found.rule == "the only assignment by shapes"
    assert same_next_step(found, model, optimizer)
    twins = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = build("Adam", [{"params": list(twins[1].parameters())}])
    train(twins, optimizer)
    refused(stored(optimizer.state_dict()), twins, "0.weight", "1.weight", "optimizer.groups")


def test_muon() -> None:
    torch.manual_seed(0)
    model = matrices()
    optimizer = build("Muon", [{"params": list(model.parameters())}])
    train(model, optimizer)
    found = resolve(stored(optimizer.state_dict()), matrices(), {})
    assert found.kind == "Muon"
    assert same_next_step(found, model, optimizer)
    part = Block()  # Muon takes the matrices, another optimizer the rest
    optimizer = build("Muon", [{"params": [part.fc.weight, part.proj.weight]}])
    train(part, optimizer)
    found = resolve(stored(optimizer.state_dict()), Block(), {})
    assert found.groups[0].names == ("fc.weight", "proj.weight")
    assert same_next_step(found, part, optimizer)


def test_lbfgs() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randn(8, 2)

    def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            torch.autograd.backward(loss)
            return float(loss.detach())

        optimizer.step(closure)

    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, history_size=4)
    for _ in range(3):
        stepped(model, optimizer)
    state = stored(optimizer.state_dict())
    found = resolve(state, mlp(), {})
    assert found.kind == "LBFGS"
    twin = copy.deepcopy(model)
    stepped(twin, found.rebuild(dict(twin.named_parameters())))
    stepped(model, optimizer)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    refused(state, nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)), "vectors")


def distinct() -> nn.ParameterDict:
    """No two shapes are equal, so a wrong order always shows."""
    sizes = [(2, 3), (4,), (5, 2), (6,), (3, 2, 2)]
    return nn.ParameterDict({f"p{i}": nn.Parameter(torch.randn(s)) for i, s in enumerate(sizes)})


@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adafactor"])
@pytest.mark.parametrize("seed", range(12))
def test_shuffled_groups_are_right_or_refused(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    model = distinct()
    params = list(model.parameters())
    rng.shuffle(params)
    cut = rng.randrange(len(params) + 1)
    groups = [{"params": part} for part in (params[:cut], params[cut:]) if part]
    optimizer = build(kind, groups, **({"momentum": 0.9} if kind == "SGD" else {}))
    train(model, optimizer)
    found = outcome(optimizer, distinct())
    if isinstance(found, SavedOptimizer):
        assert same_next_step(found, model, optimizer)
    else:
        assert found.code == "E_OPTIMIZER"
        assert "optimizer.groups" in found.hint


def test_names_in_the_groups_decide() -> None:
    model = mlp()
    backwards = list(model.named_parameters())[::-1]
    optimizer = torch.optim.Adam([(f"module.{name}", p) for name, p in backwards], lr=0.1)
    train(model, optimizer)
    state = stored(optimizer.state_dict())
    found = resolve(state, mlp(), {})
    assert found.rule == "param_names in the file"
    assert found.groups[0].names == ("2.bias", "2.weight", "0.bias", "0.weight")
    assert same_next_step(found, model, optimizer)
    state["param_groups"][0]["param_names"][0] = "module.2.weight"
    refused(state, mlp(), "param_names")
    state["param_groups"][0]["param_names"][0] = "elsewhere"
    refused(state, mlp(), "elsewhere")


def test_names_in_the_state_decide() -> None:
    model = mlp()
    optimizer = build("AdamW", [{"params": list(model.parameters())[::-1]}])
    train(model, optimizer)
    state = stored(optimizer.state_dict())
    names = [name for name, _ in model.named_parameters()][::-1]
    state["state"] = {names[i]: s for i, s in state["state"].items()}
    state["param_groups"][0]["params"] = names
    found = resolve(state, mlp(), {})
    assert found.rule == "names in the file's state"
    assert same_next_step(found, model, optimizer)


def test_groups_in_the_spec_decide() -> None:
    model = distinct()
    names = ["p3", "p0", "p4"]
    optimizer = build(
        "Adam",
        [{"params": [model[n] for n in names]}, {"params": [model["p1"], model["p2"]], "lr": 0.5}],
    )
    train(model, optimizer)
    state = stored(optimizer.state_dict())
    refused(state, distinct(), "optimizer.groups")
    found = resolve(state, distinct(), {"groups": [names, ["p*"]]})
    assert found.groups[1].names == ("p1", "p2")
    assert found.groups[1].options["lr"] == 0.5
    assert same_next_step(found, model, optimizer)
    refused(state, distinct(), "p0", groups=[["p0", "p3", "p4"], ["*"]])
    refused(state, distinct(), "groups of", groups=[["*"]])
    refused(state, distinct(), "no parameter", groups=[names, ["q*"]])
    refused(state, distinct(), "list of lists", groups=["*"])


def test_plain_sgd_is_unverified() -> None:
    model = mlp()
    optimizer = build("SGD", [{"params": list(model.parameters())}])
    train(model, optimizer)
    found = resolve(stored(optimizer.state_dict()), mlp(), {})
    assert not found.verified
    assert same_next_step(found, model, optimizer)


def test_two_rules_that_differ_are_refused() -> None:
    model = mlp()
    groups = [{"params": p} for p in (list(model.parameters())[:2], list(model.parameters())[2:])]
    state = stored(build("SGD", groups).state_dict())
    refused(state, mlp(), "nanoGPT", "timm", "could hold 0.weight or 0.bias", "optimizer.groups")
    state["param_groups"][1]["weight_decay"] = 0.1  # which tells timm's order from the others
    assert resolve(state, mlp(), {}).rule == "ndim <= 1 first (timm)"


def pair(first: str, second: str) -> nn.ParameterDict:
    return nn.ParameterDict({n: nn.Parameter(torch.randn(2, 2)) for n in (first, second)})


def test_a_split_by_learning_rate_is_not_one_by_weight_decay() -> None:
    model = pair("bias", "w")
    first, second = model.parameters()
    optimizer = build("Adam", [{"params": [first], "lr": 1.0}, {"params": [second]}])
    train(model, optimizer)
    refused(stored(optimizer.state_dict()), model, "several assignments", "optimizer.groups")
    decayed = build("Adam", [{"params": [second], "weight_decay": 0.1}, {"params": [first]}])
    train(model, decayed)
    found = resolve(stored(decayed.state_dict()), model, {})
    assert found.groups[0].names == ("w",)
    assert same_next_step(found, model, decayed)


def test_parameters_without_state_are_wildcards() -> None:
    model = mlp()
    optimizer = build("Adam", [{"params": list(model.parameters())}])
    for step in range(2):
        gradients(model, step)
        model[0].weight.grad = None
        optimizer.step()
    found = resolve(stored(optimizer.state_dict()), mlp(), {})
    assert "0.weight" not in found.state
    assert same_next_step(found, model, optimizer)


def adam_state(**options: Any) -> dict[str, Any]:
    model = mlp()
    optimizer = build("Adam", [{"params": list(model.parameters())}], **options)
    train(model, optimizer)
    state: dict[str, Any] = stored(optimizer.state_dict())
    return state


def aged(state: dict[str, Any]) -> dict[str, Any]:
    """Make the state of an old torch: an int step, and fewer keys."""
    for entry in state["state"].values():
        if "step" in entry:
            entry["step"] = int(entry["step"])
    for group in state["param_groups"]:
        for key in ("maximize", "foreach", "capturable", "differentiable", "fused",
                    "decoupled_weight_decay"):  # fmt: skip
            group.pop(key, None)
    return state


def test_old_files() -> None:
    for kind, options in CASES:
        model = mlp()
        optimizer = build(kind, [{"params": list(model.parameters())}], **options)
        if kind in ("Adam", "AdamW"):
            optimizer.param_groups[0]["weight_decay"] = 0.0
        train(model, optimizer)
        found = resolve(aged(stored(optimizer.state_dict())), mlp(), {})
        assert found.kind == ("Adam" if kind == "AdamW" else kind)
        assert same_next_step(found, model, optimizer)


def test_old_files_with_weight_decay_need_the_class() -> None:
    state = aged(adam_state(weight_decay=0.1))
    refused(state, mlp(), "Adam", "optimizer.class")
    for kind, decoupled in (("Adam", False), ("AdamW", True)):
        found = resolve(state, mlp(), {"class": kind, "lr": 9.0})
        assert found.kind == kind
        assert found.groups[0].options["decoupled_weight_decay"] is decoupled
        assert found.groups[0].options["lr"] == 0.05  # the spec fills only what is absent


def test_class_of_the_spec() -> None:
    state = adam_state(weight_decay=0.1)
    assert resolve(state, mlp(), {"class": "torch.optim.Adam"}).kind == "Adam"
    refused(state, mlp(), "decoupled_weight_decay", **{"class": "AdamW"})
    refused(state, mlp(), "dampening", **{"class": "SGD"})
    refused(state, mlp(), "lack", **{"class": "Adadelta"})
    refused(state, mlp(), "torch.optim has no Lion", **{"class": "Lion"})
    refused(state, mlp(), "did you mean weight_decay", weight_decai=1)


def test_foreign_optimizers_are_not_taken_for_torch_ones() -> None:
    state = adam_state()
    state["param_groups"][0]["max_grad_norm"] = 1.0
    refused(state, mlp(), "fit no class")
    state = adam_state()
    state["param_groups"][0]["initial_lr"] = 0.1  # a scheduler's
    assert resolve(state, mlp(), {}).groups[0].options["initial_lr"] == 0.1
    for entry in state["state"].values():
        entry["state1"] = entry.pop("exp_avg")
    refused(state, mlp(), "fit no class")


def test_malformed_states() -> None:
    malformed: list[dict[str, Any]] = [
        {},
        {"state": {}, "param_groups": []},
        {"state": [], "param_groups": [{}]},
        {"state": {}, "param_groups": [{"params": [[1]]}]},
    ]
    for broken in malformed:
        refused(broken, mlp())
    twice = adam_state()
    twice["param_groups"].append(dict(twice["param_groups"][0]))
    refused(twice, mlp(), "share")
    stray = adam_state()
    stray["state"][9] = stray["state"][0]
    refused(stray, mlp(), "no group")
    uneven = adam_state()
    uneven["state"][0]["exp_avg"] = torch.ones(2)
    refused(uneven, mlp(), "several shapes")
    typed = adam_state()
    typed["param_groups"][0]["lr"] = "fast"
    refused(typed, mlp(), "rejects")
    refused(adam_state(), nn.Linear(3, 5), "the model has 2")


def test_fresh() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    found = fresh({"class": "SGD", "lr": 0.1, "momentum": 0.9, "grad_clip": 1.0}, model)
    assert found is not None
    assert found.groups[0].names == ("0.bias", "2.weight", "2.bias")
    assert found.groups[0].options["momentum"] == 0.9
    assert not found.state
    optimizer = build("SGD", [{"params": list(model.parameters())}], momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.1
    assert same_next_step(found, model, optimizer)
    assert fresh({}, model) is None
    assert fresh({"class": "SGD"}, model) is None
    with pytest.raises(CurvError, match="rejects"):
        fresh({"class": "SGD", "lr": -1.0}, model)


def test_every_pair_of_classes_is_told_apart() -> None:
    model = matrices()
    states = {}
    for kind in sorted(classes()):
        optimizer = build(kind, [{"params": list(model.parameters())}])
        states[kind] = stored(optimizer.state_dict())
        assert resolve(states[kind], matrices(), {}).kind == kind
    for kind, other in itertools.permutations(states, 2):
        if other in ("RAdam", "Adamax") and kind in ("Adam", "AdamW", "NAdam", "Adamax"):
            continue  # old files' keys of these are a part; without a state the spec decides
        refused(states[kind], matrices(), other, **{"class": other})


def test_what_shapes_do_not_tell_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))

    def read(params: Any) -> SavedOptimizer:
        optimizer = torch.optim.Adam(params)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return resolve(optimizer.state_dict(), model, {})

    alike = read(model.parameters()).alike
    assert set(alike) == {("0.weight", "2.weight"), ("0.bias", "2.bias")}
    assert read(list(model.named_parameters())).alike == ()


def test_options_of_the_spec_that_the_file_contradicts_are_told() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.9, 0.99))
    saved = optimizer.state_dict()
    said = resolve(saved, model, {"class": "Adam", "lr": 0.5, "betas": [0.9, 0.99]}).notes
    assert said == ("optimizer.lr: the spec says 0.5, the file 0.001, which is used",)
    assert resolve(saved, model, {"lr": 0.001}).notes == ()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"clas": "Adam", "lr": 0.1}, "did you mean class?"),
        ({"gradclip": 1.0}, "did you mean grad_clip?"),
        ({"class": "Adam", "lr": 0.1, "acumulate": 3}, "did you mean accumulate?"),
        ({"class": "adam", "lr": 0.1}, "did you mean Adam?"),
        ({"momentun": 0.9}, "did you mean momentum?"),
    ],
)
def test_names_of_options_are_checked_also_without_a_file(
    options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(CurvError) as refused:
        fresh(options, nn.Linear(3, 2))
    assert (refused.value.code, refused.value.hint) == ("E_OPTIMIZER", hint)
