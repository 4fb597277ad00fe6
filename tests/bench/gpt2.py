"""GPT-2 with 124 million parameters: its largest eigenvalue, what a product costs, and memory."""

import statistics
from dataclasses import dataclass

import torch
from bench.alone import GB, peak
from bench.models import GPT, sentences
from bench.peers import Task
from bench.products import posed, work
from bench.timing import Measured, Setting, elapsed
from torch.nn import functional

import curvcli
from curvcli.curvature.hessian import hessian
from curvcli.linalg.operator import normal

GRADIENTS, GIGABYTES = 3.0, 16.0
ROUNDS = 3
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Shape:
    """A model, and the tokens that it reads."""

    words: int = 50257
    length: int = 1024
    width: int = 768
    blocks: int = 12
    heads: int = 12
    examples: int = 2
    tokens: int = 128

    def task(self, device: str) -> Task:
        """Make the model with random weights; what reads its last layer is the embedding."""
        torch.manual_seed(0)
        model = GPT(self.words, self.length, self.width, self.blocks, self.heads)
        x, y = sentences(self.examples, self.tokens, self.words)
        return Task(model.to(device), x.to(device), y.to(device))


def run(setting: Setting) -> list[Measured]:
    """Measure GPT-2 itself."""
    return measured(Shape(), setting)


def measured(shape: Shape, setting: Setting) -> list[Measured]:
    """Time products first, then the command; the peak memory of the process is that of both."""
    task = shape.task(setting.device)
    size = sum(p.numel() for p in task.model.parameters())
    gradient, product = _costs(task, setting.device)
    cost = product / gradient
    found = []
    seconds = elapsed(
        lambda: found.append(
            curvcli.eig(
                task.model,
                functional.cross_entropy,
                [(task.x, task.y)],
                top=1,
                tolerance=TOLERANCE,
            )
        ),
        setting.device,
    )
    result, most = found[0], peak() / GB
    lines = [
        Measured("parameters", f"{size:,}"),
        Measured("tokens", f"{shape.examples} x {shape.tokens}"),
        Measured("gradient", f"{gradient:.2f} s"),
        Measured("product", f"{cost:.2f} g", f"<= {GRADIENTS:g} g", cost <= GRADIENTS),
        Measured("curv.eig", result.headline, "pass", result.status == "pass"),
        *(Measured("curv.eig, check", c.message, detail=True) for c in result.checks),
        Measured("products used", str(result.metrics["matvecs"].value)),
        Measured("time of curv.eig", f"{seconds:.0f} s"),
        Measured("peak memory", f"{most:.1f} GB", f"< {GIGABYTES:g} GB", most < GIGABYTES),
    ]
    if setting.device.startswith("cuda"):
        used = torch.cuda.max_memory_allocated(setting.device) / GB
        lines.append(Measured("peak memory of the device", f"{used:.1f} GB"))
    return lines


def _costs(task: Task, device: str) -> tuple[float, float]:
    """Time gradients and products in turns, in seconds; their graph is gone when this returns."""
    problem = posed(task)
    operator = hessian(problem, work()).operator
    v = normal(problem.like, torch.Generator().manual_seed(0))
    problem.gradient()
    operator.matvec(v)
    gradients, products = [], []
    for _ in range(ROUNDS):
        gradients.append(elapsed(problem.gradient, device))
        products.append(elapsed(lambda: operator.matvec(v), device))
    return statistics.median(gradients), statistics.median(products)
