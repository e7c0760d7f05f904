"""`vleak conformance`: defenses are held to their contract and to their claims, on what they send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from vleak.cli import output, streams
from vleak.errors import InputError

if TYPE_CHECKING:
    from vleak.conformance import Conformance
    from vleak.federated import Defense

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Defenses, as `vleak evaluate --defense` takes them. Without one: all that are known by name.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Of clips, weights and randomness.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results, and nothing else, to stdout.")]


def conformance(names: Names = None, seed: Seed = 0, json: Json = False) -> None:
    """Check what defenses say about their messages on what they send.

    Exit 1 if a claim is broken, 2 if a defense refused to send anything.
    """
    from vleak.conformance import conform

    with streams.plugins_on_stderr(), output.progress_bar() as bar:
        defenses = _defenses(names or [])
        task = bar.add_task("checking", total=len(defenses))
        results = []
        for defense in defenses:
            results.append(conform(defense, seed=seed))
            bar.advance(task)
    if json:
        output.write_json({"seed": seed, "defenses": [_record(result) for result in results]})
    else:
        output.print_table(_table(results))
    if not all(result.holds for result in results):
        raise typer.Exit(1)
    refused = [f"{result.label}: {result.refusal}" for result in results if result.refusal]
    if refused:
        raise InputError(f"conformance: no message could be checked of {'; '.join(refused)}")


def _defenses(names: list[str]) -> list[Defense]:
    from vleak.defenses import DEFENSES, parse_defenses

    if any(not name for name in names):
        raise InputError("conformance: an empty name; expected a defense, such as dp or prune:fraction=0.9")
    return [strength for name in names or DEFENSES for strength in parse_defenses(name)]


def _table(results: list[Conformance]) -> Table:
    table = Table("defense", "claims", "outcome", box=box.SIMPLE_HEAD)
    for result in results:
        claims = [_words(check.claim) for check in result.checks if check.claim is not None]
        unlike = [check for check in result.checks if check.outcome != "holds"]
        outcome = [f"{check.outcome}: {check.name}: {check.detail}" for check in unlike]
        held = f"{len(result.checks) - len(unlike)} of {len(result.checks)} checks hold"
        table.add_row(result.label, "\n".join(claims) or "none", "\n".join([held, *outcome]))
    return table


def _words(claim: Any) -> str:
    """Return a claim as its name and settings, such as ``clip norm: limit 1, unit clip``."""
    settings = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in vars(claim).items()
    )
    return f"{claim.name}: {settings}" if settings else claim.name


def _record(result: Conformance) -> dict[str, Any]:
    checks = [
        {
            "name": check.name,
            "settings": {} if check.claim is None else dict(vars(check.claim)),
            "outcome": check.outcome,
            "detail": check.detail,
        }
        for check in result.checks
    ]
    return {"defense": result.label, "holds": result.holds, "checks": checks}
