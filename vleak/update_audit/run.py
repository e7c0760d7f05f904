"""Audit of a captured update: is it what it is said to be, what does it leak, and what would have helped."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vleak.attacks import Attack
from vleak.attacks.expectation import prior_answer
from vleak.defenses import NoDefense, parse_defenses
from vleak.errors import InputError, argument
from vleak.evaluation.objects import ModuleLike
from vleak.federated import Defense, LocalTraining, PublicFacts
from vleak.federated.captured import Arrays
from vleak.models import read_layout
from vleak.update_audit.attacking import (
    Answer,
    Clock,
    Progress,
    attack_captured,
    attacks_of,
    rehearse,
    try_defense,
)
from vleak.update_audit.consistency import Dummies, check_all, dummies_of, inferred
from vleak.update_audit.detection import detection_of, facts_of
from vleak.update_audit.evidence import best_of, confidence_of, frames_of, layers_of, measured_of
from vleak.update_audit.given import Given, Source, read_given
from vleak.update_audit.payloads import Kind
from vleak.update_audit.records import (
    AttackRun,
    AuditRecord,
    Budget,
    Check,
    DefenseTrial,
    Rehearsal,
    UpdateFacts,
)
from vleak.update_audit.setup import Setup, check_counts, check_shape, clips_of, model_of, public_clips
from vleak.update_audit.several import named, progress_of, read_together
from vleak.update_audit.verdict import pointers, risk_of

__all__ = ["DEFENSES_TRIED", "Audit", "audit", "audit_each"]

DEFENSES_TRIED = ("dp:noise_multiplier=0.5", "prune:fraction=0.99", "compress:codec=qsgd,bits=4")
"""Defenses that are tried on a dummy where none are asked for."""
_REHEARSALS = 2
_PUBLIC = 48


@dataclass(frozen=True)
class Audit:
    """Outcome of an audit.

    Attributes:
        record: everything that its JSON holds.
        clips: (B, C, T, H, W) in [0, 1], what was rebuilt; None where nothing was.
        prior: (B, C, T, H, W), the answer without the update.
    """

    record: AuditRecord
    clips: Tensor | None
    prior: Tensor

    @property
    def risk(self) -> str:
        """Level of the risk, a key of `RISK_SCALE`."""
        return self.record.risk.level

    def to_json(self) -> str:
        """JSON of the record; its schema is docs/schema/audit-1.json."""
        return json.dumps(self.record.content(), indent=1, ensure_ascii=False, allow_nan=False)


def audit(
    model: ModuleLike,
    update: Source,
    *,
    input_shape: Sequence[int],
    classes: int | None = None,
    checkpoint: str | Path | None = None,
    input_layout: str = "auto",
    before: nn.Module | Arrays | str | Path | None = None,
    kind: Kind = "auto",
    batch_size: int = 1,
    mode: Literal["eval", "train"] = "eval",
    local: LocalTraining | None = None,
    partial: bool = False,
    defense: str | Defense = "none",
    public: str | Tensor = "synthetic",
    attacks: Sequence[str | Attack] = ("matching", "strongest"),
    defenses: Sequence[str | Defense] = DEFENSES_TRIED,
    starts: int = 2,
    iterations: int = 100,
    seconds: float = 300.0,
    truth: str | Path | Tensor | None = None,
    candidates: str | Path | Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Audit an update that was captured; no private clip is needed.

    First whether the update fits its model and its facts, beside updates of dummies; then the attacks, in
    a budget; then the same attack on dummies, where the truth is known, and on dummies behind defenses.

    Args:
        model: with the weights that the client was sent: a name, "package.module:factory", a module or a
            factory.
        update: what was captured: an `Update`, tensors by name or in order (Flower), a DXO (NVFlare), or a
            safetensors, .npz or torch file of one of them. Nothing is unpickled.
        input_shape: (C, T, H, W) of a clip.
        classes: that a factory is told; needed for models of vleak's own.
        checkpoint: file with the weights of the model.
        input_layout: in which the model takes clips; "auto" finds it out.
        before: weights that the client started from, where they are not those of the model.
        kind: what `update` holds: "gradient", "delta", "weights", or "auto" (`read_given`).
        batch_size: clips behind the update.
        mode: of the model in the client.
        local: how the client trained, of a delta or of weights.
        partial: whether parameters may be missing.
        defense: that the client uses, as far as the attacker knows; "none" without one.
        public: clips that the attacker holds: a data source, or clips (M, C, T, H, W) in [0, 1].
        attacks: names or instances; the first is started `starts` times, and tried on dummies. With none the
            update is only compared with dummies, and no risk is judged.
        defenses: that are tried on a dummy.
        starts: independent starts of the first attack, whose agreement is the attacker's confidence.
        iterations: of one descent, from 10.
        seconds: of all attacks together, from 1. The attack under way stops; what is left is named.
        truth: clips behind the update, where they are known: scores are added. Attacks never see them.
        candidates: clips among which the truth is to be recognised; public ones where there are none.
        seed: of everything that is drawn.
        progress: called as (what, parts done, parts in all).

    Returns:
        the record, and what was rebuilt.

    Raises:
        InputError: something given cannot be used, or does not belong together; names what and what to do.
        CapabilityError: the model has no second derivative.
    """
    asked = {name: value for name, value in locals().items() if name != "update"}
    (prepared,) = _prepared([update], **asked)
    return prepared.run()


def audit_each(model: ModuleLike, updates: Sequence[Source], **settings: Any) -> list[Audit]:
    """Audit several updates of one client and model, each by itself and with the same settings.

    All are read and checked before the first is attacked. The seed is the same for each, and `seconds` are
    for each.

    Args:
        model: as of `audit`.
        updates: messages of the client; all from the same weights, those of the model or of `before`.
        settings: further arguments of `audit`.

    Returns:
        the audits, in the order of the updates.

    Raises:
        InputError: as of `audit`; or two updates are equal, or they are of different models.
        CapabilityError: the model has no second derivative.
    """
    asked = inspect.signature(audit).bind(model, None, **settings)
    asked.apply_defaults()
    prepared = _prepared(updates, **{n: v for n, v in asked.arguments.items() if n != "update"})
    made = []
    for each in prepared:
        with named(each.given.source, len(prepared)):
            made.append(each.run())
    return made


def _prepared(
    updates: Sequence[Source],
    *,
    model: ModuleLike,
    input_shape: Sequence[int],
    classes: int | None,
    checkpoint: str | Path | None,
    input_layout: str,
    before: nn.Module | Arrays | str | Path | None,
    kind: Kind,
    batch_size: int,
    mode: Literal["eval", "train"],
    local: LocalTraining | None,
    partial: bool,
    defense: str | Defense,
    public: str | Tensor,
    attacks: Sequence[str | Attack],
    defenses: Sequence[str | Defense],
    starts: int,
    iterations: int,
    seconds: float,
    truth: str | Path | Tensor | None,
    candidates: str | Path | Tensor | None,
    seed: int,
    progress: Progress | None,
) -> list[_Auditing]:
    """Return audits of which everything is read and checked; arguments as of `audit`."""
    shape, clock = check_shape(input_shape), Clock(iterations, seconds, progress)
    if starts < 1:
        raise InputError(f"{argument('starts', starts)}: expected a whole number from 1")
    chosen, tried = attacks_of(list(attacks), iterations), _defenses(defenses)
    check_counts(shape, batch_size, classes)
    facts = PublicFacts("fedsgd" if local is None else "fedavg", batch_size, "cross_entropy", mode, local)
    built, name, logits = model_of(
        model, shape, classes=classes, checkpoint=None if checkpoint is None else str(checkpoint),
        layout=read_layout(input_layout), seed=seed,
    )  # fmt: skip
    found = read_together(
        updates, lambda each: read_given(each, built.module, facts, kind=kind, before=before, partial=partial)
    )
    held, groups, told = public_clips(public, shape, _PUBLIC, seed)
    others = None if candidates is None else clips_of("candidates", candidates, shape)
    start, client = found[0].model, _stated(defense)
    made = []
    for index, given in enumerate(found):
        setup = Setup(start, name, given.update, shape, logits, held, groups, told, client, seed)
        with named(given.source, len(found)):
            setup.observe(setup.update, setup.client()).check()
            truths = None if truth is None else _truths(truth, setup)
        shown = replace(clock, progress=progress_of(progress, given.source, index, len(found)), skipped=[])
        made.append(_Auditing(setup, given, chosen, tried, starts, shown, built.notes, truths, others))
    return made


def _defenses(names: Sequence[str | Defense]) -> list[Defense]:
    return [d for name in names for d in (parse_defenses(name) if isinstance(name, str) else [name])]


def _stated(defense: str | Defense) -> Defense:
    """Return the client's own defense, of one strength."""
    if not isinstance(defense, str):
        return defense
    found = parse_defenses(defense)
    if len(found) != 1:
        raise InputError(
            f"{argument('defense', defense)}: it names {len(found)} strengths, expected the one that the "
            "client uses; give its settings, such as dp:noise_multiplier=0.5"
        )
    return found[0]


def _truths(truth: str | Path | Tensor, setup: Setup) -> Tensor:
    clips, size = clips_of("truth", truth, setup.shape), setup.update.facts.batch_size
    if len(clips) < size:
        raise InputError(
            f"truth: it holds {len(clips)} clips, and {size} are behind the update; give them all"
        )
    return clips[:size]


@dataclass(frozen=True)
class _Auditing:
    """One audit under way."""

    setup: Setup
    given: Given
    attacks: Sequence[tuple[str, Attack]]
    defenses: Sequence[Defense]
    starts: int
    clock: Clock
    notes: tuple[str, ...]
    truths: Tensor | None
    others: Tensor | None

    def run(self) -> Audit:
        setup, clock, truths, others = self.setup, self.clock, self.truths, self.others
        clock.start()
        clock.parts = len(self.attacks) + self.starts + _REHEARSALS + len(self.defenses) + bool(self.defenses)
        clock.begins("comparing with dummies")
        dummies = dummies_of(setup, inferred(setup, setup.update))
        checks = check_all(setup, self.given, dummies)
        prior = prior_answer(setup.observe(setup.update, setup.client()).knowledge)
        runs, answers = self._answers(checks)
        best = best_of(answers)
        rehearsals = self._rehearsals(dummies) if answers else []
        trials = self._trials(dummies) if answers else []
        confidence, agreements = confidence_of(setup, answers, rehearsals, dummies, prior)
        measured = () if truths is None or best is None else measured_of(setup, best, truths, others, prior)
        facts = None if best is None else facts_of(setup, best.clips, best.labels)
        layers, shares = ((), []) if best is None or facts is None else layers_of(setup, best, facts.jacobian)
        frames = frames_of(confidence, agreements, shares)
        detection = detection_of(setup, None if best is None else best.clips, facts)
        risk = risk_of(checks, confidence, rehearsals, measured, detection, asked=bool(self.attacks))
        record = AuditRecord(
            vleak=_version(),
            model=setup.name,
            parameters=sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
            input_shape=setup.shape,
            threat_model=setup.observe(setup.update, setup.client()).knowledge.threat_model,
            public=f"{len(setup.public)} clips: {setup.public_name}",
            defense=setup.defense.label,
            seed=setup.seed,
            update=_facts(self.given),
            consistency=checks,
            attacks=tuple(runs),
            answered_by="" if best is None else f"{best.run.attack}, start {best.run.start}",
            rehearsals=tuple(rehearsals),
            confidence=confidence,
            frames=frames,
            layers=layers,
            detection=detection,
            defenses=tuple(trials),
            measured=measured,
            risk=risk,
            pointers=pointers(risk, trials, setup.defense.label),
            budget=Budget(
                iterations=clock.iterations,
                seconds=clock.seconds,
                spent_s=clock.spent,
                skipped=tuple(clock.skipped),
            ),
            notes=self.notes,
        )
        return Audit(record, None if best is None else best.clips, prior)

    def _answers(self, checks: Sequence[Check]) -> tuple[list[AttackRun], list[Answer]]:
        """Attack the captured update, unless all of it is 0 or no attack was asked for."""
        if not self.attacks or any(check.name == "zeros" and check.outcome == "wrong" for check in checks):
            return [], []
        self.clock.start()
        self.clock.begins(f"{self.attacks[0][0]}, start 0")
        runs, answers = attack_captured(self.setup, self.attacks, self.starts, self.clock)
        if self.clock.over() and not any(run.iterations for run in runs):
            raise InputError(
                f"{argument('seconds', self.clock.seconds)}: the time was over before the attack made its "
                f"first iteration, after {self.clock.spent:.0f} s; give it more"
            )
        return runs, answers

    def _rehearsals(self, dummies: Dummies) -> list[Rehearsal]:
        made = [
            rehearse(self.setup, dummies, self.attacks[0], self.starts, index, self.clock)
            for index in range(min(_REHEARSALS, len(dummies.clips)))
            if self.clock.begins(f"{self.attacks[0][0]} on dummy {index}", 0.8)
        ]
        return [each for each in made if each is not None]

    def _trials(self, dummies: Dummies) -> list[DefenseTrial]:
        """Try every defense, and first none of them, on the same dummy."""
        made = list[DefenseTrial]()
        for defense in (NoDefense(), *self.defenses) if self.defenses else ():
            if self.clock.begins(f"{defense.label} on a dummy"):
                first = made[0] if made else None
                made.append(try_defense(self.setup, dummies, self.attacks[0], defense, self.clock, first))
        return made


def _facts(given: Given) -> UpdateFacts:
    update, local = given.update, given.update.facts.local
    entries = torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])
    return UpdateFacts(
        source=given.source,
        kind=update.facts.kind,
        batch_size=update.facts.batch_size,
        mode=update.facts.mode,
        loss=update.facts.loss,
        local="" if local is None else ", ".join(f"{k} {v}" for k, v in local.to_dict().items()),
        tensors=len(update.tensors),
        entries=len(entries),
        norm=float(entries.norm()),
        wire_bytes=update.wire_bytes,
        notes=update.notes,
    )


def _version() -> str:
    import vleak

    return vleak.__version__
