"""Every coordinate of a small perceptron's gradient, by curv and by torch's own slow gradcheck."""

import torch
from bench.models import examples, mlp
from bench.timing import Measured, Setting, interleaved, ratio, spread
from torch.nn import functional

import curvcli
from curvcli.report import Result

EXAMPLES = 100
PROMISED = 4.0
THREADS = 1
"""These matrices are too small to be shared: a second thread would mostly wait, in torch's check
more than in curv's."""

LOSS = functional.cross_entropy


def run(setting: Setting) -> list[Measured]:
    """Time both on the same coordinates, after a look at what each one says."""
    torch.set_num_threads(setting.threads or THREADS)
    model = mlp().to(setting.device)
    x, y = (t.to(setting.device) for t in examples(EXAMPLES))
    coordinates = sum(p.numel() for p in model.parameters())
    evaluated = 0

    # torch's check moves the parameters in place, so that the model need not be called with
    # replaced ones: the fastest way to use it.
    def value(*_: torch.Tensor) -> torch.Tensor:
        nonlocal evaluated
        evaluated += 1
        return LOSS(model(x), y)

    def by_torch() -> bool:
        found: bool = torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=False)
        return found

    def by_curv() -> Result:
        return curvcli.gradcheck(
            model, LOSS, [(x, y)], entries="all", samples=EXAMPLES, directions=1
        )

    agrees, calls, result = by_torch(), evaluated, by_curv()
    covered = sum(int(row["entries"]) for row in result.rows)
    used = result.metrics["evaluations"].value
    times = interleaved({"torch": by_torch, "curv": by_curv}, setting.repeats, setting.device)
    faster = ratio(times["torch"], times["curv"])
    return [
        Measured("torch's verdict", "pass" if agrees else "fail", "pass", agrees),
        Measured("curv's verdict", result.status, "pass", result.status == "pass"),
        Measured("coordinates checked", f"{covered:,}", f"{coordinates:,}", covered == coordinates),
        Measured("threads", str(torch.get_num_threads())),
        Measured("torch: time", spread(times["torch"])),
        Measured("curv: time", spread(times["curv"])),
        Measured("torch: evaluations per coordinate", f"{calls / coordinates:.2f}"),
        Measured("curv: evaluations per coordinate", f"{used / coordinates:.2f}"),
        Measured("times faster", str(faster), f"{PROMISED:g}", faster.value >= PROMISED),
    ]
