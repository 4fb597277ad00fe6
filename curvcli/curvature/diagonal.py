"""The exact diagonal of the Hessian, tensor by tensor, at the cost of the layer where that is less.

For an nn.Linear, a = W x + b, the second derivative along W_oi is sum over examples of
x_i^2 d^2L/da_o^2 [Bishop 2006, PRML, eq. 5.79]. Examples do not interact, so one product with
respect to the layer's outputs gives d^2L/da_o^2 for all examples at once: `out` products downstream
of the layer instead of `in * out` through the whole model. Applied at T positions of each example
it takes out * T products, since positions of one example do interact. Everything else takes one
product per entry, in chunks under vmap.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.batches import Batch
from curvcli.curvature.compat import second_order
from curvcli.curvature.hessian import reason
from curvcli.curvature.memory import held, spare
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

AGREE = 1e4
"""Units of rounding up to which two ways to compute one thing may differ: sums in other orders."""


Tick = Callable[[int], None]
"""Told how many products have been computed since it was last told."""


@dataclass(frozen=True)
class Part:
    """Parameters whose diagonals are computed together, and how."""

    names: tuple[str, ...]
    layer: str | None  # the nn.Linear they belong to; None for one-hot products
    products: int  # per batch

    @property
    def method(self) -> str:
        """Name the way for people."""
        return "layer" if self.layer is not None else "one-hot"


@dataclass(frozen=True)
class Use:
    """One application of a linear layer: what went in, and the output as a node of the graph."""

    x: Tensor  # (N, ..., in)
    a: Tensor  # (N, ..., out)


class ExactDiagonal:
    """Plans and computes exact diagonals; parts are independent of each other."""

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        self.problem = problem
        self.room = spare(problem.like.device) if memory is None else memory
        self.layers = self._layers()
        _ = problem.measure  # now, since its passes over the data are none of the recorded uses

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model so that it can be differentiated twice."""
        with self.problem.engaged(), second_order(self.problem.model):
            yield

    @cached_property
    def parts(self) -> list[Part]:
        """Divide the parameters, each to the cheaper way."""
        taken: dict[str, Part] = {}
        for layer, names in self.layers.items():
            with self.engaged():
                uses = self._uses(layer, self.problem.batches[0])[0]
            if not _plain(uses, self.problem.batches[0]):
                continue
            products = uses[0].a[0].numel()  # positions times outputs
            entries = sum(self.problem.params[n].numel() for n in names)
            if products < entries:
                part = Part(names, layer, products)
                taken |= dict.fromkeys(names, part)
        parts = [
            taken.get(n) or Part((n,), None, p.numel()) for n, p in self.problem.params.items()
        ]
        return list(dict.fromkeys(parts))

    def estimate(self) -> float:
        """Measure a few products of each part on one batch, and scale to all: seconds."""
        batch, total = self.problem.batches[0], 0.0
        with self.engaged():
            for part in self.parts:
                self._few(part, batch)  # the first products of a kind set up more than they compute
                start = time.perf_counter()
                few = self._few(part, batch)
                total += (time.perf_counter() - start) / few * part.products
        return total * self.problem.examples / batch.size

    def _few(self, part: Part, batch: Batch) -> int:
        """Take as many products of a part as are batched at once, up to 16: how many."""
        few = torch.arange(min(16, part.products))
        if part.layer is not None:
            uses, share = self._uses(part.layer, batch)
            (g,) = _grad(share, (uses[0].a,), create_graph=True)
            if g is not None and g.requires_grad:
                _layer_chunk(uses[0], g, few)
        else:
            p = self.problem.params[part.names[0]]
            (g,) = _grad(self.problem.share(batch), (p,), create_graph=True)
            if g is not None and g.requires_grad:
                _one_hot_chunk(g, p, few)
        return len(few)

    def compute(self, part: Part, tick: Tick = lambda products: None) -> dict[str, Tensor]:
        """Compute the diagonals of a part by name, exact to rounding.

        `tick` is told of every chunk of products. A layer that turns out to be used elsewhere too,
        or whose examples interact, is done by one-hot products; so is one that differs from them at
        its largest entry or two others.
        """
        with self.engaged():
            found = self._by_layer(part, tick) if part.layer is not None else {}
            if found and all(self._verified(n, d) for n, d in found.items()):
                return found
            return {n: self.one_hot(n, tick=tick) for n in part.names}

    def one_hot(
        self, name: str, entries: Tensor | None = None, tick: Tick = lambda products: None
    ) -> Tensor:
        """Compute one product per entry: the tensor's diagonal, or (k,) of its flat entries."""
        p = self.problem.params[name]
        chosen = torch.arange(p.numel()) if entries is None else entries
        out = torch.zeros(len(chosen), dtype=p.dtype, device=p.device)
        for batch in self.problem.batches:
            share = self.problem.share(batch)
            (g,) = _grad(share, (p,), create_graph=True)
            if g is not None and g.requires_grad:
                # Batched products need about the graph once more for each of them.
                chunk = self._chunk(batch, p.numel() * p.element_size())
                ready = []
                for rows in torch.split(chosen, chunk):
                    ready.append(_one_hot_chunk(g, p, rows))
                    tick(len(rows))
                out += torch.cat(ready)
        return out if entries is not None else out.view_as(p)

    def _layers(self) -> dict[str, tuple[str, ...]]:
        """Find the plain linear layers whose parameters are nobody else's, with their names."""
        names = {id(p): n for n, p in self.problem.params.items()}
        owners: dict[int, int] = {}
        for module in self.problem.model.modules():
            for p in module._parameters.values():
                owners[id(p)] = owners.get(id(p), 0) + 1
        found = {}
        for path, module in self.problem.model.named_modules():
            plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
            own = [p for p in module._parameters.values() if p is not None and id(p) in names]
            if plain and own and all(owners[id(p)] == 1 for p in own):
                found[path] = tuple(names[id(p)] for p in own)
        return found

    def _uses(self, layer: str, batch: Batch) -> tuple[list[Use], Tensor]:
        """Evaluate a batch's share of L, recording how the layer is applied."""
        uses: list[Use] = []

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = args[0] if args else kwargs["input"]
            uses.append(Use(x.detach(), output))
            return output.clone()  # an activation in place must not overwrite what is recorded

        handle = self.problem.model.get_submodule(layer).register_forward_hook(
            hook, with_kwargs=True
        )
        try:
            share = self.problem.share(batch)
        finally:
            handle.remove()
        return uses, share

    def _by_layer(self, part: Part, tick: Tick) -> dict[str, Tensor]:
        """Compute a layer's diagonals from products with its outputs; nothing if it is not so."""
        assert part.layer is not None
        params = {n: self.problem.params[n] for n in part.names}
        total = {n: torch.zeros_like(p) for n, p in params.items()}
        for batch in self.problem.batches:
            uses, share = self._uses(part.layer, batch)
            if len(uses) != 1 or len(uses[0].x) != batch.size:
                return {}  # planned from the first batch, and this one goes another way
            use, out = uses[0], uses[0].a.shape[-1]
            (g, *own) = _grad(share, (use.a, *params.values()), create_graph=True)
            if g is None or not g.requires_grad:
                continue
            if not (_alone(use, g, own) and _apart(use, g)):
                return {}
            chunk = self._chunk(batch, use.a.numel() * use.a.element_size())
            for block in torch.split(torch.arange(use.a[0].numel()), chunk):
                weights, biases = _layer_chunk(use, g, block)
                tick(len(block))
                for n, p in params.items():
                    rows = biases if p.ndim == 1 else weights
                    total[n].index_add_(0, (block % out).to(p.device), rows)
        return {n: t.detach() for n, t in total.items()}

    def _verified(self, name: str, diagonal: Tensor) -> bool:
        flat = diagonal.reshape(-1)
        chosen = torch.tensor(sorted({0, len(flat) // 2, int(flat.abs().argmax())}))
        gap = (self.one_hot(name, chosen) - flat[chosen.to(flat.device)]).abs().max()
        return _close(gap, flat.abs().max())

    def _chunk(self, batch: Batch, bytes_each: int) -> int:
        """Say how many products to batch within the memory there is."""
        graph = self._graph_bytes
        return int(max(1, min(64, self.room // max(graph + 2 * bytes_each, 1))))

    @cached_property
    def _graph_bytes(self) -> int:
        largest = max(self.problem.batches, key=lambda b: b.size)
        return held(lambda: self.problem.share(largest), self.problem.like.device)


def _plain(uses: list[Use], batch: Batch) -> bool:
    """Tell whether a layer is applied once, to all examples along the first axis."""
    return len(uses) == 1 and len(uses[0].x) == batch.size


def _grad(
    share: Tensor, inputs: tuple[Tensor, ...], create_graph: bool
) -> tuple[Tensor | None, ...]:
    if not share.requires_grad:
        return (None,) * len(inputs)
    try:
        return torch.autograd.grad(share, inputs, create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        raise _refused(error) from error


def _refused(error: RuntimeError) -> CurvError:
    said = f"this model's gradient cannot be differentiated: {reason(error)}"
    return CurvError("E_NO_HVP", said, "use --method hutchinson")


def _close(gap: Tensor, size: Tensor) -> bool:
    about = torch.finfo(size.dtype)
    return bool(gap <= AGREE * about.eps * size + about.tiny)


def _alone(use: Use, g: Tensor, own: list[Tensor | None]) -> bool:
    """Decide whether a layer's parameters act through this use alone: their gradients tell."""
    n = use.a.shape[0]
    x, back = use.x.reshape(n, -1, use.x.shape[-1]), g.detach().reshape(n, -1, g.shape[-1])
    weights, biases = torch.einsum("nto,nti->oi", back, x), back.sum(dim=(0, 1))
    for found in own:
        if found is not None:
            through = biases if found.ndim == 1 else weights
            if not _close((found.detach() - through).abs().max(), through.abs().max()):
                return False
    return True


def _apart(use: Use, g: Tensor) -> bool:
    """Decide whether examples do not interact: a product along half of them leaves the others."""
    if len(use.a) < 2:
        return True
    rng = torch.Generator().manual_seed(0)
    half = torch.randperm(len(use.a), generator=rng)[: len(use.a) // 2]
    direction = torch.zeros_like(use.a)
    direction[half] = normal(use.a[half], rng)
    found = _products(g, use.a, direction.detach().unsqueeze(0))[0].abs()
    others = torch.ones(len(found), dtype=torch.bool)
    others[half] = False
    return _close(found[others].max(), found.max())


def _products(g: Tensor, at: Tensor, directions: Tensor) -> Tensor:
    """Differentiate g along directions (c, *g.shape): (c, *at.shape), batched where possible."""
    try:
        (out,) = torch.autograd.grad(
            g, at, directions, retain_graph=True, is_grads_batched=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
    except RuntimeError:  # an operation without a batching rule
        try:
            rows = [
                torch.autograd.grad(
                    g, at, d, retain_graph=True, allow_unused=True, materialize_grads=True
                )[0]
                for d in directions
            ]
        except RuntimeError as error:
            raise _refused(error) from error
        out = torch.stack(rows)
    return out.detach()


def _one_hot_chunk(g: Tensor, p: Tensor, entries: Tensor) -> Tensor:
    """Take the diagonal entries (c,) of d g / d p."""
    rows = torch.arange(len(entries))
    directions = torch.zeros(len(entries), p.numel(), dtype=p.dtype, device=p.device)
    directions[rows, entries] = 1.0
    out = _products(g, p, directions.view(-1, *p.shape))
    return out.reshape(len(entries), -1)[rows, entries]


def _layer_chunk(use: Use, g: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Products for the units `block`, numbered position * out + output: rows (c, in) and (c,).

    Unit (t, o) gives h[n, t'] = d^2L / da_nto da_nt'o, and adds
    sum_n x_nti sum_t' h[n, t'] x_nt'i to row o of the weight's diagonal.
    """
    n, out = use.a.shape[0], use.a.shape[-1]
    x = use.x.reshape(n, -1, use.x.shape[-1])  # (N, T, in)
    t, o = block // out, block % out
    directions = torch.zeros(len(block), n, x.shape[1], out, dtype=use.a.dtype, device=use.a.device)
    directions[torch.arange(len(block)), :, t, o] = 1.0
    h = _products(g, use.a, directions.view(len(block), *use.a.shape))
    h = h.view(len(block), n, -1, out)
    h = h.gather(3, o.to(h.device).view(-1, 1, 1, 1).expand(-1, n, h.shape[2], 1))[
        ..., 0
    ]  # (c, N, T)
    weighted = torch.einsum("cnt,nti->cni", h, x)
    rows = torch.einsum("cni,cni->ci", weighted, x[:, t].transpose(0, 1))
    return rows, h.sum(dim=(1, 2))
