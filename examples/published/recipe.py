"""What an adapter of a published defense gives: a recipe for each way in which the publication is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import vleak

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Defense of a publication, and the run in which it is attacked.

    Attributes:
        defense: what the client does, with its claims.
        run: further arguments of `vleak.evaluate`: model, data and local training.
        claimed: epsilon of a training run as published, at delta 1e-5; None where it names none.
        recomputed: the same of what is done: batches as they are drawn, steps that a clip is in; None where
            nothing is claimed, or not enough was read for it.
        audited: the defense in a form whose messages canaries can be put into; None for itself.
    """

    defense: vleak.Defense
    run: Mapping[str, Any] = field(default_factory=dict)
    claimed: float | None = None
    recomputed: float | None = None
    audited: vleak.Defense | None = None
