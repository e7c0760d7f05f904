"""`vleak suite`: an entry of a frozen protocol that ranks defenses, and the leaderboard of entries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from vleak.cli import output
from vleak.cli.progress import shown_progress
from vleak.errors import InputError, argument
from vleak.files import check_output, check_page, write_atomic

if TYPE_CHECKING:
    from vleak.suite import Board, Entry, Protocol

DefenseText = Annotated[
    str | None,
    typer.Option(
        "--defense", help="Defense to measure, one strength: dp:noise_multiplier=0.5, mine:Defense."
    ),
]
AttackText = Annotated[
    str | None,
    typer.Option("--attack", help="Attack in place of the protocol's, for an entry of a stronger one."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="File of the entry; of a leaderboard the page. Named after the defense."
    ),
]
Leaderboard = Annotated[Path | None, typer.Option(help="Folder of entries to rank.")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="Protocol, by name and version.")]
Runs = Annotated[
    Path | None, typer.Option(help="Folder that keeps the runs behind the entry; a stopped one is resumed.")
]
Workers = Annotated[int | None, typer.Option(help="Processes side by side; no figure depends on it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the entry, and nothing else, to stdout.")]


def suite(
    *,
    defense: DefenseText = None,
    attack: AttackText = None,
    out: Out = None,
    leaderboard: Leaderboard = None,
    protocol: ProtocolName = "vleak-suite-1",
    runs: Runs = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Measure a defense by a frozen protocol, or rank the entries of a folder; exit 1 for a refused entry.

    Without --defense and --leaderboard it says what the protocol is.
    """
    from vleak.suite import find_protocol

    chosen = find_protocol(protocol)
    if leaderboard is not None:
        _check_board(defense, attack, json=json)
        _rank(leaderboard, chosen, out)
    elif defense is None:
        _check_nothing_asked({"attack": attack, "out": out, "runs": runs})
        _describe(chosen)
    else:
        _measure(chosen, defense, attack, out, runs, workers, as_json=json)


def _check_board(defense: str | None, attack: str | None, *, json: bool) -> None:
    for name, value in (("defense", defense), ("attack", attack), ("json", json or None)):
        if value is not None:
            raise InputError(
                f"{argument(name, value)}: is of an entry; a `leaderboard` takes entries that are finished"
            )


def _check_nothing_asked(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{argument(name, value)}: of which defense? give `defense` too")


def _describe(protocol: Protocol) -> None:
    table = Table("situation", "model", "client", "also measured", box=box.SIMPLE_HEAD)
    table.title, table.title_style = f"{protocol.name}: {protocol.about}", "bold"
    for each in protocol.situations:
        sent = f"{each.local_steps} local steps at {each.local_rate}" if each.local_steps else "a gradient"
        also = ["empirical epsilon"] * each.audited
        also += [f"accuracy after {each.utility_rounds} rounds"] * bool(each.utility_rounds)
        table.add_row(
            each.name, f"{each.model}, {each.training_state}",
            f"{sent}, batch of {each.batch}, mode {each.mode}", ", ".join(also) or "–",
        )  # fmt: skip
    table.caption = (
        f"{protocol.clips} synthetic clips of {protocol.frames}x{protocol.size}x{protocol.size}, seed "
        f"{protocol.seed}, each a candidate of all; attack {protocol.attack}, {protocol.iterations} "
        f"iterations, {protocol.budget} for trials; without knowledge of the defense on "
        f"{protocol.non_adaptive} clips.\ndigest {protocol.sha256}"
    )
    table.caption_style, table.caption_justify = "dim", "left"
    output.print_table(table)
    output.print_lines(
        [
            "an entry:    vleak suite --defense dp:noise_multiplier=0.5 -o entries/dp.json",
            "an attack:   vleak suite --attack mine:Attack --defense prune:fraction=0.9 -o entries/mine.json",
            "the ranks:   vleak suite --leaderboard entries -o leaderboard.html",
        ]
    )


def _measure(
    protocol: Protocol, defense: str, attack: str | None, out: Path | None, runs: Path | None,
    workers: int | None, *, as_json: bool,
) -> None:  # fmt: skip
    from vleak.suite import entry_name, make_entries, write_entry

    path = check_output("out", out or Path(entry_name(defense, attack)))
    if not os.access(path.parent, os.W_OK):  # before some minutes of work, not behind them
        raise InputError(f"{argument('out', path)}: its folder cannot be written; give another")
    with shown_progress() as show:
        (entry,) = make_entries(protocol, [defense], attack, runs=runs, workers=workers, progress=show)
    write_entry(entry, path)
    output.console.print(_entry_table(entry))
    for refusal in entry.refusals:
        where = f" ({refusal.situation})" if refusal.situation else ""
        output.say(f"refused, {refusal.rule}{where}: {refusal.reason}")
    output.say(f"{'admitted' if entry.admitted else 'refused'}: {path}")
    if as_json:
        output.write_json(entry.model_dump(mode="json"), f"they are in {path}")
    if not entry.admitted:
        raise typer.Exit(1)


def _entry_table(entry: Entry) -> Table:
    from vleak.report import gain_text

    table = Table("situation", "attack", "recognised", "gain dB [95 %]", "linked", box=box.SIMPLE_HEAD)
    table.title = f"{entry.defense.label} by {entry.attack.text}, {entry.protocol}"
    table.title_style = "bold"
    for situation in entry.situations:
        both = [("undefended", situation.undefended)]
        both += [("adaptive", situation.defended)] * (not entry.defense.undefended)
        for name, figures in both:
            table.add_row(
                Text(situation.name if name == "undefended" else ""), name,
                f"{sum(clip.recognised for clip in figures.clips)}/{len(entry.clips)}",
                gain_text(figures.gain_db.interval),
                f"{sum(bool(clip.linked) for clip in figures.clips)}/{figures.linked.n}",
            )  # fmt: skip
        if situation.unaware is not None:
            other = situation.unaware
            found = f"{sum(clip.recognised for clip in other.clips)}/{len(other.clips)}"
            table.add_row("", "non-adaptive", found, gain_text(other.gain_db.interval), "")
    return table


def _rank(folder: Path, protocol: Protocol, out: Path | None) -> None:
    from vleak.report import board_page
    from vleak.suite import leaderboard, read_entries

    page = check_page("out", out or Path("leaderboard.html"))
    board = leaderboard(read_entries(folder, protocol), protocol)
    write_atomic(page, board_page(board))
    output.print_table(_board_table(board))
    output.say(f"leaderboard: {page}")


def _board_table(board: Board) -> Table:
    from vleak.report import rank_text, standing_cells

    table = Table(box=box.SIMPLE_HEAD)
    table.title, table.title_style = f"Which defense leaks least? {board.protocol.name}", "bold"
    for name in ("rank", "defense", "leakage"):
        table.add_column(name, no_wrap=name in ("rank", "leakage"))
    for name in ("recog-\nnised", "linked", "gain\ndB", "non-\nadaptive"):
        table.add_column(name, justify="right", no_wrap=True)
    for standing in board.standings:
        cells = standing_cells(standing)
        linked = None if standing.linked is None else standing.linked.mean
        table.add_row(
            rank_text(standing.rank), Text(_named(standing.entry)), cells["leakage"],
            _percent(standing.recognised.mean), _percent(linked), f"{standing.gain_db.mean or 0.0:+.1f}",
            cells["non-adaptive gain"],
        )  # fmt: skip
    caption = "leakage from 0 to 1, and ranks, with 95 % intervals over clips; more on the page."
    if refused := [_named(entry) for entry in (*board.refused, *board.disqualified)]:
        caption += f"\nrefused, with reasons on the page: {', '.join(refused)}"
    table.caption = Text(caption)
    table.caption_style, table.caption_justify = "dim", "left"
    return table


def _named(entry: Entry) -> str:
    """Label of the defense, and the attack where it is not that of the protocol."""
    by = "" if entry.attack.of_protocol else f", by {entry.attack.text}"
    return f"{entry.defense.label}{by}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
