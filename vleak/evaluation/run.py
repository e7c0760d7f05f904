"""Run an evaluation: every clip through every defense, attacked, scored, stored."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vleak
from vleak.attacks import (
    ATTACKS,
    NULL_ATTACKS,
    Attack,
    Knowledge,
    MatchingBlind,
    Observation,
    Reconstruction,
    answerable,
)
from vleak.attacks.linkage import link_rank, link_scores
from vleak.backends import exact_arithmetic, math_attention
from vleak.certificates.gaussian import identification_bound
from vleak.data import ClipSet, load_clips
from vleak.defenses import Defense, spell
from vleak.engine import extension
from vleak.errors import InputError, VleakError
from vleak.evaluation.flags import mark
from vleak.evaluation.settings import Settings
from vleak.evaluation.store import Store, check_folder, write_clips
from vleak.federated import Client, Privacy, Update
from vleak.metrics import score_clip
from vleak.models import (
    TRAINING_STATES,
    accuracy,
    build_model,
    check_classifier,
    check_second_derivative,
    train,
)
from vleak.seeds import derive_seed, generator


@dataclass(frozen=True)
class Job:
    """One cell before it ran: which clip, which defense, which attack."""

    id: str
    clip: int
    defense: Defense
    attack: str
    null: bool = False


@dataclass(frozen=True)
class Bench:
    """All that the cells of one run share. The truth lives here; an attack never gets this object.

    ``honest`` holds the undefended update of every clip and ``hypotheses`` that under every label, ``nulls``
    the answer of every null attacker, ``prior`` the one that is subtracted before correlating.
    """

    settings: dict[str, Any]
    data: ClipSet
    model: nn.Module
    nulls: dict[str, Tensor]
    prior: Tensor
    honest: list[Update]
    hypotheses: list[list[Update]]


_LINK_BYTES = 2**31
"""Updates under all labels are kept up to this size; beyond it linkage is not measured."""

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, cells finished, cells in all)."""


class StoppedError(VleakError):
    """The run was stopped from outside; what is finished is stored."""


def evaluate(
    settings: Settings,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Attack every clip behind every defense strength and store what comes out.

    Args:
        settings: what to run.
        out: folder of the run; a stopped run with the same settings is taken up where it was.
        workers: cells that run side by side, a thread each with one thread inside; None is one for every
            core that this process may use. No score depends on it.
        progress: told about every finished cell.
        stop: when set, the run ends after storing the finished cells.

    Returns:
        the content of results.json.

    Raises:
        InputError: settings, data or model cannot be used, or the folder holds another run.
        StoppedError: ``stop`` was set before the end.
        VleakError: the folder cannot be written.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"--workers {workers}: expected at least 1")
    stop = stop or threading.Event()
    tell = progress or (lambda what, done, total: None)
    out = Path(out)
    check_folder(out, settings.resolved())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that no sum depends on the number of cores
    try:
        with exact_arithmetic(), math_attention():
            tell("loading clips", 0, 0)
            bench, header = _prepare(settings, tell)
            jobs = _plan(settings, bench.data)
            with Store(out, header) as store:
                write_clips(out / "clips.npy", bench.data.clips)
                _run_and_write(jobs, bench, store, workers, tell, stop)
                return _write_results(store, jobs)
    finally:
        torch.set_num_threads(threads)


def _run_and_write(
    jobs: list[Job], bench: Bench, store: Store, workers: int, tell: Progress, stop: threading.Event
) -> None:
    """Run the cells; where that ends early, leave results of those that are finished."""
    try:
        _run_jobs(jobs, bench, store, workers, tell, stop)
    except BaseException:
        with suppress(VleakError):  # why it ended is the news; the journal holds every cell
            _write_results(store, jobs)
        raise


def _write_results(store: Store, jobs: list[Job]) -> dict[str, Any]:
    results = store.results([job.id for job in jobs])
    mark(results["cells"])
    store.write_results(results)
    return results


def _prepare(settings: Settings, tell: Progress) -> tuple[Bench, dict[str, Any]]:
    resolved = settings.resolved()
    data = load_clips(settings.data, clips=settings.clips, frames=settings.frames, size=settings.size,
                      stride=settings.stride, seed=settings.seed)  # fmt: skip
    tell("preparing the model", 0, 0)
    model = build_model(settings.model, frames=settings.frames, size=settings.size, classes=len(data.classes),
                        seed=settings.seed)  # fmt: skip
    check_classifier(model, data.clips[:1], len(data.classes))
    steps = TRAINING_STATES[settings.training_state]
    train(model, data.public_clips, data.public_labels, steps, generator(settings.seed, "training"))
    check_classifier(model, data.clips[:1], len(data.classes))
    facts = _model_facts(settings, model, data, steps)
    model = model.to(settings.torch_device())
    check_second_derivative(model, data.clips[:1])  # where it will run: a device may lack what the CPU has
    nulls = _null_answers(model, data, settings)
    prior = nulls.get("public_mean", nulls["grey"])
    tell("computing updates", 0, 0)
    honest = _honest_updates(model, data, data.labels, settings.seed)
    hypotheses = _hypotheses(model, data, settings.seed)
    return Bench(resolved, data, model, nulls, prior, honest, hypotheses), _header(resolved, data, facts)


def _model_facts(settings: Settings, model: nn.Module, data: ClipSet, steps: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return {
        "name": settings.model,
        "training_state": settings.training_state,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_steps": steps,
        "train_accuracy": accuracy(model, data.public_clips, data.public_labels),
        "held_out_accuracy": accuracy(model, data.clips, data.labels),
        "chance": 1 / len(data.classes),
        "weights_sha256": digest.hexdigest(),
    }


def _header(resolved: dict[str, Any], data: ClipSet, model: dict[str, Any]) -> dict[str, Any]:
    status = extension.status()
    facts = {
        "name": data.name,
        "clips": len(data.clips),
        "public_clips": len(data.public_clips),
        "public_source": data.public_source,
        "classes": list(data.classes),
        "labels": data.labels.tolist(),
        "names": list(data.names),
        "notes": list(data.notes),
        "sha256": hashlib.sha256(
            data.clips.numpy().tobytes() + data.public_clips.numpy().tobytes()
        ).hexdigest(),
    }
    versions = {"vleak": vleak.__version__, "torch": torch.__version__}
    environment = {**versions, "python": platform.python_version(), "platform": platform.platform(),
                   "extension": status.state, "device": resolved["device"]}  # fmt: skip
    return {
        "environment": environment,
        "versions": versions,
        "settings": resolved,
        "data": facts,
        "models": [model],
    }


def _plan(settings: Settings, data: ClipSet) -> list[Job]:
    """List the cells: null attackers, then every defense and attack; a clip after the other within each."""
    where = f"{settings.model}.{settings.training_state}"
    rows = [(Defense(), name, True) for name in _null_names(data)]
    rows += [(defense, name, False) for defense in settings.strengths() for name in settings.attacks]
    return [
        Job(f"{where}/{spell(defense)}/{attack}/{clip}", index, defense, attack, null)
        for defense, attack, null in rows
        for index, clip in enumerate(data.names)
    ]


def _run_jobs(
    jobs: list[Job], bench: Bench, store: Store, workers: int, tell: Progress, stop: threading.Event
) -> None:
    # A cell that failed in an earlier run is tried again: what it lacked, memory say, may be there now.
    waiting = [job for job in jobs if store.cells.get(job.id, {}).get("status") != "ok"]
    done = len(jobs) - len(waiting)
    tell("attacking", done, len(jobs))
    ended = threading.Event()  # not `stop`, which is the caller's and may be used again
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    running: set[Future[tuple[dict[str, Any], Tensor | None]]] = set()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.add(
                    pool.submit(run_cell, waiting.pop(0), bench, lambda: stop.is_set() or ended.is_set())
                )
            # The short wait lets Ctrl-C through.
            finished, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                _store(future.result(), store)
                done += 1
                tell("attacking", done, len(jobs))
            if stop.is_set():
                raise StoppedError(f"stopped with {done} of {len(jobs)} cells finished")
    finally:
        ended.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _store(result: tuple[dict[str, Any], Tensor | None], store: Store) -> None:
    cell, picture = result
    if picture is None:
        store.add_failed(cell)
    else:
        store.add(cell, picture)


def run_cell(job: Job, bench: Bench, stop: Callable[[], bool]) -> tuple[dict[str, Any], Tensor | None]:
    """Run one cell and return its record and picture (C, T, H, W); a failed cell has no picture.

    Raises:
        StoppedError: ``stop`` said so; an answer that was cut short is worth nothing.
    """
    settings, data = bench.settings, bench.data
    # The message belongs to clip and defense, the start to the clip: every attack meets the same message.
    model_name = f"{settings['model']}.{settings['training_state']}"
    seed = derive_seed(settings["seed"], model_name, spell(job.defense), data.names[job.clip])
    start = generator(settings["seed"], model_name, data.names[job.clip], "attack")
    record = _blank(job, bench, seed)
    # functional_call swaps a module's tensors while it runs: a cell needs a module of its own.
    model = copy.deepcopy(bench.model)
    clip, label = data.clips[job.clip][None], data.labels[job.clip][None]
    try:
        update = Client(model, defense=job.defense).update(clip, label, generator(seed, "client"))
        observation = Observation(model, update, _knowledge(job, bench, label))
        answer = _attack(job, settings).reconstruct(observation, start, stop=stop)
        if stop():
            raise StoppedError(f"stopped within {job.id}")
        record |= _judge(job, bench, update, observation.knowledge, answer)
    except StoppedError:
        raise
    except VleakError as error:
        return {**record, "status": f"failed: {error}"}, None
    except Exception as error:  # noqa: BLE001  a stranger's model may raise anything; other cells go on
        first = str(error).strip().partition("\n")[0]
        return {**record, "status": f"failed: {type(error).__name__}: {first}"}, None
    return record, answer.clips[0]


def _judge(
    job: Job, bench: Bench, update: Update, knowledge: Knowledge, answer: Reconstruction
) -> dict[str, Any]:
    """Return the part of a record that the truth is needed for."""
    data = bench.data
    scores = score_clip(answer.clips[0], data.clips[job.clip], job.clip, data.clips, bench.nulls, bench.prior)
    scores["label_correct"] = bool(answer.labels[0] == data.labels[job.clip])
    scores |= _linkage(job, bench, update, knowledge)
    return {
        "attack": _attack_facts(job, answer),
        "scores": scores,
        "update": _compare(update, bench.honest[job.clip]),
        "flags": list(answer.flags),
        "status": "ok",
    }


def _linkage(job: Job, bench: Bench, update: Update, knowledge: Knowledge) -> dict[str, Any]:
    """Ask the update itself which candidate it came from; a null attacker never saw it."""
    if job.null or not bench.hypotheses:
        return {"linked": None, "link_rank": None}
    candidates = bench.hypotheses
    if knowledge.labels is not None:
        candidates = [[each[int(knowledge.labels[0])]] for each in candidates]
    rank = link_rank(link_scores(update, candidates, knowledge), job.clip)
    return {"linked": rank == 1 and len(candidates) > 1, "link_rank": rank}


def _attack(job: Job, settings: dict[str, Any]) -> Attack:
    if job.null:
        return NULL_ATTACKS[job.attack]()
    options = {name: settings[name] for name in ("iterations", "restarts", "engine")}
    return ATTACKS[job.attack](**options)


def _knowledge(job: Job, bench: Bench, label: Tensor) -> Knowledge:
    data = bench.data
    return Knowledge(
        clip_shape=_clip_shape(data),
        batch_size=1,
        classes=len(data.classes),
        labels=label if bench.settings["labels"] == "granted" else None,
        public_clips=data.public_clips,
        defense=job.defense.name,
        defense_settings=job.defense.settings(),
    )


def _blank(job: Job, bench: Bench, seed: int) -> dict[str, Any]:
    """Return the part of a record that is known before the cell runs."""
    settings, privacy = bench.settings, job.defense.privacy()
    bound = None if privacy is None else identification_bound(_open(job, bench), privacy.noise_multiplier)
    return {
        "id": job.id,
        "pipeline": settings["pipeline"],
        "model": settings["model"],
        "training_state": settings["training_state"],
        "defense": _defense_facts(job.defense, privacy),
        "attack": {
            "name": job.attack,
            "adaptive": False,
            "iterations": 0,
            "restarts": 0,
            "seconds": 0.0,
            "engine": "none",
        },
        "knowledge": {
            "labels": settings["labels"],
            "reference_frames": 0,
            "batch_size": 1,
            "defense": not job.null and job.attack != MatchingBlind.name,
            "public_clips": len(bench.data.public_clips),
        },
        "clip": bench.data.names[job.clip],
        "clip_index": job.clip,
        "seed": seed,
        "scores": None,
        "certificate": None if bound is None else {"kind": "identification", "bound": bound},
        "update": None,
        "flags": [],
        "status": "",
    }


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
    """Return how many candidates nothing but the update can exclude; a granted label may exclude some."""
    labels = bench.data.labels
    granted = bench.settings["labels"] == "granted"
    return int((labels == labels[job.clip]).sum()) if granted else len(labels)


def _attack_facts(job: Job, answer: Reconstruction) -> dict[str, Any]:
    return {
        "name": job.attack,
        "adaptive": answer.adaptive,
        "iterations": answer.iterations,
        "restarts": answer.restarts,
        "seconds": round(answer.seconds, 3),
        "engine": answer.engine,
        "objective": _finite(answer.objective),
        "nan_at": answer.nan_at,
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


def _honest_updates(model: nn.Module, data: ClipSet, labels: Tensor, seed: int) -> list[Update]:
    """Return the undefended update of every clip, under these labels (N,)."""
    client, pairs = Client(model), zip(data.clips, labels, strict=True)
    return [client.update(clip[None], label[None], generator(seed, "honest")) for clip, label in pairs]


def _hypotheses(model: nn.Module, data: ClipSet, seed: int) -> list[list[Update]]:
    """Return for every candidate its update under every label; nothing where they would not fit in memory."""
    size = 4 * sum(p.numel() for p in model.parameters()) * len(data.clips) * len(data.classes)
    if size > _LINK_BYTES:
        return []
    every = [torch.full_like(data.labels, label) for label in range(len(data.classes))]
    return [list(each) for each in zip(*(_honest_updates(model, data, y, seed) for y in every), strict=True)]


def _clip_shape(data: ClipSet) -> tuple[int, int, int, int]:
    _, channels, frames, height, width = data.clips.shape
    return channels, frames, height, width


def _null_names(data: ClipSet) -> list[str]:
    """Return the null attackers that can answer: there is no public mean without public clips."""
    return list(answerable(_null_knowledge(data)))


def _null_knowledge(data: ClipSet) -> Knowledge:
    return Knowledge(
        clip_shape=_clip_shape(data), batch_size=1, classes=len(data.classes), public_clips=data.public_clips
    )


def _null_answers(model: nn.Module, data: ClipSet, settings: Settings) -> dict[str, Tensor]:
    """Return what each null attacker answers, (C, T, H, W) by name; it is the same for every clip."""
    update = Update({name: torch.zeros(p.shape) for name, p in model.named_parameters()}, 0, {})
    observation = Observation(model, update, _null_knowledge(data))
    unused = generator(settings.seed, "null")
    return {
        name: NULL_ATTACKS[name]().reconstruct(observation, unused).clips[0] for name in _null_names(data)
    }
