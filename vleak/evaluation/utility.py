"""Utility: how well the attacked model trains under each defense, in simulated federated training."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vleak.data import ClipSet, load_data
from vleak.defenses import Defense, NoDefense
from vleak.errors import InputError, VleakError, argument, first_line
from vleak.evaluation.groups import StoppedError
from vleak.evaluation.settings import Settings
from vleak.federated import Client, Federation, steps, train_federation
from vleak.models import hits
from vleak.pipelines import Pipeline, Progress
from vleak.results.records import DefenseRecord, UtilityRecord
from vleak.seeds import derive_seed, generator

if TYPE_CHECKING:  # it checks with this module what a run can measure
    from vleak.evaluation.setup import PreparedRun

__all__ = ["check_utility", "measure_utility"]

_CLIENTS = 10
_DRAWN, _HELD_OUT = 320, 80
"""Synthetic clips that are drawn for it: to train on, and to be classified."""


@dataclass(frozen=True)
class _Training:
    """Clips of a federated training.

    Attributes:
        clips, labels: that are trained on, (M, C, T, H, W) and (M,).
        held_out, truths: that are classified afterwards.
    """

    clips: Tensor
    labels: Tensor
    held_out: Tensor
    truths: Tensor


def check_utility(settings: Settings, data: object) -> None:
    """Refuse to measure utility where there is nothing to train on, or no label to be right about.

    Raises:
        InputError: no frames, labels that were drawn at random, or fewer public clips than clients.
    """
    if not settings.utility:
        return
    asked = argument("utility", settings.utility)
    if not isinstance(data, ClipSet) or settings.pipelines() != ("raw",):
        raise InputError(f"{asked}: trains classifiers of frames; take the raw pipeline, or leave it out")
    if data.labels_drawn:
        raise InputError(f"{asked}: the clips have no labels to be right about; give labels, or leave it out")
    if settings.data != "synthetic" and len(data.public_clips) < _CLIENTS:
        raise InputError(
            f"{asked}: {_CLIENTS} clients need a public clip each, the data has {len(data.public_clips)}; "
            f"give more files, or {argument('public_from', 'same-file')}"
        )


def measure_utility(
    settings: Settings,
    run: PreparedRun,
    done: Collection[str],
    progress: Progress,
    stop: threading.Event,
) -> Iterator[UtilityRecord]:
    """Yield the utility under every defense of a run.

    Clients train as the attacked one computes its updates (first batch size and local training of the run),
    from the attacked model on. Rounds, clips and seeds are equal for all defenses.

    Args:
        settings: of the run.
        run: its data, clips of frames, and its pipeline.
        done: texts of the defenses that are not measured again.
        progress: told how many rounds are over, of all defenses together.
        stop: ends it when set.

    Raises:
        StoppedError: ``stop`` was set.
    """
    assert isinstance(run.data, ClipSet)
    waiting = [each for each in settings.strengths() if _text(each) not in done]
    if not waiting:
        return
    training, (pipeline,) = _training_clips(settings, run.data), run.pipelines
    rounds = itertools.count(1)

    def each_round() -> None:
        progress("training under each defense", next(rounds), settings.utility * len(waiting))
        if stop.is_set():
            raise StoppedError("stopped while training under a defense; the finished cells are kept")

    for defense in waiting:
        yield _under(defense, settings, training, pipeline, each_round)


def _training_clips(settings: Settings, data: ClipSet) -> _Training:
    """Return synthetic clips, drawn anew; of other data the public clips and the attacked ones."""
    if settings.data != "synthetic":
        return _Training(data.public_clips, data.public_labels, data.clips, data.labels)
    drawn = load_data(
        "synthetic", clips=_DRAWN + _HELD_OUT, frames=settings.frames, size=settings.size,
        seed=derive_seed(settings.seed, "utility") % 2**31, fine=False,
    )  # fmt: skip
    assert isinstance(drawn, ClipSet)
    clips, labels = drawn.clips, drawn.labels
    return _Training(clips[:_DRAWN], labels[:_DRAWN], clips[_DRAWN:], labels[_DRAWN:])


def _under(
    defense: Defense,
    settings: Settings,
    training: _Training,
    pipeline: Pipeline,
    each_round: Callable[[], None],
) -> UtilityRecord:
    federation = Federation(rounds=settings.utility, clients=_CLIENTS, batch=settings.batch[0])
    record = UtilityRecord(
        pipeline=pipeline.kind, model=pipeline.name, defense=defense.label, text=_text(defense),
        undefended=isinstance(defense, NoDefense), rounds=federation.rounds, clients=federation.clients,
        batch=federation.batch, clips=len(training.clips),
    )  # fmt: skip
    first = settings.clients()[0]
    public = (pipeline.samples.public, pipeline.samples.public_labels)
    learned = steps.with_public(defense, *public)
    client = Client(pipeline.model, pipeline.loss, learned, mode=first.mode, local=first.local)
    numbers = generator(settings.seed, "utility", "training", *([settings.draw] if settings.draw else []))
    try:
        trained = train_federation(client, training.clips, training.labels, federation, numbers, each_round)
    except StoppedError:
        raise
    except VleakError as error:
        return record.model_copy(update={"status": f"failed: {first_line(error)}"})
    right = tuple(hits(trained.model.eval().cpu(), training.held_out, training.truths).tolist())
    return record.model_copy(update={"right": right, "bytes": trained.bytes, "seconds": trained.seconds})


def _text(defense: Defense) -> str:
    """Return the text by which records tell defenses apart."""
    return DefenseRecord(name=defense.name, label=defense.label, settings={**defense.settings()}).text
