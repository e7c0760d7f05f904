"""How often an honest defense is accused: conformance and audits of every built-in defense over many seeds.

    python benchmarks/honest.py --out FOLDER [--seeds 200] [--part PART] [--defense NAME] [--page FILE]

Two parts. "conformance" holds each defense to its contract and its claims (`vleak.conformance.conform`);
"audits" compares the epsilon that it claims with lower bounds from canaries (`vleak.auditing`). A seed draws
the clips, the weights and all randomness, and takes the strengths of a sweep in turn. Every outcome is stored
in ``--out`` as soon as it is there; the same command goes on where it was stopped, and writes the table of
what is finished. The exit code is 1 where a defense was accused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from inner_loop import console
from journal import Cell, Journal, run_part
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vleak.auditing import empirical_epsilon
from vleak.conformance import conform
from vleak.conformance.conform import FALSE_ALARM
from vleak.conformance.probe import Probe
from vleak.defenses import DEFENSES, Defense, defense_text
from vleak.errors import InputError, VleakError, first_line, unknown_name
from vleak.federated import Client
from vleak.files import write_atomic
from vleak.seeds import generator

PARTS = ("conformance", "audits")
DRAWS, AUDIT_ALARM = 100, 1e-5
_PAGE = Path(__file__).resolve().parent / "results" / "honest.md"


def works(part: str, names: Sequence[str], seeds: int) -> Iterator[tuple[str, Callable[[], Cell]]]:
    """Yield what computes each outcome of a part, by its key, seed by seed."""
    for seed in range(seeds):
        for name in names:
            sweep = DEFENSES[name].sweep()
            strength = sweep[seed % len(sweep)]
            if part == "conformance":
                yield f"{name} {seed}", partial(_conformance, strength, seed)
            elif strength.privacy() is not None:
                yield f"{name} {seed}", partial(_audit, strength, seed)


def _conformance(defense: Defense, seed: int) -> Cell:
    checks = conform(defense, seed=seed).checks
    broken = [f"{check.name}: {check.detail}" for check in checks if check.outcome == "broken"]
    return {
        "defense": defense_text(defense),
        "checks": sum(check.outcome != "not checked" for check in checks),
        "not_checked": [
            f"{check.name}: {check.detail}" for check in checks if check.outcome == "not checked"
        ],
        "accused": broken,
    }


def _audit(defense: Defense, seed: int) -> Cell:
    probe, text = Probe(seed=seed), defense_text(defense)
    client = Client(probe.model, defense=defense)
    try:
        found = empirical_epsilon(
            client, *probe.batch, generator("honest", text, seed), draws=DRAWS, confidence=1 - AUDIT_ALARM
        )
    except VleakError as error:
        return {"defense": text, "checks": 0, "not_checked": [first_line(error)], "accused": []}
    why = f"claims {found.claimed:.3g}, at least {found.lower.epsilon:.3g}; e-value {found.e_value:.3g}"
    return {"defense": text, "checks": 1, "not_checked": [], "accused": [why] if found.refuted else []}


def page(cells: dict[str, Sequence[Cell]]) -> str:
    """Return the page of what is finished, a table a part."""
    lines = [
        "# How often an honest defense is accused",
        "",
        "Written by `python benchmarks/honest.py --out FOLDER`.",
    ]
    for part, rate in zip(PARTS, (FALSE_ALARM, AUDIT_ALARM), strict=True):
        lines += ["", f"## {part.capitalize()}", "", _in_short(cells[part], rate), ""]
        lines += ["| defense | seeds | checks | not checked | accused |", "|---|---|---|---|---|"]
        by_name: dict[str, list[Cell]] = {}
        for cell in cells[part]:
            by_name.setdefault(cell["key"].partition(" ")[0], []).append(cell)
        lines += [_line(name, own) for name, own in by_name.items()]
    return "\n".join(lines) + "\n"


def _in_short(cells: Sequence[Cell], rate: float) -> str:
    checks, accused = sum(cell["checks"] for cell in cells), [cell for cell in cells if cell["accused"]]
    told = "; ".join(f"{cell['key']} ({cell['defense']}): {cell['accused'][0]}" for cell in accused)
    return (
        f"{len(cells):,} runs, {checks:,} checks, each of which accuses an honest defense with a probability "
        f"of at most {rate:g}: {min(1.0, checks * rate):.2g} for any of them. Accused: {len(accused)}"
        + (f". {told}." if told else ".")
    )


def _line(name: str, cells: Sequence[Cell]) -> str:
    passed_over = sum(len(cell["not_checked"]) for cell in cells)
    accused = sum(bool(cell["accused"]) for cell in cells)
    return (
        f"| `{name}` | {len(cells)} | {sum(cell['checks'] for cell in cells)} | {passed_over} | {accused} |"
    )


def named(asked: Sequence[str] | None) -> list[str]:
    """Return the names of the defenses that were asked for; all built-in ones where none were.

    Raises:
        InputError: a name that is none of them.
    """
    for name in asked or ():
        if name not in DEFENSES.builtin:
            raise unknown_name("defense", name, DEFENSES.builtin)
    return list(asked or DEFENSES.builtin)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of what was found")
    parser.add_argument("--seeds", type=int, default=200, help="of each defense, from 0 (default: 200)")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--defense", action="append", metavar="NAME", help="one defense alone; repeatable")
    parser.add_argument("--page", type=Path, default=_PAGE, help="file of the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        if arguments.seeds < 1:
            raise InputError(f"--seeds is {arguments.seeds}, expected a whole number from 1")
        names = named(arguments.defense)
        arguments.out.mkdir(parents=True, exist_ok=True)
        journals = {part: Journal(arguments.out / f"{part}.jsonl", 0) for part in PARTS}
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            for part in [arguments.part] if arguments.part else PARTS:
                run_part(part, dict(works(part, names, arguments.seeds)), journals[part], bar)
        cells = {part: list(journals[part].cells.values()) for part in PARTS}
        write_atomic(arguments.page, page(cells))
    except (VleakError, OSError) as error:
        print(f"honest: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("honest: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return int(any(cell["accused"] for part in PARTS for cell in cells[part]))


if __name__ == "__main__":
    sys.exit(main())
