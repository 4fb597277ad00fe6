"""The weighted mean loss of a model over fixed data, as a function of its named parameters."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvcli.batches import Batch, Loss, Terms, arguments, select
from curvcli.derivatives import derivatives, optional_derivatives
from curvcli.errors import CurvError
from curvcli.modules import copied, held, seeded, unwrapped, with_values
from curvcli.nonfinite import of_weights, source
from curvcli.optimizer import SavedOptimizer
from curvcli.params import Layout, matching

Mode = Literal["eval", "train", "batchnorm"]
"""`batchnorm` is eval, but batch normalisation goes by its batch's own statistics."""
Penalty = Callable[[nn.Module], Tensor]
"""A scalar function of a model's parameters."""


@dataclass(frozen=True, eq=False)
class Problem:
    """L(theta) = sum_b total_b / sum_b weight_b, over the same batches in the same order always.

    Batches are only a way to compute L: no figure depends on how the examples are cut.
    `names` are the parameters that theta consists of, trainable, each once, in the model's order.
    """

    model: nn.Module
    loss: Loss
    batches: tuple[Batch, ...]
    names: tuple[str, ...]
    mode: Mode = "eval"
    free: bool = False
    """Whether nobody asked for the mode, so that what asks about steps may take another."""
    optimizer: Callable[[], SavedOptimizer | None] = lambda: None
    """Finds the saved optimizer; called where it is needed, since it may be refused."""
    heldout: tuple[Batch, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    """What the training loop did besides the optimizer's step: `grad_clip`, ..."""
    fresh: Callable[[], nn.Module] | None = None
    """Makes the model anew, as its factory does, with its own initial weights."""
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    """What training adds to the loss; no part of L, but each one can be posed by `penalised`."""
    penalty: str | None = None
    """Which of the penalties is L, in place of the mean loss."""
    replay: int | None = None
    """The seed that every evaluation draws its random numbers from; None draws on and on."""
    _held: list[bool] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Batch],
        params: Sequence[str] = ("*",),
        **rest: Any,
    ) -> "Problem":
        """Select the trainable parameters that `params` (glob patterns) match.

        Raises: CurvError where nothing matches or there is no data.
        """
        model = unwrapped(model)
        trainable = [n for n, p in model.named_parameters() if p.requires_grad and p.numel()]
        for pattern in params:
            if not matching(trainable, [pattern]):
                shown = ", ".join(trainable[:4]) + (", ..." if len(trainable) > 4 else "")
                raise CurvError(
                    "E_MODEL",
                    f"no trainable parameter matches {pattern!r}",
                    f"the model's are {shown}" if trainable else "all are frozen or empty",
                )
        if any(p.is_complex() for p in model.parameters()):
            raise CurvError(
                "E_DTYPE", "the model has complex parameters", "view them as real pairs"
            )
        batches = tuple(batches)
        if not batches:
            raise CurvError("E_DATA", "there are no examples", "check data: in the spec")
        mode = rest.get("mode", "eval")
        if mode != "eval" and len(batches) > 1 and normalisations(model):
            raise CurvError(
                "E_USAGE",
                f"in {mode} mode BatchNorm makes the loss depend on how the {len(batches)} batches "
                "are cut",
                "use a --batch-size that holds all --samples, or --mode eval",
            )
        if mode != "eval" and len(rest.get("heldout", ())) > 1 and normalisations(model):
            # Nor may what is held out depend on its cut.
            sizes = sum(b.size for b in rest["heldout"])
            rest["heldout"] = select(rest["heldout"], torch.arange(sizes))
        return cls(model, loss, batches, tuple(matching(trainable, params)), **rest)

    # --- what it consists of -----------------------------------------------------------------

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        own = dict(self.model.named_parameters())
        return {n: own[n] for n in self.names}

    @cached_property
    def layout(self) -> Layout:
        """Where each parameter lies in the vector theta."""
        return Layout.of(dict(self.params))

    @property
    def like(self) -> Tensor:
        """A vector of theta's size, dtype and device, without storage of its own."""
        first = next(iter(self.params.values()))
        return torch.empty(1, dtype=first.dtype, device=first.device).expand(self.layout.size)

    @property
    def examples(self) -> int:
        """How many examples the batches hold."""
        return sum(b.size for b in self.batches)

    def vector(self) -> Tensor:
        """Copy theta into one vector (n,)."""
        return self.layout.flatten(p.detach() for p in self.params.values()).clone()

    # --- other problems like it ----------------------------------------------------------------

    def to(self, dtype: torch.dtype) -> "Problem":
        """Copy the model and the data into another floating-point type."""

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        return replace(
            self,
            model=copied(self.model).to(dtype),
            batches=tuple(b.map(cast) for b in self.batches),
            heldout=tuple(b.map(cast) for b in self.heldout),
        )

    def sampled(self, examples: int, rng: torch.Generator) -> "Problem":
        """Keep that many examples, chosen by `rng`, in their order, and in one batch if they fit.

        They do unless the examples of different batches have different shapes.
        """
        if examples >= self.examples and len(self.batches) == 1:
            return self
        chosen = torch.randperm(self.examples, generator=rng)[:examples].sort().values
        return replace(self, batches=select(self.batches, chosen), heldout=())

    def initial(self) -> "Problem":
        """Pose the same problem at the weights that the model's factory gives it.

        Raises: CurvError (E_USAGE) without a factory, (E_MODEL) where it makes another model.
        """
        if self.fresh is None:
            message = "there is no factory to make a fresh model"
            raise CurvError("E_USAGE", message, "needs model: in the spec")
        model = unwrapped(self.fresh()).to(device=self.like.device, dtype=self.like.dtype)
        made = {n: tuple(p.shape) for n, p in model.named_parameters()}
        for name, p in self.params.items():
            if made.get(name) != tuple(p.shape):
                other = f"without {name}"
                if name in made:
                    other = f"with {name} of shape {made[name]}, not {tuple(p.shape)}"
                hint = "let it make the same parameters every time"
                raise CurvError("E_MODEL", f"the factory now makes a model {other}", hint)
        return replace(self, model=model)

    def penalised(self, name: str) -> "Problem":
        """Pose one penalty alone, as a function of the same parameters.

        Raises: CurvError (E_USAGE) where there is none of this name.
        """
        if name not in self.penalties:
            known = ", ".join(self.penalties)
            hint = f"known are {known}" if known else "needs penalty: in the spec"
            raise CurvError("E_USAGE", f"there is no penalty {name!r}", hint)
        # It is the same over all examples; one batch stands for them.
        return replace(self, penalty=name, batches=self.batches[:1], heldout=())

    # --- evaluation ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model in this problem's mode, and leave it and the process as found.

        Modes, `requires_grad`, buffers and the generators' states are restored, also after an
        exception; `.grad` is never touched. It may be entered again while it is held.
        """
        if self._held:
            yield
            return
        self._held.append(True)
        devices = [self.like.device.index] if self.like.is_cuda else []
        training, wanted = self.mode == "train", set(self.names)
        try:
            with (
                torch.random.fork_rng(devices=devices),
                held(self.model, training=training, trainable=wanted),
            ):
                for module in normalisations(self.model) if self.mode == "batchnorm" else ():
                    module.train()
                yield
        finally:
            self._held.pop()

    @contextlib.contextmanager
    def displaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold parameters at other values, also for what a backward pass computes again."""
        # torch.func.functional_call gives activation checkpointing the old values in its backward.
        params = self.params
        saved = {n: params[n].data for n in values}
        try:
            for n, value in values.items():
                params[n].data = value
            yield
        finally:
            for n, value in saved.items():
                params[n].data = value

    def terms(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Terms:
        """Evaluate one batch, at the model's own parameters or with some replaced by `values`."""
        with self.replaying():
            if values is None:
                return self._terms(batch)
            return with_values(self.model, values, partial(self._terms, batch))

    def _terms(self, batch: Batch) -> Terms:
        if self.penalty is not None:
            return Terms(self.penalties[self.penalty](self.model), 1.0)
        args, kwargs = arguments(batch.inputs)
        return self.loss(self.model(*args, **kwargs), batch)

    def replaying(self) -> AbstractContextManager[None]:
        """Draw what every evaluation draws, where this problem replays its random numbers."""
        return contextlib.nullcontext() if self.replay is None else seeded(self.replay)

    def share(self, batch: Batch, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate this batch's share of L, a scalar with its graph; the shares add up to L."""
        return self.terms(batch, values).total / self.measure.weight

    @cached_property
    def measure(self) -> "Measure":
        """L and the total weight, from one pass over the data.

        Raises: CurvError (E_NONFINITE, E_DATA) where L is not a number or has no terms.
        """
        return self._measured(self.batches, "the loss")

    @cached_property
    def heldout_loss(self) -> float | None:
        """L over the held-out examples, where there are some."""
        return self._measured(self.heldout, "the held-out loss").loss if self.heldout else None

    def ignored(self) -> int:
        """Count the targets that the loss leaves out, as `ignore_index` does."""
        return self.measure.ignored

    def _measured(self, batches: Sequence[Batch], named: str) -> "Measure":
        total, weight, ignored = 0.0, 0.0, 0
        with self.engaged(), torch.no_grad():
            for i, batch in enumerate(batches):
                terms = self.terms(batch)
                if not math.isfinite(float(terms.total)):
                    raise self._blame(f"{named} is {float(terms.total)}", i, batches)
                total, weight = total + float(terms.total), weight + float(terms.weight)
                ignored += int(terms.ignored)
        if not weight > 0:
            raise CurvError("E_DATA", "the loss has no terms over these examples (weight 0)")
        return Measure(total / weight, weight, ignored)

    def _blame(self, said: str, index: int, batches: Sequence[Batch]) -> CurvError:
        """Say where a loss that is no number comes from."""
        if self.penalty is not None:
            found = of_weights(self.model)
            said = said.replace("the loss", f"the penalty {self.penalty}")
        else:
            batch, before = batches[index], sum(b.size for b in batches[:index])
            said += f" at batch {index}"
            found = source(self.model, batch, before, partial(self.terms, batch))
        return CurvError("E_NONFINITE", said + found.where, found.advice)

    def gradients(self, batch: Batch, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Differentiate this batch's share by reverse mode; an unused parameter gives zeros."""
        share, params = self.share(batch), tuple(self.params.values())
        if not share.requires_grad:
            return tuple(torch.zeros_like(p) for p in params)
        return derivatives([share], params, create_graph=create_graph)

    def gradient(self) -> Tensor:
        """Differentiate L: a vector (n,); costs one gradient."""
        with self.engaged():
            total = torch.zeros_like(self.like, memory_format=torch.contiguous_format)
            for batch in self.batches:
                total += self.layout.flatten(g.detach() for g in self.gradients(batch))
        return total

    def unused(self) -> list[str]:
        """Name the parameters that the loss of the first batch does not depend on."""
        with self.engaged():
            share = self.share(self.batches[0])
            if not share.requires_grad:
                return list(self.names)
            found = optional_derivatives([share], tuple(self.params.values()))
        return [n for n, g in zip(self.names, found, strict=True) if g is None]


def normalisations(model: nn.Module) -> list[_BatchNorm]:
    """List the modules that make examples interact in training."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


class Measure(NamedTuple):
    """L, the weight that its terms add up to, and how many targets are in no term."""

    loss: float
    weight: float
    ignored: int
