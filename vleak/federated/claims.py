"""Claims: what a defense says about the messages it sends, in a form that a machine checks.

`vleak.conformance.conform` checks them on what is sent; the claims of a defense are those of its settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vleak.errors import InputError

if TYPE_CHECKING:
    from vleak.federated.defense import Defense

__all__ = [
    "CarriesError",
    "Changes",
    "Claim",
    "ClearsSent",
    "ClipsNorm",
    "DrawsAnew",
    "GaussianNoise",
    "IgnoresClips",
    "KeepsAbove",
    "KeepsBetween",
    "KeepsEntries",
    "LimitsEntries",
    "LimitsLevels",
    "LimitsRank",
    "NoisyMetric",
    "OrthogonalUpdate",
    "PassesThrough",
    "PoissonSampling",
    "RelativeError",
    "SumsClients",
    "Unbiased",
]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Base of all claims.

    Attributes:
        name: as in tables and records.
    """

    name: ClassVar[str] = "claim"


@dataclass(frozen=True, kw_only=True)
class ClipsNorm(Claim):
    """With equal randomness, replacing one unit by zero moves the message by at most a norm.

    Attributes:
        limit: Euclidean norm over all tensors, above 0.
        unit: "clip": one clip of the batch moves the message times the size of the batch, which is public and
            counts a replaced clip too; "client": the whole update of the client moves the message.
    """

    name: ClassVar[str] = "clip norm"
    limit: float
    unit: Literal["clip", "client"] = "clip"

    def __post_init__(self) -> None:
        """Check the limit."""
        _above_zero(self.name, "limit", self.limit)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Claim):
    """Every entry carries Gaussian noise of its own, drawn anew for every message.

    Attributes:
        deviation: standard deviation, above 0.
        unit: "clip": of the message times the size of the batch, that is of the sum over clips; "client": of
            the message.
    """

    name: ClassVar[str] = "Gaussian noise"
    deviation: float
    unit: Literal["clip", "client"] = "clip"

    def __post_init__(self) -> None:
        """Check the deviation."""
        _above_zero(self.name, "deviation", self.deviation)


@dataclass(frozen=True, kw_only=True)
class NoisyMetric(Claim):
    """A number that travels along (`vleak.federated.Message.metrics`) is clipped, and has Gaussian noise.

    Attributes:
        metric: its name.
        limit: by how much replacing one unit by zero moves it with equal randomness, above 0.
        deviation: standard deviation of its noise, drawn anew for every message, above 0.
    """

    name: ClassVar[str] = "noisy metric"
    metric: str
    limit: float
    deviation: float

    def __post_init__(self) -> None:
        """Check limit and deviation."""
        _above_zero(self.name, "limit", self.limit)
        _above_zero(self.name, "deviation", self.deviation)


@dataclass(frozen=True, kw_only=True)
class KeepsEntries(Claim):
    """Some entries of the gradient are sent as they are, all others as zero.

    Attributes:
        fraction: part of the entries that is sent, in (0, 1]; at least one entry is.
        which: "largest" magnitudes over the whole update, or "random" ones, drawn anew for every message.
    """

    name: ClassVar[str] = "entries kept"
    fraction: float
    which: Literal["largest", "random"] = "largest"

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.fraction <= 1:
            raise InputError(f"claim {self.name!r}: fraction is {self.fraction}, expected a number in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class KeepsAbove(Claim):
    """The entries of at least a magnitude are sent as they are, all others as zero.

    Attributes:
        threshold: magnitude, above 0; where no entry reaches it the largest one is sent.
    """

    name: ClassVar[str] = "entries above"
    threshold: float

    def __post_init__(self) -> None:
        """Check the threshold."""
        _above_zero(self.name, "threshold", self.threshold)


@dataclass(frozen=True, kw_only=True)
class KeepsBetween(Claim):
    """Of every tensor the largest and the smallest entries are sent as zero, the others as they are.

    Attributes:
        largest, smallest: parts of its entries, rounded down to a number, at least 0 and together below 1.
    """

    name: ClassVar[str] = "entries between"
    largest: float
    smallest: float

    def __post_init__(self) -> None:
        """Check the parts."""
        if min(self.largest, self.smallest) < 0 or not self.largest + self.smallest < 1:
            raise InputError(
                f"claim {self.name!r}: largest is {self.largest} and smallest {self.smallest}, expected at "
                "least 0 and together below 1"
            )


@dataclass(frozen=True, kw_only=True)
class RelativeError(Claim):
    """Every entry is sent with a small error.

    Attributes:
        most: error over the entry's magnitude, above 0.
        floor: error that any entry may have, at least 0.
        of_largest: error over the largest magnitude of its tensor that any entry may have, at least 0.
    """

    name: ClassVar[str] = "relative error"
    most: float
    floor: float = 0.0
    of_largest: float = 0.0

    def __post_init__(self) -> None:
        """Check the error."""
        _above_zero(self.name, "most", self.most)


@dataclass(frozen=True, kw_only=True)
class LimitsEntries(Claim):
    """No entry of a tensor with axes is sent with a larger magnitude.

    Attributes:
        most: magnitude, above 0.
    """

    name: ClassVar[str] = "largest entry"
    most: float

    def __post_init__(self) -> None:
        """Check the magnitude."""
        _above_zero(self.name, "most", self.most)


@dataclass(frozen=True, kw_only=True)
class LimitsLevels(Claim):
    """The entries that share a scale have few values.

    Attributes:
        most: different values, at least 1.
        bucket: consecutive entries of the whole update that share a scale; 0: those of a tensor do.
    """

    name: ClassVar[str] = "levels"
    most: int
    bucket: int = 0

    def __post_init__(self) -> None:
        """Check the number."""
        if self.most < 1 or self.bucket < 0:
            raise InputError(
                f"claim {self.name!r}: most is {self.most} and bucket {self.bucket}, expected 1 and 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class LimitsRank(Claim):
    """Every tensor of two axes or more has a low rank, its axes from the second on taken as one.

    Attributes:
        most: rank, at least 1.
    """

    name: ClassVar[str] = "rank"
    most: int

    def __post_init__(self) -> None:
        """Check the rank."""
        if self.most < 1:
            raise InputError(f"claim {self.name!r}: most is {self.most}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Unbiased(Claim):
    """The mean of the message over its randomness is the gradient of the batch."""

    name: ClassVar[str] = "unbiased"


@dataclass(frozen=True, kw_only=True)
class OrthogonalUpdate(Claim):
    """The message is orthogonal to the gradient of the batch."""

    name: ClassVar[str] = "orthogonal"


@dataclass(frozen=True, kw_only=True)
class CarriesError(Claim):
    """What one message withholds is added to later ones: over rounds, the sums of both draw level."""

    name: ClassVar[str] = "error feedback"


@dataclass(frozen=True, kw_only=True)
class DrawsAnew(Claim):
    """Two messages of one batch differ in every tensor, by other randomness alone."""

    name: ClassVar[str] = "drawn anew"


@dataclass(frozen=True, kw_only=True)
class IgnoresClips(Claim):
    """With equal randomness the message is the same for any other clips of the same labels."""

    name: ClassVar[str] = "ignores the clips"


@dataclass(frozen=True, kw_only=True)
class ClearsSent(Claim):
    """Of an entry that one message sends, momentum included, nothing is left for the next one."""

    name: ClassVar[str] = "sent entries cleared"


@dataclass(frozen=True, kw_only=True)
class PoissonSampling(Claim):
    """Every clip takes part in a message by a coin of its own, thrown anew for every message.

    Attributes:
        rate: chance of a clip to take part, in (0, 1).
    """

    name: ClassVar[str] = "Poisson sampling"
    rate: float

    def __post_init__(self) -> None:
        """Check the rate."""
        if not 0 < self.rate < 1:
            raise InputError(f"claim {self.name!r}: rate is {self.rate}, expected a number in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class PassesThrough(Claim):
    """The message is made of that of a first defense by what others send of it, and of nothing else.

    What is claimed of the message of the first one, such as differential privacy, is left as it is by that.

    Attributes:
        stages: defenses in the order in which they act, each held to its own claims.
    """

    name: ClassVar[str] = "passes through"
    stages: tuple[Defense, ...]


@dataclass(frozen=True, kw_only=True)
class SumsClients(Claim):
    """The message is the mean of what some clients send, each of its part of the batch, and nothing else.

    What is claimed of the message of one client, such as differential privacy, is left as it is by that.

    Attributes:
        clients: how many, at least 2.
        each: defense of every client, held to its own claims.
    """

    name: ClassVar[str] = "sum of clients"
    clients: int
    each: Defense

    def __post_init__(self) -> None:
        """Check the number."""
        if self.clients < 2:
            raise InputError(f"claim {self.name!r}: clients is {self.clients}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Changes(Claim):
    """The message is not that of an undefended client."""

    name: ClassVar[str] = "changed"


def _above_zero(name: str, setting: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"claim {name!r}: {setting} is {value}, expected a finite number above 0")
