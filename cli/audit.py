"""`vleak audit`: an update that was captured, with the user's own model, and no private clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from vleak.cli import output
from vleak.cli.progress import shown_progress
from vleak.errors import InputError, argument
from vleak.files import check_page

if TYPE_CHECKING:
    from vleak.federated import LocalTraining
    from vleak.report import AuditRow
    from vleak.update_audit import Audit, AuditRecord, DetectionScore

_GIVEN, _CLIENT, _ATTACK, _RUN = "What was captured", "The client", "The attack", "The run"


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


Model = Annotated[
    str,
    _option(
        "The model with the weights that the client was sent: package.module:factory, or a name.", _GIVEN
    ),
]
Update = Annotated[
    list[str],
    _option(
        "File of the update: safetensors, .npz without pickles, or a torch file of tensors. Repeat for more "
        "updates of the client, each audited by itself.",
        _GIVEN,
    ),
]
InputShape = Annotated[
    str, _option("C,T,H,W of a clip: channels, frames, height, width, as 3,8,32,32.", _GIVEN)
]
Before = Annotated[
    str | None,
    _option("File of the weights before local training; --update then has those after it.", _GIVEN),
]
Kind = Annotated[
    str,
    _option("What the file holds: gradient, delta (after less before), weights (after), or auto.", _GIVEN),
]
Checkpoint = Annotated[str | None, _option("File with the model's weights, as of `evaluate`.", _GIVEN)]
Classes = Annotated[int | None, _option("Classes that the factory is told.", _GIVEN)]
InputLayout = Annotated[str, _option("Axes of clips as the model takes them, as of `evaluate`.", _GIVEN)]
Partial = Annotated[
    bool, _option("Let parameters be missing; what is there is attacked.", _GIVEN, "--partial")
]
Batch = Annotated[int, _option("Clips behind the update.", _CLIENT)]
Mode = Annotated[str, _option("Mode of the model while the client computed: eval or train.", _CLIENT)]
LocalSteps = Annotated[int, _option("Steps of local training behind a delta.", _CLIENT)]
LocalBatch = Annotated[int, _option("Clips of a local step; 0 for all of the client.", _CLIENT)]
LocalRate = Annotated[float | None, _option("Learning rate of local training; makes it a delta.", _CLIENT)]
LocalMomentum = Annotated[float, _option("Momentum of local SGD.", _CLIENT)]
LocalDecay = Annotated[float, _option("Weight decay of local training.", _CLIENT)]
LocalOptimizer = Annotated[str, _option("sgd or adam.", _CLIENT)]
Defense = Annotated[str, _option("Defense that the client uses, as far as you know; one strength.", _CLIENT)]
Public = Annotated[
    str, _option("Clips that the attacker holds: synthetic, or videos as of `evaluate`.", _ATTACK)
]
Attacks = Annotated[
    list[str] | None,
    _option(
        "Attack to run; repeat for more. matching and strongest. none only compares with dummies.", _ATTACK
    ),
]
TryDefense = Annotated[
    list[str] | None, _option("Defense to try on a dummy; repeat for more. none tries nothing.", _ATTACK)
]
Starts = Annotated[int, _option("Independent starts of the first attack, which are compared.", _ATTACK)]
Iterations = Annotated[int, _option("Iterations of each descent, from 10.", _ATTACK)]
Seconds = Annotated[float, _option("Time for all attacks on an update together, from 1.", _ATTACK)]
Truth = Annotated[
    str | None, _option("The private clip, for scores: a file of one tensor, or a video.", _RUN)
]
Candidates = Annotated[
    str | None, _option("Clips to recognise the private one among; else public ones.", _RUN)
]
Seed = Annotated[int, _option("Of everything that is drawn.", _RUN)]
Out = Annotated[
    Path | None, _option("Page to write, one .html file; of several updates a folder of pages.", _RUN)
]
Pictures = Annotated[
    bool, _option("Put what was rebuilt on the page; it is as private as your clips.", _RUN, "--pictures")
]
Json = Annotated[bool, _option("Print the record, and nothing else, to stdout.", _RUN, "--json")]


def audit(
    model: Model,
    update: Update,
    input_shape: InputShape,
    before: Before = None,
    kind: Kind = "auto",
    checkpoint: Checkpoint = None,
    classes: Classes = None,
    input_layout: InputLayout = "auto",
    partial: Partial = False,
    batch: Batch = 1,
    mode: Mode = "eval",
    local_steps: LocalSteps = 1,
    local_batch: LocalBatch = 0,
    local_rate: LocalRate = None,
    local_momentum: LocalMomentum = 0.0,
    local_decay: LocalDecay = 0.0,
    local_optimizer: LocalOptimizer = "sgd",
    defense: Defense = "none",
    public: Public = "synthetic",
    attack: Attacks = None,
    try_defense: TryDefense = None,
    starts: Starts = 2,
    iterations: Iterations = 100,
    seconds: Seconds = 300.0,
    truth: Truth = None,
    candidates: Candidates = None,
    seed: Seed = 0,
    out: Out = None,
    pictures: Pictures = False,
    json: Json = False,
) -> None:
    """Audit captured updates: do they fit, what do they leak, and what would have helped."""
    given = dict(locals())
    if out is not None:
        _check_out(out, len(update))
    made = _audit(given)
    if len(made) == 1:
        _show_one(made[0], out, pictures=pictures)
    else:
        _show_several({each.record.update.source: each for each in made}, out, pictures=pictures)
    if json:
        records = {each.record.update.source: each.record.content() for each in made}
        output.write_json(records if len(made) > 1 else made[0].record.content())


def _check_out(out: Path, updates: int) -> None:
    """Refuse what is no page for one update, and no folder that is new or empty for several."""
    if updates == 1:
        check_page("out", out)
        return
    given = argument("out", out)
    if out.suffix.lower() in (".html", ".htm"):
        raise InputError(f"{given}: several updates have a page each; give a folder, {out.with_suffix('')}")
    if not out.parent.is_dir():
        raise InputError(f"{given}: there is no folder {out.parent}; make it first")
    if out.exists() and not out.is_dir():
        raise InputError(f"{given}: it is a file, and several updates have a page each; give a folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{given}: the folder holds files already; give a new one, or an empty one")


def _audit(given: dict[str, Any]) -> list[Audit]:
    from vleak.update_audit import DEFENSES_TRIED, audit_each

    more = {
        name: given[name]
        for name in (
            "before", "kind", "checkpoint", "classes", "input_layout", "partial", "mode", "defense", "public",
            "starts", "iterations", "seconds", "truth", "candidates", "seed",
        )
    }  # fmt: skip
    with shown_progress() as show:
        return audit_each(
            given["model"],
            given["update"],
            input_shape=_shape(given["input_shape"]),
            batch_size=given["batch"],
            local=_local(given),
            attacks=_named(given["attack"], ("matching", "strongest")),
            defenses=_named(given["try_defense"], DEFENSES_TRIED),
            progress=show,
            **more,
        )


def _named(given: list[str] | None, otherwise: tuple[str, ...]) -> list[str]:
    """Return names of a repeated option; "none" alone is no name."""
    return [] if given == ["none"] else given or list(otherwise)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{argument('input_shape', repr(text))}: expected C,T,H,W in whole numbers, such as 3,8,32,32"
        ) from None


def _local(given: dict[str, Any]) -> LocalTraining | None:
    from vleak.federated import LocalTraining

    if given["local_rate"] is None:
        usual = {"steps": 1, "momentum": 0, "decay": 0, "batch": 0, "optimizer": "sgd"}
        for name in (f"local_{part}" for part, value in usual.items() if given[f"local_{part}"] != value):
            raise InputError(
                f"{argument(name, given[name])}: is of local training, whose learning rate is not given; "
                "give `local_rate` too"
            )
        return None
    optimizer: Literal["sgd", "adam"] = given["local_optimizer"]
    return LocalTraining(
        steps=given["local_steps"], batch_size=given["local_batch"], learning_rate=given["local_rate"],
        momentum=given["local_momentum"], weight_decay=given["local_decay"], optimizer=optimizer,
    )  # fmt: skip


def _show_one(made: Audit, out: Path | None, *, pictures: bool) -> None:
    from vleak.report import write_audit

    _show(made.record)
    if out is not None:
        output.say(f"page: {write_audit(made, out, pictures=pictures)}")


def _show_several(made: Mapping[str, Audit], out: Path | None, *, pictures: bool) -> None:
    """Show a row an update, then what there is to say of the one with the highest risk."""
    from vleak.report import audit_rows, write_audits

    rows = audit_rows(made)
    output.console.print(_updates(rows))
    output.say(f"highest risk: {rows[0].shown}")
    _show(rows[0].record)
    if out is not None:
        output.say(f"pages: {write_audits(made, out, pictures=pictures)}")


def _updates(rows: Sequence[AuditRow]) -> Table:
    measured = any(row.recognised for row in rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("update", overflow="fold")
    for name in ("risk", "fits", *(("recognised", "gain dB") if measured else ()), "frames vouched for"):
        table.add_column(name, no_wrap=name == "risk")
    for row in rows:
        scores = (row.recognised, _number(row.gain_db)) if measured else ()
        table.add_row(escape(row.shown), row.record.risk.level, row.fits, *scores, row.vouched)
    return table


def _show(record: AuditRecord) -> None:
    output.console.print(_checks(record))
    if record.defenses:
        output.console.print(_leaks(record))
    for score in record.detection:
        if score.alarm:
            where = f" in {score.layer}" if score.layer else ""
            output.say(f"  {score.name}{where}, of the {score.of}: {score.why} ({_limited(score)})")
    for reason in record.risk.reasons:
        output.say(f"  {reason}")
    output.say(f"risk {record.risk.level}: {record.risk.meaning}")
    if record.budget.skipped:
        output.say(f"no time for: {', '.join(record.budget.skipped)}")


def _checks(record: AuditRecord) -> Table:
    table = Table("check", "outcome", "what was seen", box=box.SIMPLE_HEAD)
    for check in record.consistency:
        table.add_row(check.name, check.outcome, check.detail)
    return table


def _leaks(record: AuditRecord) -> Table:
    table = Table("defense, on a dummy", "correlation", "left", "gain dB", "rebuilt", box=box.SIMPLE_HEAD)
    for trial in record.defenses:
        table.add_row(
            trial.defense,
            _number(trial.correlation, trial.failed),
            _number(trial.left),
            _number(trial.gain_db),
            {True: "yes", False: "no", None: ""}[trial.rebuilt],
        )
    return table


def _limited(score: DetectionScore) -> str:
    figure = "without bound" if score.figure is None else f"{score.figure:.3g}"
    return f"{figure}, at most {score.threshold:.3g}"


def _number(value: float | None, otherwise: str = "") -> str:
    return otherwise if value is None else f"{value:.2f}"
