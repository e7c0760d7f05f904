"""Update of a client: named tensors, bytes on the wire, public facts; safetensors on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vleak.errors import InputError, unknown_name
from vleak.federated.captured import Arrays, Captured, Slots, capture, contents, difference, refuse_weights
from vleak.federated.local import LocalTraining
from vleak.federated.losses import LOSSES
from vleak.federated.saved import EXPECTED, KEY, Saved, check_bytes, check_tensors
from vleak.federated.stored import limit_of, read_stored, read_tensors
from vleak.files import write_atomic

KINDS = ("fedsgd", "fedavg")
"""What an update can be: "fedsgd", the gradient +dL/dw of one batch; "fedavg", the weights after local
training less those before it."""

MODES = ("eval", "train")
"""Mode of the model while the client computes."""


@dataclass(frozen=True)
class PublicFacts:
    """Public facts of an update.

    Attributes:
        kind: "fedsgd", the gradient +dL/dw of one batch; "fedavg", a delta: weights after local training less
            those before it.
        batch_size: number of clips behind the update, at least 1.
        loss: a key of `vleak.federated.LOSSES`.
        mode: mode of the model while the client computed, "eval" or "train".
        local: the local training behind a delta; None of a gradient.
    """

    kind: Literal["fedsgd", "fedavg"] = "fedsgd"
    batch_size: int = 1
    loss: str = "cross_entropy"
    mode: Literal["eval", "train"] = "eval"
    local: LocalTraining | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is not one of those named above.
        """
        for name, value, known in (("kind", self.kind, KINDS), ("loss", self.loss, LOSSES),
                                   ("mode", self.mode, MODES)):  # fmt: skip
            if not isinstance(value, str) or value not in known:
                raise unknown_name(name, str(value), known)
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size!r}, expected a whole number from 1")
        if (self.kind == "fedavg") != isinstance(self.local, LocalTraining):
            raise InputError(
                f"kind is {self.kind!r}, local is {self.local!r}: a delta (fedavg) needs its LocalTraining, "
                "a gradient (fedsgd) has none"
            )

    def to_dict(self) -> dict[str, object]:
        """Return the facts by name, as the file of an update keeps them; of a gradient without "local"."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, facts: Mapping[str, object]) -> PublicFacts:
        """Return the facts of a mapping; one that is missing has its default.

        Raises:
            InputError: an unknown fact, or a value that is none of those it can have.
        """
        known = [field.name for field in fields(cls)]
        for name in facts:
            if name not in known:
                raise unknown_name("public fact", str(name), known)
        local = facts.get("local")
        if local is not None:
            if not isinstance(local, Mapping):
                raise InputError(f"local is {type(local).__name__}, expected an object of settings by name")
            facts = {**facts, "local": LocalTraining.from_dict(local)}
        return cls(**facts)  # type: ignore[arg-type]  # __post_init__ checks the types

    @classmethod
    def saved(cls, facts: object, where: str) -> PublicFacts:
        """Return the facts that a file holds.

        Args:
            facts: what it holds for them.
            where: the file, for the message.

        Raises:
            InputError: as `from_dict`, or what it holds is no object.
        """
        if not isinstance(facts, Mapping):
            raise InputError(
                f"metadata of {where} is {type(facts).__name__}, expected a JSON object of facts"
            )
        try:
            return cls.from_dict(facts)
        except InputError as error:
            raise InputError(f"metadata of {where}: {error}") from error


@dataclass(frozen=True)
class Update:
    """Update of one client, as the server receives it.

    Attributes:
        tensors: one float32 CPU tensor a trained parameter, in ``named_parameters()`` order: what ARRIVES,
            decoded. Frozen parameters (``requires_grad=False``) are not sent.
        wire_bytes: bytes that the encoded message took.
        facts: public facts.
        partial: whether some of the model's parameters may be missing; attacks use those that are there.
        notes: what was done to a captured update on its way here, a line each; not saved.
        metrics: numbers that travelled along by name (`vleak.federated.Message`); not saved.
        senders: of a sum over clients, which entries each of them sent, as of a `Message`; not saved.
    """

    tensors: dict[str, Tensor]
    wire_bytes: int
    facts: PublicFacts = PublicFacts()
    partial: bool = False
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    senders: tuple[dict[str, Tensor], ...] = ()

    def sent_alone(self) -> tuple[Update, ...]:
        """Return what a sum over clients shows of each: the entries that it alone sent, and zero elsewhere.

        The mean of an entry over the clients, of which one alone sent it, is that client's own over their
        number. Empty where the server does not see who sent what.
        """
        if not self.senders:
            return ()
        count = len(self.senders)
        single = {
            name: torch.stack([sent[name] for sent in self.senders]).sum(0) == 1 for name in self.tensors
        }
        facts = replace(self.facts, batch_size=max(1, self.facts.batch_size // count))
        return tuple(
            replace(self, senders=(), facts=facts, tensors={
                name: torch.where(sent[name] & single[name], tensor * count, 0.0)
                for name, tensor in self.tensors.items()
            })
            for sent in self.senders
        )  # fmt: skip

    @classmethod
    def from_gradients(
        cls,
        model: nn.Module | Sequence[str],
        gradients: Arrays,
        *,
        facts: PublicFacts = PublicFacts(),
        partial: bool = False,
    ) -> Update:
        """Return the update of gradients +dL/dw that another framework computed.

        Args:
            model: that they belong to, or the names of its parameters.
            gradients: tensors or numpy arrays by name, or a list in the order of the parameters or of the
                ``state_dict``; buffers in it, such as batch-norm statistics, are dropped.
            facts: public facts; of deltas those of ``kind="fedavg"``.
            partial: whether parameters may be missing.

        Raises:
            InputError: what is given does not fit the model, is not finite, or is weights.
        """
        slots = Slots.of_model(model) if isinstance(model, nn.Module) else Slots.of_names(model)
        update = cls.from_captured(capture(gradients, slots, partial=partial), facts=facts)
        if isinstance(model, nn.Module):
            refuse_weights(update.tensors, model)
        return update

    @classmethod
    def from_state_dicts(
        cls,
        before: nn.Module | Arrays | str | Path,
        after: nn.Module | Arrays | str | Path,
        *,
        learning_rate: float | None = None,
        local: LocalTraining | None = None,
        model: nn.Module | None = None,
        batch_size: int = 1,
        loss: str = "cross_entropy",
        mode: Literal["eval", "train"] = "eval",
        partial: bool = False,
    ) -> Update:
        """Return the delta after - before of weights from two moments of local training.

        Args:
            before, after: models, state dicts, lists in the order of one, or files of them
                (`vleak.load_update` says which).
            learning_rate: of one step of SGD on all clips; for anything else give `local`.
            local: the local training.
            model: whose parameters they are; needed for lists, and where `before` is no model a good way to
                tell parameters from buffers.
            batch_size, loss, mode: as of `PublicFacts`.
            partial: whether parameters may be missing.

        Raises:
            InputError: neither or both of learning_rate and local, or weights that do not fit together.
        """
        if (learning_rate is None) == (local is None):
            raise InputError(
                "a delta needs its local training: give learning_rate for one step of SGD, or local="
                "LocalTraining(...), and not both"
            )
        if local is None:
            local = LocalTraining(learning_rate=learning_rate)  # type: ignore[arg-type]  # checked above
        facts = PublicFacts("fedavg", batch_size, loss, mode, local)
        model = before if model is None and isinstance(before, nn.Module) else model
        weights = _weights(before, model)
        slots = _slots(model, weights)
        start = capture(weights, slots, partial=partial)
        end = capture(_weights(after, model), slots, partial=partial)
        missing = tuple(dict.fromkeys((*start.missing, *end.missing)))
        notes = tuple(dict.fromkeys((*start.notes, *end.notes)))
        delta = replace(end, tensors=difference(start, end), missing=missing)
        return cls.from_captured(delta, facts=facts, notes=notes)

    @classmethod
    def from_captured(
        cls,
        found: Captured,
        *,
        facts: PublicFacts,
        wire_bytes: int | None = None,
        notes: tuple[str, ...] | None = None,
    ) -> Update:
        """Return the update of tensors that were matched to a model, as float32.

        Args:
            found: the tensors.
            facts: public facts.
            wire_bytes, notes: where they are not those of `found`.

        Raises:
            InputError: the facts are none.
        """
        if not isinstance(facts, PublicFacts):
            raise InputError(
                f"facts is {type(facts).__name__}, expected vleak.PublicFacts; give PublicFacts(kind=...)"
            )
        return cls(
            {name: tensor.float() for name, tensor in found.tensors.items()},
            found.wire_bytes if wire_bytes is None else wire_bytes,
            facts,
            bool(found.missing),
            found.notes if notes is None else notes,
        )

    def as_gradient(self) -> Update:
        """Return the mean gradient over the local steps behind a delta: -delta / (learning_rate * steps).

        Of one step of SGD it is the gradient; of several, that of clips seen by weights on the move; with
        momentum or Adam what the optimizer makes of it. A gradient is returned as it is.

        Raises:
            InputError: the local training is out of range of any.
        """
        local = self.facts.local
        if local is None:
            return self
        try:
            scale = -1 / (local.learning_rate * local.steps)
        except (OverflowError, ZeroDivisionError) as error:
            raise InputError(f"{local} is out of range of any training; give the true settings") from error
        tensors = {name: tensor * scale for name, tensor in self.tensors.items()}
        check_tensors(tensors, "the gradient behind the delta")
        return replace(self, tensors=tensors, facts=replace(self.facts, kind="fedsgd", local=None))

    def check(self, model: nn.Module) -> None:
        """Check that the tensors are those of the model's trained parameters; of a partial update, some.

        Raises:
            InputError: a parameter is missing, one too many is there, or a shape differs; names the tensor.
        """
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        for name, shape in shapes.items():
            if name not in self.tensors:
                if self.partial:
                    continue
                raise InputError(f"the update lacks {name!r} of the model; give the model it was made with")
            if (actual := tuple(self.tensors[name].shape)) != shape:
                raise InputError(
                    f"tensor {name!r} of the update has shape {actual}, the model's has {shape}; "
                    "give the model it was made with"
                )
        if extra := [name for name in self.tensors if name not in shapes]:
            raise InputError(
                f"the update has {extra[0]!r}, which the model has not; give the model it was made with"
            )
        if shapes and not self.tensors:
            raise InputError("the update holds no tensors; give one that does")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; the folder must exist.

        Raises:
            InputError: a tensor is not finite float32, or the byte count is none.
            VleakError: the file cannot be written.
        """
        where = f"the update for {path}"
        check_tensors(self.tensors, where)
        check_bytes(self.wire_bytes, where)
        text = Saved(self.wire_bytes, self.facts.to_dict(), tuple(self.tensors), self.partial).text()
        # Cloned, because safetensors refuses tensors that share memory.
        copies = {name: t.detach().cpu().clone().contiguous() for name, t in self.tensors.items()}
        write_atomic(Path(path), to_safetensors(copies, {KEY: text}))

    @classmethod
    def load(cls, path: str | Path) -> Update:
        """Read what ``save`` wrote; facts that the file does not name have their defaults.

        Files of others are read by `vleak.load_update`.

        Raises:
            InputError: no such file, not safetensors, no metadata, facts that cannot be, or a tensor that is
                not finite float32.
        """
        tensors, metadata = read_tensors(Path(path))
        saved = Saved.of(metadata, str(path))
        if saved is None:
            raise InputError(f"{path} has no update metadata; {EXPECTED}, or vleak.load_update")
        order = tuple(tensors) if saved.order is None else saved.order
        if sorted(order) != sorted(tensors):
            raise InputError(f"{path} lists other tensors in its metadata than it holds; save it again")
        check_tensors(tensors, str(path))
        facts = PublicFacts.saved(saved.facts, str(path))
        return cls({name: tensors[name] for name in order}, saved.wire_bytes, facts, saved.partial)


def _weights(source: nn.Module | Arrays | str | Path, model: nn.Module | None) -> Arrays:
    """Return weights out of a model or a file, or as they are."""
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, str | Path):
        return read_stored(source, limit_of(model)).arrays
    return source


def _slots(model: nn.Module | None, before: Arrays) -> Slots:
    """Return the places of weights: a model's, or those that the weights before name."""
    if model is not None:
        return Slots.of_model(model)
    state, _ = contents(before)
    if isinstance(state, Mapping):
        return Slots.of_state(state)
    raise InputError("weights without names need their model; give model=")
