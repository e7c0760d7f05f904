"""Transformer on one sequence of tubelets, as VideoMAE has it (NeurIPS 2022, arXiv 2203.12602)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vleak.models.classifiers import check_range
from vleak.models.networks.attention import (
    Block,
    adapt_low_rank,
    check_width,
    draw_attention,
    sine_positions,
)
from vleak.models.networks.base import IMAGENET, Network, check_clip, transformer_weights

__all__ = ["TubeletVit"]


class TubeletVit(Network):
    """VideoMAE's ViT-S: tubelets, sine positions, joint attention (NeurIPS 2022, arXiv 2203.12602).

    ``width=768,heads=12`` is ViT-B. Frames and pixels that fill no tubelet are not looked at. The tensors of
    its state dict have the names of VideoMAE's fine-tuned checkpoints.
    """

    statistics = IMAGENET

    def __init__(
        self,
        frames: int,
        size: int,
        classes: int,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        tubelet: int = 2,
        patch: int = 16,
        lora: int = 0,
        lora_head: bool = False,
    ) -> None:
        """Build the layers for clips (3, frames, size, size).

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: numbers a tubelet, a multiple of `heads`.
            depth, heads: blocks, and heads of each.
            tubelet, patch: frames, and height and width, of a tubelet.
            lora: rank of the adapters on the projections of the attention; all else is frozen then. 0 for
                none.
            lora_head: whether the last layer is trained beside the adapters.

        Raises:
            InputError: a setting is out of range, or the clip is smaller than a tubelet.
        """
        check_width(width, depth, heads, lora)
        check_range("tubelet", tubelet, 64)
        check_range("patch", patch, 256)
        check_clip("vit_tubelet", frames, size, least_frames=tubelet, least_size=patch)
        self.rows, self.width = (frames // tubelet) * (size // patch) ** 2, width
        super().__init__()
        shape = (tubelet, patch, patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, shape, stride=shape)})
        blocks = [Block(width, heads, key_bias=False, rank=lora) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        if lora:
            adapt_low_rank(self, head=self.head if lora_head else None)

    def constants(self) -> dict[str, Tensor]:
        """Colours, and the positions of the tubelets (rows, width)."""
        return {**super().constants(), "positions": sine_positions(self.rows, self.width)}

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        rows = self.patch_embed["proj"](self.normalised(clips)).flatten(2).transpose(1, 2)
        rows = self.blocks(rows + self.positions)
        logits: Tensor = self.head(self.fc_norm(rows.mean(1)))
        return logits

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw as VideoMAE does."""
        transformer_weights(module, generator)
        draw_attention(module, generator)
