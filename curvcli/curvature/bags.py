"""Bags of embeddings by an embedding and a reduction, which can be differentiated twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def bagged(
    m: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Compute what an nn.EmbeddingBag computes: (bags, width)."""
    places, count = _bags(m, input, offsets)
    words = input.reshape(-1).long()
    weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    if m.padding_idx is not None:  # these are in no bag
        counts = words != m.padding_idx
        words, places = words[counts], places[counts]
        weights = None if weights is None else weights[counts]
    rows = functional.embedding(words, m.weight)  # (words, width)
    if m.mode == "max":
        return _largest(rows, places, count)
    rows = rows if weights is None else rows * weights.unsqueeze(1)
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, places, rows)
    if m.mode == "sum":
        return sums
    sizes = torch.bincount(places, minlength=count).clamp_min(1)
    return sums / sizes.unsqueeze(1).to(sums.dtype)


def _bags(m: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None) -> tuple[Tensor, int]:
    """Say which bag each word is in, and how many there are."""
    if input.ndim == 2:
        count, length = input.shape
        return torch.arange(count, device=input.device).repeat_interleave(length), count
    assert offsets is not None
    starts = offsets.long()
    ends = starts[1:] if m.include_last_offset else None
    if ends is None:
        ends = torch.cat([starts[1:], starts.new_tensor([input.numel()])])
    else:
        starts = starts[:-1]
    bags = torch.arange(len(starts), device=input.device)
    return bags.repeat_interleave(ends - starts), len(starts)


def _largest(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Take the largest entry of every bag, 0 where it is empty."""
    sizes = torch.bincount(places, minlength=count)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(len(places), device=places.device) - starts[places]
    longest = int(sizes.max()) if len(sizes) else 0
    if longest == 0:
        return rows.new_zeros(count, rows.shape[1])
    table = rows.new_full((count, longest, rows.shape[1]), -torch.inf)
    table = table.index_put((places, within), rows)
    largest = table.max(dim=1).values
    return largest.masked_fill((sizes == 0).unsqueeze(1), 0.0)
