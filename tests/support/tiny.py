"""Tiny video models and batches that several test files share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.seeds import generator


class Conv(nn.Module):
    """3-D CNN with padding that Opacus' hooks get wrong, dropout, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1, padding_mode="circular")
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 2 * 4 * 4, 5)
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.drop(F.max_pool3d(self.conv(clips).relu(), 2)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3 * 8 * 8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.lstm(clips.transpose(1, 2).flatten(2))[0][:, -1])


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = lambda width: nn.GroupNorm(2, width)) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3, padding=1, bias=False)
        self.norm = norm(4)
        self.block = nn.Conv3d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, clips: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(clips)), inplace=True)
        x = x + self.block(x).relu()
        return self.head(x.mean((2, 3, 4)))


def build(model: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with weights from a generator of its own, leaving the global state alone."""
    with torch.random.fork_rng(devices=[]):
        made = model()
    random_numbers = generator("weights")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random_numbers))
    return made


def batch(clips: int = 3) -> tuple[Tensor, Tensor]:
    numbers = generator("batch", clips)
    return torch.rand(clips, 3, 4, 8, 8, generator=numbers), torch.randint(5, (clips,), generator=numbers)
