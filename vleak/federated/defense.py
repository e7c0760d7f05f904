"""Interface of a defense: what a client does against leakage, and what it states about that."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from vleak.errors import InputError
from vleak.federated.channel import Channel
from vleak.federated.claims import Claim
from vleak.federated.gradients import Loss, mean_gradient
from vleak.federated.update import Update
from vleak.registry import Setting

_KINDS: dict[str, tuple[str, type]] = {
    "float": ("a number", Real),
    "int": ("a whole number", Real),  # whether it is whole is what a defense checks by itself
    "str": ("a word", str),
}
"""What settings are, by their annotation."""


@dataclass(frozen=True)
class Message:
    """Message of a client, as the server has it after decoding.

    Attributes:
        tensors: one float32 CPU tensor a parameter, what arrives.
        wire_bytes: length of the encoded message; names and shapes are known to both sides and not sent.
        metrics: finite numbers that travel along by name, such as a loss; the server reads them too.
        positions: whether the positions of the entries that are not zero travel beside the values, so that
            the server sees them of every client of a sum.
        senders: of a sum over clients whose positions travel, by client the entries (bool) that it sent.
    """

    tensors: dict[str, Tensor]
    wire_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    positions: bool = False
    senders: tuple[dict[str, Tensor], ...] = ()


@dataclass(frozen=True)
class Privacy:
    """Certificate of a defense: what it proves, and about what.

    Attributes:
        epsilon: of ONE release of the whole batch, in nats: the figure against an attacker who knows that
            the clip was in the batch.
        delta: failure probability of both epsilons.
        noise_multiplier: noise standard deviation over clipping norm.
        unit: what is protected: "one client"; or "one clip", that is one row of the batch, unless a `Client`
            whose rows are other things says more.
        adjacency: how neighbouring batches differ, such as "zero out": one clip's contribution to the sum is
            replaced by zero, and the size of the batch is public.
        rounds: releases of the training run that ``training_epsilon`` is about.
        sample_rate: chance of a clip to be in a round's batch.
        training_epsilon: epsilon of the whole run, under sampling.
        accountant: who computed ``training_epsilon``: "analytic", "prv" or "rdp".
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    unit: str
    adjacency: str
    rounds: int
    sample_rate: float
    training_epsilon: float
    accountant: str


@dataclass(frozen=True, kw_only=True)
class Defense:
    """Base of all defenses: three steps of the client, and what the defense says about itself.

    A subclass is a frozen keyword-only dataclass and overrides the steps that it changes; the steps here do
    nothing. Settings are its fields, checked when the object is made; all randomness comes from the
    generator that each step gets. A step returns new tensors and leaves those it gets as they are.

    Attributes:
        name: as in tables and records; the name of the class where a subclass gives none.
    """

    name: ClassVar[str] = "none"

    def __init_subclass__(cls) -> None:
        """Give the class a name where it has none of its own."""
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __new__(cls, *arguments: object, **settings: object) -> Self:
        """Refuse a class whose annotated settings are no fields, and a word or None in a number's place.

        Raises:
            InputError: the class has settings, but is no dataclass, so that no record would have them; or a
                setting is no number or no word where its annotation says so.
        """
        own = inspect.get_annotations(cls)
        unseen = [name for name, kind in own.items() if "ClassVar" not in str(kind)]
        if unseen and "__dataclass_fields__" not in vars(cls):
            raise InputError(
                f"defense {cls.__name__}: setting {unseen[0]!r} is annotated, but the class is no dataclass; "
                "write @dataclass(frozen=True, kw_only=True) above it"
            )
        kinds = {field.name: str(getattr(field.type, "__name__", field.type)) for field in fields(cls)}
        for name, value in settings.items():
            expected, kind = _KINDS.get(kinds.get(name, ""), ("", object))
            if not isinstance(value, kind):
                shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
                raise InputError(f"{cls.name}: {name} is {shown}, expected {expected}")
        return super().__new__(cls)

    @property
    def label(self) -> str:
        """Short name with the strength, for tables."""
        return self.name

    def settings(self) -> dict[str, Setting]:
        """Return every setting by name: what goes into the record."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the strengths to try, weakest first, for the name of the defense alone."""
        return [cls()]

    def channel(self, update: Update) -> Channel | None:
        """Return what an update measures, to an attacker who knows the defense and its settings.

        None states nothing: such an attacker then estimates the channel by running the defense himself.
        """
        return None

    def claims(self) -> Sequence[Claim]:
        """Return what the defense says of its messages, to be checked by `vleak conformance`."""
        return ()

    def with_public(self, clips: Tensor, labels: Tensor) -> Defense:
        """Return the defense with what it learns from public clips; the defense itself where that is nothing.

        Args:
            clips: (M, C, T, H, W) in [0, 1], or features (M, ...), which the attacker may hold too; M may be
                0.
            labels: (M,) int64.
        """
        return self

    def extend_model(self, model: nn.Module) -> nn.Module:
        """Return the model that is trained in place of another one; that one itself where nothing is added.

        What is returned is public, is another object where it differs, keeps the names of the parameters, and
        is returned as it is where it is given.

        Raises:
            CapabilityError: the model cannot be extended.
        """
        return model

    def summed_clients(self) -> int:
        """Return the sum of how many clients the server sees; a batch is then dealt out to them in order."""
        return 1

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Act on the data: clips in [0, 1] or features (N, ...) and (N,) int64 in, the same kinds out."""
        return clips, labels

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Turn the batch into one gradient: a tensor a parameter. The model stays as it is, mode included.

        Args:
            model: maps the clips to logits or scores, a row a clip.
            loss: (logits or scores, labels) -> scalar, a mean over the clips.
            clips: (N, C, T, H, W) in [0, 1], or features (N, ...), float32, on the model's device.
            labels: (N,) int64, on the model's device.
            generator: CPU generator of this cell.

        Raises:
            CapabilityError: the model or the loss does not allow this defense.
        """
        return mean_gradient(model, loss, clips, labels)

    def aggregate_in_round(
        self,
        model: nn.Module,
        loss: Loss,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Turn the batch into one gradient in one of several rounds, as `aggregate` does.

        Args:
            model, loss, clips, labels, generator: as of `aggregate`.
            memory: as of `transmit_in_round`.
        """
        return self.aggregate(model, loss, clips, labels, generator)

    def combine(self, samples: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what `aggregate` makes of a batch whose per-clip gradients are known.

        An audit draws thousands of messages through it. It compares the two first, and where they differ it
        runs the slower `aggregate`.

        Args:
            samples: (N, *parameter shape) by name.
            generator: CPU generator of this cell.
        """
        return {name: sample.mean(0) for name, sample in samples.items()}

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send the gradient: what arrives after encoding and decoding, and how many bytes went over."""
        tensors = {
            name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in gradient.items()
        }
        return Message(tensors, sum(tensor.nbytes for tensor in tensors.values()))

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send the gradient in one of several rounds.

        Args:
            gradient: by parameter name, with what error feedback adds.
            generator: of the client.
            memory: what the client keeps between rounds; names of parameters are taken by error feedback,
                under others a defense may keep tensors of its own.
        """
        return self.transmit(gradient, generator)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that the defense cannot serve, before anything is computed.

        Raises:
            CapabilityError: names the layer, and what to do.
        """

    def keeps_error(self) -> bool:
        """Return whether what a message withholds is added to the next one (error feedback)."""
        return False

    def privacy(self) -> Privacy | None:
        """Return the certificate of one release; None where nothing is proven."""
        return None

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        """Return the certificate of all updates of a client about the same clips.

        Args:
            uses: in how many steps of local training before one update a clip takes part; 1 for a gradient.
            updates: how many updates the client sends.

        Of more than one step or update nothing is proven here: a defense that composes says what is left.
        """
        return self.privacy() if uses == updates == 1 else None
