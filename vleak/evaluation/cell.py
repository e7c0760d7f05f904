"""One cell of a run: a clip, a defense, an attack; the message, the answer, and the judgement."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vleak.attacks import (
    ATTACKS,
    NULL_ATTACKS,
    Attack,
    FeatureInversion,
    Knowledge,
    Observation,
    Reconstruction,
)
from vleak.attacks.linkage import link_rank, link_scores
from vleak.certificates.gaussian import identification_bound
from vleak.defenses import Defense, spell
from vleak.enhance import plain
from vleak.errors import VleakError
from vleak.evaluation.bench import Bench, Frames, extract, features_knowledge, frames_knowledge
from vleak.evaluation.objects import score_metric
from vleak.federated import Client, Privacy, Update
from vleak.metrics import order_scores, score_clip, score_enhanced, score_segments
from vleak.results.records import Cell
from vleak.seeds import derive_seed, generator


@dataclass(frozen=True)
class Job:
    """One cell before it ran: which pipeline, clip, defense and attack, and how many reference frames."""

    id: str
    bench: int
    clip: int
    defense: Defense
    attack: str
    references: int = 0
    null: bool = False


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        cell: its record, without the names of the pictures.
        picture: (C, T, H, W), the rebuilt clip; None where there are no frames, or the cell failed.
        enhanced: the same at twice the resolution, where that was asked for.
    """

    cell: Cell
    picture: Tensor | None = None
    enhanced: Tensor | None = None


@dataclass(frozen=True)
class _Answer:
    """What an attack ended with: its answer, as features where it is about them, as frames where it can."""

    given: Reconstruction
    features: Tensor | None = None  # (S, F)
    clip: Tensor | None = None  # (C, T, H, W)
    inversion: Reconstruction | None = None  # the way from features to frames

    @property
    def inversion_flags(self) -> tuple[str, ...]:
        """What that way raised about itself."""
        return () if self.inversion is None else self.inversion.flags


class StoppedError(VleakError):
    """The run was stopped from outside; what is finished is stored."""


def run_cell(job: Job, bench: Bench, stop: Callable[[], bool]) -> Result:
    """Run one cell.

    Raises:
        StoppedError: ``stop`` said so; an answer that was cut short is worth nothing.
    """
    name = bench.data.names[job.clip]
    # The message belongs to clip and defense, the start to the clip: every attack meets the same message.
    seed = derive_seed(bench.settings.seed, bench.place, spell(job.defense), name)
    start = generator(bench.settings.seed, bench.place, name, "attack")
    record = _blank(job, bench, seed)
    # functional_call swaps a module's tensors while it runs: a cell needs a module of its own.
    model = copy.deepcopy(bench.model)
    clip, label = bench.private[job.clip][None], bench.labels[job.clip][None]
    try:
        client = Client(model, loss=bench.loss, defense=job.defense)
        update = client.update(clip, label, generator(seed, "client"))
        knowledge = _knowledge(job, bench, label, client)
        answer = _answer(job, bench, Observation(model, update, knowledge), start, stop)
        if stop():
            raise StoppedError(f"stopped within {job.id}")
        judged, enhanced = _judge(job, bench, update, knowledge, answer)
        cell = _cell(record | judged)
    except StoppedError:
        raise
    except VleakError as error:
        return Result(_cell({**record, "status": f"failed: {error}"}))
    except Exception as error:  # noqa: BLE001  a stranger's model may raise anything; other cells go on
        first = str(error).strip().partition("\n")[0]
        return Result(_cell({**record, "status": f"failed: {type(error).__name__}: {first}"}))
    return Result(cell, answer.clip, enhanced)


# ---------------------------------------------------------------------------------------------------------
# The attacker's side


def _knowledge(job: Job, bench: Bench, label: Tensor, client: Client) -> Knowledge:
    """Return what the attacker of this cell is granted about what is private in it."""
    told: dict[str, Any] = {
        "defense": job.defense.name,
        "defense_settings": job.defense.settings(),
        "simulate": client.update,
    }
    told["labels"] = label.clone() if _granted(bench) else None  # a view would reach those of other clips
    if bench.features is None:
        assert bench.frames is not None
        return frames_knowledge(bench.frames.data, job.clip, job.references, **told)
    return features_knowledge(bench, **told)


def _granted(bench: Bench) -> bool:
    """Return whether the label is known: which bag of a pair is the anomalous one is public."""
    return bench.settings.labels == "granted" or bench.loss == "ranking"


def _answer(
    job: Job, bench: Bench, observation: Observation, start: torch.Generator, stop: Callable[[], bool]
) -> _Answer:
    """Attack, and lead an answer in features back to frames; a null attacker guesses frames to begin with."""
    features, frames = bench.features, bench.frames
    if features is None or (job.null and frames is not None):
        if job.null and frames is not None:
            own = frames_knowledge(frames.data, job.clip, job.references, labels=observation.knowledge.labels)
            observation = replace(observation, knowledge=own)
        given = _attack(job, bench).reconstruct(observation, start, stop=stop)
        clip = given.clips[0]
        extractor = None if features is None else features.extractor
        guessed = None if extractor is None else extract(extractor, clip[None])[0]
        return _Answer(given, guessed, clip)
    given = _attack(job, bench).reconstruct(observation, start, stop=stop)
    rows, found = given.clips[0], None if given.found is None else given.found[0]
    if features.places is not None:
        rows, found = (
            rows[features.places[job.clip]],
            None if found is None else found[features.places[job.clip]],
        )
    if features.extractor is None or frames is None:
        return _Answer(given, rows)
    rebuilt = _to_frames(job, bench, frames, features.extractor, rows, found, start, stop)
    return _Answer(given, rows, rebuilt.clips[0], rebuilt)


_INVERSION = 2


def _to_frames(
    job: Job, bench: Bench, frames: Frames, extractor: nn.Module, rows: Tensor, found: Tensor | None,
    start: torch.Generator, stop: Callable[[], bool],
) -> Reconstruction:  # fmt: skip
    # Features are fewer than the pixels they are of, and a step on them is cheap.
    iterations = _INVERSION * bench.settings.iterations
    engine = cast("Literal['native', 'inductor', 'reference']", bench.settings.engine)
    inversion = FeatureInversion(iterations=iterations, engine=engine)
    knowledge = frames_knowledge(frames.data, job.clip, job.references)
    return inversion.rebuild(
        copy.deepcopy(extractor), rows[None], knowledge, start,
        found=None if found is None else found[None], stop=stop,
    )  # fmt: skip


def _attack(job: Job, bench: Bench) -> Attack:
    if job.null:
        return NULL_ATTACKS[job.attack]()
    if job.attack in bench.attacks:
        return copy.deepcopy(bench.attacks[job.attack])  # a cell never sees what another one left in it
    kind = ATTACKS[job.attack]
    taken = inspect.signature(kind).parameters  # an exact method has no iterations
    names = [name for name in ("iterations", "restarts", "engine") if name in taken]
    return kind(**{name: getattr(bench.settings, name) for name in names})


def _kind(job: Job, bench: Bench) -> type[Attack]:
    """Return the class of a cell's attack."""
    if job.null:
        return NULL_ATTACKS[job.attack]
    return type(bench.attacks[job.attack]) if job.attack in bench.attacks else ATTACKS[job.attack]


# ---------------------------------------------------------------------------------------------------------
# The judge's side


def _judge(
    job: Job, bench: Bench, update: Update, knowledge: Knowledge, answer: _Answer
) -> tuple[dict[str, Any], Tensor | None]:
    """Return the part of a record that the truth is needed for, and the enhanced picture."""
    scores: dict[str, Any] = dict(_NO_PICTURE)
    if answer.features is not None:
        scores |= _score_features(job, bench, answer)
    if bench.frames is not None and answer.clip is not None:
        scores |= _score_frames(job, bench.frames, answer, bench.rivals(job.clip))
        truth = bench.frames.data.clips[job.clip]
        scores["metrics"] = {
            name: score_metric(name, metric, answer.clip, truth) for name, metric in bench.metrics.items()
        }
    correct = bool(answer.given.labels[0] == bench.labels[job.clip])
    scores["label_correct"] = None if bench.loss == "ranking" else correct
    scores |= _linkage(job, bench, update, knowledge)
    record: dict[str, Any] = {
        "attack": _attack_facts(job, bench, answer),
        "scores": scores,
        "update": _compare(update, bench.honest[job.clip]),
        "flags": [*answer.given.flags, *(f"inversion: {flag}" for flag in answer.inversion_flags)],
        "status": "ok",
    }
    record["enhanced"], picture = _enhance(job, bench.frames, answer.clip, bench.rivals(job.clip))
    return record, picture


_NO_PICTURE: dict[str, Any] = dict.fromkeys((
    "psnr_db", "psnr_gain_db", "ssim", "ssim_gain", "motion_psnr_db", "motion_psnr_gain_db", "motion_ssim",
    "residual_correlation", "best_null", "order", "segments",
)) | {"null": {}}  # fmt: skip


def _among(clips: Tensor, clip: int, rivals: list[int]) -> tuple[Tensor, int, Tensor]:
    """Return a clip, its place among its rivals, and these."""
    return clips[clip], rivals.index(clip), clips[rivals]


def _score_frames(job: Job, frames: Frames, answer: _Answer, rivals: list[int]) -> dict[str, Any]:
    data, nulls = frames.data, frames.nulls[job.references][job.clip]
    prior = next(nulls[name] for name in ("reference_still", "public_mean", "grey") if name in nulls)
    assert answer.clip is not None
    scores = score_clip(answer.clip, *_among(data.clips, job.clip, rivals), nulls, prior)
    scores["order"] = order_scores(answer.clip, data.clips[job.clip])
    scores["null_identified"] = _a_null_identifies(job, frames, rivals) if job.references else None
    return scores


def _a_null_identifies(job: Job, frames: Frames, rivals: list[int]) -> bool:
    """Return whether reference frames alone point at the clip: what recognition has to beat then."""
    data, nulls = frames.data, frames.nulls[job.references][job.clip]
    return any(
        score_clip(clip, *_among(data.clips, job.clip, rivals), nulls, clip)["identified"]
        for name, clip in nulls.items()
        if name.startswith("reference")
    )


def _score_features(job: Job, bench: Bench, answer: _Answer) -> dict[str, Any]:
    features = bench.features
    assert features is not None
    assert answer.features is not None
    found = score_segments(
        answer.features, *_among(features.truth, job.clip, bench.rivals(job.clip)),
        features.nulls[job.references][job.clip], features.carrying[job.clip], ordered=answer.given.ordered,
    )  # fmt: skip
    # Where there are no frames, the features say which clip it was.
    which = {name: found[name] for name in ("identified", "rank", "candidates")}
    return {"segments": found, **which}


def _enhance(
    job: Job, frames: Frames | None, clip: Tensor | None, rivals: list[int]
) -> tuple[dict[str, Any] | None, Tensor | None]:
    """Return the scores before and after enhancement, null attackers treated alike, and the picture."""
    if frames is None or frames.enhance is None or clip is None or frames.data.fine is None:
        return None, None
    assert frames.plain is not None
    assert frames.enhanced is not None
    made, fine = frames.enhance(clip), frames.data.fine
    scores = score_enhanced(
        plain(clip), made.clip, *_among(fine, job.clip, rivals),
        frames.plain[job.references][job.clip], frames.enhanced[job.references][job.clip],
    )  # fmt: skip
    return {"method": frames.method, "noise": made.noise, "steps": list(made.steps), **scores}, made.clip


def _linkage(job: Job, bench: Bench, update: Update, knowledge: Knowledge) -> dict[str, Any]:
    """Ask the update itself which candidate it came from; a null attacker never saw it."""
    if job.null or not bench.hypotheses:
        return {"linked": None, "link_rank": None}
    rivals = bench.rivals(job.clip)
    candidates = [bench.hypotheses[rival] for rival in rivals]
    if knowledge.labels is not None and bench.loss != "ranking":
        candidates = [[each[int(knowledge.labels[0])]] for each in candidates]
    rank = link_rank(link_scores(update, candidates, knowledge), rivals.index(job.clip))
    return {"linked": rank == 1 and len(candidates) > 1, "link_rank": rank}


# ---------------------------------------------------------------------------------------------------------
# The record


def _blank(job: Job, bench: Bench, seed: int) -> dict[str, Any]:
    """Return the part of a record that is known before the cell runs."""
    settings, privacy = bench.settings, Client(bench.model, bench.loss, job.defense).privacy()
    bound = None if privacy is None else identification_bound(_open(job, bench), privacy.noise_multiplier)
    return {
        "id": job.id,
        "pipeline": bench.pipeline,
        "model": bench.name,
        "training_state": settings.training_state,
        "defense": _defense_facts(job.defense, privacy),
        "attack": {
            "name": job.attack,
            "baseline": job.null,
            "counterpart": _counterpart(_kind(job, bench)),
            "adaptive": False,
            "iterations": 0,
            "restarts": 0,
            "seconds": 0.0,
            "engine": "none",
        },
        "knowledge": {
            "labels": "granted" if _granted(bench) else "inferred",
            "reference_frames": job.references,
            "batch_size": 1,
            "defense": not job.null and getattr(_kind(job, bench), "told", True),
            "public_clips": len(bench.public),
        },
        "clip": bench.data.names[job.clip],
        "clip_index": job.clip,
        "seed": seed,
        "order_identifiable": bench.order_identifiable,
        "scores": None,
        "enhanced": None,
        "certificate": None if bound is None else {"kind": "identification", "bound": bound},
        "update": None,
        "flags": [],
        "status": "",
    }


_NAMES = {
    "null": "baselines",
    "best_null": "best_baseline",
    "null_identified": "baseline_identified",
    "null_exact": "baseline_exact",
}


def _cell(record: dict[str, Any]) -> Cell:
    """Return the typed record; metrics name some scores otherwise."""
    scores = record["scores"]
    if scores is not None:
        scores = {_NAMES.get(key, key): value for key, value in scores.items()}
        if scores["segments"] is not None:
            scores["segments"] = {_NAMES.get(key, key): v for key, v in scores["segments"].items()}
    return Cell.model_validate(record | {"scores": scores})


def _counterpart(kind: type[Attack]) -> str | None:
    """Return the attack that a non-adaptive one is a form of."""
    if getattr(kind, "told", True):
        return None
    return next((name for name, other in ATTACKS.items() if other in kind.__mro__[1:]), None)


def _defense_facts(defense: Defense, privacy: Privacy | None) -> dict[str, Any]:
    facts = {"name": defense.name, "label": defense.label, "settings": defense.settings()}
    if privacy is None:
        names = ("epsilon", "delta", "unit", "adjacency", "training_epsilon")
        return facts | dict.fromkeys(names)
    return facts | {
        "epsilon": _finite(privacy.epsilon),
        "delta": privacy.delta,
        "unit": privacy.unit,
        "adjacency": privacy.adjacency,
        "training_epsilon": _finite(privacy.training_epsilon),
    }


def _open(job: Job, bench: Bench) -> int:
    """Return how many candidates nothing but the update can exclude.

    A granted label may exclude some, and frames of the scene all others.
    """
    if job.references:
        return 1
    return int((bench.labels == bench.labels[job.clip]).sum()) if _granted(bench) else len(bench.labels)


def _attack_facts(job: Job, bench: Bench, answer: _Answer) -> dict[str, Any]:
    given, inversion = answer.given, answer.inversion
    return {
        "name": job.attack,
        "baseline": job.null,
        "counterpart": _counterpart(_kind(job, bench)),
        "adaptive": given.adaptive,
        "defense_knowledge": "channel" if given.adaptive else "none",
        "iterations": given.iterations,
        "restarts": given.restarts,
        "seconds": round(given.seconds + (0.0 if inversion is None else inversion.seconds), 3),
        "engine": given.engine,
        "objective": _finite(given.objective),
        "nan_at": given.nan_at,
    }


def _finite(value: float) -> float | None:
    """Return the number, or None where JSON has no way to say it."""
    return value if math.isfinite(value) else None


def _compare(update: Update, plain: Update) -> dict[str, Any]:
    """Return bytes, cosine to the undefended update, and the fraction of entries that the defense changed."""
    sent, honest = (torch.cat([t.flatten().double() for t in u.tensors.values()]) for u in (update, plain))
    norms = float(sent.norm() * honest.norm())
    return {
        "bytes": update.wire_bytes,
        "cosine_to_undefended": float(sent @ honest) / norms if norms else 0.0,
        "changed_fraction": float((sent != honest).double().mean()),
    }
