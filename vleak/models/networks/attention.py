"""Parts of transformers on clips: attention from plain products, blocks, adapters of low rank, positions.

Attention is written as two products and a softmax, because fused attention has no second derivative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import InputError
from vleak.models.classifiers import check_range

__all__ = [
    "Attention",
    "Block",
    "LoraLinear",
    "Mlp",
    "adapt_low_rank",
    "check_width",
    "draw_attention",
    "sine_positions",
]


class LoraLinear(nn.Linear):
    """Linear layer with an adapter of low rank beside its weight: LoRA (ICLR 2022, arXiv 2106.09685).

    The names of its own weight and bias are those of a plain layer, so that a checkpoint without adapters
    fits. Without an adapter it is a plain layer.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rank: int = 0) -> None:
        """Build the layer with an adapter of a rank, 0 for none; alpha / rank of the paper is 1."""
        super().__init__(inputs, outputs, bias=bias)
        self.rank = rank
        if rank:
            self.lora_a = nn.Parameter(torch.zeros(rank, inputs))
            self.lora_b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return what a plain layer does, plus what the adapter adds."""
        plain = super().forward(x)
        return plain + F.linear(F.linear(x, self.lora_a), self.lora_b) if self.rank else plain


def adapt_low_rank(network: nn.Module, *, head: nn.Module | None = None) -> None:
    """Freeze a network but for its adapters of low rank, and for a head where one is given."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith(("lora_a", "lora_b")))
    if head is not None:
        head.requires_grad_(True)


class Attention(nn.Module):
    """Attention of several heads among the rows of a sequence (Vaswani et al., 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, key_bias: bool, rank: int = 0) -> None:
        """Build the projections.

        Args:
            width: numbers a row, a multiple of `heads`.
            heads: how many.
            key_bias: whether keys have a bias. Where they have none (BEiT, arXiv 2106.08254, and VideoMAE)
                those of queries and values are tensors of their own.
            rank: of the adapters, 0 for none.
        """
        super().__init__()
        self.heads, self.key_bias = heads, key_bias
        self.qkv = LoraLinear(width, 3 * width, bias=key_bias, rank=rank)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = LoraLinear(width, width, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows (..., S, width) of rows (..., S, width)."""
        mixed = self.qkv(x)
        if not self.key_bias:
            mixed = mixed + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = mixed.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        query, key, value = parts.unbind(0)  # (..., heads, S, width / heads)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        rows = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)
        projected: Tensor = self.proj(rows)
        return projected


def draw_attention(module: nn.Module, generator: torch.Generator) -> None:
    """Draw what attention has beside plain layers: adapters, and biases of their own; leave the rest alone.

    The second factor of an adapter is 0 at first, as published, so that it changes nothing.
    """
    if isinstance(module, LoraLinear) and module.rank:
        bound = 1 / math.sqrt(module.in_features)
        nn.init.uniform_(module.lora_a, -bound, bound, generator=generator)
        nn.init.zeros_(module.lora_b)
    elif isinstance(module, Attention) and not module.key_bias:
        nn.init.zeros_(module.q_bias)
        nn.init.zeros_(module.v_bias)


class Mlp(nn.Module):
    """Two linear layers with GELU between them, on every row by itself."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        """Build the layers; the one inside is `ratio` times as wide."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows (..., width) of rows (..., width)."""
        rows: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return rows


class Block(nn.Module):
    """Block of a transformer with the normalisation before each part (ViT, arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int, *, key_bias: bool, rank: int = 0) -> None:
        """Build attention and MLP; arguments as for `Attention`."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, key_bias=key_bias, rank=rank)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows (..., S, width) of rows (..., S, width)."""
        x = x + self.attn(self.norm1(x))
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows


def check_width(width: int, depth: int, heads: int, rank: int) -> None:
    """Check the settings that all transformers have.

    Raises:
        InputError: one is out of range, or the width is no multiple of the heads.
    """
    check_range("width", width, 4096)
    check_range("depth", depth, 64)
    check_range("heads", heads, 64)
    check_range("lora", rank, 256, low=0)
    if width % heads:
        raise InputError(f"width is {width} with {heads} heads, expected a multiple of the heads; change one")


def sine_positions(rows: int, width: int) -> Tensor:
    """Return sines and cosines (rows, width) of the place in a sequence (arXiv 1706.03762), on the CPU."""
    places = torch.arange(rows, dtype=torch.float64, device="cpu")[:, None]
    pairs = torch.arange(width, device="cpu") // 2
    angles = places / 10000 ** (2 * pairs.double() / width)
    even = torch.arange(width, device="cpu") % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()
