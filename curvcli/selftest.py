"""Planted bugs and right models, whose verdicts have to come out on this machine too.

Where one does not, no verdict of curv is to be trusted here: the machine's kernels, its torch or
curv itself is at fault.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.analyses.gradcheck import Gradcheck
from curvcli.batches import Batch
from curvcli.load.loss import named
from curvcli.problem import Problem
from curvcli.report import Check, Metric, Report, Result, column, columns, rows_of
from curvcli.version import __version__
from curvcli.work import Watch, Work


@dataclass(frozen=True)
class SelftestRow:
    """One model, the verdict that it must get and the one it got."""

    case: str = column("model")
    expected: str = column("must")
    found: str = column("verdict")
    culprit: str = column("culprit")
    relative: float | None = column("rel. error", "relative")


class Of(nn.Module):
    """Applies a function of its input and of its own parameters, in their order."""

    def __init__(self, f: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.f = f
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) / 2))

    def forward(self, *given: Any) -> Tensor:
        """Apply it."""
        return self.f(*given, *self._parameters.values())


class Residual(nn.Module):
    """Adds an inner module to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        out: Tensor = x + self.inner(x)
        return out


def op(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make an autograd Function of the old style: forward(ctx, *given), backward(ctx, *g)."""
    statics = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    made: Any = type("Planted", (torch.autograd.Function,), statics)
    apply: Callable[..., Any] = made.apply
    return apply


def saving(y: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function of the old style by y(*x) and backward(g, y, *x)."""

    def forward(ctx: Any, *x: Tensor) -> Tensor:
        out = y(*x)
        ctx.save_for_backward(out, *x)
        return out

    return op(forward, lambda ctx, g: backward(g, *ctx.saved_tensors))


def _tied() -> nn.Module:
    """Use one weight twice, one use without gradient."""
    return Of(lambda x, w: (x @ w).tanh() @ w.detach(), w=(6, 6))


def _overwriting() -> nn.Module:
    """Overwrite the incoming gradient, which the residual path needs too."""
    double = op(lambda ctx, x: x * 2.0, lambda ctx, g: g.mul_(2.0))
    return Of(lambda x, w: (x @ w).tanh() + double(x @ w), w=(6, 6))


def _attention(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (x.unsqueeze(-1) @ w).chunk(3, -1)
    return functional.scaled_dot_product_attention(q, k, v).mean(-1)


class Case(NamedTuple):
    """A model and its verdict: `fail` with culprit 1, or `pass`."""

    make: Callable[[], nn.Module]
    expected: str
    second: bool = False


BUGS: dict[str, Callable[[], nn.Module]] = {
    "a factor of two": lambda: Of(saving(torch.tanh, lambda g, y, x: 2 * g * (1 - y * y))),
    "one per cent": lambda: Of(saving(torch.tanh, lambda g, y, x: 1.01 * g * (1 - y * y))),
    "a sign": lambda: Of(saving(torch.tanh, lambda g, y, x: g * (y * y - 1))),
    "a rare branch": lambda: Of(saving(lambda x: x.clamp(-2, 2), lambda g, y, x: g * (x < 2))),
    "a mean over the batch": lambda: Of(
        saving(torch.tanh, lambda g, y, x: (g * (1 - y * y)).mean(0, True).expand_as(g))
    ),
    "a detached factor": lambda: Of(lambda x: x * x.detach().sigmoid()),
    "an edit of .data": lambda: Of(lambda x: _edited(x * 1.0)),
    "no gradient at all": lambda: Of(saving(torch.tanh, lambda g, y, x: None)),
    "tied, once detached": _tied,
    "an overwritten incoming gradient": _overwriting,
}
SECOND_BUGS: dict[str, Callable[[], nn.Module]] = {
    "second order, a detached value": lambda: Of(
        saving(torch.tanh, lambda g, y, x: g * (1 - y.detach() ** 2))
    ),
}
RIGHT: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "wide relu": lambda: nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 6)),
    "a Function of its own": lambda: Of(saving(torch.tanh, lambda g, y, x: g * (1 - y * y))),
    "layer norm": lambda: Residual(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU())),
    "attention": lambda: Of(_attention, w=(1, 12)),
    "max-pooling": lambda: Of(lambda x: functional.max_pool1d(x, 2).repeat(1, 2)),
    "weights of size 1e-8": lambda: Of(lambda x, w: (x @ (w * 1e-8) * 1e8).tanh(), w=(6, 6)),
}
CASES = (
    {n: Case(make, "fail") for n, make in BUGS.items()}
    | {n: Case(make, "fail", second=True) for n, make in SECOND_BUGS.items()}
    | {n: Case(make, "pass", second=True) for n, make in RIGHT.items()}
)


def _edited(y: Tensor) -> Tensor:
    y.data.mul_(1.5)
    return y


def selftest(device: torch.device, seed: int, announce: Callable[[str], Watch]) -> Report:
    """Check every case on `device`, with its culprit; a wrong verdict fails the report."""
    began, start = datetime.now(UTC), time.perf_counter()
    watch = announce("checking planted bugs and right models")
    rows, checks = [], []
    for done, (name, case) in enumerate(CASES.items(), 1):
        row = _examined(name, case, device, seed)
        rows.append(row)
        checks.append(_check(row))
        watch(done, len(CASES), None, None)
    wrong = sum(c.status == "fail" for c in checks)
    said = f"all {len(rows)} verdicts are right" if not wrong else f"{wrong} of {len(rows)} are not"
    result = Result(
        name="selftest",
        question="Do planted bugs and right models get their verdicts on this machine?",
        headline=said,
        columns=columns(SelftestRow),
        rows=rows_of(rows),
        metrics={"wrong": Metric(wrong, "wrong verdicts", "count")},
        checks=tuple(checks),
        options={"device": str(device), "seed": seed},
        seconds=time.perf_counter() - start,
    )
    versions = {"curv": __version__, "torch": torch.__version__, "device": str(device)}
    where = f"torch {torch.__version__} on {device} ({platform.machine()})"
    return Report(
        provenance={"summary": {"machine": where}, **versions, "notes": []},
        results={"selftest": result},
        run={"began": began.isoformat(timespec="seconds"), "wall": time.perf_counter() - start},
    )


def _examined(name: str, case: Case, device: torch.device, seed: int) -> SelftestRow:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 6), case.make(), nn.Linear(6, 3)).to(device)
        x, y = 2 * torch.randn(16, 6).to(device), torch.randint(3, (16,)).to(device)
    problem = Problem.of(model, named("cross_entropy", {}), [Batch(x, y, 16)])
    check = Gradcheck(samples=16, second_order=case.second)
    result = check.answer(problem, Work(rng=torch.Generator().manual_seed(seed)))
    # A second derivative is caught where the first one is right.
    early = case.second and any(r["verdict"] == "fail" and not r["part"] for r in result.rows)
    culprits = [c.message.split(":")[0] for c in result.checks if c.name == "culprit"]
    return SelftestRow(
        case=name,
        expected=case.expected,
        found="fail in the first order" if early else result.status,
        culprit=", ".join(culprits),
        relative=result.metrics["max_relative_error"].value,
    )


def _check(row: SelftestRow) -> Check:
    culprit = "1" if row.expected == "fail" else ""
    if row.found != row.expected:
        said = f"must {row.expected}, and the verdict is {row.found}"
    elif row.culprit != culprit:
        said = f"the culprit is module 1, and {row.culprit or 'none'} is named"
    else:
        return Check(row.case, "pass", row.expected)
    return Check(row.case, "fail", said, "trust no verdict of curv on this machine")
