"""Make second derivatives possible where fast kernels lack them, and put everything back."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def second_order(model: nn.Module) -> Iterator[None]:
    """Run a model on kernels that can be differentiated twice, for the length of the context.

    Fused attention, the fast path of MultiheadAttention, cuDNN's and oneDNN's recurrent kernels,
    sparse embedding gradients and compiled graphs have no second derivative; each has an equal
    that does. The function computed is the same but for rounding.
    """
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
              and m.sparse]  # fmt: skip
    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(_without_mkldnn())
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
