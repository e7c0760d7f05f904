"""Adaptive and non-adaptive attacker on the same messages: the run behind the table of docs/defenses.md.

    python benchmarks/adaptive.py --data FOLDER --out FOLDER [--attack NAME] [--page FILE]

Two runs of `vleak.evaluate` below ``--out``, one on the embedded clips and one on those of ``--data``; the
same command goes on where it was stopped. Both attackers meet the same message of a clip and start alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

import torch
from inner_loop import console
from marked import between_marks
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import vleak
from vleak.errors import VleakError
from vleak.federated import Message
from vleak.files import write_atomic
from vleak.report.numbers import gain_text
from vleak.results import Interval, Row

BEGIN, END = "<!-- adaptive: begin -->", "<!-- adaptive: end -->"
CLIPS = 12
_PAGE = Path(__file__).resolve().parents[1] / "docs" / "defenses.md"
_DEFENSES = (
    "prune:fraction=0.99",
    "compress:codec=sign",
    "compress:codec=int8",
    "compress:codec=qsgd,bits=2",
    "soteria",
    "precode",
    "powersgd:rank=2",
    "masks:deviation=0.001",
    "nvflare_percentile:percentile=90",
    "adaptive:ZeroedLayer",
)


@dataclass(frozen=True, kw_only=True)
class ZeroedLayer(vleak.Defense):
    """Send zeros for the last layer, as a user might write it: nothing is stated of what is sent.

    Attributes:
        tensors: how many of the last tensors of the update are zeroed.
    """

    name: ClassVar[str] = "zeroed_layer"
    tensors: int = 2

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send all entries as float32, those of the last tensors as 0."""
        last = list(gradient)[-self.tensors :]
        return super().transmit(
            {n: torch.zeros_like(t) if n in last else t for n, t in gradient.items()}, generator
        )


@dataclass(frozen=True)
class Finished:
    """Run on one kind of clips.

    Attributes:
        clips: in words.
        run: as `vleak.evaluate` returned it.
    """

    clips: str
    run: vleak.Run

    @property
    def rows(self) -> list[Row]:
        """Rows of the defended attacks."""
        return [row for row in self.run.rows if row.non_adaptive is not None]


def measure(arguments: argparse.Namespace, bar: Progress) -> list[Finished]:
    """Return the runs on both kinds of clips, computing what their folders do not hold yet."""
    runs = []
    for clips, data in (("embedded", "synthetic"), ("real", arguments.data)):
        task = bar.add_task(clips)
        run = vleak.evaluate(
            data=data, clips=CLIPS, non_adaptive=CLIPS, defenses=_DEFENSES,
            attacks=arguments.attack, enhance="none", seed=arguments.seed, out=arguments.out / clips,
            workers=arguments.workers,
            progress=lambda what, done, total, task=task: bar.update(
                task, description=what, completed=done, total=total or None
            ),
        )  # fmt: skip
        runs.append(Finished(clips, run))
    return runs


def table(runs: Sequence[Finished], today: date) -> str:
    """Return what stands between the marks of the page."""
    lines = [_provenance(runs, today), "", _in_short(runs), ""]
    lines += [
        "| clips | defense | adaptive: gain | recognised | label | non-adaptive: gain | recognised | label "
        "| lead in dB | lead in recognised, points |",
        "|" + "---|" * 10,
    ]
    for finished in runs:
        lines += [_line(finished.clips, row) for row in finished.rows]
    return "\n".join(lines)


def _provenance(runs: Sequence[Finished], today: date) -> str:
    record = runs[0].run.record
    settings, environment = record.settings, record.environment
    attack = " and ".join(f"`{attack}`" for attack in settings.attacks)
    sums = ", ".join(f"{each.clips} {each.run.record.data.sha256[:12]}" for each in runs)
    return (
        f"Written on {today.isoformat()} by `python benchmarks/adaptive.py --data FOLDER --out FOLDER`: "
        f"vleak {environment.vleak}, torch {environment.torch}, device {environment.device}, seed "
        f"{settings.seed}; {attack} of {settings.iterations} iterations; "
        f"`{settings.model}` {settings.training_state}, {CLIPS} clips of "
        f"{settings.frames}x{settings.size}x{settings.size} (data: {sums})."
    )


def _in_short(runs: Sequence[Finished]) -> str:
    leads = [{row.defense for row in each.rows if ahead(row)} for each in runs]
    names = list(dict.fromkeys(row.defense for each in runs for row in each.rows))
    both = [name for name in names if all(name in found for found in leads)]
    others = [name for name in names if name not in both]
    told = (
        f"Behind {len(both)} of {len(names)} strengths the adaptive attacker is ahead on both kinds of clips "
        "by an interval that excludes zero, in gain or in recognised clips"
    )
    return f"{told}: {', '.join(both) or 'none'}." + (f" Not so: {', '.join(others)}." if others else "")


def ahead(row: Row) -> bool:
    """Return whether a lead of the adaptive attacker, in gain or in recognised clips, is beyond doubt."""
    other = row.non_adaptive
    leads = () if other is None else (other.lead_db, other.lead_identified)
    return any(lead.low is not None and lead.low > 0 for lead in leads)


def _line(clips: str, row: Row) -> str:
    other = row.non_adaptive
    assert other is not None
    points = other.lead_identified
    cells = [
        clips, row.defense,
        gain_text(row.psnr_gain_db), f"{row.identified}/{row.n}", f"{row.labels_correct}/{row.n}",
        gain_text(other.psnr_gain_db), f"{other.identified}/{other.n}", f"{other.labels_correct}/{other.n}",
        gain_text(other.lead_db), _points(points),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _points(share: Interval) -> str:
    if share.mean is None or share.low is None or share.high is None:
        return "–"
    low, high = max(-1.0, share.low), min(1.0, share.high)
    return f"{100 * share.mean:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def page(text: str, runs: Sequence[Finished], today: date) -> str:
    """Return a page with what is between its marks written anew.

    Raises:
        InputError: the page has no marks.
    """
    return between_marks(text, BEGIN, END, table(runs, today))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of real videos")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument(
        "--attack", default="matching", help="attack that is run with and without the channel"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--page", type=Path, default=_PAGE, help="page whose table is written anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        text = arguments.page.read_text(encoding="utf-8")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            runs = measure(arguments, bar)
        write_atomic(arguments.page, page(text, runs, date.today()))
    except (VleakError, OSError) as error:
        print(f"adaptive: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("adaptive: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    console.print(f"table in {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
