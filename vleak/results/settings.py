"""Record of the settings of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from vleak.results.base import Record

__all__ = ["SettingsRecord"]


class SettingsRecord(Record):
    """Settings of a run, resolved: two runs with equal settings give equal scores.

    ``public_from`` is None in runs from before there was a choice: public clips were of other files where
    there were enough, and otherwise also later parts of the attacked ones. ``audit_draws`` is None where the
    size of the model decides.
    """

    data: str
    pipeline: str
    model: str
    extractor: str
    head: str
    loss: str
    training_state: str
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    clips: int | None
    frames: int
    size: int
    stride: int
    segments: int
    public_from: Literal["other-files", "same-file"] | None = None
    reference_frames: tuple[int, ...]
    batch: tuple[int, ...] = (1,)
    mode: tuple[Literal["eval", "train"], ...] = ("eval",)
    trainable: str = "*"
    local_steps: tuple[int, ...] = (0,)
    local_epochs: tuple[int, ...] = (0,)
    local_batch: int = 0
    local_rate: float | None = None
    local_momentum: float = 0.0
    local_decay: float = 0.0
    local_optimizer: str = "sgd"
    rounds: tuple[int, ...] = (1,)
    participation: float = 1.0
    round_clips: Literal["same", "new"] = "same"
    enhance: str
    restarts: int
    iterations: int
    budget: int = 800
    non_adaptive: int = 0
    utility: int = 0
    audit_draws: int | None = 0
    quick: bool = False
    labels: Literal["inferred", "granted"]
    seed: int
    draw: int = 0
    device: str
    engine: str
    input_layout: str = "auto"
    checkpoint: str | None = None

    @field_validator("mode", mode="before")
    @classmethod
    def _modes(cls, mode: object) -> object:
        """A single mode, as it was written before several could be compared in one run."""
        return (mode,) if isinstance(mode, str) else mode
