"""Honest models for checks of models: the built-in networks, small, and one with rectified linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.models import build_model, train
from vleak.models.classifiers import initialise
from vleak.seeds import generator

NETWORKS = (
    "c3d_tiny",
    "c3d_tiny_pool",
    "lrcn:width=32",
    "r3d_18:width=8",
    "mc3_18:width=8",
    "r2plus1d_18:width=8",
    "s3d:width=8",
    "x3d_s:width=8",
    "slowfast:width=8",
    "vit_tubelet:width=32,depth=2,heads=2,patch=4",
    "vit_factorised:width=32,depth=2,heads=2,patch=4",
    "cnn_gru:width=16",
)
"""Built-in networks, as narrow as keeps their kind."""

RECTIFIED = "c3d with rectified linear layers"


class RectifiedC3d(nn.Module):
    """Convolutions and two rectified linear layers before the last, as C3D has them (arXiv 1412.0767)."""

    def __init__(self, frames: int, size: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(3, 16, 3, stride=(1, 2, 2), padding=1), nn.ReLU(),
            nn.Conv3d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        positions = (frames + 1) // 2 * ((size + 3) // 4) ** 2
        self.fc6, self.fc7 = nn.Linear(32 * positions, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to logits (N, classes)."""
        x = self.fc6(self.features(clips * 2 - 1).flatten(1)).relu()
        return self.head(self.fc7(x).relu())


def honest_model(name: str, clips: Tensor, classes: int, seed: int) -> nn.Module:
    """Return an untrained model for clips (N, 3, T, H, W)."""
    frames, size = clips.shape[2], clips.shape[3]
    if name != RECTIFIED:
        return build_model(name, frames=frames, size=size, classes=classes, seed=seed)
    with torch.device("meta"):
        model = RectifiedC3d(frames, size, classes)
    model = model.to_empty(device="cpu")
    initialise(model, generator(seed, "honest"))
    return model.eval()


def trained_on(model: nn.Module, clips: Tensor, labels: Tensor, steps: int, seed: int, mode: str) -> None:
    """Train a model in place with Adam; in mode "train" batch norm takes its statistics from the batches."""
    if mode == "eval":
        return train(model, clips, labels, steps, generator(seed, "training"))
    numbers, optimiser = generator(seed, "training"), torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for module in model.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    for _ in range(steps):
        batch = torch.randperm(len(clips), generator=numbers)[:16]
        optimiser.zero_grad()
        F.cross_entropy(model(clips[batch]), labels[batch]).backward()
        optimiser.step()
    optimiser.zero_grad()
    model.eval()
    return None
