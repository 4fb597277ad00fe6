"""The exact diagonal of a perceptron's Hessian, by curv, by BackPACK and by one-hot products."""

from collections.abc import Callable, Sequence

import torch
from bench.memory import MB, allocated
from bench.models import perceptron, pictures
from bench.peers import Task, backpack_diagonal, flat, why
from bench.products import posed
from bench.timing import Measured, Ratio, Setting, elapsed, interleaved, quartiles, ratio, spread
from torch import Tensor, nn
from torch.nn import functional

import curvcli
from curvcli.curvature.diagonals.exact import ExactDiagonal

WIDTHS = (784, 512, 256, 10)
EXAMPLES = 200
SLOWER = {"tanh": 1.0, "ReLU": 3.0}
"""Times BackPACK's time that curv's may be."""
ONE_HOT = 100
AGREE = 1e-4
SAMPLE = 64
"""One-hot products timed of each tensor; the time of all is scaled from them."""

CURV, COMMAND, BACKPACK = "curv", "curv.diag, plan and checks too", "BackPACK"


def run(setting: Setting) -> list[Measured]:
    """Measure both activations."""
    kinds: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "ReLU": nn.ReLU}
    lines: list[Measured] = []
    for name, between in kinds.items():
        model = perceptron(WIDTHS, between).to(setting.device)
        x, y = (t.to(setting.device) for t in pictures(EXAMPLES, WIDTHS[0]))
        lines += measured(name, Task(model, x, y), setting)
    return lines


def measured(name: str, task: Task, setting: Setting) -> list[Measured]:
    """Compare values first, then time in turns."""
    data = [(task.x, task.y)]

    def command() -> object:
        return curvcli.diag(task.own().model, functional.cross_entropy, data, method="exact")

    calls: dict[str, Callable[[], object]] = {CURV: lambda: exact(task), COMMAND: command}
    ours, lines = exact(task), []
    lines.append(Measured("entries", f"{ours.numel():,}", of=name))
    try:
        peer = backpack_diagonal(task)
        gap = float((flat(peer()) - ours).norm() / ours.norm())
        calls[BACKPACK] = peer
        same = gap <= AGREE
        lines.append(Measured("gap to BackPACK", f"{gap:.0e}", f"<= {AGREE:g}", same, name))
    except Exception as error:
        lines.append(Measured(BACKPACK, why(error), of=name))
    times = interleaved(calls, setting.repeats, setting.device)
    lines += [Measured(n, spread(t), of=name) for n, t in times.items()]
    if BACKPACK in times:
        found, most = ratio(times[CURV], times[BACKPACK]), SLOWER[name]
        lines.append(_race(name, found, most))
    each, gap = one_hot(task, ours, setting.device)
    slower = each / quartiles(times[CURV])[1]
    said = f"one-hot products, {SAMPLE} of each tensor timed and scaled"
    lines += [
        Measured(said, f"{each:.1f} s", of=name),
        Measured("gap to them", f"{gap:.0e}", f"<= {AGREE:g}", gap <= AGREE, name, True),
        Measured(
            "one-hot products' time over curv's", f"{slower:.0f}",
            f">= {ONE_HOT}", slower >= ONE_HOT, name,
        ),
    ]  # fmt: skip
    for label, call in calls.items():
        took = allocated(call, setting.device).peak / MB
        lines.append(Measured(f"peak memory: {label}", f"{took:,.0f} MB", of=name))
    return lines


def _race(name: str, found: Ratio, most: float) -> Measured:
    kept = found.value <= most
    return Measured("curv's time over BackPACK's", str(found), f"<= {most:g}", kept, name)


def exact(task: Task) -> Tensor:
    """Compute the diagonal (n,) as the command does, planning included."""
    problem = posed(task)
    diagonal = ExactDiagonal(problem)
    found: dict[str, Tensor] = {}
    with problem.engaged():
        for part in diagonal.parts:
            found |= {n: d.diagonal for n, d in diagonal.compute(part).items()}
    return flat([found[n] for n in problem.names])


def one_hot(task: Task, diagonal: Tensor, device: str) -> tuple[float, float]:
    """Time one-hot products, batched, each with its own tensor's block alone: the cheapest kind.

    Seconds for all entries, scaled from a sample of each tensor, and the sample's gap to the
    diagonal (n,).
    """
    own = task.own()
    params = list(own.model.parameters())
    loss = functional.cross_entropy(own.model(own.x), own.y)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    rng = torch.Generator().manual_seed(0)
    seconds, gap = 0.0, 0.0
    parts: Sequence[Tensor] = task.parts(diagonal)
    for p, g, known in zip(params, grads, parts, strict=True):
        few = min(SAMPLE, p.numel())
        chosen = torch.randperm(p.numel(), generator=rng)[:few].to(p.device)
        rows = torch.arange(few, device=p.device)
        directions = torch.zeros(few, p.numel(), dtype=p.dtype, device=p.device)
        directions[rows, chosen] = 1
        found: list[Tensor] = []

        def products(p: Tensor = p, g: Tensor = g, d: Tensor = directions) -> None:
            (out,) = torch.autograd.grad(
                g, p, d.view(-1, *p.shape), retain_graph=True, is_grads_batched=True
            )
            found[:] = [out.reshape(len(d), -1)]  # noqa: B023

        products()
        seconds += elapsed(products, device) / few * p.numel()
        entries = found[0][rows, chosen]
        apart = (entries - known.reshape(-1)[chosen]).abs().max() / known.abs().max()
        gap = max(gap, float(apart))
    return seconds, gap
