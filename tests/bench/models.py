"""The models that are benchmarked, and data for them: random, from a seed."""

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


def mlp() -> nn.Sequential:
    """Make a perceptron of 3,466 parameters, 64 -> 32 -> 32 -> 10, in float64."""
    torch.manual_seed(0)
    layers = (nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return nn.Sequential(*layers).double()


def examples(count: int, features: int = 64, classes: int = 10) -> Batch:
    """Draw examples for the perceptron."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=rng, dtype=torch.float64)
    return x, torch.randint(classes, (count,), generator=rng)


class Block(nn.Module):
    """Attention to what came before and a perceptron, each behind its normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, width)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, t, width / heads)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.contract(functional.gelu(self.expand(self.norm2(x))))
        return out


class GPT(nn.Module):
    """A decoder of tokens in the style of GPT-2: 10,181,760 parameters with these defaults."""

    def __init__(
        self, words: int = 1000, length: int = 64, width: int = 320, blocks: int = 8, heads: int = 5
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        # The spread of GPT-2's weights; what reads the last layer is the embedding once more.
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:  # (n, t) -> (n, t, words)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.words(tokens) + self.places(at)))
        return functional.linear(x, self.words.weight)


def sentences(count: int, length: int = 64, words: int = 1000) -> Batch:
    """Draw tokens, and as targets the ones that follow them."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(words, (count, length + 1), generator=rng)
    return tokens[:, :-1], tokens[:, 1:]
