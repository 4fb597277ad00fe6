"""L at perturbed parameters, many at a time where the model allows it."""

import warnings

import torch
from torch import Tensor
from torch.func import vmap

from curvcli.curvature.compat import second_order
from curvcli.curvature.hessian import reason
from curvcli.curvature.memory import peak_bytes, spare
from curvcli.problem import Problem


class Perturbed:
    """Evaluates L with one parameter tensor displaced; exact, by loop or batched under vmap.

    Batched evaluations are used only where they reproduce a plain one to rounding; `why_looped`
    says why not where they are not.
    """

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        self.problem = problem
        self.values = {n: p.detach() for n, p in problem.params.items()}
        self.room = (spare(problem.like.device) // 2) if memory is None else memory
        self.evaluations = 0
        self.plain = float(self._one({}))
        self.bytes = peak_bytes(lambda: self._one({}), problem.like.device)
        self.why_looped = ""
        self.trusted: set[str] = set()  # tensors whose batched evaluations have been checked

    def at(self, name: str, displacements: Tensor) -> Tensor:
        """Evaluate L at theta + d for each d: displacements (k, *shape) to values (k,) float64."""
        self.evaluations += len(displacements)
        if not self.why_looped:
            found = self._batched(name, displacements)
            if isinstance(found, Tensor):
                return found
            self.why_looped = found
        return torch.stack([self._one({name: self.values[name] + d}) for d in displacements])

    def _batched(self, name: str, displacements: Tensor) -> Tensor | str:
        """Evaluate in chunks that fit in memory, or say why that does not work on this model."""
        each = self.bytes + 4 * displacements[0].numel() * displacements.element_size()
        chunk = int(max(1, min(len(displacements), 64, self.room // each)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of an operation that vmap loops over by itself
                parts = [self._many(name, d) for d in torch.split(displacements, chunk)]
        except Exception as error:  # vmap refuses with many classes; the loop needs none of them
            return reason(error)
        found = torch.cat(parts)
        if name not in self.trusted:
            # The last: the first may be no displacement at all.
            plain = float(self._one({name: self.values[name] + displacements[-1]}))
            eps = torch.finfo(self.values[name].dtype).eps
            if not abs(float(found[-1]) - plain) <= 1e3 * eps * max(abs(plain), eps):
                return "batched evaluations differ from plain ones"
            self.trusted.add(name)
        return found

    def _one(self, changed: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), second_order(self.problem.model):
            shares = [
                self.problem.share(b, {**self.values, **changed}) for b in self.problem.batches
            ]
        return torch.stack(shares).double().sum().cpu()

    def _many(self, name: str, displacements: Tensor) -> Tensor:
        def shifted(value: Tensor) -> Tensor:
            batches = self.problem.batches
            return torch.stack(
                [self.problem.share(b, {**self.values, name: value}) for b in batches]
            ).sum()

        # The kernels that can be differentiated twice are those that can be batched, too.
        with torch.no_grad(), second_order(self.problem.model):
            out: Tensor = vmap(shifted)(self.values[name] + displacements)
        return out.double().cpu()
