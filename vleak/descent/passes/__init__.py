"""Graph passes, which rewrite the graph of a captured step into one with less work.

Results agree to rounding; those of `simplify` are rounded like the original graph's.
"""

from __future__ import annotations

from collections.abc import Sequence

from vleak.descent.capture import Capture
from vleak.descent.passes.convolution import convolution
from vleak.descent.passes.editing import Pass, edited
from vleak.descent.passes.low_rank import low_rank
from vleak.descent.passes.pooling import pooling
from vleak.descent.passes.products import products
from vleak.descent.passes.simplify import simplify
from vleak.descent.passes.stack import stack
from vleak.errors import unknown_name

__all__ = ["PASSES", "optimize"]

PASSES: dict[str, Pass] = {
    "simplify": simplify,
    "convolution": convolution,
    "pooling": pooling,
    "stack": stack,
    "low_rank": low_rank,
    "products": products,
}
"""All passes by name, in the order in which `optimize` runs them."""


def optimize(capture: Capture, passes: Sequence[str] = tuple(PASSES)) -> Capture:
    """Return a captured step after the named passes, run in order.

    Args:
        capture: the captured step; not changed.
        passes: names in `PASSES`; later passes match the patterns that earlier ones produce.

    Raises:
        InputError: a name is unknown.
    """
    for name in passes:
        if name not in PASSES:
            raise unknown_name("pass", name, PASSES)
    return edited(capture, [PASSES[name] for name in passes])
