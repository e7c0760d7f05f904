"""Record of an audit: lower bounds on the epsilon of what a defense sends, beside the one that it claims."""

from __future__ import annotations

from pydantic import Field

from vleak.results.base import Finite, Record

__all__ = ["AuditBound", "AuditRecord"]


class AuditBound(Record):
    """Lower bound on epsilon from one canary.

    Attributes:
        canary: "own clip", or an orthogonal gradient and its norm.
        norm: of its gradient, in clipping norms.
        method: of the bound. assumes: what has to hold of the mechanism for it.
        epsilon: in nats, for the canary replaced by zero; None where it is infinite.
    """

    canary: str
    norm: Finite
    method: str
    assumes: str
    epsilon: Finite | None


class AuditRecord(Record):
    """Audit of what one defense sends of one model: one release, a gradient in mode "eval".

    Attributes:
        pipeline, model: as in `Cell`.
        defense: label of the defense. text: as `DefenseRecord.text`.
        claimed: epsilon of one release, for a unit that is replaced by zero. delta: of all epsilons here.
        unit: what is protected.
        epsilon: largest of the lower bounds; None where it is infinite, or nothing was audited.
        method, canary: of that bound.
        bounds: all of them.
        confidence: of all audits of the run together: one minus the chance that an honest defense is accused.
        own_confidence: of this audit.
        draws: messages with the canaries, and as many without.
        e_value: evidence against the claim by the same messages. e_limit: from which on it refutes it.
        e_claim: against which claim the evidence is strongest: a canary's name for the trade-off curve, or
            "noise" for the deviation that the channel states.
        searchable: whether the noise can be searched through, as it depends on 32 bits of a seed alone;
            epsilon supposes that nobody does.
        refuted: whether a bound is above the claim, or the e-value at its limit.
        status: "ok", or "not audited: " and the reason.
    """

    pipeline: str
    model: str
    defense: str
    text: str
    claimed: Finite | None = None
    delta: Finite | None = None
    unit: str | None = None
    epsilon: Finite | None = None
    method: str | None = None
    canary: str | None = None
    bounds: tuple[AuditBound, ...] = ()
    confidence: Finite = Field(gt=0, lt=1)
    own_confidence: Finite = Field(gt=0, lt=1)
    draws: int = Field(default=0, ge=0)
    e_value: Finite | None = None
    e_limit: Finite | None = None
    e_claim: str | None = None
    searchable: bool | None = None
    refuted: bool = False
    status: str = Field(default="ok", pattern=r"^(ok$|not audited: )")

    @property
    def ok(self) -> bool:
        """Whether the defense was audited."""
        return self.status == "ok"
