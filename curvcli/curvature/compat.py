"""Make second derivatives possible where fast kernels lack them, and put everything back."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from curvcli.curvature.bags import bagged

Formula = Callable[..., Tensor]


@contextlib.contextmanager
def second_order(model: nn.Module) -> Iterator[None]:
    """Run a model on kernels that can be differentiated twice, for the length of the context.

    Fused attention, the fast path of MultiheadAttention, cuDNN's and oneDNN's recurrent kernels,
    bags of embeddings, sparse embedding gradients and compiled graphs have no second derivative,
    that of weight normalisation is wrong (torch 2.13); each has an equal that has one. The function
    computed is the same but for rounding.
    """
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
              and m.sparse]  # fmt: skip
    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(_without_mkldnn())
        for owner, name, formula in _formulas(model):
            stack.enter_context(_by_formula(owner, name, formula))
        # Where nothing was compiled the compiler is not loaded, and loading it takes seconds.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for m in sparse:
                m.sparse = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for m in sparse:
                m.sparse = True


def stands_in(model: nn.Module, evaluate: Callable[[], object]) -> list[str]:
    """Say what of a model is computed in another way than it was trained; evaluates it once."""
    modules = list(model.modules())
    sparse = any(isinstance(m, nn.Embedding) and m.sparse for m in modules)
    with second_order(model), _Attention() as attention, torch.no_grad():
        evaluate()
    formulas = [owner for owner, _, _ in _formulas(model)]
    known = {
        "attention by matrix products and a softmax, not fused": attention.found,
        "recurrent layers by torch's own kernels, not cuDNN's or oneDNN's": any(
            isinstance(m, nn.RNNBase) for m in modules
        ),
        "EmbeddingBag by an embedding and the sum, mean or maximum of its rows": any(
            isinstance(m, nn.EmbeddingBag) for m in formulas
        ),
        "weight normalisation by its formula": any(
            isinstance(m, _WeightNorm | WeightNorm) for m in formulas
        ),
        "gradients of sparse embeddings as dense ones": sparse,
    }
    return [said for said, used in known.items() if used]


class _Attention(TorchFunctionMode):
    """Notices attention that torch may fuse."""

    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        fused = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
        self.found |= func in fused
        return func(*args, **kwargs or {})


class WrittenOut(TorchFunctionMode):
    """Compute mse_loss by its formula for as long as forward mode is at work.

    torch 2.13 crashes in the derivative of its kernel, and under the tracer so does the process.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.mse_loss and kwargs.get("weight") is None:
            output, target = torch.broadcast_tensors(*args)  # type: ignore[no-untyped-call]
            return func(output, target, **kwargs | {"weight": torch.ones_like(output)})
        return func(*args, **kwargs)


def _formulas(model: nn.Module) -> Iterator[tuple[Any, str, Formula]]:
    """Give the methods whose kernel will not do, as owner and name, and what to call instead."""
    for m in model.modules():
        if _is_plain_bag(m):
            yield m, "forward", partial(bagged, m)
        if isinstance(m, _WeightNorm):
            yield m, "forward", partial(_weight_normed, m.dim)
        for hook in m._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield hook, "compute_weight", partial(_hooked, hook)


def _is_plain_bag(m: nn.Module) -> TypeGuard[nn.EmbeddingBag]:
    # A bag that rescales its weights in passing is no function of them.
    return (
        isinstance(m, nn.EmbeddingBag)
        and type(m).forward is nn.EmbeddingBag.forward
        and "forward" not in vars(m)
        and m.max_norm is None
    )


@contextlib.contextmanager
def _by_formula(owner: Any, name: str, formula: Formula) -> Iterator[None]:
    before = owner.__dict__.get(name)
    owner.__dict__[name] = formula
    try:
        yield
    finally:
        del owner.__dict__[name]
        if before is not None:
            owner.__dict__[name] = before


def _hooked(hook: WeightNorm, m: nn.Module) -> Tensor:
    g, v = getattr(m, hook.name + "_g"), getattr(m, hook.name + "_v")
    return _weight_normed(hook.dim, g, v)


def _weight_normed(dim: int, g: Tensor, v: Tensor) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


@contextlib.contextmanager
def _without_mkldnn() -> Iterator[None]:
    # torch's own context, backends.mkldnn.flags, warns of Intel GPUs whenever it is entered.
    flags: Any = torch.backends.mkldnn
    before = flags.enabled
    flags.enabled = False
    try:
        yield
    finally:
        flags.enabled = before
