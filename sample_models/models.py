"""The sample models that their specs name as `target: models:...`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the input added back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        h = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(h)))


class DigitsCNN(nn.Module):
    """Classify 8x8 digits, given as rows of 64 pixels, with a small residual network."""

    def __init__(self, channels: int = 16, blocks: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.head = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, 64) to logits (N, classes)."""
        h = functional.relu(self.bn(self.stem(x.view(-1, 1, 8, 8))))  # (N, C, 8, 8)
        h = functional.adaptive_avg_pool2d(self.blocks(h), 2)  # (N, C, 2, 2)
        logits: Tensor = self.head(h.flatten(1))
        return logits


class SelfAttention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to the same shape."""
        n, t, d = x.shape
        split = self.qkv(x).view(n, t, 3, self.heads, d // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, D / heads)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.proj(h.transpose(1, 2).reshape(n, t, d))
        return mixed


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(), down)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, D) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed


class ModularTransformer(nn.Module):
    """Add modulo a prime: from the tokens `a b =` to the class (a + b) mod p."""

    def __init__(self, p: int = 31, n_layer: int = 1, n_head: int = 4, n_embd: int = 32) -> None:
        super().__init__()
        self.wte = nn.Embedding(p + 1, n_embd)  # the numbers 0..p-1, and p for "="
        self.wpe = nn.Embedding(3, n_embd)
        self.h = nn.Sequential(*(TransformerBlock(n_embd, n_head) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, p, bias=False)
        for weight in self.parameters():
            if weight.ndim >= 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, 3) to logits (N, p), read at the last position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.h(self.wte(tokens) + self.wpe(positions))  # (N, 3, D)
        logits: Tensor = self.lm_head(self.ln_f(x[:, -1]))
        return logits


class ScaledTanhFunction(torch.autograd.Function):
    """LeCun's activation 1.7159 tanh(2x/3), with a wrong derivative.

    Wrong on purpose, and in a way that people are: with y = A tanh(S x), dy/dx = S (A - y^2 / A),
    but the constants were rounded to two digits when the backward was written. It is 2 % off where
    the unit is linear and 8 % where it saturates, and training works all the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the activation."""
        y = 1.7159 * torch.tanh(2.0 / 3.0 * x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """Return the gradient with respect to the input."""
        (y,) = ctx.saved_tensors
        grad_input: Tensor = grad_output * 0.66 * (1.7 - y * y / 1.7)
        return grad_input


class ScaledTanh(nn.Module):
    """The activation of `ScaledTanhFunction` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to every element."""
        y: Tensor = ScaledTanhFunction.apply(x)  # type: ignore[no-untyped-call]
        return y


class BrokenMLP(nn.Module):
    """Classify digits with two hidden layers, the second of which has a wrong backward."""

    def __init__(self, width: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, width)
        self.act1 = nn.Tanh()
        self.fc2 = nn.Linear(width, width)
        self.act2 = ScaledTanh()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, 64) to logits (N, classes)."""
        h = self.act1(self.fc1(x))
        logits: Tensor = self.head(self.act2(self.fc2(h)))
        return logits
