"""Curvature and gradient diagnostics of PyTorch models.

From Python, each analysis is a function: `curvcli.eig(model, loss, batches, top=5)` returns its
Result. `loss` is a function of torch.nn.functional, a loss module, or any function(output, target);
`batches` yields (inputs, target) pairs, as a DataLoader does; `heldout` too. What asks about the
training takes the `optimizer`, and in `training` what the loop does besides: `grad_clip`,
`grad_clip_value`, `accumulate`. `fresh` makes the model anew. All is left as it was.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from curvcli.version import __version__

if TYPE_CHECKING:
    from curvcli.report import Result

__all__ = ["__version__"]


def __getattr__(name: str) -> "Callable[..., Result]":
    """Give an analysis as a function; torch is imported when it is called."""
    from curvcli.analyses import registry

    kind = registry().get(name)
    if kind is None:
        raise AttributeError(f"module 'curvcli' has no attribute {name!r}")

    def analyse(
        model: Any,
        loss: Any,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        mode: str = "auto",
        optimizer: Any = None,
        training: Mapping[str, float] | None = None,
        heldout: Iterable[Any] = (),
        fresh: Callable[[], Any] | None = None,
        **options: Any,
    ) -> "Result":
        import torch

        from curvcli.batches import as_batch
        from curvcli.load.loss import as_loss
        from curvcli.modules import unwrapped
        from curvcli.optimizer import SavedOptimizer
        from curvcli.options import build
        from curvcli.output import array_files
        from curvcli.problem import Problem
        from curvcli.spec_run import Run, Training
        from curvcli.work import Work

        def place(loc: tuple[int | str, ...]) -> str:
            return f"{name}({loc[0]}=)" if loc else name

        def saved() -> SavedOptimizer | None:
            return None if optimizer is None else SavedOptimizer.of(optimizer, unwrapped(model))

        analysis = build(kind, options, place, "E_USAGE")
        run = build(Run, {"seed": seed, "mode": mode}, place, "E_USAGE")
        loop = build(Training, dict(training or {}), place, "E_USAGE")
        # A DataLoader draws from the process's generator, even where it does not shuffle.
        with torch.random.fork_rng(devices=[]):
            problem = Problem.of(
                model, as_loss(loss), (as_batch(b) for b in batches),
                mode="eval" if run.mode == "auto" else run.mode, free=run.mode == "auto",
                optimizer=saved, training=loop.training,
                heldout=tuple(as_batch(b) for b in heldout), fresh=fresh,
            )  # fmt: skip
        with array_files([analysis.file] if analysis.file else []) as save:
            result = analysis.answer(problem, Work(rng=torch.Generator().manual_seed(run.seed)))
            save([result])
        return result

    analyse.__name__ = name
    analyse.__doc__ = kind.__doc__
    return analyse


def __dir__() -> list[str]:
    from curvcli.analyses import registry

    return sorted({*globals(), *registry()})
