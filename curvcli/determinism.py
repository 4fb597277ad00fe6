"""Tell whether one gradient comes out alike twice, and name what is random where it does not.

One forward pass keeps what every call of a module gives. In a second one, a call that is given the
same and gives something else is random, and hands on what it gave in the first: so what comes after
it is judged too, and no module is blamed for one inside it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvcli.errors import CurvError, listed, memory_error
from curvcli.modules import titled, watchable
from curvcli.problem import Problem

TRIES = 8
"""Pairs of passes before the forward is said to repeat: what is seldom random may agree once."""


def probe(problem: Problem) -> None:
    """Evaluate the first batch's gradient twice and hold the two against each other.

    Raises: CurvError (E_NONDET) where they differ, since differences and products would be noise,
        (E_NONFINITE) where they are not finite.
    """
    first, second = _gradients(problem)
    if not (first.isfinite().all() and second.isfinite().all()):
        raise CurvError(
            "E_NONFINITE",
            "the gradient of the first batch is not finite",
            "look for sqrt or a norm at zero, or an overflow, in the model and the loss",
        )
    if _alike(first, second):
        return
    said, place = _source(problem)
    raise CurvError(
        "E_NONDET",
        f"two evaluations of one gradient differ by {_gap(first, second):.1e}; {said}",
        _advice(problem) or f"seed or remove the randomness in {place}",
    )


def _gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """Differentiate twice without leaving the problem, which would take the generators back."""
    with problem.engaged():
        try:
            first, second = (
                problem.layout.flatten(g.detach() for g in problem.gradients(problem.batches[0]))
                for _ in range(2)
            )
        except RuntimeError as error:
            if memory_error(error):
                raise
            said = (str(error).strip().splitlines() or [""])[0][:160]
            raise CurvError("E_MODEL", f"the backward pass fails: {said}", "correct it") from error
    return first, second


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / first.norm().clamp_min(1e-300))


def _alike(first: Tensor, second: Tensor) -> bool:
    """Compare bit by bit; on an accelerator, up to rounding."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if bool(((first == second) | (first.isnan() & second.isnan())).all()):
        return True
    # Atomic additions on an accelerator reorder sums; that is rounding, not randomness.
    rounded = first.is_cuda and first.is_floating_point()
    return rounded and _gap(first, second) < 100 * torch.finfo(first.dtype).eps


def _advice(problem: Problem) -> str:
    """Try what would make the gradient repeat; empty where nothing does."""
    one = replace(problem, batches=problem.batches[:1], heldout=())
    ways = []
    if problem.mode != "eval" and _repeats(replace(one, mode="eval")):
        ways.append("--mode eval")
    if problem.replay is None and _repeats(replace(one, replay=0)):
        ways.append("curv gradcheck --replay-rng")
    return "use " + ", or ".join(ways) if ways else ""


def _repeats(problem: Problem) -> bool:
    try:
        return _alike(*_gradients(problem))
    except CurvError:
        return False


def _source(problem: Problem) -> tuple[str, str]:
    """Say what is random, and where the user would make it repeat."""
    with problem.engaged():
        for number in range(TRIES):
            passes = _Passes()
            # Without graphs, for the memory; but some models draw only where there is one.
            with torch.set_grad_enabled(number % 2 == 1):
                totals = [_total(problem, passes, again=again) for again in (False, True)]
            if passes.random:
                names = [titled(n, m) for n, m in passes.random.items()]
                return f"random: {listed(names)}", "forward()"
            if not _alike(*totals):
                part = f"penalty {problem.penalty}" if problem.penalty else "loss function"
                return f"random: the {part}", f"the {part}"
    return "random in a backward: the forward pass repeats", "backward()"


def _total(problem: Problem, passes: "_Passes", *, again: bool) -> Tensor:
    with passes.follow(problem.model, again=again):
        return problem.terms(problem.batches[0]).total.detach()


Key = tuple[str, int]
"""A module's path, and which of its calls."""


class _Passes:
    """Two forward passes, call by call."""

    def __init__(self) -> None:
        self.taken: dict[Key, bytes] = {}  # digests of what each call was given in the first pass
        self.given: dict[Key, Any] = {}  # copies of what it gave
        self.random: dict[str, nn.Module] = {}

    @contextmanager
    def follow(self, model: nn.Module, *, again: bool) -> Iterator[None]:
        """Watch one pass: keep the calls of the first, compare those of the second with them."""
        calls: Counter[str] = Counter()
        running: defaultdict[str, list[tuple[Key, bytes]]] = defaultdict(list)

        def before(name: str) -> Callable[..., None]:
            def hook(_m: nn.Module, args: Any, kwargs: Any) -> None:
                running[name].append(((name, calls[name]), _digest((args, kwargs))))
                calls[name] += 1

            return hook

        def after(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, _i: Any, output: Any) -> Any:
                key, taken = running[name].pop()
                if again:
                    return self._compared(key, module, taken, output)
                if all(isinstance(t, Known) for t in pytree.tree_leaves(output)):
                    self.taken[key] = taken
                    self.given[key] = pytree.tree_map_only(Tensor, _copy, output)
                return None

            return hook

        handles = []
        for name, module in watchable(model):
            handles += [
                module.register_forward_pre_hook(before(name), with_kwargs=True),
                module.register_forward_hook(after(name)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _compared(self, key: Key, module: nn.Module, taken: bytes, output: Any) -> Any:
        """Give the first pass's output in place of this one where the call was given the same."""
        if self.taken.get(key) != taken:
            return None
        given = self.given.pop(key)
        if not _same(given, output):
            self.random.setdefault(key[0], module)
        return given


Known = Tensor | int | float | complex | str | None
"""What a module gives, in whatever nesting, that can be copied and compared."""


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()


def _same(first: Any, second: Any) -> bool:
    a, b = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(a) == len(b) and all(map(_equal, a, b))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return not (_plain(a) and _plain(b)) or _alike(a, b)
    return type(a) is type(b) and repr(a) == repr(b)


def _plain(t: Tensor) -> bool:
    """Tell the tensors that are an array of numbers from sparse, nested and quantized ones."""
    return t.layout is torch.strided and not (t.is_nested or t.is_quantized)


def _digest(tree: Any) -> bytes:
    """Sum up tensors and plain values, bit by bit."""
    found = hashlib.blake2b()
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and _plain(leaf):
            flat = leaf.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(leaf, Known) and not isinstance(leaf, Tensor):
            found.update(repr(leaf).encode())
    return found.digest()
