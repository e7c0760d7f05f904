"""Record of the attacker who does not know the defense, beside the one of a cell who does."""

from __future__ import annotations

from pydantic import Field

from vleak.results.base import Finite, Record

__all__ = ["NonAdaptiveRecord"]


class NonAdaptiveRecord(Record):
    """What the same attack gets out of the same message where it takes it for an undefended one.

    Attributes:
        psnr_db, psnr_gain_db, ssim, identified, label_correct: as in `Scores`.
        method: as in `AttackRecord`; of an attack that chooses, what it chooses without a defense.
        iterations: of all restarts together. seconds: wall time.
        status: "ok", or "failed: " and the reason.
    """

    psnr_db: Finite | None = None
    psnr_gain_db: Finite | None = None
    ssim: Finite | None = None
    identified: bool = False
    label_correct: bool | None = None
    method: str | None = None
    iterations: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    status: str = Field(default="ok", pattern=r"^(ok$|failed: )")

    @property
    def ok(self) -> bool:
        """Whether it was scored."""
        return self.status == "ok"
