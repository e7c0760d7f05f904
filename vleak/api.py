"""The library's front door: `evaluate` and `load_run` return a `Run`."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from vleak.attacks import Attack
from vleak.defaults import BUDGET, NON_ADAPTIVE_CLIPS
from vleak.errors import CapabilityError, InputError
from vleak.evaluation import Limits, Settings
from vleak.evaluation import evaluate as run_evaluation
from vleak.evaluation.objects import AttackLike, DataLike, DefenseLike, MetricLike, ModuleLike
from vleak.evaluation.run import Progress
from vleak.federated import Defense
from vleak.files import write_atomic
from vleak.results import Cell, FolderStore, MemoryStore, Row, RunHeader, RunRecord, read_run, summarise
from vleak.results.records import SettingsRecord

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Run", "evaluate", "load_run"]


def evaluate(
    *,
    data: DataLike = "synthetic",
    pipeline: str = "raw",
    model: ModuleLike = "c3d_tiny",
    extractor: ModuleLike = "c3d_small",
    head: ModuleLike = "mlp",
    loss: str = "bce",
    training_state: str = "untrained",
    defenses: DefenseLike | Sequence[DefenseLike] = ("dp",),
    attacks: AttackLike | Sequence[AttackLike] | None = None,
    metrics: MetricLike | Sequence[MetricLike] = (),
    clips: int | None = None,
    frames: int = 8,
    size: int = 32,
    stride: int = 2,
    segments: int = 32,
    public_from: str = "other-files",
    reference_frames: int | Sequence[int] = (0,),
    batch: int | Sequence[int] = (1,),
    mode: str | Sequence[str] = "eval",
    trainable: str = "*",
    local_steps: int | Sequence[int] = (0,),
    local_epochs: int | Sequence[int] = (0,),
    local_batch: int = 0,
    local_rate: float | None = None,
    local_momentum: float = 0.0,
    local_decay: float = 0.0,
    local_optimizer: str = "sgd",
    rounds: int | Sequence[int] = (1,),
    participation: float = 1.0,
    round_clips: str = "same",
    enhance: str = "classical",
    restarts: int = 1,
    iterations: int = 150,
    budget: int = BUDGET,
    non_adaptive: int = NON_ADAPTIVE_CLIPS,
    labels: str = "inferred",
    utility: int = 0,
    audit_draws: int | None = None,
    quick: bool = False,
    seed: int = 0,
    draw: int = 0,
    device: str = "auto",
    engine: str = "native",
    input_layout: str = "auto",
    checkpoint: Path | str | None = None,
    strict: bool = False,
    out: Path | str | None = None,
    workers: int | None = None,
    cell_seconds: float | None = None,
    cell_memory: float | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Attack every clip behind every defense strength, and score what comes out.

    Args:
        data: "synthetic", a path, a `ClipSet` or `FeatureSet`, clips (N, 3, T, H, H) in [0, 1], or
            (clips, labels).
        pipeline: "raw", "feature", or "all".
        model, extractor, head: a name, a module, or a factory; `vleak.named` gives one a name for the record.
        loss: of the head.
        training_state: "untrained", "early" or "late"; a module, and a model with a checkpoint, that are not
            trained further are "given".
        defenses: names, where "dp" is a sweep and "dp:noise_multiplier=0.5" one strength, or instances;
            "all" for every built-in one that can be used here.
        attacks: names or instances; None for "strongest", on features "matching" and "low_rank".
        metrics: further scores: names, objects with ``name`` and ``score``, or functions
            (reconstruction, truth) -> score.
        clips, frames, size, stride, segments: of the data.
        public_from: "other-files", or "same-file" for an attacker who holds parts of the attacked videos.
        strict: whether a file of the data that cannot be read ends the run; otherwise it is skipped.
        reference_frames: frames of the scene that the attacker holds; each count is a row.
        batch: private clips of a client; each number is a row.
        mode: mode of the model in the client, "eval" or "train", or both.
        trainable: patterns of the parameters that are trained and sent, such as "head.*".
        local_steps, local_epochs: length of local training (FedAvg), each number a row; 0 for none.
        local_batch, local_rate, local_momentum, local_decay, local_optimizer: how a client trains.
        rounds: rounds of training that the server sees, each number a row.
        participation: chance of the client to take part in a round that is not the last.
        round_clips: "same" clips in all rounds, or "new" ones.
        enhance: "classical", "network", "spandrel:FILE" or "none".
        restarts, iterations: of every attack by name.
        utility: rounds of federated training under every defense, for the accuracy that is left.
        audit_draws: messages with canaries, and as many without, by which claimed epsilons are audited; 0
            for none, None for as many as take some seconds.
        budget: iterations that `strongest` spends on trials for one model and defense.
        non_adaptive: clips behind every defense that attacks also rebuild without knowing it; 0 for none.
        labels: "inferred" or "granted".
        quick: whether the run is cut short: 8 clips, two strengths of a sweep, nothing enhanced.
        seed: equal seeds give equal scores. draw: another number draws the randomness of clients and attacks
            anew, on the same clips and weights.
        device: "auto", "cpu" or "cuda". engine: "native" or "reference".
        input_layout: in which the model takes clips: "NCTHW", "NTCHW", "pathways:alpha=4", or "auto".
        checkpoint: file with the model's weights: safetensors, or a state dict that torch saved.
        out: folder of the run, where a stopped one is taken up; None keeps everything in memory.
        workers: processes that work at the cells side by side; None is this one alone, with a thread for
            every core, and of a quick run one for every core.
        cell_seconds, cell_memory: time, and memory in GiB beyond that of the run, of the cells of one client,
            which then have a process of their own: one that takes more is tried again, and recorded as failed
            at the third time.
        ray: address ``HOST:PORT`` of a Ray cluster whose CPUs work at the cells, "auto" for the one of this
            machine, or "local" for a Ray that is started for this run; in place of ``workers``.
        progress: called as (what, cells finished, cells in all).
        stop: when set, the run ends after storing the finished cells.

    Returns:
        The finished run.

    Raises:
        InputError: an argument cannot be used, or the folder holds another run.
        CapabilityError: the model has no second derivative, or Ray is not installed.
        StoppedError: ``stop`` was set before the end.
        VleakError: the folder cannot be written, or Ray does not answer.
    """
    return _evaluated(locals())


def _evaluated(given: dict[str, Any]) -> Run:
    """Run an evaluation with the arguments of `evaluate`, by name."""
    settings = Settings(**_as_settings({f.name: given[f.name] for f in fields(Settings)}))
    store, limits = _store(given["out"]), Limits.asked(given["cell_seconds"], given["cell_memory"])
    how = {name: given[name] for name in ("workers", "ray", "progress", "stop")}
    return Run(run_evaluation(settings, store, limits=limits, **how), store)


def _store(out: Path | str | None) -> MemoryStore | FolderStore:
    return MemoryStore() if out is None else FolderStore(Path(out))


def load_run(path: Path | str) -> Run:
    """Load a run, finished or stopped.

    Args:
        path: its folder, or its results.json.

    Raises:
        InputError: there is no run, or its files are damaged or of a newer schema; names file and field.
    """
    path = Path(path)
    return Run(read_run(path), FolderStore(path if path.is_dir() else path.parent))


class Run:
    """A run: its typed record, the rows of its table, and its pictures.

    Attributes:
        record: everything that results.json holds.
    """

    def __init__(self, record: RunRecord, store: MemoryStore | FolderStore) -> None:
        """Take a record and the store that holds its pictures."""
        self.record = record
        self._store = store

    @property
    def settings(self) -> SettingsRecord:
        """Settings, as they ran."""
        return self.record.settings

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Cells: one for each clip, defense and attack."""
        return self.record.cells

    @cached_property
    def rows(self) -> list[Row]:
        """Rows: one for each defense and attack, over all clips, with a verdict."""
        return summarise(self.record)

    def pictures(self, cell: Cell | str) -> dict[str, Tensor]:
        """Pictures of a cell, float32 in [0, 1], by role.

        Args:
            cell: a cell of this run, or its id.

        Returns:
            "truth" (C, T, H, W), "reconstruction" (C, T, H, W) and "enhanced" (C, T, 2H, 2W), those that
            there are.

        Raises:
            InputError: the run has no such cell, or a file is missing or damaged.
        """
        name = cell if isinstance(cell, str) else cell.id
        found = next((own for own in self.cells if own.id == name), None)
        if found is None:
            raise InputError(f"cell={name}: this run has no such cell; take one of run.cells")
        return self._store.pictures(found)

    def to_json(self) -> str:
        """Content of results.json."""
        return json.dumps(self.record.content(), indent=1, ensure_ascii=False, allow_nan=False)

    def to_pandas(self) -> DataFrame:
        """Cells as a table, a column for each field, such as "scores.psnr_gain_db".

        Raises:
            CapabilityError: pandas is not installed.
        """
        try:
            from pandas import json_normalize
        except ImportError as error:
            raise CapabilityError(
                "to_pandas needs pandas, which is not installed; pip install pandas, or use run.cells"
            ) from error
        return json_normalize([cell.model_dump(mode="json") for cell in self.cells])

    def save(self, folder: Path | str) -> Path:
        """Write the run with its pictures into a folder, as `evaluate` with ``out`` does; return the folder.

        Raises:
            InputError: the folder holds something else.
            VleakError: it cannot be written.
        """
        target = FolderStore(Path(folder))
        if isinstance(self._store, FolderStore) and target.folder.resolve() == self._store.folder.resolve():
            return target.folder
        header = RunHeader(**{name: getattr(self.record, name) for name in RunHeader.model_fields})
        with target.open(header):
            clips = self._store.clips()
            if clips is not None:
                target.add_clips(clips)
            for cell in self.cells:
                pictures = self._store.pictures(cell) if cell.media is not None else {}
                target.add(cell, pictures.get("reconstruction"), pictures.get("enhanced"))
            kept = tuple(target.cells[cell.id] for cell in self.cells)
            target.write(self.record.model_copy(update={"cells": kept}))
        return target.folder

    def report(self, path: Path | str | None = None, *, pictures: bool | None = None) -> Path:
        """Write the report, one HTML file, and return its path.

        Args:
            path: the file; None for report.html in the folder of the run.
            pictures: whether private clips and what was rebuilt of them stand in it; None for those of
                synthetic clips alone.

        Raises:
            InputError: no path for a run that is in memory alone.
            VleakError: the file cannot be written.
        """
        from vleak.report.page import render

        if isinstance(self._store, FolderStore):
            path = Path(path) if path is not None else self._store.folder / "report.html"
            write_atomic(path, render(self._store.folder, self.record, pictures=pictures))
            return path
        if path is None:
            raise InputError("path=None: this run is in memory alone; give the file of the report")
        with tempfile.TemporaryDirectory() as folder:
            write_atomic(Path(path), render(self.save(folder), self.record, pictures=pictures))
        return Path(path)

    def __repr__(self) -> str:
        """Short description."""
        data, count = self.record.data, len(self.cells)
        return f"<Run of {data.name}: {data.clips} clips, {count} cells, {len(self.rows)} rows>"

    def _repr_html_(self) -> str:
        """Headline and rows, for notebooks."""
        from vleak.report.words import headline, row_cells

        sentences = "".join(f"<li>{escape(line)}</li>" for line in headline(self.rows, self.record))
        table = [row_cells(row) for row in self.rows]
        titles = "".join(f"<th>{escape(name)}</th>" for name in (table[0] if table else ()))
        lines = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row.values()) + "</tr>" for row in table
        )
        return f"<ul>{sentences}</ul><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _as_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `evaluate` as fields of `Settings`: what may be given alone as a tuple, a path as text."""
    for name in ("reference_frames", "batch", "local_steps", "local_epochs", "rounds"):
        if not isinstance(arguments[name], Sequence):
            arguments[name] = (arguments[name],)
    arguments["defenses"] = _several(arguments["defenses"], Defense)
    if arguments["attacks"] is not None:
        arguments["attacks"] = _several(arguments["attacks"], Attack)
    arguments["metrics"] = _metrics(arguments["metrics"])
    if arguments["checkpoint"] is not None:
        arguments["checkpoint"] = str(arguments["checkpoint"])
    return arguments


def _several(things: Any, kind: type) -> tuple[Any, ...]:
    """Tuple of what may be given alone.

    Raises:
        InputError: a class where an instance belongs, or nothing that can be gone through.
    """
    if isinstance(things, type) or (not isinstance(things, str | kind) and not isinstance(things, Iterable)):
        name = getattr(things, "__name__", repr(things))
        raise InputError(f"{kind.__name__.lower()}s={name}: expected names or instances; give {name}()")
    return (things,) if isinstance(things, str | kind) else tuple(cast("Iterable[Any]", things))


def _metrics(metrics: Any) -> tuple[Any, ...]:
    return tuple(metrics) if isinstance(metrics, list | tuple) else (metrics,)
