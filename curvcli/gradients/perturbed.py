"""L at perturbed parameters, many at a time where the model allows it."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import vmap

from curvcli.curvature.compat import second_order
from curvcli.curvature.hessian import reason
from curvcli.curvature.memory import peak_bytes, spare
from curvcli.gradients.places import Places
from curvcli.problem import Problem

CHUNK = 256
"""Evaluations at a time: enough that Python's share is small, few enough for the caches."""


class Perturbed:
    """Evaluates L with one parameter tensor displaced; exact, by loop or batched under vmap.

    What lies before the tensor in the model is evaluated once for all displacements of a chunk.
    Batched evaluations are used only where they reproduce a plain one to rounding; `why_looped`
    says why not where they are not.
    """

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        self.problem = problem
        self.values = {n: p.detach() for n, p in problem.params.items()}
        self.room = (spare(problem.like.device) // 2) if memory is None else memory
        self.evaluations = 0
        self.plain = self._one({})
        self.bytes = peak_bytes(lambda: torch.tensor(self._one({})), problem.like.device)
        self.why_looped = ""
        self.tick: Callable[[], None] = lambda: None
        self.trusted = False
        self.randomness = "error" if problem.replay is None else "same"

    def at(self, name: str, places: Places, which: Tensor, steps: Tensor) -> Tensor:
        """Evaluate L with a tensor moved by signed steps (m,) at places (m,): (m,) float64."""
        value = self.values[name]
        each = self.bytes + 4 * value.numel() * value.element_size()
        chunk = int(max(1, min(CHUNK, self.room // each)))
        self.evaluations += len(which)
        found = []
        for w, h in zip(torch.split(which, chunk), torch.split(steps, chunk), strict=True):
            found.append(self._values(name, places.moves(w, h, value)))
            self.tick()
        return torch.cat(found)

    def plainly(self, name: str, places: Places, which: Tensor, steps: Tensor) -> Tensor:
        """Evaluate one by one, as `at` does where nothing can be batched."""
        self.evaluations += len(which)
        moves = (
            places.moves(w, h, self.values[name])
            for w, h in zip(which[:, None], steps[:, None], strict=True)
        )
        return self._loop(name, (m[0] for m in moves))

    def _values(self, name: str, displacements: Tensor) -> Tensor:
        if not self.why_looped:
            found = self._batched(name, displacements)
            if isinstance(found, Tensor):
                return found
            self.why_looped = found
        return self._loop(name, displacements)

    def _loop(self, name: str, displacements: Iterable[Tensor]) -> Tensor:
        found = []
        for d in displacements:
            found.append(self._one({name: self.values[name] + d}))
            self.tick()
        return torch.tensor(found, dtype=torch.float64)

    def _batched(self, name: str, displacements: Tensor) -> Tensor | str:
        """Evaluate all at once, or say why that does not work on this model."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of an operation that vmap loops over by itself
                found = self._many(name, displacements)
        except Exception as error:  # vmap refuses with many classes; the loop needs none of them
            return reason(error)
        if not self.trusted:
            plain = self._one({name: self.values[name] + displacements[-1]})
            eps = torch.finfo(self.values[name].dtype).eps
            if not abs(float(found[-1]) - plain) <= 1e3 * eps * max(abs(plain), eps):
                return "batched evaluations differ from plain ones"
            self.trusted = True
        return found

    def _one(self, changed: dict[str, Tensor]) -> float:
        with torch.no_grad(), second_order(self.problem.model):
            shares = [
                self.problem.share(b, {**self.values, **changed}) for b in self.problem.batches
            ]
        return float(torch.stack(shares).double().sum())

    def _many(self, name: str, displacements: Tensor) -> Tensor:
        def shifted(value: Tensor) -> Tensor:
            batches = self.problem.batches
            return torch.stack(
                [self.problem.share(b, {**self.values, name: value}) for b in batches]
            ).sum()

        # The kernels that can be differentiated twice are those that can be batched, too.
        with torch.no_grad(), second_order(self.problem.model):
            out: Tensor = vmap(shifted, randomness=self.randomness)(
                self.values[name] + displacements
            )
        return out.double().cpu()
