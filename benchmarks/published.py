"""Published defenses of federated video, attacked: the runs behind docs/published.md, and its table.

    python benchmarks/published.py --data FOLDER --out FOLDER [--only TEXT] [--again]

The adapters are in examples/published, one file a publication. Every recipe is attacked by `vleak.evaluate`
in a folder of its own below ``--out``, its claims are checked and its epsilon is audited; the same command
goes on where it was stopped. What the page needs is kept in benchmarks/results/published.json: what is there
is not measured again, unless ``--again`` says so.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from inner_loop import console
from published_page import Audit, Outcome, read_outcomes, write_outcomes, write_page
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import vleak
from vleak.auditing import empirical_epsilon
from vleak.conformance import conform
from vleak.errors import InputError, VleakError
from vleak.evaluation import Settings
from vleak.evaluation.setup import prepare
from vleak.federated import Client, LocalTraining
from vleak.seeds import generator
from vleak.switches import math_attention

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "published.md"
_OUTCOMES = _ROOT / "benchmarks" / "results" / "published.json"
ADAPTERS = _ROOT / "examples" / "published"
_MODULES = ("fedvideomae", "multi_clip", "fed_wsvad")
CLIPS = 12
SHARED = {"frames": 8, "size": 32, "clips": CLIPS, "budget": 300, "iterations": 100, "enhance": "none"}
"""Arguments of every run: small enough for a quarter of an hour in all, on two idle cores."""
DRAWS = 1000


def recipes() -> dict[str, Any]:
    """Return the recipes of all adapters by name."""
    if str(ADAPTERS) not in sys.path:
        sys.path.insert(0, str(ADAPTERS))
    return {name: each for module in _MODULES for name, each in import_module(module).RECIPES.items()}


def folder_of(name: str) -> str:
    """Return the name of a recipe's folder: its letters and digits, with lines between the words."""
    return (
        "".join(c if c.isalnum() else " " for c in name.lower()).strip().replace("  ", " ").replace(" ", "_")
    )


def arguments_of(recipe: Any, data: str, seed: int) -> dict[str, Any]:
    """Return what is asked of `vleak.evaluate`."""
    given = {"data": data, "seed": seed, "defenses": [recipe.defense], "non_adaptive": 0, "audit_draws": 0}
    return {**SHARED, **given, **recipe.run}


def measured(name: str, recipe: Any, data: str, seed: int, out: Path, tell: Any) -> Outcome:
    """Return the outcome of a recipe, computing what its folder does not hold yet.

    Raises:
        VleakError: the folder holds another run, or the run failed.
    """
    arguments = arguments_of(recipe, data, seed)
    run = vleak.evaluate(out=out / folder_of(name), progress=tell, **arguments)
    tell("checking the claims", 0, 0)
    checks = conform(recipe.defense, seed=seed).checks
    broken = tuple(check.name for check in checks if check.outcome == "broken")
    tell("auditing the epsilon", 0, 0)
    step, sent, audit = audited(recipe, arguments, seed, tell)
    return Outcome.of(run, recipe, broken, (step, sent), audit, date.today())


def audited(
    recipe: Any, arguments: dict[str, Any], seed: int, tell: Any
) -> tuple[float | None, float | None, Audit | None]:
    """Return the epsilon claimed of a gradient and of the update that is sent, and the audit of one."""
    defense = recipe.audited or recipe.defense
    if defense.privacy() is None:
        return None, None, None
    with math_attention():
        given = {key: value for key, value in arguments.items() if key in Settings.__dataclass_fields__}
        pipeline = prepare(Settings(**(given | _several(given))), lambda *_: None).pipelines[0]
        client = Client(pipeline.model, pipeline.loss, defense)
        found = empirical_epsilon(
            client, pipeline.samples.private[:1], pipeline.samples.labels[:1], generator("published", seed),
            draws=DRAWS, progress=lambda draw: tell("auditing the epsilon", draw, DRAWS),
        )  # fmt: skip
    uses = LocalTraining(steps=arguments.get("local_steps") or 1).uses(1)
    sent = defense.privacy_of(uses)
    lower = found.lower
    return (
        found.claimed,
        sent and sent.epsilon,
        Audit(lower.epsilon, lower.method, found.draws, found.refuted),
    )


def _several(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are one number here and several in `Settings`."""
    return {key: (given[key],) for key in ("local_steps", "local_epochs", "batch") if key in given}


def measure(arguments: argparse.Namespace, bar: Progress) -> dict[str, Outcome]:
    """Return all outcomes, those that are kept already and those of the recipes that are still to do."""
    known = recipes()
    kept = {} if arguments.again else read_outcomes(arguments.outcomes)
    results = {name: kept[name] for name in known if name in kept}
    planned = [name for name in known if name not in results and arguments.only.lower() in name.lower()]
    whole, inner = bar.add_task("recipes", total=len(planned)), bar.add_task("")
    for number, name in enumerate(planned):
        bar.update(whole, completed=number, description=name)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(inner, description=what, completed=done, total=total or None)

        results[name] = measured(name, known[name], arguments.data, arguments.seed, arguments.out, tell)
        results = {each: results[each] for each in known if each in results}
        write_outcomes(arguments.outcomes, results)
        console.print(f"{name}: done", soft_wrap=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of videos, or synthetic")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="recipes with this in their name")
    parser.add_argument("--page", type=Path, default=_PAGE, help="page whose table is written anew")
    parser.add_argument("--outcomes", type=Path, default=_OUTCOMES, help="file of what was measured before")
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            results = measure(arguments, bar)
        if not results:
            raise InputError(f"only={arguments.only}: no recipe has this in its name; they are "
                             f"{', '.join(recipes())}")  # fmt: skip
        write_page(arguments.page, results)
    except VleakError as error:
        print(f"published: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("published: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    console.print(f"{len(results)} recipes; table in {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
