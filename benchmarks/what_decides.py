"""What decides whether an update leaks: the runs behind docs/what_decides.md, and its tables.

    python benchmarks/what_decides.py --data FOLDER --out FOLDER [--without-peers] [--finished] [--again]

Every run is one of `vleak.evaluate` in a folder of its own below ``--out``; the same command goes on where it
was stopped. What the page needs of a run is kept in benchmarks/results/what_decides.json, so that runs need
not all be of one day: what is there is not run again, unless ``--again`` says so. Beside each run stands the
spectrum of the Jacobian of its updates (jacobian.py). The peers are the published settings of breaching, run
by its own code on the same clips with the same labels; breaching_loop.py says how it is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from breaching_loop import load
from cases import Case, sent_update
from decides_page import Outcome, Results, outcome, read_outcomes, write_outcomes, write_page
from decides_plan import Work, works
from inner_loop import console
from jacobian import Product, Spectrum, spectrum
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import vleak
from vleak.errors import InputError, VleakError
from vleak.evaluation import Settings
from vleak.evaluation.setup import prepare
from vleak.federated import JacobianProducts, LocalTraining
from vleak.files import write_atomic
from vleak.seeds import generator
from vleak.switches import math_attention

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "what_decides.md"
_OUTCOMES = Path(__file__).resolve().parent / "results" / "what_decides.json"
_COST, _SPECTRUM = "cost.json", "spectrum.json"
_CLIENTS, _STEPS = 2, 64
Tell = Callable[[str, int, int], None]


def finished(work: Work, data: str, seed: int, out: Path, tell: Tell) -> Outcome:
    """Return the outcome of a run, computing what its folder does not hold yet.

    Raises:
        InputError: the folder holds a run of other data or another seed.
        VleakError: the run failed.
    """
    folder = out / work.folder
    cost = _read(folder / _COST) or {"cpu_seconds": 0.0, "finished": False}
    if cost["finished"]:
        run = vleak.load_run(folder)
        if (run.settings.data, run.settings.seed) != (data, seed):
            raise InputError(f"out={out}: holds runs of other data or another seed; give another folder")
    else:
        begin = time.process_time()
        try:
            run = vleak.evaluate(data=data, seed=seed, out=folder, progress=tell, **work.arguments())
            cost["finished"] = True
        finally:
            cost["cpu_seconds"] += time.process_time() - begin
            if folder.is_dir():
                write_atomic(folder / _COST, json.dumps(cost))
    seen = None
    if work.peer is None and work.labels == "inferred":
        tell("spectrum of the Jacobian", 0, 0)
        seen = _kept_spectrum(folder / _SPECTRUM, work, data, seed)
    return outcome(run, cost["cpu_seconds"], seen, date.today())


def _kept_spectrum(path: Path, work: Work, data: str, seed: int) -> Spectrum:
    kept = _read(path)
    if kept is None:
        kept = asdict(spectrum_of(work, data, seed))
        write_atomic(path, json.dumps(kept))
    return Spectrum(kept["size"], kept["effective_rank"], tuple(kept["above"]))


def _read(path: Path) -> dict[str, Any] | None:
    content: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.exists() else None
    return content


def spectrum_of(work: Work, data: str, seed: int) -> Spectrum:
    """Return the spectrum of the Jacobian of the first clients' updates, with the model that was attacked."""
    arguments = work.arguments() | {"defenses": ("none",), "batch": (work.setting.batch,)}
    arguments["local_steps"] = (work.setting.local_steps,)
    with math_attention():
        pipeline = prepare(Settings(data=data, seed=seed, **arguments), lambda *_: None).pipelines[0]
        local = None
        if work.setting.local_steps:
            local = LocalTraining(
                steps=work.setting.local_steps, learning_rate=arguments["local_rate"], batch_size=0
            )
        model = pipeline.model.train(work.setting.mode == "train")
        case = Case("", "", model, (), 0.0, 0.0, local)
        samples, batch = pipeline.samples, work.setting.batch
        clients = list(zip(samples.private.split(batch), samples.labels.split(batch), strict=True))
        whole = [client for client in clients[:_CLIENTS] if len(client[0]) == batch]
        products = (_product(case, *client) for client in whole)
        return spectrum(products, whole[0][0].numel(), _STEPS, generator("spectrum", seed))


def _product(case: Case, clips: Tensor, labels: Tensor) -> Product:
    weights = dict(case.model.named_parameters())
    return JacobianProducts(
        lambda x: sent_update(case, weights, x, labels, differentiable=True), clips
    ).squared


def measure(arguments: argparse.Namespace, bar: Progress) -> Results:
    """Return all outcomes, those that are kept already and those of the runs that are still to do."""
    results = {} if arguments.again else read_outcomes(arguments.outcomes)
    planned = [
        work for work in works()
        if work not in results and not (work.peer is not None and arguments.without_peers)
        and (not arguments.finished or _is_finished(arguments.out / work.folder))
    ]  # fmt: skip
    whole, inner = bar.add_task("runs", total=len(planned)), bar.add_task("")
    for number, work in enumerate(planned):
        bar.update(whole, completed=number, description=work.folder)
        results[work] = finished(
            work, arguments.data, arguments.seed, arguments.out,
            lambda what, done, total: bar.update(
                inner, description=what, completed=done, total=total or None
            ),
        )  # fmt: skip
        write_outcomes(arguments.outcomes, results)
        console.print(f"{work.folder}: done", soft_wrap=True)
    return results


def _is_finished(folder: Path) -> bool:
    return bool((_read(folder / _COST) or {}).get("finished"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of videos, or synthetic")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=_PAGE, help="page whose tables are written anew")
    parser.add_argument("--outcomes", type=Path, default=_OUTCOMES, help="file of what was measured before")
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    parser.add_argument("--without-peers", action="store_true", help="leave out what breaching is needed for")
    parser.add_argument("--finished", action="store_true", help="start no run; write what is finished")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.without_peers and load() is None:
        print("what_decides: breaching is not installed; breaching_loop.py says how, or give "
              "--without-peers", file=sys.stderr)  # fmt: skip
        return 2
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            results = measure(arguments, bar)
        if not results:
            raise InputError(f"out={arguments.out}: holds no finished run; start without --finished")
        write_page(arguments.page, results)
    except VleakError as error:
        print(f"what_decides: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("what_decides: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    console.print(f"{len(results)} runs; tables in {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
