"""Make second derivatives possible where fast kernels lack them, and put everything back."""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def second_order(model: nn.Module) -> Iterator[None]:
    """Run a model on kernels that can be differentiated twice, for the length of the context.

    Fused attention, the fast path of MultiheadAttention, cuDNN's and oneDNN's recurrent kernels,
    sparse embedding gradients and compiled graphs have no second derivative, that of weight
    normalisation is wrong (torch 2.13); each has an equal that has one. The function computed is
    the same but for rounding.
    """
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
              and m.sparse]  # fmt: skip
    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(_without_mkldnn())
        for m in model.modules():
            if isinstance(m, _WeightNorm):
                stack.enter_context(_weight_normed_by_formula(m))
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


@contextlib.contextmanager
def _weight_normed_by_formula(m: _WeightNorm) -> Iterator[None]:
    before = m.__dict__.get("forward")
    m.__dict__["forward"] = partial(_weight_normed, m.dim)
    try:
        yield
    finally:
        del m.__dict__["forward"]
        if before is not None:
            m.__dict__["forward"] = before


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
