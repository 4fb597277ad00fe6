"""Diagonals that are sums of squares: of the entries of J^T S, for S a root by the outputs.

The diagonal of J^T S S^T J adds up the squares of J^T S. One backward pass gives a column of every
example's own J_n^T S_n at the outputs of all layers, whose features lead on to the parameters
(BackPACK [Dangel, Kunstner and Hennig 2020, arXiv:1912.10985] does so for sequential models). Cost:
as many backward passes as an example has columns, for all layers together. Parameters that are not
a layer's own take those of each example alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvcli.batches import Batch, select
from curvcli.curvature.compat import second_order
from curvcli.curvature.diagonals.roots import Columns, Root
from curvcli.curvature.diagonals.second import gradients, pulled
from curvcli.curvature.diagonals.uses import Layer, Use, accounted, layers_of, plain, recording
from curvcli.curvature.jacobian import Outputs
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

Tick = Callable[[int], None]
"""Told how many products have been computed since it was last told."""

AT_ONCE = 1 << 23
"""Numbers of layers' outputs that are pulled back at once: 32 MB in float32."""


@dataclass(frozen=True)
class Pulled:
    """A batch's outputs with their columns, and the layers that those are pulled back to."""

    outputs: Outputs
    columns: Columns
    uses: Mapping[str, Use]

    @classmethod
    def of(
        cls, problem: Problem, batch: Batch, root: Root, layers: Mapping[str, Layer]
    ) -> "Pulled":
        """Evaluate a batch; layers that are not applied just once to all examples are left out."""
        with recording(layers) as uses:
            outputs = Outputs(problem, batch)
        columns = root(problem, batch, outputs, batch.size)
        # A layer's output that is no function of trainable parameters is no node of a graph.
        once = {path: found[0] for path, found in uses.items() if plain(found, batch.size)}
        return cls(outputs, columns, {p: u for p, u in once.items() if u.a.requires_grad})

    def only(self, paths: Mapping[str, object] | set[str]) -> "Pulled":
        """Leave out other layers."""
        kept = {path: use for path, use in self.uses.items() if path in paths}
        return Pulled(self.outputs, self.columns, kept)

    @cached_property
    def nodes(self) -> list[Tensor]:
        """The outputs of the layers."""
        return [use.a for use in self.uses.values()]

    def add(self, total: dict[str, Tensor], tick: Tick) -> None:
        """Add the sums of squares of all columns to those of the layers' parameters."""
        if not self.nodes:
            return
        each = sum(t.numel() for t in self.nodes)
        sums: dict[str, Tensor] = {}
        for which in self.columns.chunks(max(1, AT_ONCE // max(each, 1))):
            cotangents, signs = self.columns.make(which)
            slopes = pulled(self.outputs.tensors, self.nodes, cotangents)
            for (path, use), s in zip(self.uses.items(), slopes, strict=True):
                laid = use.columns(s)
                if laid.shape[2] == 1:  # positions do not mix: the columns can be added first
                    sums[path] = sums.get(path, 0) + torch.einsum("kntc,kn->ntc", laid**2, signs)
                    continue
                for name, f in use.features.items():
                    rows = f.squares(laid, signs)
                    total[name] += f.restore(rows).reshape(total[name].shape)
            tick(len(which))
        for path, h in sums.items():
            for name, f in self.uses[path].features.items():
                total[name] += f.restore(f.alone(h)).reshape(total[name].shape)

    def sound(self, problem: Problem) -> set[str]:
        """Find the layers whose parameters act through them alone, on every example by itself."""
        n = len(next(iter(self.uses.values())).a) if self.uses else 0
        rng = torch.Generator().manual_seed(0)
        first = torch.arange(n) < (n + 1) // 2
        u = [normal(t, rng) for t in self.outputs.tensors]
        for t in u:
            t[~first.to(t.device)] = 0
        names = [name for use in self.uses.values() for name in use.layer.names.values()]
        at = [*self.nodes, *(problem.params[name] for name in names)]
        found = pulled(self.outputs.tensors, at, [t.unsqueeze(0) for t in u])
        own = dict(zip(names, (t[0] for t in found[len(self.nodes) :]), strict=True))
        good = set()
        for (path, use), s in zip(self.uses.items(), found, strict=False):
            others = s[0][~first.to(s.device)]
            mine = {name: own[name] for name in use.layer.names.values()}
            if not others.any() and accounted([use], [s[0]], mine):
                good.add(path)
        return good

    def linear(self, problem: Problem, batch: Batch) -> set[str]:
        """Find the layers of whose outputs the model's are piecewise linear functions, here.

        There d^2 f / d a^2 vanishes, and with it what the Hessian has beyond J^T (d^2 l / d f^2) J.
        torch's derivatives of kinked functions give zeros for it, not rounding.
        """
        share = problem.loss(self.outputs.given, batch).total / problem.measure.weight
        slopes = gradients(share, self.outputs.leaves)
        along = [
            torch.zeros_like(t) if g is None else g
            for g, t in zip(slopes, self.outputs.leaves, strict=True)
        ]
        if not self.nodes:
            return set()
        rows = torch.autograd.grad(
            self.outputs.tensors, self.nodes, along,
            create_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        rng, found = torch.Generator().manual_seed(0), set()
        for (path, use), g in zip(self.uses.items(), rows, strict=True):
            v = normal(g, rng).unsqueeze(0)
            if not g.requires_grad or not pulled([g], [use.a], [v])[0].any():
                found.add(path)
        return found


class SquaresDiagonal:
    """The diagonal of J^T S S^T J of a problem, tensor by tensor.

    `products` are the backward passes that a batch takes for all layers together.
    """

    def __init__(self, problem: Problem, root: Root) -> None:
        self.problem = problem
        self.root = root
        self.products = 0
        _ = problem.measure  # now, since its passes over the data are none of the recorded uses

    def compute(self, tick: Tick = lambda products: None) -> dict[str, Tensor]:
        """Compute the diagonals by name, exact to rounding.

        Raises: CurvError (E_LOSS, E_NO_HVP) where the loss has no such root.
        """
        problem, layers = self.problem, layers_of(self.problem)
        total = {n: torch.zeros_like(p) for n, p in problem.params.items()}
        with problem.engaged(), second_order(problem.model):
            for batch in problem.batches:
                found = Pulled.of(problem, batch, self.root, layers)
                self.products = max(self.products, found.columns.count)
                good = found.sound(problem) if found.uses else set()
                found.only(good).add(total, tick)
                done = {n for path in good for n in layers[path].names.values()}
                self._others(batch, [n for n in problem.names if n not in done], total)
        return {n: t.detach() for n, t in total.items()}

    def _others(self, batch: Batch, names: list[str], total: dict[str, Tensor]) -> None:
        """Pull the columns of single examples back to parameters; of the batch, where they mix."""
        if not names:
            return
        alone = self.problem.mode == "eval"
        for i in range(batch.size if alone else 1):
            part = select([batch], torch.tensor([i]))[0] if alone else batch
            outputs = Outputs(self.problem, part)
            columns = self.root(self.problem, part, outputs, 1)
            params = [self.problem.params[n] for n in names]
            step = max(1, AT_ONCE // max(sum(p.numel() for p in params), 1))
            for which in columns.chunks(step):
                cotangents, signs = columns.make(which)
                rows = pulled(outputs.tensors, params, cotangents)
                for n, r in zip(names, rows, strict=True):
                    total[n] += torch.einsum("k...,k->...", r.square(), signs[:, 0])
