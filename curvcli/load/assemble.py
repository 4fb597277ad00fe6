"""From a spec and a checkpoint to a Problem, with an account of where everything came from."""

import hashlib
import os
import platform
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, Loss, select
from curvcli.errors import CurvError, memory_error
from curvcli.load import checkpoint as checkpoints
from curvcli.load import data as datas
from curvcli.load import loss as losses
from curvcli.load import penalty as penalising
from curvcli.load.absent import Absent
from curvcli.load.checkpoint import Checkpoint
from curvcli.load.code import add_paths, call, find
from curvcli.load.model import build, rebuild
from curvcli.load.optimizer import fresh, resolve
from curvcli.load.weights import fit
from curvcli.optimizer import SavedOptimizer
from curvcli.problem import Problem
from curvcli.spec import NamedLoss, OutputLoss, Run, Spec, TargetLoss
from curvcli.version import __version__


@dataclass
class Loaded:
    """A Problem and its provenance."""

    problem: Problem
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def assemble(
    spec: Spec, path: Path, run: Run, batch_size: int | None, samples: int | None
) -> Loaded:
    """Load everything that the spec names, with the checkpoint at `path`.

    Without data or loss, what the weights and the optimizer's state say can still be asked.

    Raises: CurvError for whatever is missing, does not fit or cannot be evaluated.
    """
    if spec.model is None:
        raise CurvError("E_SPEC", f"{spec.where()}: there is no model:", "add model: to the spec")
    pinned = spec.sha256 if _same(path, spec.checkpoint) else None
    found = checkpoints.read(path, pinned)
    add_paths(spec.python_path)
    model = build(spec.model)
    notes = [*found.notes, *fit(model, found.weights)]
    device, dtype = device_of(run.device), _dtype(run.dtype, model)
    model = _placed(model, device, dtype, notes)

    changes = {"batch_size": batch_size, "samples": samples}
    data = _Data.of(spec, {k: v for k, v in changes.items() if v is not None}, device, dtype)
    problem = Problem.of(
        model,
        data.loss,
        data.batches,
        params=run.params,
        mode="eval" if run.mode == "auto" else run.mode,
        free=run.mode == "auto",
        optimizer=partial(_optimizer, spec, found, model),
        heldout=data.heldout,
        training={} if spec.optimizer is None else spec.optimizer.training,
        fresh=partial(rebuild, spec.model, model),
    )
    if data.absent is not None:
        problem = replace(problem, batches=data.absent)
        notes.append(f"{data.absent.said} only what needs neither data nor loss is known")
    else:
        _tried(problem)
        problem = _penalised(problem, spec, notes)
        if not isinstance(spec.loss, NamedLoss) and not _is_mean(problem):
            notes.append(
                "the loss is no mean over examples, so figures depend on --batch-size: let its "
                "function return (sum, weight)"
            )
    loaded = Loaded(problem, {}, notes)
    loaded.provenance = _provenance(spec, run, found, loaded, data)
    return loaded


@dataclass(frozen=True)
class _Data:
    """Examples in batches, and the loss over them; `absent` where the spec lacks either."""

    loss: Loss
    batches: tuple[Batch, ...]
    heldout: tuple[Batch, ...] = ()
    digest: str | None = None
    absent: Absent | None = None

    @classmethod
    def of(
        cls, spec: Spec, changes: dict[str, int], device: torch.device, dtype: torch.dtype
    ) -> "_Data":
        """Read what the spec names, with `changes` to its data block."""
        if spec.data is None or spec.loss is None:
            absent = Absent.of(spec.where(), "data" if spec.data is None else "loss")
            # One batch of nothing stands in where a Problem is made, which counts them.
            return cls(absent.loss, (Batch((), None, 0),), absent=absent)
        data = spec.data.model_copy(update=changes)
        examples, held = datas.read(data, spec.heldout)

        def move(t: torch.Tensor) -> torch.Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)

        def batches(of: datas.Examples) -> tuple[Batch, ...]:
            return tuple(b.map(move) for b in of.batches(data.batch_size))

        return cls(
            loss=_loss(spec.loss),
            batches=batches(examples),
            heldout=() if held is None else batches(held),
            digest=examples.digest(),
        )


def _same(path: Path, named: Path | None) -> bool:
    return named is not None and named.exists() and path.exists() and path.samefile(named)


def _optimizer(spec: Spec, found: Checkpoint, model: nn.Module) -> SavedOptimizer | None:
    options = spec.optimizer.block if spec.optimizer else {}
    if found.optimizer is not None:
        return resolve(found.optimizer, model, options)
    return fresh(options, model)


def device_of(name: str) -> torch.device:
    """Choose the device of this name; `auto` is CUDA where there is one.

    Raises: CurvError (E_USAGE) where this machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "mps":
        raise CurvError("E_USAGE", "mps has no float64, which curv needs", "use --device cpu")
    there = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "cuda" and not there:
        raise CurvError("E_USAGE", f"this machine has no {name}", "use --device cpu")
    return device


def _dtype(name: str, model: nn.Module) -> torch.dtype:
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    doubles = all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point())
    return torch.float64 if doubles else torch.float32


def _placed(
    model: nn.Module, device: torch.device, dtype: torch.dtype, notes: list[str]
) -> nn.Module:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {dtype}
    if kinds:
        named = ", ".join(sorted(str(k).removeprefix("torch.") for k in kinds))
        notes.append(f"weights cast from {named} to {str(dtype).removeprefix('torch.')}")
    if any(p.is_complex() for p in model.parameters()):
        raise CurvError("E_DTYPE", "the model has complex parameters", "view them as real pairs")
    return model.to(device=device, dtype=dtype)


def _loss(loss: NamedLoss | OutputLoss | TargetLoss) -> Loss:
    if isinstance(loss, NamedLoss):
        return losses.named(loss.name, loss.args)
    if isinstance(loss, OutputLoss):
        return losses.returned(str(loss.key))
    return losses.custom(find(loss.module, loss.name), loss.args)


def _penalised(problem: Problem, spec: Spec, notes: list[str]) -> Problem:
    """Add the penalties, evaluated once each, and say what becomes of them."""
    for name, value in spec.penalty.items():
        said = "checked apart by gradcheck; no other figure includes it"
        notes.append(f"penalty {name}: {said if value else 'its weight is 0, so it is left out'}")
    weighty = {name: value for name, value in spec.penalty.items() if value}
    problem = replace(problem, penalties=penalising.penalties(weighty, problem.names))
    penalising.tried(problem)
    return problem


def _tried(problem: Problem) -> None:
    """Evaluate the loss once, so that what does not fit is told before any work starts."""
    shapes = _shapes(problem.batches[0])
    call("E_MODEL", f"the model or the loss refuses a batch of {shapes}", _evaluate, (problem,), {})


def _is_mean(problem: Problem) -> bool:
    """Decide whether a loss of the user's weighs the examples of a batch as its parts would."""
    batch = problem.batches[0]
    if batch.size < 2 or problem.mode != "eval":
        return True
    cuts = torch.arange(batch.size).tensor_split(2)
    with problem.engaged(), torch.no_grad():
        parts = [problem.terms(b) for c in cuts for b in select([batch], c)]
        whole = problem.terms(batch)
    weight = sum(float(t.weight) for t in parts)
    mean = sum(float(t.total) for t in parts) / weight if weight else 0.0
    told = float(whole.total) / float(whole.weight) if float(whole.weight) else 0.0
    return abs(mean - told) <= 1e-4 * max(abs(told), 1e-12)


def _evaluate(problem: Problem) -> None:
    try:
        _ = problem.measure, problem.heldout_loss
    except (MemoryError, RuntimeError) as error:
        if memory_error(error) is None:
            raise
        raise CurvError(
            "E_MEMORY", "one batch does not fit in memory", "lower --batch-size"
        ) from error


def _shapes(batch: Batch) -> str:
    leaves = pytree.tree_leaves((batch.inputs, batch.target))
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors)


def _provenance(
    spec: Spec, run: Run, found: Checkpoint, loaded: Loaded, data: _Data
) -> dict[str, Any]:
    problem = loaded.problem
    n = problem.layout.size
    device = problem.like.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    dtype = str(problem.like.dtype).removeprefix("torch.")
    kind = type(problem.model).__name__
    total = sum(p.numel() for p in problem.model.parameters())
    part = f" of {total:,}" if n < total else ""
    return {
        "summary": {
            "checkpoint": f"{found.path} ({found.layout})",
            "spec": str(spec.path) if spec.path else "none",
            "model": f"{kind}, {n:,}{part} parameters in {len(problem.names)} tensors",
            "loss": _loss_line(problem),
        },
        "curv": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "seed": run.seed,
        "mode": run.mode,
        "checkpoint": found.provenance,
        "spec": None if spec.path is None else {
            "path": str(spec.path),
            "sha256": hashlib.sha256(spec.path.read_bytes()).hexdigest(),
        },
        "data": None if data.absent is not None else {
            "examples": problem.examples, "sha256": data.digest
        },
        "parameters": {"entries": n, "tensors": len(problem.names), "selected": list(run.params)},
        "loss": None if data.absent is not None else {
            "value": problem.measure.loss,
            "weight": problem.measure.weight,
            "heldout": problem.heldout_loss,
        },
        "python_path": [os.fspath(p) for p in spec.python_path],
        "notes": loaded.notes,
    }  # fmt: skip


def _loss_line(problem: Problem) -> str:
    """Say what the loss is, and over what."""
    if not problem.batches:
        return "none"
    count = len(problem.batches)
    cut = f"{problem.examples:,} examples in {count} batch{'es' if count > 1 else ''}"
    held = problem.heldout_loss
    beside = "" if held is None else f"; {held:.5g} held out"
    return f"{problem.measure.loss:.5g} over {cut}{beside}"
