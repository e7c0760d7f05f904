"""Checks of a model by its weights alone: layers that no training makes, and that hand a client's data on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

_PARALLEL = 0.98
"""Cosine from which two rows are parallel: an attacker may add a little noise to equal ones."""
_SINGLE = 0.98
"""Share of a kernel's energy in one entry from which it passes that entry on."""
LEAST_ENTRIES = 8
"""Entries of a row below which rows of an honest layer are parallel, or hold one entry, by chance."""
_ROWS = 4096
"""Rows that are compared with each other at most: the products of all pairs are kept in memory."""

Figures = dict[str, float]
"""Figure by the name of the layer or tensor."""


def rows_of_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the rows (rows, entries) of the weight of every layer of some kinds."""
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            yield name, module.get_parameter("weight").detach().double().flatten(1)


def parallel_rows(model: nn.Module) -> Figures:
    """Return by layer the largest share of rows that are parallel to one of them.

    Such rows measure the same of a clip; with graded biases the differences of their gradients are single
    clips (Fowl et al., ICLR 2022, arXiv 2110.13057).
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        name: _parallel_share(rows)
        for name, rows in rows_of_layers(model, kinds)
        if rows.shape[1] >= LEAST_ENTRIES and len(rows) > 2
    }


def _parallel_share(rows: Tensor) -> float:
    rows = rows[:_ROWS]
    norms = rows.norm(dim=1)
    unit = rows[norms > 0] / norms[norms > 0, None]
    if len(unit) < 2:
        return 0.0
    alike = ((unit @ unit.T).abs() >= _PARALLEL).sum(1) - 1
    return int(alike.max()) / (len(rows) - 1)


def passing_kernels(model: nn.Module) -> Figures:
    """Return by convolution the share of kernels whose energy is in a single entry.

    They pass pixels on unchanged, to a planted linear layer behind them (Zhao et al., S&P 2024, arXiv
    2303.12233).
    """
    shares = {}
    for name, rows in rows_of_layers(model, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if rows.shape[1] < LEAST_ENTRIES:
            continue
        energies = rows.square()
        total = energies.sum(1)
        single = (total > 0) & (energies.amax(1) >= _SINGLE * total)
        shares[name] = float(single.double().mean())
    return shares


def last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return the last linear layer in the order of the modules, with its name; None where there is none."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


def class_trap(model: nn.Module) -> Figures:
    """Return for the last layer the largest norm of a class's weights over the median of the others.

    Where the weights of all classes but one are zero or small, clips of that class alone have a gradient
    (Wen et al., ICML 2022, arXiv 2202.00580). Infinite where the others are zero.
    """
    head = last_linear(model)
    if head is None or head[1].out_features < 2:
        return {}
    norms = head[1].weight.detach().double().norm(dim=1).sort().values
    largest, others = float(norms[-1]), float(norms[:-1].median())
    if others > 0:
        return {head[0]: largest / others}
    return {head[0]: math.inf if largest > 0 else 1.0}


def class_bias(model: nn.Module) -> Figures:
    """Return for the last layer the largest distance of a class's bias from the median of all, in logits.

    A huge bias decides the answer of every clip, so that the gradient of some classes vanishes (Wen et al.,
    ICML 2022, arXiv 2202.00580).
    """
    head = last_linear(model)
    if head is None or head[1].bias is None or head[1].out_features < 2:
        return {}
    bias = head[1].bias.detach().double()
    return {head[0]: float((bias - bias.median()).abs().max())}


def feature_trap(model: nn.Module) -> Figures:
    """Return for the last layer the largest share of a class's squared weights in one feature.

    A class that is decided by one feature has the gradient of those clips alone whose feature is at the
    attacker's threshold (feature fishing: Wen et al., ICML 2022, arXiv 2202.00580).
    """
    head = last_linear(model)
    if head is None or head[1].in_features < LEAST_ENTRIES:
        return {}
    energies = head[1].weight.detach().double().square()
    total = energies.sum(1)
    shares = (energies.amax(1) / total.clamp(min=1e-300))[total > 0]
    return {head[0]: float(shares.max()) if len(shares) else 0.0}


def round_change(model: nn.Module, earlier: Mapping[str, Tensor]) -> Figures:
    """Return by weight how far it moved since the round before, over its norm then.

    A server that sends one client other weights than training makes can single out that client's update
    behind secure aggregation (Pasquini et al., CCS 2022, arXiv 2111.07380). Weights of one axis, which
    begin at 0, are left out. Infinite for a weight that was not there or had another shape. One that was
    zero, as the ends of residual branches begin, counts as if it had had PyTorch's initialisation.
    """
    weights = {name: p.detach().double().cpu() for name, p in model.named_parameters() if p.ndim > 1}
    changes = {name: _relative_change(weight, earlier.get(name)) for name, weight in weights.items()}
    gone = {name: math.inf for name in earlier if name not in model.state_dict()}
    return changes | gone


def _relative_change(now: Tensor, before: Tensor | None) -> float:
    if before is None or before.shape != now.shape:
        return math.inf
    moved, norm = float((now - before.double().cpu()).norm()), float(before.double().norm())
    return moved / (norm or math.sqrt(len(now) / 3))  # uniform within 1 / sqrt(entries of a row)


def broken_tensor(model: nn.Module) -> str | None:
    """Return the name of a weight that is not finite, or of a buffer with NaN; None where there is none."""
    weights = (name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all()))
    # Infinity in a buffer is what a causal mask is made of.
    buffers = (name for name, b in model.named_buffers() if bool(torch.isnan(b).any()))
    return next(weights, None) or next(buffers, None)
