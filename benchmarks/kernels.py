"""Native operators against the same operators in plain PyTorch: one thread, CPU time, interleaved, medians.

Both sides compute value and derivative, or the whole step. Run it on a quiet machine:

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
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vleak import ops
from vleak.engine import extension
from vleak.seeds import generator

Call = Callable[[], Any]
ROUND_SECONDS = 0.02

# Parameter shapes of a 16-32-64 3-D CNN with a linear head, and of a 2048-512-32-2 head.
CNN = [(16, 3, 3, 3, 3), (16,), (32, 16, 3, 3, 3), (32,), (64, 32, 3, 3, 3), (64,), (10, 2048), (10,)]
HEAD = [(512, 2048), (512,), (32, 512), (32,), (2, 32), (2,)]
CLIPS = [(1, 3, 8, 32, 32), (8, 3, 16, 64, 64)]


def normal(*shape: int, seed: object = 0) -> Tensor:
    return torch.randn(shape, generator=generator("benchmark", shape, seed))


def match(shapes: Sequence[tuple[int, ...]], **rest: Any) -> Call:
    gradients = [normal(*shape, seed="g") for shape in shapes]
    targets = [normal(*shape, seed="t") for shape in shapes]
    masks = [target > 0 for target in targets] if rest.pop("masked", False) else None
    return lambda: ops.gradient_match(gradients, targets, masks=masks, **rest)


def variation(shape: tuple[int, ...], **rest: Any) -> Call:
    x = normal(*shape).requires_grad_()

    def call() -> None:
        torch.autograd.grad(ops.total_variation(x, **rest).sum(), x)

    return call


def step(shape: tuple[int, ...], rule: Any, **rest: Any) -> Call:
    x, gradient, prior = (normal(*shape, seed=seed) for seed in range(3))
    m, v, best = (torch.zeros(shape) for _ in range(3))
    distance, best_objective = torch.ones(shape[0]), torch.full((shape[0],), math.inf)

    def call() -> None:
        ops.descend(
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


def in_torch(call: Call) -> Call:
    def wrapped() -> None:
        with ops.use_reference():
            call()

    return wrapped


def repeats(call: Call) -> int:
    """Return how many calls fill one round."""
    call()
    start = time.process_time()
    call()
    return max(1, math.ceil(ROUND_SECONDS / max(time.process_time() - start, 1e-6)))


def cpu_seconds(call: Call, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def measure(call: Call, rounds: int) -> dict[str, float]:
    """Return median CPU seconds a call of both, and the median and spread of the ratio round by round."""
    native, plain = call, in_torch(call)
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


def environment() -> dict[str, Any]:
    status = extension.status()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "extension": status.state,
        "instruction_set": status.instruction_set,
        "threads": torch.get_num_threads(),
    }


def show(rows: dict[str, dict[str, float]]) -> None:
    table = Table("operator", "native ms", "torch ms", "speed-up", "10 % .. 90 %", title="CPU time a call")
    for name, row in rows.items():
        spread = f"{row['speedup_low']:.1f} .. {row['speedup_high']:.1f}"
        times = f"{1e3 * row['native_cpu_s']:.3f}", f"{1e3 * row['torch_cpu_s']:.3f}"
        table.add_row(name, *times, f"{row['speedup']:.1f}x", spread)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds an operator")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if ops.backend() != "native":
        raise SystemExit(f"no native code to measure: {extension.status().reason}")
    rows = {name: measure(call, arguments.rounds) for name, call in cases().items()}
    if arguments.json:
        print(json.dumps({"environment": environment(), "cases": rows}, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
