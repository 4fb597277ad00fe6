"""The layers that are linear in their parameters, and the features that multiply their weights.

Convolutions see patches of their input, normalisations what they have normalised (whatever it was
normalised by), an embedding a word of its vocabulary.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from curvcli.curvature.diagonals.features import Dense, Features, Indexed


class Kind(NamedTuple):
    """What sets one kind of layer apart.

    first:    the output's channels are its second axis; else they are its last axes
    channels: how many there are
    weight:   the weight's features, when x went in and a came out
    """

    first: bool
    channels: Callable[[Any], int]
    weight: Callable[[Any, Tensor, Tensor], Features]


def kind_of(module: nn.Module) -> Kind | None:
    """Find the kind of a module whose forward is torch's own; None for any other."""
    given = "forward" in vars(module) or getattr(module, "max_norm", None) is not None
    if given or not type(module).forward.__module__.startswith("torch.nn.modules."):
        return None  # max_norm changes an embedding's weight in the forward pass
    return next((kind for known, kind in KINDS.items() if isinstance(module, known)), None)


def spread(s: Tensor, kind: Kind, channels: int) -> Tensor:
    """Lay what has the shape of an output (M, ...) out as (M, T, channels)."""
    if kind.first:
        return s.reshape(len(s), channels, -1).transpose(1, 2)
    return s.reshape(len(s), -1, channels)


def _linear(m: nn.Linear, x: Tensor, _a: Tensor) -> Features:
    x = x.reshape(len(x), -1, 1, m.in_features)
    return Dense(x, m.out_features, lambda rows: rows)


def _embedding(m: nn.Embedding, x: Tensor, a: Tensor) -> Features:
    index = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    live = (index != (-1 if m.padding_idx is None else m.padding_idx)).to(a.dtype)
    return Indexed(index, live, (m.embedding_dim, m.num_embeddings), lambda rows: rows.T)


def _convolution(m: _ConvNd, x: Tensor, _a: Tensor) -> Features:
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    x = functional.pad(x, list(m._reversed_padding_repeated_twice), mode)
    x = _patches(x, m.kernel_size, m.stride, m.dilation).flatten(3)  # (N, c, T, kernel)
    return Dense(_grouped(x, m.groups), m.out_channels, lambda rows: rows.view(m.weight.shape))


def _transposed(m: _ConvTransposeNd, x: Tensor, a: Tensor) -> Features:
    """Convolve the input with zeros between its entries, by the kernel turned round."""
    axes = range(x.ndim - 2)
    wide = x.new_zeros(*x.shape[:2], *((x.shape[2 + i] - 1) * m.stride[i] + 1 for i in axes))
    every: Any = (..., *(slice(None, None, m.stride[i]) for i in axes))
    wide[every] = x
    margins: list[int] = []
    for i in reversed(axes):
        reach = m.dilation[i] * (m.kernel_size[i] - 1)
        left = reach - int(m.padding[i])
        margins += [left, a.shape[2 + i] + reach - left - wide.shape[2 + i]]
    wide = functional.pad(wide, margins)
    x = _patches(wide, m.kernel_size, [1 for _ in axes], m.dilation)
    x = x.flip([3 + i for i in axes]).flatten(3)
    inputs, outputs = m.in_channels // m.groups, m.out_channels // m.groups

    def restore(rows: Tensor) -> Tensor:
        rows = rows.view(m.groups, outputs, inputs, -1).transpose(1, 2)
        return rows.reshape(m.weight.shape)

    return Dense(_grouped(x, m.groups), m.out_channels, restore)


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Cut (N, c, *grid) into what a kernel sees: (N, c, T, *kernel)."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return x.flatten(2, 1 + len(kernel))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Lay patches (N, c, T, kernel) out as features (N, T, groups, fan-in)."""
    n, c, positions, kernel = x.shape
    x = x.reshape(n, groups, c // groups, positions, kernel)
    return x.permute(0, 3, 1, 2, 4).flatten(3)


def _scale(
    normalised: Callable[[Any, Tensor], Tensor],
) -> Callable[[Any, Tensor, Tensor], Features]:
    """Give the features of a weight that multiplies what is computed from the input alone."""

    def weight(m: nn.Module, x: Tensor, _a: Tensor) -> Features:
        kind = kind_of(m)
        assert kind is not None
        channels, x = kind.channels(m), normalised(m, x)
        return Dense(spread(x, kind, channels).unsqueeze(-1), channels, lambda rows: rows)

    return weight


def _batch_normalised(m: Any, x: Tensor) -> Tensor:
    by_batch = m.training or m.running_mean is None
    mean, var = (None, None) if by_batch else (m.running_mean, m.running_var)
    return functional.batch_norm(x, mean, var, training=by_batch, eps=m.eps)


def _instance_normalised(m: Any, x: Tensor) -> Tensor:
    by_input = m.training or not m.track_running_stats
    mean, var = (None, None) if by_input else (m.running_mean, m.running_var)
    return functional.instance_norm(x, mean, var, use_input_stats=by_input, eps=m.eps)


def _width(m: Any) -> int:
    return prod(m.normalized_shape)


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(False, lambda m: m.out_features, _linear),
    nn.Embedding: Kind(False, lambda m: m.embedding_dim, _embedding),
    _ConvTransposeNd: Kind(True, lambda m: m.out_channels, _transposed),
    _ConvNd: Kind(True, lambda m: m.out_channels, _convolution),
    nn.PReLU: Kind(True, lambda m: m.num_parameters, _scale(lambda m, x: x.clamp(max=0))),
    nn.LayerNorm: Kind(
        False, _width,
        _scale(lambda m, x: functional.layer_norm(x, m.normalized_shape, eps=m.eps)),
    ),
    nn.RMSNorm: Kind(
        False, _width,
        _scale(lambda m, x: functional.rms_norm(x, m.normalized_shape, eps=m.eps)),
    ),
    nn.GroupNorm: Kind(
        True, lambda m: m.num_channels,
        _scale(lambda m, x: functional.group_norm(x, m.num_groups, eps=m.eps)),
    ),
    _InstanceNorm: Kind(True, lambda m: m.num_features, _scale(_instance_normalised)),
    _BatchNorm: Kind(True, lambda m: m.num_features, _scale(_batch_normalised)),
}  # fmt: skip
"""Their parameters are a weight and a bias; what derives from a class comes before it."""
