"""Audits of a run: lower bounds on epsilon from what each defense sends, beside the one that it claims."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass

from vleak.auditing import EmpiricalEpsilon, empirical_epsilon
from vleak.certificates import METHODS, least_draws
from vleak.defenses import Defense
from vleak.errors import InputError, VleakError, argument, first_line, out_of_memory
from vleak.evaluation.groups import StoppedError
from vleak.evaluation.settings import Settings
from vleak.evaluation.setup import PreparedRun
from vleak.evaluation.threads import pool_of_threads
from vleak.evaluation.workers import POLL
from vleak.federated import Client, trained_part
from vleak.pipelines import Pipeline, Progress
from vleak.pipelines.conditions import defense_record
from vleak.results.records import AuditBound, AuditRecord
from vleak.results.sandwich import ACCUSED
from vleak.seeds import generator

__all__ = ["check_audits", "measure_audits"]

_CANARIES = 3
_DRAWS, _ENTRIES = 250, 3e7
"""Draws where nobody says how many, and entries of all their messages: some seconds for four strengths."""
_MOST_ENTRIES = 5_000_000
"""A model with more trained entries is audited only where somebody says with how many draws."""


@dataclass(frozen=True)
class _Claim:
    """A defense that claims an epsilon of what a pipeline's client sends."""

    pipeline: Pipeline
    defense: Defense

    @property
    def key(self) -> tuple[str, str]:
        """Model and text of the defense, as `RunStore.audits` has it."""
        return self.pipeline.name, defense_record(self.defense, None).text


def check_audits(settings: Settings, run: PreparedRun) -> None:
    """Refuse fewer draws than any bound needs.

    Raises:
        InputError: says how many would do.
    """
    draws, claims = settings.audit_draws, _claims(settings, run)
    if not draws or not claims:
        return
    least = _least(_confidence(claims))
    if draws < least:
        raise InputError(
            f"{argument('audit_draws', draws)}: too few for a bound on the epsilon of {len(claims)} "
            f"defense{'s' if len(claims) > 1 else ''}; {least} would do, 1,000 say something, 5,000 nearly "
            "all; or 0 for no audit"
        )


def measure_audits(
    settings: Settings,
    run: PreparedRun,
    done: Collection[tuple[str, str]],
    progress: Progress,
    stop: threading.Event,
    *,
    count: int = 1,
) -> Iterator[AuditRecord]:
    """Yield the audit of every defense that claims an epsilon, on every model.

    Audited is one release: a gradient in mode "eval", of as many clips as the first client has. What is
    claimed of local steps and of several rounds is composed of it.

    Args:
        settings: of the run.
        run: its pipelines.
        done: models and texts of defenses that are not audited again.
        progress: told how many defenses are over.
        stop: ends it when set.
        count: audits side by side, each in a thread.

    Raises:
        StoppedError: ``stop`` was set.
    """
    if settings.audit_draws == 0:
        return
    claims = _claims(settings, run)
    confidence, total = _confidence(claims), len(claims)
    waiting = [claim for claim in claims if claim.key not in done]
    ended = threading.Event()

    def go_on(_: int = 0) -> None:
        if stop.is_set() or ended.is_set():
            raise StoppedError("stopped while auditing a defense; the finished cells are kept")

    with pool_of_threads(count) as pool:
        try:
            audits = [pool.submit(_audited, claim, settings, confidence, go_on) for claim in waiting]
            for index, audit in enumerate(audits):
                progress("auditing what the defenses claim", total - len(waiting) + index, total)
                go_on()
                while not audit.done():
                    wait([audit], timeout=POLL)  # short, so that Ctrl-C gets through
                    go_on()
                yield audit.result()
        finally:
            ended.set()


def _claims(settings: Settings, run: PreparedRun) -> list[_Claim]:
    """Return what claims an epsilon; a defense that fails to say so fails in its cells."""
    found = []
    for pipeline in run.pipelines:
        for defense in settings.strengths():
            try:
                privacy = Client(pipeline.model, pipeline.loss, defense).privacy()
            except VleakError:
                continue
            if privacy is not None:
                found.append(_Claim(pipeline, defense))
    return found


def _confidence(claims: Sequence[_Claim]) -> float:
    """Return the confidence of each audit, so that all together seldom accuse an honest run."""
    return 1 - ACCUSED / 2 / max(1, len(claims))


def _least(confidence: float) -> int:
    return least_draws(1 - (1 - confidence) / (2 * METHODS * _CANARIES))


def _audited(
    claim: _Claim, settings: Settings, confidence: float, each_draw: Callable[[int], None]
) -> AuditRecord:
    record = AuditRecord(
        pipeline=claim.pipeline.kind, model=claim.pipeline.name, defense=claim.defense.label,
        text=claim.key[1], confidence=1 - ACCUSED / 2, own_confidence=confidence,
    )  # fmt: skip
    batch = slice(settings.batch[0])
    samples, numbers = claim.pipeline.samples, generator(settings.seed, "audit", *claim.key)
    try:
        draws = _draws(claim, settings, confidence)  # refuses large models before they are copied
        # Audits side by side must not swap the weights of one module.
        client = Client(copy.deepcopy(claim.pipeline.model), claim.pipeline.loss, claim.defense)
        found = empirical_epsilon(
            client, samples.private[batch], samples.labels[batch], numbers,
            draws=draws, confidence=confidence, progress=each_draw,
        )  # fmt: skip
    except StoppedError:
        raise
    except VleakError as error:
        return record.model_copy(update={"status": f"not audited: {first_line(error)}"})
    except (RuntimeError, ValueError, MemoryError) as error:  # said in the record; the cells are worth more
        why = "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"
        return record.model_copy(update={"status": f"not audited: {why}"})
    return record.model_copy(update=_outcome(found))


def _draws(claim: _Claim, settings: Settings, confidence: float) -> int:
    """Return the draws that were asked for; else fewer the larger the model is.

    Raises:
        InputError: nobody asked, and it would take long.
    """
    if settings.audit_draws is not None:
        return settings.audit_draws
    entries = sum(p.numel() for p in trained_part(claim.pipeline.model).parameters() if p.requires_grad)
    if entries > _MOST_ENTRIES:
        raise InputError(
            f"{entries:,} trained entries take long; ask for it by {argument('audit_draws', 250)}"
        )
    return max(_least(confidence), min(_DRAWS, int(_ENTRIES / entries)))


def _outcome(found: EmpiricalEpsilon) -> dict[str, object]:
    lower = found.lower
    bounds = [
        AuditBound(canary=canary.canary, norm=canary.norm, method=bound.method, assumes=bound.assumption,
                   epsilon=_finite(bound.epsilon))
        for canary in found.canaries
        for bound in canary.bounds
    ]  # fmt: skip
    return {
        "claimed": _finite(found.claimed),
        "delta": found.delta,
        "unit": found.unit,
        "epsilon": _finite(lower.epsilon),
        "method": lower.method,
        "canary": next(c.canary for c in found.canaries if lower in c.bounds),
        "bounds": tuple(bounds),
        "draws": found.draws,
        "e_value": found.e_value,
        "e_limit": 2 / (1 - found.confidence),
        "e_claim": found.e_claim,
        "searchable": found.searchable,
        "refuted": found.refuted,
    }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
