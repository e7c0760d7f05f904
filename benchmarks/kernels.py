"""Benchmark of native operators against plain PyTorch: one thread, medians of interleaved CPU times.

Both sides compute value and derivative, or a complete step. Convolutions and products have separate tables
with the rate of native code; products with zeros of the padding do not count. Run it on an idle machine:

    python benchmarks/kernels.py [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vleak.native import bilinear, loader, operators
from vleak.seeds import generator

Call = Callable[[], Any]
ROUND_SECONDS = 0.02

# Parameter shapes of a 16-32-64 3-D CNN with a linear head, and of a 2048-512-32-2 head.
CNN = [(16, 3, 3, 3, 3), (16,), (32, 16, 3, 3, 3), (32,), (64, 32, 3, 3, 3), (64,), (10, 2048), (10,)]
HEAD = [(512, 2048), (512,), (32, 512), (32,), (2, 32), (2,)]
CLIPS = [(1, 3, 8, 32, 32), (8, 3, 16, 64, 64)]

# Layers of the inner loop's cases: clips, channels, outputs, input, kernel and padding a side, stride.
LAYERS: list[tuple[int, int, int, tuple[int, ...], int, tuple[int, ...]]] = [
    (1, 3, 12, (8, 32, 32), 5, (1, 1, 1)),
    (1, 12, 12, (4, 16, 16), 5, (1, 1, 1)),
    (1, 12, 12, (2, 8, 8), 5, (1, 1, 1)),
    (1, 3, 32, (16, 64, 64), 3, (1, 1, 1)),
    (1, 32, 64, (8, 32, 32), 3, (1, 1, 1)),
    (1, 64, 128, (4, 16, 16), 3, (1, 1, 1)),
    (1, 3, 32, (8, 32, 32), 3, (2, 2, 2)),
    (1, 32, 32, (4, 16, 16), 3, (1, 2, 2)),
    (1, 32, 64, (4, 8, 8), 3, (2, 2, 2)),
    (16, 3, 16, (64, 64), 3, (2, 2)),
    (16, 16, 32, (32, 32), 3, (2, 2)),
    (16, 32, 64, (16, 16), 3, (2, 2)),
    (1, 64, 64, (8, 32, 32), 3, (1, 1, 1)),
    (1, 512, 512, (1, 4, 4), 3, (1, 1, 1)),
    (1, 256, 512, (2, 8, 8), 3, (2, 2, 2)),
]
# The same with one kernel a channel: channels, input, stride.
DEPTHWISE: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [
    (54, (8, 32, 32), (1, 2, 2)),
    (54, (8, 16, 16), (1, 1, 1)),
    (216, (8, 4, 4), (1, 1, 1)),
]
# Rows, depth, columns.
PRODUCTS = [(rows, *sizes) for sizes in ((2048, 512), (512, 2048), (4096, 512)) for rows in (4, 16, 32, 256)]


def normal(*shape: int, seed: object = 0) -> Tensor:
    return torch.randn(shape, generator=generator("benchmark", shape, seed))


def match(shapes: Sequence[tuple[int, ...]], **rest: Any) -> Call:
    gradients = [normal(*shape, seed="g") for shape in shapes]
    targets = [normal(*shape, seed="t") for shape in shapes]
    masks = [target > 0 for target in targets] if rest.pop("masked", False) else None
    return lambda: operators.gradient_match(gradients, targets, masks=masks, **rest)


def variation(shape: tuple[int, ...], **rest: Any) -> Call:
    x = normal(*shape).requires_grad_()

    def call() -> None:
        torch.autograd.grad(operators.total_variation(x, **rest).sum(), x)

    return call


def step(shape: tuple[int, ...], rule: Any, **rest: Any) -> Call:
    x, gradient, prior = (normal(*shape, seed=seed) for seed in range(3))
    m, v, best = (torch.zeros(shape) for _ in range(3))
    distance, best_objective = torch.ones(shape[0]), torch.full((shape[0],), math.inf)

    def call() -> None:
        operators.descend(
            x, gradient, distance, m, v, best, best_objective, step=10, lr=0.1, rule=rule,
            spatial=0.01, temporal=0.03, prior=prior, prior_weight=0.1, **rest,
        )  # fmt: skip

    return call


def cases() -> dict[str, Call]:
    found = {
        "gradient_match cosine, CNN": match(CNN),
        "gradient_match cosine, head": match(HEAD),
        "gradient_match masked, head": match(HEAD, masked=True),
        "gradient_match l2, head": match(HEAD, kind="l2"),
    }
    for shape in CLIPS:
        size = "x".join(map(str, shape))
        found[f"total_variation, {size}"] = variation(shape)
        found[f"total_variation isotropic, {size}"] = variation(shape, isotropic=True, smoothing=1e-3)
        for rule in ("adam", "sign", "sign_adam"):
            found[f"descend {rule}, {size}"] = step(shape, rule)
    return found


def sums_along(size: int, kernel: int, stride: int) -> int:
    """Return the number of pairs of an output and an input along an axis, with padding of half the kernel."""
    starts = range(-(kernel // 2), size + kernel // 2 - kernel + 1, stride)
    return sum(0 <= start + tap < size for start in starts for tap in range(kernel))


def convolutions() -> dict[str, tuple[Call, Call, float]]:
    """Return every layer in its three directions, native and in PyTorch, with the operations of a call."""
    found: dict[str, tuple[Call, Call, float]] = {}
    layers = [(*layer, False) for layer in LAYERS]
    layers += [(1, channels, channels, size, 3, stride, True) for channels, size, stride in DEPTHWISE]
    for clips, channels, outputs, size, kernel, stride, depthwise in layers:
        read = 1 if depthwise else channels
        x, w = normal(clips, channels, *size), normal(outputs, read, *[kernel] * len(size))
        given: dict[str, Any] = {"stride": stride, "padding": [kernel // 2] * len(size)}
        dy = bilinear.conv_output([x], [w], **given)
        directions: dict[str, Call] = {
            "output": partial(bilinear.conv_output, [x], [w], **given),
            "input": partial(bilinear.conv_input, [dy], [w], input_shape=x.shape, **given),
            "weight": partial(
                bilinear.conv_weight, [x], [dy], kernel=w.shape[2:], depthwise=depthwise, **given
            ),
        }
        pairs = math.prod(sums_along(n, kernel, step) for n, step in zip(size, stride, strict=True))
        shape = "x".join(map(str, (clips, *size)))
        kind = f"{channels} depthwise" if depthwise else f"{channels}->{outputs}"
        name = f"{kind}, {shape}, kernel {kernel}, stride {max(stride)}"
        for direction, call in directions.items():
            found[f"{name}: {direction}"] = (call, in_torch(call), 2.0 * clips * read * outputs * pairs)
    return found


def products() -> dict[str, tuple[Call, Call, float]]:
    """Return products with a matrix, plain and transposed, and the number of operations of a call."""
    found: dict[str, tuple[Call, Call, float]] = {}
    for rows, depth, columns in PRODUCTS:
        x, m = normal(rows, depth), normal(depth, columns)
        for name, matrix in (("", m), (", transposed", m.T.contiguous().T)):
            call = partial(bilinear.product, [x], [matrix])
            work = 2.0 * rows * depth * columns
            found[f"{rows} rows, {depth} to {columns}{name}"] = (call, in_torch(call), work)
    return found


def in_torch(call: Call) -> Call:
    def wrapped() -> None:
        with operators.use_reference():
            call()

    return wrapped


def repeats(call: Call) -> int:
    """Return the number of calls that fill one round."""
    call()
    start = time.process_time()
    call()
    return max(1, math.ceil(ROUND_SECONDS / max(time.process_time() - start, 1e-6)))


def cpu_seconds(call: Call, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def measure(native: Call, plain: Call, rounds: int) -> dict[str, float]:
    """Return median CPU seconds a call of both, and the median and spread of the ratio round by round."""
    counts = repeats(native), repeats(plain)
    pairs = [(cpu_seconds(native, counts[0]), cpu_seconds(plain, counts[1])) for _ in range(rounds)]
    ratios = sorted(slow / fast for fast, slow in pairs)
    return {
        "native_cpu_s": statistics.median(fast for fast, _ in pairs),
        "torch_cpu_s": statistics.median(slow for _, slow in pairs),
        "speedup": statistics.median(ratios),
        "speedup_low": ratios[len(ratios) // 10],
        "speedup_high": ratios[-1 - len(ratios) // 10],
    }


def measure_rates(calls: dict[str, tuple[Call, Call, float]], rounds: int) -> dict[str, dict[str, float]]:
    rows = {name: measure(native, plain, rounds) for name, (native, plain, _) in calls.items()}
    for name, row in rows.items():
        row["native_gflops"] = calls[name][2] / row["native_cpu_s"] / 1e9
    return rows


def environment() -> dict[str, Any]:
    status = loader.status()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "extension": status.state,
        "instruction_set": status.instruction_set,
        "threads": torch.get_num_threads(),
    }


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    rated = any("native_gflops" in row for row in rows.values())
    rate = ["GFLOP/s"] if rated else []
    table = Table("operator", "native ms", "torch ms", "speed-up", "10 % .. 90 %", *rate, title=title)
    for name, row in rows.items():
        spread = f"{row['speedup_low']:.1f} .. {row['speedup_high']:.1f}"
        times = f"{1e3 * row['native_cpu_s']:.3f}", f"{1e3 * row['torch_cpu_s']:.3f}"
        rates = [f"{row['native_gflops']:.0f}"] if rated else []
        table.add_row(name, *times, f"{row['speedup']:.1f}x", spread, *rates)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds an operator")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if operators.backend() != "native":
        raise SystemExit(f"no native code to measure: {loader.status().reason}")
    tables = {
        "Passes over tensors": {
            name: measure(call, in_torch(call), arguments.rounds) for name, call in cases().items()
        },
        "Convolutions": measure_rates(convolutions(), arguments.rounds),
        "Products": measure_rates(products(), arguments.rounds),
    }
    if arguments.json:
        rows = {name: row for table in tables.values() for name, row in table.items()}
        print(json.dumps({"environment": environment(), "cases": rows}, indent=2))
    else:
        for title, table in tables.items():
            show(f"{title}: CPU time a call", table)


if __name__ == "__main__":
    main()
