"""Transformers that attend to space and to time by turns: TimeSformer (ICML 2021) and ViViT (ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vleak.errors import unknown_name
from vleak.models.classifiers import check_range
from vleak.models.networks.attention import Attention, Block, adapt_low_rank, check_width, draw_attention
from vleak.models.networks.base import HALF, Network, check_clip, transformer_weights

__all__ = ["DividedVit", "FactorisedVit", "vit_factorised"]

_KINDS = ("divided", "encoder")


def vit_factorised(
    frames: int,
    size: int,
    classes: int,
    *,
    attention: str = "divided",
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    tubelet: int = 1,
    patch: int = 16,
    time_depth: int = 4,
    lora: int = 0,
    lora_head: bool = False,
) -> Network:
    """TimeSformer-B (ICML 2021, arXiv 2102.05095); with ``attention=encoder`` ViViT (arXiv 2103.15691).

    Frames and pixels that fill no tubelet are not looked at.

    Args:
        frames, size: T, and height and width, of the clips.
        classes: number of logits.
        attention: "divided": every block attends over time, then over space. "encoder": blocks attend within
            a time, further ones to what they found at every time; published with ``tubelet=2``.
        width: numbers a tubelet, a multiple of `heads`.
        depth, heads: blocks, and heads of each.
        tubelet, patch: frames, and height and width, of a tubelet.
        time_depth: blocks over time, for "encoder" alone.
        lora: rank of the adapters on the projections of the attention; all else is frozen then. 0 for none.
        lora_head: whether the last layer is trained beside the adapters.

    Raises:
        InputError: a setting is out of range, or the clip is smaller than a tubelet.
    """
    if attention not in _KINDS:
        raise unknown_name("attention", attention, _KINDS)
    check_width(width, depth, heads, lora)
    check_range("tubelet", tubelet, 64)
    check_range("patch", patch, 256)
    check_range("time_depth", time_depth, 64)
    check_clip("vit_factorised", frames, size, least_frames=tubelet, least_size=patch)
    shape, grid = (tubelet, patch, patch), (frames // tubelet, (size // patch) ** 2)
    network: DividedVit | FactorisedVit
    if attention == "divided":
        blocks = [_DividedBlock(width, heads, rank=lora) for _ in range(depth)]
        network = DividedVit(shape, grid, width, classes, blocks)
    else:
        both = [
            [Block(width, heads, key_bias=True, rank=lora) for _ in range(n)] for n in (depth, time_depth)
        ]
        network = FactorisedVit(shape, grid, width, classes, (both[0], both[1]))
    if lora:
        adapt_low_rank(network, head=network.head if lora_head else None)
    return network


class DividedVit(Network):
    """TimeSformer: every block attends over time, then over space (Bertasius et al., arXiv 2102.05095).

    The tensors of its state dict have the names of TimeSformer's checkpoints.
    """

    statistics = HALF

    def __init__(
        self,
        shape: tuple[int, int, int],
        grid: tuple[int, int],
        width: int,
        classes: int,
        blocks: list[_DividedBlock],
    ) -> None:
        """Take the blocks; `shape` is that of a tubelet, `grid` has the times and the places of a time."""
        super().__init__()
        times, places = grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, shape, stride=shape)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, width))
        self.time_embed = nn.Parameter(torch.zeros(1, times, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        rows = self.patch_embed["proj"](self.normalised(clips)).flatten(3).permute(0, 2, 3, 1)
        rows = rows + self.pos_embed[:, None, 1:] + self.time_embed[:, :, None]  # (N, times, places, width)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(clips), -1, -1)
        for block in self.blocks:
            token, rows = block(token, rows)
        logits: Tensor = self.head(self.norm(token[:, 0]))
        return logits

    def draw(self, generator: torch.Generator) -> None:
        """Draw as TimeSformer does: attention over time begins as nothing but in the first block."""
        super().draw(generator)
        nn.init.trunc_normal_(self.cls_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.zeros_(self.time_embed)
        for block in self.blocks[1:]:
            nn.init.zeros_(block.get_parameter("temporal_fc.weight"))

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw as ViT does."""
        transformer_weights(module, generator)
        draw_attention(module, generator)


class _DividedBlock(Block):
    """Block that attends over time at every place, then over space at every time."""

    def __init__(self, width: int, heads: int, *, rank: int) -> None:
        super().__init__(width, heads, key_bias=True, rank=rank)
        self.temporal_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attn = Attention(width, heads, key_bias=True, rank=rank)
        self.temporal_fc = nn.Linear(width, width)

    def forward(self, token: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return token (N, 1, width) and rows (N, times, places, width) of such."""
        over_time = self.temporal_attn(self.temporal_norm1(rows.transpose(1, 2)))
        rows = rows + self.temporal_fc(over_time).transpose(1, 2)
        tokens = token[:, None].expand(-1, rows.shape[1], -1, -1)
        over_space = self.attn(self.norm1(torch.cat([tokens, rows], 2)))
        token, rows = token + over_space[:, :, 0].mean(1, keepdim=True), rows + over_space[:, :, 1:]
        return token + self.mlp(self.norm2(token)), rows + self.mlp(self.norm2(rows))


class FactorisedVit(Network):
    """ViViT's factorised encoder: space at every time first, then time (Arnab et al., arXiv 2103.15691)."""

    statistics = HALF

    def __init__(
        self,
        shape: tuple[int, int, int],
        grid: tuple[int, int],
        width: int,
        classes: int,
        blocks: tuple[list[Block], list[Block]],
    ) -> None:
        """Take the blocks over space and over time; `shape` and `grid` as for `DividedVit`."""
        super().__init__()
        times, places = grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, shape, stride=shape)})
        self.space = _Encoder(places, width, blocks[0])
        self.time = _Encoder(times, width, blocks[1])
        self.head = nn.Linear(width, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        rows = self.patch_embed["proj"](self.normalised(clips)).flatten(3).permute(0, 2, 3, 1)
        of_times = self.space(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        logits: Tensor = self.head(self.time(of_times))
        return logits

    def draw_layer(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw as ViT does."""
        transformer_weights(module, generator)
        draw_attention(module, generator)
        if isinstance(module, _Encoder):
            nn.init.trunc_normal_(module.token, std=0.02, generator=generator)
            nn.init.trunc_normal_(module.positions, std=0.02, generator=generator)


class _Encoder(nn.Module):
    """Transformer that sums a sequence up in a token of its own."""

    def __init__(self, rows: int, width: int, blocks: list[Block]) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + rows, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, rows: Tensor) -> Tensor:
        rows = torch.cat([self.token.expand(len(rows), -1, -1), rows], 1) + self.positions
        summary: Tensor = self.norm(self.blocks(rows)[:, 0])
        return summary
