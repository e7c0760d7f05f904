"""`vleak bench`: CPU time of an iteration on this machine, native and reference engine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from vleak.cli import output, streams
from vleak.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vleak.descent import Problem, timing

_ENGINES = ("reference", "native")
_ROUNDS, _BLOCK_SECONDS = 7, 0.1
_CLASSES = 10
_RANGES = {"frames": (2, 1_024), "size": (8, 1_024)}

Models = Annotated[
    list[str] | None,
    typer.Option(
        help="A name of `vleak list models`, or package.module:factory; repeat for more. The small ones."
    ),
]
Frames = Annotated[int, typer.Option(help="Frames of the clip.")]
Size = Annotated[int, typer.Option(help="Height and width of the clip in pixels.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def bench(model: Models = None, frames: Frames = 8, size: Size = 32, json: Json = False) -> None:
    """Time the inner loop on this machine: one thread, CPU time, native against reference."""
    from vleak.models import SMALL_MODELS

    for option, value in (("frames", frames), ("size", size)):
        low, high = _RANGES[option]
        if not low <= value <= high:
            raise InputError(f"--{option} {value}: expected a whole number from {low} to {high}")
    with streams.plugins_on_stderr():
        results = _measure_all(model or list(SMALL_MODELS), frames, size)
    if json:
        output.write_json(results)
    else:
        output.print_table(_table(results))


def _measure_all(names: list[str], frames: int, size: int) -> dict[str, Any]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with output.progress_bar() as bar:
            task = bar.add_task("measuring", total=len(names) * _ROUNDS * (1 + len(_ENGINES)))
            rows = [_measure(name, frames, size, lambda: bar.advance(task)) for name in names]
    finally:
        torch.set_num_threads(threads)
    return {
        "environment": _environment(),
        "clip": [1, 3, frames, size, size],
        "rounds": _ROUNDS,
        "models": rows,
    }


def _environment() -> dict[str, str | None]:
    import torch

    import vleak
    from vleak.native import loader

    status = loader.status()
    return {
        "vleak": vleak.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "extension": status.state,
        "reason": status.reason,
        "instruction_set": status.instruction_set,
        "runner": status.loop,
        "remedy": status.remedy,
    }


def _measure(name: str, frames: int, size: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Return the row of one model, in CPU seconds an iteration."""
    from vleak.descent import Descent, DescentSettings, timing

    problem, start = _problem(name, frames, size)
    # The weights of total variation are those of `matching`; no timing depends on them.
    settings = DescentSettings(iterations=timing.iterations_needed(_ROUNDS), spatial=0.03, temporal=0.09)
    descents = {engine: Descent(problem, settings, start, engine=engine) for engine in _ENGINES}
    calls: dict[str, timing.Call] = {"forward_backward": _forward_backward(problem, start)}
    calls |= {engine: descent.run for engine, descent in descents.items()}
    measured = timing.interleaved(calls, rounds=_ROUNDS, seconds=_BLOCK_SECONDS, progress=advance)
    row: dict[str, Any] = {"model": name}
    for key, value in measured.items():
        row[key] = {"cpu_s": value.median, "cpu_s_low": value.low, "cpu_s_high": value.high}
    for engine, prepared in descents.items():
        row[engine]["engine"] = prepared.engine
        row[engine]["over_forward_backward"] = (
            measured[engine].divided_by(measured["forward_backward"]).median
        )
    ratio = measured["reference"].divided_by(measured["native"])
    row["reference_over_native"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
    return row


def _problem(name: str, frames: int, size: int) -> tuple[Problem, Tensor]:
    """Return the problem of matching the update of a random clip, and a random start (1, 3, T, H, W)."""
    import torch
    from torch.nn import functional as F

    from vleak.descent import Problem
    from vleak.federated import trained_part
    from vleak.models import build_model, check_classifier, check_second_derivative

    model = trained_part(build_model(name, frames=frames, size=size, classes=_CLASSES, seed=0))
    draws = torch.Generator().manual_seed(0)
    private, start = (torch.rand(1, 3, frames, size, size, generator=draws) for _ in range(2))
    check_classifier(model, start, 1)
    check_second_derivative(model, start)
    labels = torch.zeros(1, dtype=torch.int64)
    names = [name for name, _ in model.named_parameters()]
    target = dict(zip(names, _gradient(model, private, labels), strict=True))
    return Problem(model, F.cross_entropy, labels, target), start


def _gradient(model: nn.Module, clips: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    import torch
    from torch.nn import functional as F

    loss = F.cross_entropy(model(clips), labels)
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


def _forward_backward(problem: Problem, start: Tensor) -> timing.Call:
    def run(iterations: int) -> None:
        for _ in range(iterations):
            _gradient(problem.model, start, problem.labels)

    return run


def _table(results: dict[str, Any]) -> Table:
    clip = "x".join(map(str, results["clip"]))
    table = Table(title=f"One iteration in CPU milliseconds, clip {clip}", box=box.SIMPLE_HEAD)
    table.caption = "\n".join(_caption(results))
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("model")
    for column in ("fwd+bwd", "reference", "native", "ratio", "10 .. 90 %", "x fwd+bwd"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in results["models"]:
        ratio = row["reference_over_native"]
        table.add_row(
            row["model"],
            *(f"{1e3 * row[name]['cpu_s']:.2f}" for name in ("forward_backward", *_ENGINES)),
            f"{ratio['median']:.2f}",
            f"{ratio['low']:.2f} .. {ratio['high']:.2f}",
            f"{row['native']['over_forward_backward']:.1f}",
        )
    return table


def _caption(results: dict[str, Any]) -> list[str]:
    """Return the lines that explain the measurement and the native engine of this machine."""
    environment = results["environment"]
    lines = [
        f"one thread, medians of {results['rounds']} interleaved rounds. ratio: reference / native.",
        "fwd+bwd: the gradient by the weights alone; x fwd+bwd: how many of it a native iteration takes.",
    ]
    if environment["instruction_set"] is None:
        lines.append(f"no native code here ({environment['reason']}): both columns ran plain PyTorch.")
        return [*lines, f"what to do: {environment['remedy']}."] if environment["remedy"] else lines
    lines.append(
        f"native: kernels {environment['instruction_set']}, {environment['extension']}; "
        f"runner {environment['runner']}."
    )
    fell_back = [row["model"] for row in results["models"] if row["native"]["engine"] != "native"]
    if fell_back:
        lines.append(f"not captured, so the reference ran in its place: {', '.join(fell_back)}.")
    return lines
