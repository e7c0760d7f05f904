"""Graph passes: each takes a captured step and returns one with less work.

Numbers agree to rounding; `simplify` rounds as the graph before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vleak.descent.capture import Capture
from vleak.descent.passes.convolution import convolution
from vleak.descent.passes.low_rank import low_rank
from vleak.descent.passes.pooling import pooling
from vleak.descent.passes.products import products
from vleak.descent.passes.rewrite import Rewrite, rewritten
from vleak.descent.passes.simplify import simplify
from vleak.descent.passes.stack import stack
from vleak.errors import unknown_name

_REWRITES: dict[str, Rewrite] = {
    "simplify": simplify,
    "convolution": convolution,
    "pooling": pooling,
    "stack": stack,
    "low_rank": low_rank,
    "products": products,
}


def _as_pass(rewrite: Rewrite) -> Callable[[Capture], Capture]:
    return lambda capture: rewritten(capture, [rewrite])


PASSES: dict[str, Callable[[Capture], Capture]] = {name: _as_pass(each) for name, each in _REWRITES.items()}
"""In the order in which `optimize` runs them; each leaves the capture it is given alone."""


def optimize(capture: Capture, passes: Sequence[str] = tuple(PASSES)) -> Capture:
    """Run passes over a captured step, in the order given.

    Args:
        capture: is left alone.
        passes: names in `PASSES`; what the later ones look for, the earlier ones make.

    Raises:
        InputError: there is no pass of such a name.
    """
    for name in passes:
        if name not in PASSES:
            raise unknown_name("pass", name, PASSES)
    return rewritten(capture, [_REWRITES[name] for name in passes])
