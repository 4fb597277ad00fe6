"""Products with the Hessian and the Gauss-Newton matrix, in gradients, by curv and by its peers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bench.memory import MB, allocated
from bench.models import GPT, perceptron, pictures, resnet20, sentences
from bench.peers import GAUSS_NEWTONS, HESSIANS, Product, Task, flat, why, without_fused
from bench.timing import Measured, Setting, Times, elapsed, interleaved, quartiles, ratio
from torch import Tensor
from torch.nn import functional

from curvcli.batches import as_batch
from curvcli.curvature.hessian import hessian
from curvcli.curvature.matrices import matrix
from curvcli.linalg.operator import normal
from curvcli.load.loss import as_loss
from curvcli.problem import Problem
from curvcli.work import Method, Work

GRADIENTS = 2.3
FASTER = {"curvlinops": 1.5, "hessian-eigenthings": 1.2}
AGREE = 1e-4
"""Relative gap up to which two products in float32 are the same one."""
ROUNDS = 2
"""Times the rounds asked for: a product is short beside what else a machine does."""

UNIT, OURS, GGN = "gradient", "curv, auto", "curv, Gauss-Newton"
PEERS = (*HESSIANS, *(f"{n}, Gauss-Newton" for n in GAUSS_NEWTONS))


@dataclass(frozen=True)
class Contender:
    """A way to multiply, and what it took to set it up."""

    call: Product
    setup: float
    held: int


def tasks(device: str) -> dict[str, Task]:
    """Make the models and their data."""
    made = {
        "MLP": Task(perceptron((784, 512, 256, 10)), *pictures(1000, 784)),
        "ResNet-20": Task(resnet20(), *pictures(64, 3, 32, 32)),
        "GPT": Task(_gpt(), *sentences(16)),
    }
    return {
        name: Task(t.model.to(device).eval(), t.x.to(device), t.y.to(device))
        for name, t in made.items()
    }


def _gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(width=128, blocks=4, heads=4)


def run(setting: Setting) -> list[Measured]:
    """Measure every model in turn."""
    found: list[Measured] = []
    for name, task in tasks(setting.device).items():
        found += measured(name, task, setting)
    return found


def measured(name: str, task: Task, setting: Setting) -> list[Measured]:
    """Compare all contenders on one model, those that multiply by the same matrix."""
    problem = posed(task)
    v = normal(problem.like, torch.Generator().manual_seed(0))
    ready: dict[str, Contender] = {UNIT: Contender(problem.gradient, 0.0, 0)}
    lines = [
        Measured("parameters", f"{problem.layout.size:,}", of=name),
        Measured("examples", f"{problem.examples:,}", of=name, detail=True),
    ]
    for label, make in contenders(task, problem, v).items():
        made = _set_up(make, setting.device)
        if isinstance(made, str):
            lines.append(Measured(label, made, of=name))
        else:
            ready[label] = made
    gaps = _gaps(ready)
    lines += list(_agreements(gaps, name))
    calls = {n: c.call for n, c in ready.items()}
    times = interleaved(calls, ROUNDS * setting.repeats, setting.device)
    for label in times:
        lines += list(_costs(label, name, times, setting.device))
        lines += list(_race(label, name, times, gaps.get(label, 0.0)))
    for label, c in ready.items():
        lines += list(_memory(label, name, c, setting.device))
    return lines


def posed(task: Task) -> Problem:
    """Pose the task as curv's own problem, of a model of its own."""
    own = task.own()
    return Problem.of(own.model, as_loss(functional.cross_entropy), [as_batch((own.x, own.y))])


def work(method: Method = "auto") -> Work:
    """Give the means that a command has by default."""
    return Work(rng=torch.Generator().manual_seed(0), method=method)


def contenders(task: Task, problem: Problem, v: Tensor) -> dict[str, Callable[[], Product]]:
    """Name everything that multiplies; each is set up when it is called."""

    def own(method: Method) -> Callable[[], Product]:
        def make() -> Product:
            operator = hessian(problem, work(method)).operator
            return lambda: operator.matvec(v)

        return make

    def ggn() -> Product:
        operator = matrix("ggn", problem, work()).operator
        return lambda: operator.matvec(v)

    def peer(build: Callable[[Task, Tensor], Product]) -> Callable[[], Product]:
        # Attention by plain products in setting up too, where PyHessian takes its gradient.
        return without_fused(lambda: without_fused(build(task, v)))

    return {
        OURS: own("auto"),
        "curv, graph rebuilt": own("rebuilt"),
        "curv, forward over reverse": own("forward"),
        **{n: peer(build) for n, build in HESSIANS.items()},
        GGN: ggn,
        **{f"{n}, Gauss-Newton": peer(build) for n, build in GAUSS_NEWTONS.items()},
    }


def _set_up(make: Callable[[], Product], device: str) -> Contender | str:
    """Make a contender and try it; say why where it does not work."""
    made: list[Any] = []
    try:
        seconds = elapsed(lambda: made.append(make()), device)
        made[0]()
        # A second one, only to be measured: what setting up leaves behind is the kept graph.
        return Contender(made[0], seconds, allocated(make, device).held)
    except Exception as error:
        return why(error)


def _base(label: str) -> str:
    """Name curv's own product with the matrix that this one multiplies by."""
    return GGN if label.endswith("Gauss-Newton") else OURS


def _gaps(ready: Mapping[str, Contender]) -> dict[str, float]:
    """Hold every product against curv's own, relative to its size."""
    products = {n: flat(c.call()).double() for n, c in ready.items() if n != UNIT}
    bases = {n: products[_base(n)] for n in products}
    return {n: float((p - bases[n]).norm() / bases[n].norm()) for n, p in products.items()}


def _agreements(gaps: Mapping[str, float], name: str) -> Iterator[Measured]:
    """Say how far the products differ; only curv's own are promised to be right."""
    for n, gap in gaps.items():
        promised = f"<= {AGREE:g}" if n.startswith("curv,") else ""
        same = gap <= AGREE or not promised
        yield Measured(f"{n}: gap to curv", f"{gap:.0e}", promised, same, name, detail=True)


def _costs(label: str, name: str, times: Times, device: str) -> Iterator[Measured]:
    """Give a time in seconds, with its quartiles, and that of curv's own in gradients."""
    low, median, high = (1e3 * t for t in quartiles(times[label]))
    unit, absolute = 1e3 * quartiles(times[UNIT])[1], device != "cpu"
    within = f"{median:.2f} ms ({low:.2f} to {high:.2f})"
    yield Measured(f"{label}: time", within, of=name, detail=label != UNIT and not absolute)
    if label in (UNIT, *PEERS):
        return
    promised = f"<= {GRADIENTS:g} g" if label == OURS else ""
    kept = not promised or median <= GRADIENTS * unit
    yield Measured(label, f"{median / unit:.2f} g", promised, kept, name)


def _race(label: str, name: str, times: Times, gap: float) -> Iterator[Measured]:
    """Say what a peer's product costs, and how many times as long as curv's default it takes."""
    if label not in PEERS:
        return
    cost = ratio(times[label], times[UNIT]).value
    found, least = ratio(times[label], times[_base(label)]), FASTER.get(label)
    # Ahead is who would be also with the quartiles against it.
    kept = found.value >= least if least else found.high >= 1
    said = f"{cost:.2f} g, {found.value:.2f} x curv"
    if gap > AGREE:
        # curvlinops on LayerNorm, whose weights' rows are wrong where torch 2.13 takes forward mode
        # over a batched backward, as jvp(jacrev(f)) does. It is timed all the same.
        said += f", off by {gap:.0e}"
    yield Measured(label, said, f">= {least:g} x" if least else "not ahead", kept, name)
    within = f"{found.low:.2f} to {found.high:.2f}"
    yield Measured(f"{label}: quartiles of x curv", within, of=name, detail=True)


def _memory(label: str, name: str, c: Contender, device: str) -> Iterator[Measured]:
    """Give the peak of one product beyond what is kept, and the kept graph."""
    took = allocated(c.call, device).peak
    held = f" + {c.held / MB:,.0f} MB kept" if c.held > MB else ""
    detail = label not in (UNIT, OURS, *HESSIANS)
    yield Measured(f"peak memory: {label}", f"{took / MB:,.0f} MB{held}", of=name, detail=detail)
    if label != UNIT:
        yield Measured(f"{label}: set-up", f"{c.setup:.3f} s", of=name, detail=True)
