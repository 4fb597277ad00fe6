"""How times grow: products with data and parameters, eigenvalues with products; with a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench.fit import Slope, slope
from bench.models import digits, perceptron, pictures, trained
from bench.peers import Task
from bench.products import posed, work
from bench.timing import Measured, Setting, Times, interleaved, quartiles
from torch.nn import functional

from curvcli.batches import as_batch
from curvcli.curvature.hessian import hessian
from curvcli.linalg.lanczos import lanczos
from curvcli.linalg.operator import normal
from curvcli.load.loss import as_loss
from curvcli.problem import Problem
from curvcli.report import Axis, Figure, Line
from curvcli.sinks.figure import svg

LEAST, MOST = 0.9, 1.1
"""Slopes on doubly logarithmic axes that count as linear."""

BATCH = 500
EXAMPLES = tuple(BATCH * 2**k for k in range(5))
WIDTHS = (256, 384, 512, 768, 1024)
PRODUCTS = (10, 20, 40, 80)
PAIRS = (1, 2, 5, 10, 20)
REPEATED = 16
"""Times the digits are taken over, so that a product outweighs what a solver does between two."""


def run(setting: Setting) -> list[Measured]:
    """Measure each growth, fit it, and draw them all."""
    lines: list[Measured] = []
    figures: list[Figure] = []
    for title, x, measure, linear in (
        ("Hessian-vector product", "examples", _by_data, True),
        ("Hessian-vector product", "parameters", _by_parameters, False),
        ("Lanczos", "products", _by_products, True),
    ):
        sizes, times = measure(setting)
        middle = [quartiles(t)[1] for t in times.values()]
        found = slope(sizes, middle)
        kept = not linear or LEAST <= found.value <= MOST
        promised = f"{LEAST:g} to {MOST:g}" if linear else ""
        lines.append(Measured(f"{title}: time over {x}, slope", str(found), promised, kept))
        lines += [
            Measured(f"{title}, {size:,.0f} {x}", f"{1e3 * t:.1f} ms", detail=True)
            for size, t in zip(sizes, middle, strict=True)
        ]
        figures.append(drawn(title, x, sizes, list(times.values()), found))
    lines += _by_pairs(setting)
    path = Path(setting.out) / "scaling.svg"
    path.write_text(svg(figures), encoding="utf-8")
    return [*lines, Measured("figure", path.name)]


def drawn(
    title: str, x: str, sizes: Sequence[float], times: Sequence[Sequence[float]], found: Slope
) -> Figure:
    """Draw medians within their quartiles, the fit, and what grows linearly from its middle."""
    at = tuple(float(s) for s in sizes)
    low, middle, high = zip(*(quartiles(t) for t in times), strict=True)
    fit = tuple(found.factor * s**found.value for s in at)
    centre = at[len(at) // 2]
    linear = tuple(found.factor * centre**found.value * s / centre for s in at)
    return Figure(
        name=f"time over {x}",
        title=f"{title}: time over {x}, slope {found}",
        x=Axis(x, "log"),
        y=Axis("seconds", "log"),
        lines=(
            Line("median, and quartiles", at, middle, band=(low, high)),
            Line(f"fit, slope {found}", at, fit),
            Line("linear", at, linear),
        ),
    )


def _multiplied(problem: Problem) -> Callable[[], object]:
    operator = hessian(problem, work()).operator
    v = normal(problem.like, torch.Generator().manual_seed(0))
    return lambda: operator.matvec(v)


def _by_data(setting: Setting) -> tuple[list[float], Times]:
    """Multiply over more and more batches of one size."""
    model = perceptron((784, 512, 256, 10)).to(setting.device)
    x, y = (t.to(setting.device) for t in pictures(EXAMPLES[-1], 784))
    loss, calls = as_loss(functional.cross_entropy), {}
    for count in EXAMPLES:
        cut = zip(torch.split(x[:count], BATCH), torch.split(y[:count], BATCH), strict=True)
        calls[str(count)] = _multiplied(Problem.of(model, loss, [as_batch(pair) for pair in cut]))
    return [*EXAMPLES], interleaved(calls, 2 * setting.repeats, setting.device)


def _by_parameters(setting: Setting) -> tuple[list[float], Times]:
    """Multiply in wider and wider models, on the same examples."""
    sizes, calls = [], {}
    for width in WIDTHS:
        model = perceptron((width, width, width, 10)).to(setting.device)
        x, y = (t.to(setting.device) for t in pictures(2 * BATCH, width))
        problem = posed(Task(model, x, y))
        sizes.append(float(problem.layout.size))
        calls[str(width)] = _multiplied(problem)
    return sizes, interleaved(calls, 2 * setting.repeats, setting.device)


def _lanczos(setting: Setting) -> Callable[[int, float, int], int]:
    """Give Lanczos on a trained perceptron: pairs, tolerance and most products to those used."""
    x, y = digits()
    model = trained(perceptron((64, 128, 10)), (x, y))
    data = (x.repeat(REPEATED, 1).to(setting.device), y.repeat(REPEATED).to(setting.device))
    operator = hessian(posed(Task(model.to(setting.device), *data)), work()).operator

    def solve(top: int, tolerance: float, most: int) -> int:
        rng = torch.Generator().manual_seed(0)
        return lanczos(operator, top, tolerance, rng, max_matvecs=most).matvecs

    return solve


def _by_products(setting: Setting) -> tuple[list[float], Times]:
    """Ask for more than so many products can give."""
    solve = _lanczos(setting)
    calls = {str(m): lambda m=m: solve(m, 1e-12, m) for m in PRODUCTS}
    used = [float(solve(m, 1e-12, m)) for m in PRODUCTS]
    return used, interleaved(calls, setting.repeats, setting.device)


def _by_pairs(setting: Setting) -> list[Measured]:
    """Time the eigenvalues that the default tolerance gives, for more and more of them."""
    solve = _lanczos(setting)
    used = {k: solve(k, 1e-2, 500) for k in PAIRS}
    calls = {str(k): lambda k=k: solve(k, 1e-2, 500) for k in PAIRS}
    times = interleaved(calls, setting.repeats, setting.device)
    middle = [quartiles(times[str(k)])[1] for k in PAIRS]
    found = slope([float(n) for n in used.values()], middle)
    told = ", ".join(f"{k}: {n}" for k, n in used.items())
    return [
        Measured("eigenvalues: products used", told),
        Measured("eigenvalues: time over products used, slope", str(found)),
        *(
            Measured(f"Lanczos, {k} eigenvalues", f"{t:.3f} s", detail=True)
            for k, t in zip(PAIRS, middle, strict=True)
        ),
    ]
