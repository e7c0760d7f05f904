"""`vleak evaluate`: attack every clip behind every defense."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vleak.cli import output, stopping, streams
from vleak.cli.progress import shown_progress
from vleak.cli.table import leak_table
from vleak.defaults import BUDGET, NON_ADAPTIVE_CLIPS
from vleak.errors import InputError, VleakError, argument

if TYPE_CHECKING:
    from vleak.api import Run
    from vleak.results import Row


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


def _number(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, parser=_integer, metavar="N")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got {text!r}") from None


_DATA, _CLIENT, _ATTACK, _RUN = "What is attacked", "The client", "The attack", "The run"

Defenses = Annotated[
    list[str],
    _option(
        "Defense to test: a name alone sweeps its strengths, dp:noise_multiplier=0.5 is one; all: every "
        "built-in one. Repeat for more; none always runs.",
        _DATA,
    ),
]
Data = Annotated[
    str,
    _option(
        "synthetic; a video, or a folder of videos or PNG frames (sub-folders are classes); a list of them; "
        "or files of features.",
        _DATA,
    ),
]
Pipeline = Annotated[
    str,
    _option(
        "raw: the classifier sees frames; feature: a head sees an extractor's features; all: both.", _DATA
    ),
]
Model = Annotated[
    str,
    _option(
        "Classifier of the raw pipeline: a name of `vleak list models`, also with its size "
        "(c3d_tiny:width=16,depth=2), or package.module:factory.",
        _DATA,
    ),
]
InputLayout = Annotated[
    str,
    _option(
        "Axes of clips as the model takes them: NCTHW, NTCHW or pathways:alpha=4 (SlowFast); auto tries all.",
        _DATA,
    ),
]
Checkpoint = Annotated[
    str | None,
    _option("File with the model's weights: safetensors, or a state dict saved by torch.", _DATA),
]
Extractor = Annotated[
    str, _option("Frozen extractor: a name of `vleak list extractors`, or package.module:factory.", _DATA)
]
Head = Annotated[str, _option("Head on features: a name of `vleak list heads`, such as mlp:depth=2.", _DATA)]
Loss = Annotated[str, _option("Loss of the head: cross_entropy, bce (a segment), ranking (MIL).", _DATA)]
TrainingState = Annotated[
    str,
    _option(
        "untrained, early or late: how far the model is trained on public clips here; given: its factory "
        "loads trained weights.",
        _DATA,
    ),
]
Clips = Annotated[int | None, _number("Clips to attack; 12, or what the data gives.", _DATA)]
Frames = Annotated[int, _number("Frames of a clip.", _DATA)]
Size = Annotated[int, _number("Height and width of a clip in pixels.", _DATA)]
Stride = Annotated[int, _number("Video frames from one frame of a clip to the next.", _DATA)]
Segments = Annotated[int, _number("Segments that feature files are brought to.", _DATA)]
PublicFrom = Annotated[
    str,
    _option(
        "Public clips that the attacker holds: other-files, of which none is attacked; same-file: also other "
        "parts of the attacked videos.",
        _ATTACK,
    ),
]
Strict = Annotated[
    bool,
    _option("Stop at a file that cannot be read; otherwise it is skipped and counted.", _DATA, "--strict"),
]
Attacks = Annotated[
    list[str] | None,
    _option("Attack to run; repeat for more. matching; on features also low_rank.", _ATTACK),
]
ReferenceFrames = Annotated[
    str,
    _option("Frames of the scene, not in the clip, that the attacker holds: 0,1,4 runs all three.", _ATTACK),
]
Batch = Annotated[str, _option("Private clips of a client: 1,4,8 runs all three.", _CLIENT)]
Mode = Annotated[
    str, _option("Mode of the model while a client computes: eval, train, or both with a comma.", _CLIENT)
]
Trainable = Annotated[
    str, _option("Parameters that are trained and sent, by name: 'head.*'; commas between patterns.", _CLIENT)
]
LocalSteps = Annotated[
    str, _option("Steps of local training before a delta is sent (FedAvg): 0 for the gradient; 1,5.", _CLIENT)
]
LocalEpochs = Annotated[str, _option("The same in passes over the client's clips.", _CLIENT)]
LocalBatch = Annotated[int, _number("Clips of a local step; 0 for all of the client.", _CLIENT)]
LocalRate = Annotated[
    float | None, _option("Learning rate of local training, and of the server between rounds.", _CLIENT)
]
LocalMomentum = Annotated[float, _option("Momentum of local SGD.", _CLIENT)]
LocalDecay = Annotated[float, _option("Weight decay of local training.", _CLIENT)]
LocalOptimizer = Annotated[str, _option("sgd or adam.", _CLIENT)]
Rounds = Annotated[str, _option("Rounds of training that the server sees, used together: 1,3.", _CLIENT)]
Participation = Annotated[
    float, _option("Chance of the client to take part in a round that is not the last.", _CLIENT)
]
RoundClips = Annotated[str, _option("same clips in every round, or new ones.", _CLIENT)]
Metrics = Annotated[
    list[str] | None,
    _option(
        "Further score of what was rebuilt: a plug-in's name, or package.module:Class; repeat for more.",
        _ATTACK,
    ),
]
Enhance = Annotated[
    str,
    _option("What rebuilt clips are enhanced by: classical, network, spandrel:FILE, or none.", _ATTACK),
]
Restarts = Annotated[int, _number("Independent starts; the attack keeps its own best.", _ATTACK)]
Iterations = Annotated[int, _number("Iterations of each start.", _ATTACK)]
Budget = Annotated[
    int,
    _number("Iterations in which `strongest` tries its attacks on public clips, for each defense.", _ATTACK),
]
NonAdaptive = Annotated[
    int,
    _number(
        "Clips behind every defense that each attack also rebuilds without knowing the defense; 0 for none.",
        _ATTACK,
    ),
]
Labels = Annotated[str, _option("inferred by the attack, or granted to it.", _ATTACK)]
Utility = Annotated[
    int,
    _number(
        "Rounds of federated training under every defense, for the accuracy that is left; 0 for none.", _RUN
    ),
]
AuditDraws = Annotated[
    int | None,
    _number(
        "Messages, with canaries and as many without, that bound each claimed epsilon from below; 0 for "
        "none. As many as take some seconds.",
        _RUN,
    ),
]
Quick = Annotated[
    bool,
    _option(
        "At most 8 clips, the weakest and the strongest of every sweep, no enhancement.", _RUN, "--quick"
    ),
]
Seed = Annotated[int, _number("Equal seeds give equal scores.", _RUN)]
Draw = Annotated[
    int, _number("Another number draws noise and starts anew, on the same clips and weights.", _RUN)
]
Device = Annotated[str, _option("auto, cpu or cuda.", _RUN)]
Engine = Annotated[
    str,
    _option("native, or reference (plain PyTorch).", _RUN),
]
Workers = Annotated[
    int | None,
    _number(
        "Processes side by side; without it one process, a thread a core; with --quick one a core. No score "
        "depends on it.",
        _RUN,
    ),
]
CellSeconds = Annotated[
    float | None,
    _option(
        "Time of a cell in a process of its own; it is tried three times, then recorded as failed.", _RUN
    ),
]
CellMemory = Annotated[
    float | None, _option("Memory of a cell in GiB, beyond that of the run; likewise.", _RUN)
]
Ray = Annotated[
    str | None,
    _option(
        "Ray cluster whose CPUs work at the cells, in place of --workers: HOST:PORT, auto, or local for one "
        "of this run.",
        _RUN,
    ),
]
Out = Annotated[Path | None, _option("Folder of the run; give that of a stopped run to resume it.", _RUN)]
Json = Annotated[bool, _option("Print the results, and nothing else, to stdout.", _RUN, "--json")]


def evaluate(
    defense: Defenses = ["dp"],  # noqa: B006
    data: Data = "synthetic",
    pipeline: Pipeline = "raw",
    model: Model = "c3d_tiny",
    input_layout: InputLayout = "auto",
    checkpoint: Checkpoint = None,
    extractor: Extractor = "c3d_small",
    head: Head = "mlp",
    loss: Loss = "bce",
    training_state: TrainingState = "untrained",
    clips: Clips = None,
    frames: Frames = 8,
    size: Size = 32,
    stride: Stride = 2,
    segments: Segments = 32,
    public_from: PublicFrom = "other-files",
    strict: Strict = False,
    attack: Attacks = None,
    reference_frames: ReferenceFrames = "0",
    batch: Batch = "1",
    mode: Mode = "eval",
    trainable: Trainable = "*",
    local_steps: LocalSteps = "0",
    local_epochs: LocalEpochs = "0",
    local_batch: LocalBatch = 0,
    local_rate: LocalRate = None,
    local_momentum: LocalMomentum = 0.0,
    local_decay: LocalDecay = 0.0,
    local_optimizer: LocalOptimizer = "sgd",
    rounds: Rounds = "1",
    participation: Participation = 1.0,
    round_clips: RoundClips = "same",
    metric: Metrics = None,
    enhance: Enhance = "classical",
    restarts: Restarts = 1,
    iterations: Iterations = 150,
    budget: Budget = BUDGET,
    non_adaptive: NonAdaptive = NON_ADAPTIVE_CLIPS,
    labels: Labels = "inferred",
    utility: Utility = 0,
    audit_draws: AuditDraws = None,
    quick: Quick = False,
    seed: Seed = 0,
    draw: Draw = 0,
    device: Device = "auto",
    engine: Engine = "native",
    workers: Workers = None,
    cell_seconds: CellSeconds = None,
    cell_memory: CellMemory = None,
    ray: Ray = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Attack every clip behind every defense strength, and report what still leaks."""
    _evaluate(dict(locals()))


def _evaluate(options: dict[str, Any]) -> None:
    """Run an evaluation with the options of the command, by name, and show what came of it."""
    folder = options.pop("out") or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    named, as_json = bool(options["attack"]), options.pop("json")
    stopping.tell_at_end(lambda: _how_to_resume(folder))
    try:
        run = _run(folder, **_as_arguments(options))
        _show(run)
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, Exception) and not stopping.asked():
            raise
        raise stopping.StoppedError(_how_to_resume(folder)) from error
    if as_json:
        output.write_json(run.record.content(), f"they are in {folder / 'results.json'}")
    _refuse_empty(run.rows, named=named)
    if any(row.bound_broken or row.refuted for row in run.rows):
        raise typer.Exit(1)


def _as_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command as arguments of `vleak.evaluate`."""
    attacks = options.pop("attack")
    options |= {
        "defenses": tuple(options.pop("defense")),
        "attacks": tuple(attacks) if attacks else None,
        "metrics": tuple(options.pop("metric") or ()),
    }
    for name in ("reference_frames", "batch", "local_steps", "local_epochs", "rounds"):
        options[name] = _counts(name, options[name])
    options["mode"] = tuple(options["mode"].split(","))
    return options


def _counts(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{argument(name, repr(text))}: expected whole numbers with commas, such as 0,1,4"
        ) from None


def _run(folder: Path, **arguments: Any) -> Run:
    from vleak import api

    with shown_progress() as show:
        return api.evaluate(out=folder, progress=show, **arguments)


def _show(run: Run) -> None:
    from vleak.report import headline, withheld_text

    with streams.plugins_on_stderr():
        page = run.report()
    for note in run.record.data.notes:
        output.say(f"data: {note}")
    for model in run.record.models:
        for note in model.notes:
            output.say(f"model {model.name}: {note}")
    for defense, reason in run.record.not_served.items():
        output.say(f"not run: {defense}: {reason}")
    output.console.print(leak_table(run.record, run.rows, output.console.width))
    for line in headline(run.rows, run.record):
        output.say(line)
    output.say(f"report: {page}{withheld_text(run.record, None)}")


def _refuse_empty(rows: list[Row], *, named: bool) -> None:
    """Raise VleakError if a requested attack has no result for a defense.

    Of default attacks, which the user did not name, one with results is enough.
    """
    attacks = [row for row in rows if not row.baseline]
    empty = [row for row in attacks if not row.n]
    if not named:
        working = {(row.pipeline, row.defense, row.reference_frames) for row in attacks if row.n}
        empty = [row for row in empty if (row.pipeline, row.defense, row.reference_frames) not in working]
    if empty:
        names, reasons = ", ".join(row.defense for row in empty), "; ".join(empty[0].failures)
        raise VleakError(f"no result for {names}, because every cell failed: {reasons}")


def _how_to_resume(folder: Path) -> str:
    if not (folder / "cells.jsonl").is_file():
        return "stopped before the first cell; nothing was kept"
    with open(folder / "cells.jsonl", "rb") as journal:
        done = sum(line.endswith(b"\n") for line in journal)
    return f"stopped, {done} finished cells are kept; to resume: {stopping.resume_command(folder)}"
