"""Benchmark of the CPU seconds until vleak's attack reaches the final PSNR of breaching, on real clips.

    python benchmarks/time_to_quality.py [--data FOLDER] [--case F H] [--clips 3] [--iterations 2400] [--json]

breaching runs its published `invertinggradients` settings (signed Adam, rate 0.1 with its drops, cosine,
total variation 0.2, box, start from a normal distribution) for ``--iterations``. vleak runs `matching` with
its defaults, once with the same knowledge and once with public clips. Both are granted the label. Both run on
one thread; CPU time is counted, without the computation of PSNR. The truth serves for PSNR alone and affects
no setting. vleak's attack is repeated from the beginning and stopped after a growing number of iterations of
the same schedule, so that every PSNR is that of the answer that a user would get at that time.

vleak captures an iteration once for a process and shape of clip; the time of the capture is counted in full
for every clip.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import breaching_loop
import torch
from inner_loop import console, environment
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from vleak.attacks import ATTACKS, Knowledge, Observation, Reconstruction
from vleak.data import ClipSet, load_clips
from vleak.errors import VleakError
from vleak.federated import Channel, Client, Update
from vleak.metrics import psnr
from vleak.models import TRAINING_STATES, build_model, train
from vleak.seeds import generator

SMALL = "c3d_tiny"
CASES = {
    "8x32x32": (SMALL, 8, 32),
    "16x64x64": (SMALL, 16, 64),
    "F": ("r3d_18", 8, 64),
    "H": ("vit_tubelet:width=192,depth=6,heads=3,patch=8", 8, 64),
}
"""Network, frames and size by name; F and H are those of the inner loop, hours of breaching a clip."""
STATES = ("untrained", "early")
#: name -> whether the attacker holds public clips, which breaching does not use
KNOWLEDGE = {"matching": False, "matching, public clips": True}
_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
_LOOK = 100  # iterations of breaching between two PSNR measurements
_STEP = 10  # smallest number of iterations of vleak between two PSNR measurements
Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Target:
    """Attacked clip with its update, its model and its data set."""

    data: ClipSet
    index: int
    model: nn.Module
    update: Update

    @property
    def truth(self) -> Tensor:
        """(C, T, H, W)."""
        return self.data.clips[self.index]

    @property
    def label(self) -> Tensor:
        """(1,)."""
        return self.data.labels[self.index][None]

    def psnr(self, clips: Tensor) -> float:
        """Return the PSNR of a reconstruction (1, C, T, H, W) in dB."""
        return psnr(clips[0].clamp(0, 1), self.truth)


# ---------------------------------------------------------------------------------------------------------
# The two attacks


def run_breaching(target: Target, iterations: int, tell: Tell) -> dict[str, Any]:
    """Return the PSNR of breaching in dB over CPU seconds, and its final PSNR."""
    start = torch.randn(target.truth[None].shape, generator=generator("time to quality", target.index))
    gradient = [target.update.tensors[name] for name, _ in target.model.named_parameters()]
    attack = breaching_loop.BreachingLoop(target.model, target.label, gradient, start)
    trace: list[tuple[int, float, float]] = []
    looking = 0.0
    begin = time.process_time()

    def watch(done: int, candidate: Tensor) -> None:
        nonlocal looking
        if done % _LOOK:
            return
        now = time.process_time()
        trace.append((done, now - begin - looking, target.psnr(candidate)))
        tell("breaching", done)
        looking += time.process_time() - now

    answer = attack.reconstruct(iterations, watch)
    seconds = time.process_time() - begin - looking
    return {"seconds": seconds, "psnr_db": target.psnr(answer), "iterations": iterations, "trace": trace}


def run_vleak(target: Target, public: bool, wanted: float, whole: int | None, tell: Tell) -> dict[str, Any]:
    """Return the CPU seconds until vleak reaches the wanted PSNR (None: never), and its final PSNR."""
    trace: list[tuple[int, float, float]] = []
    reached = None
    for stop_after in _looks():
        answer, seconds = attack(target, public, whole, stop_after)
        trace.append((answer.iterations, seconds, target.psnr(answer.clips)))
        tell("vleak", answer.iterations)
        if trace[-1][2] >= wanted:
            reached = {"seconds": seconds, "iterations": answer.iterations, "psnr_db": trace[-1][2]}
        if reached or answer.iterations < stop_after:
            break
    answer, seconds = attack(target, public, whole, None)
    end = {"seconds": seconds, "iterations": answer.iterations, "psnr_db": target.psnr(answer.clips)}
    return {"reached": reached, "end": end, "engine": answer.engine, "trace": trace}


def _looks() -> Iterator[int]:
    """Yield numbers of iterations to stop after, growing by about a quarter."""
    done = 0
    while True:
        done = max(done + _STEP, math.ceil(1.25 * done / _STEP) * _STEP)
        yield done


def attack(
    target: Target, public: bool, whole: int | None, stop_after: int | None
) -> tuple[Reconstruction, float]:
    """Return the answer of vleak's attack and its CPU seconds, from the start on.

    Args:
        target: the attacked clip.
        public: whether the attacker holds public clips.
        whole: iterations of the schedule; None for the attack's default.
        stop_after: iterations after which the attack is stopped; None for the full schedule.
    """
    data = target.data
    knowledge = Knowledge(
        clip_shape=tuple(target.truth.shape),
        batch_size=1,
        classes=len(data.classes),
        labels=target.label,
        public_clips=data.public_clips if public else None,
    )
    observation = Observation(target.model, target.update, knowledge, Channel())
    matching = ATTACKS["matching"](**({} if whole is None else {"iterations": whole}))
    done = 0

    def progress(iterations: int) -> None:
        nonlocal done
        done = iterations

    def stop() -> bool:
        return stop_after is not None and done >= stop_after

    begin = time.process_time()
    start = generator("time to quality", target.index, "start")
    answer = matching.reconstruct(observation, start, progress=progress, stop=stop)
    return answer, time.process_time() - begin


def preparation(target: Target, public: bool) -> float:
    """Return the extra CPU seconds of the first attack of its kind in a process, compared with the next."""
    first, again = (attack(target, public, None, _STEP)[1] for _ in range(2))
    return max(0.0, first - again)


# ---------------------------------------------------------------------------------------------------------
# All targets


def targets(source: str, case: str, state: str, clips: int) -> list[Target]:
    """Return the clips of one case behind a model in one state, as `vleak evaluate` prepares them."""
    network, frames, pixels = CASES[case]
    data = load_clips(source, clips=clips, frames=frames, size=pixels, seed=0)
    model = build_model(network, frames=frames, size=pixels, classes=len(data.classes), seed=0)
    train(model, data.public_clips, data.public_labels, TRAINING_STATES[state], generator(0, "training"))
    return [
        Target(
            data,
            index,
            model,
            Client(model).update(data.clips[index][None], data.labels[index][None], generator(index)),
        )
        for index in range(len(data.clips))
    ]


def measure(arguments: argparse.Namespace, tell: Tell) -> list[dict[str, Any]]:
    cells = []
    for case in arguments.case:
        prepare: dict[str, float] = {}
        for state in arguments.state:
            for target in targets(arguments.data, case, state, arguments.clips):
                if not prepare:  # on the first target alone; training states share the captured iteration
                    prepare = {name: preparation(target, public) for name, public in KNOWLEDGE.items()}
                cell = {"case": case, "training_state": state, "clip": target.data.names[target.index]}
                theirs = run_breaching(target, arguments.iterations, tell)
                wanted = theirs["psnr_db"]
                cells.append(cell | {"breaching": theirs})
                for name, public in KNOWLEDGE.items():
                    found = run_vleak(target, public, wanted, arguments.attack_iterations, tell)
                    cells[-1][name] = found | {"prepare_seconds": prepare[name]}
                say(cells[-1])
    return cells


def say(cell: dict[str, Any]) -> None:
    """Print the result of a finished clip at once, since all clips take an hour."""
    theirs = cell["breaching"]
    line = f"{cell['case']} {cell['training_state']} {cell['clip']}: breaching {theirs['seconds']:.1f} s,"
    line += f" {theirs['psnr_db']:.1f} dB"
    for name in KNOWLEDGE:
        seconds, end = _seconds(cell[name]), cell[name]["end"]
        line += f"; {name} {seconds:.2f} s, ends {end['seconds']:.2f} s, {end['psnr_db']:.1f} dB"
    console.print(line, soft_wrap=True)


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over the clips; a clip that never reaches the PSNR counts as infinitely long."""
    rows = []
    for case, state in dict.fromkeys((cell["case"], cell["training_state"]) for cell in cells):
        group = [cell for cell in cells if (cell["case"], cell["training_state"]) == (case, state)]
        theirs = [cell["breaching"] for cell in group]
        for name in KNOWLEDGE:
            ours = [cell[name] for cell in group]
            seconds = [_seconds(each) for each in ours]
            parts = [mine / other["seconds"] for mine, other in zip(seconds, theirs, strict=True)]
            rows.append(
                {
                    "case": case,
                    "training_state": state,
                    "attack": name,
                    "clips": len(group),
                    "reached": sum(each["reached"] is not None for each in ours),
                    "breaching_seconds": statistics.median(each["seconds"] for each in theirs),
                    "breaching_psnr_db": statistics.median(each["psnr_db"] for each in theirs),
                    "seconds": _finite(statistics.median(seconds)),
                    "prepare_seconds": ours[0]["prepare_seconds"],
                    "part_of_breaching": _finite(statistics.median(parts)),
                    "end_seconds": statistics.median(each["end"]["seconds"] for each in ours),
                    "end_psnr_db": statistics.median(each["end"]["psnr_db"] for each in ours),
                }
            )
    return rows


def _seconds(found: dict[str, Any]) -> float:
    reached = found["reached"]
    return found["prepare_seconds"] + (reached["seconds"] if reached else math.inf)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(rows: list[dict[str, Any]]) -> None:
    columns = (
        "case",
        "state",
        "attack",
        "breaching s",
        "ends at dB",
        "s to that",
        "part of it",
        "reached",
        "its end s",
        "dB",
    )
    table = Table(*columns, title="CPU seconds to the PSNR at which breaching ends, medians over clips")
    for row in rows:
        seconds, part = row["seconds"], row["part_of_breaching"]
        table.add_row(
            row["case"],
            row["training_state"],
            row["attack"],
            f"{row['breaching_seconds']:.1f}",
            f"{row['breaching_psnr_db']:.1f}",
            "never" if seconds is None else f"{seconds:.2f}",
            "" if part is None else f"{part:.3f}",
            f"{row['reached']}/{row['clips']}",
            f"{row['end_seconds']:.2f}",
            f"{row['end_psnr_db']:.1f}",
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(_CLIPS), help="folder of videos")
    parser.add_argument("--clips", type=int, default=3, help="clips a case")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES)[:2])
    parser.add_argument("--state", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument("--iterations", type=int, default=2400, help="of breaching")
    parser.add_argument("--attack-iterations", type=int, help="of vleak's schedule; its default if not given")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not Path(arguments.data).exists():
        print(f"time_to_quality: there are no clips at {arguments.data}; give --data FOLDER", file=sys.stderr)
        return 2
    if breaching_loop.load() is None:
        print("time_to_quality: breaching is not installed; breaching_loop.py says how", file=sys.stderr)
        return 2
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=arguments.iterations)
        try:
            cells = measure(arguments, lambda who, done: bar.update(task, description=who, completed=done))
        except VleakError as error:
            print(f"time_to_quality: {error}", file=sys.stderr)
            return 2
    rows = summary(cells)
    show(rows)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "data")}
        record = {"environment": environment(1), "settings": settings, "summary": rows, "cells": cells}
        json.dump(record, sys.stdout, indent=1)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
