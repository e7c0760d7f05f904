"""Runs behind docs/what_decides.md: one factor at a time around two networks, and the peers on some."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from breaching_attack import Breaching

from vleak.attacks import Attack

SMALL = "c3d_tiny"
RESIDUAL = "r3d_18:width=16"
TUBELETS = "vit_tubelet:width=96,depth=4,heads=3,patch=8"
LOCAL_RATE = 0.01
"""Of the SGD of a client that trains before it sends."""
CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a client does, of undefended clients.

    Attributes:
        network: as ``--model`` takes it.
        size: height and width of its clips of 8 frames, in pixels.
        state: of training: "untrained", "early" or "late".
        mode: "eval" or "train".
        batch: clips a client.
        local_steps: before it sends a delta; 0 for the gradient.
    """

    network: str = SMALL
    size: int = 32
    state: str = "untrained"
    mode: str = "eval"
    batch: int = 1
    local_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: a setting, the attack on it, and what is granted.

    Attributes:
        peer: configuration of breaching; None for the default attack.
        iterations: of the peer.
        clips: how many are attacked.
        labels: "inferred" or "granted".
    """

    setting: Setting
    peer: str | None = None
    iterations: int = 0
    clips: int = CLIPS
    labels: str = "inferred"

    @property
    def folder(self) -> str:
        """Name of the run's folder; it is written and never parsed."""
        s = self.setting
        parts = (s.network, f"8x{s.size}", s.state, s.mode, f"batch{s.batch}", f"steps{s.local_steps}")
        attack = "default" if self.peer is None else f"{self.peer}-{self.iterations}"
        text = "_".join((*parts, self.labels, f"{self.clips}clips", attack))
        return "".join(c if c.isalnum() or c in "_-" else "-" for c in text)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `vleak.evaluate`, without data, seed and folder."""
        s, attacks = self.setting, list[Attack]()
        if self.peer is not None:
            attacks = [Breaching(config=self.peer, iterations=self.iterations)]
        return {
            "model": s.network, "training_state": s.state, "size": s.size, "mode": s.mode, "batch": s.batch,
            "local_steps": s.local_steps, "local_rate": LOCAL_RATE if s.local_steps else None,
            "clips": self.clips, "labels": self.labels, "defenses": "none", "enhance": "none",
            "attacks": attacks or None,
        }  # fmt: skip


def matrix() -> dict[str, list[Setting]]:
    """Return the settings by what is varied; a setting that stands under several headings is one run."""
    small, residual, tubelets = (Setting(network=name) for name in (SMALL, RESIDUAL, TUBELETS))
    others = ("lrcn", "cnn_gru", "x3d_s:width=12")
    return {
        "Network": [small, residual, tubelets, *(Setting(network=name) for name in others)],
        "Training state": [
            *(replace(small, state=state) for state in ("untrained", "early", "late")),
            *(replace(residual, state=state) for state in ("untrained", "early", "late")),
        ],
        "Resolution": [
            *(replace(small, size=size) for size in (32, 64)),
            *(
                replace(network, size=size, state=state)
                for network in (residual, tubelets)
                for size, state in ((32, "untrained"), (64, "untrained"), (64, "early"))
            ),
        ],
        "Mode": [replace(residual, mode=mode) for mode in ("eval", "train")],
        "Batch": [
            *(replace(small, batch=batch) for batch in (1, 4, 8)),
            *(replace(residual, batch=batch) for batch in (1, 4)),
        ],
        "Local steps": [replace(small, local_steps=steps) for steps in (0, 1, 5)],
        "All together, as in use": [
            replace(small, state="early", batch=8, local_steps=5),
            replace(residual, state="early", batch=8, mode="train"),
        ],
    }


def peers() -> list[tuple[Work, list[Work]]]:
    """Return the default attack and the peers on the same clips with the same labels, setting by setting."""

    def compared(
        setting: Setting, configs: tuple[str, ...], clips: int, iterations: int
    ) -> tuple[Work, list[Work]]:
        ours = Work(setting=setting, clips=clips, labels="granted")
        return ours, [replace(ours, peer=config, iterations=iterations) for config in configs]

    published = ("invertinggradients", "modern", "seethroughgradients")
    # So many iterations are about ten times the CPU time of the default attack, trials included.
    return [
        compared(Setting(), published, 8, 1_200),
        compared(Setting(state="early"), published[:2], 8, 1_200),
        compared(Setting(network=RESIDUAL), published[:2], 4, 800),
        compared(Setting(network=TUBELETS, size=64), published[:2], 4, 1_200),
    ]


def works() -> list[Work]:
    """Return all runs, each once: those of the matrix, then those that are compared with the peers."""
    own = [Work(setting=setting) for settings in matrix().values() for setting in settings]
    compared = [work for ours, theirs in peers() for work in (ours, *theirs)]
    return list(dict.fromkeys((*own, *compared)))
