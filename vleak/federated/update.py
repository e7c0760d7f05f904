"""Update of a client: named tensors, bytes on the wire, public facts; safetensors on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vleak.errors import InputError, unknown_name
from vleak.federated.local import LocalTraining
from vleak.federated.losses import LOSSES
from vleak.files import write_atomic

_KEY = "vleak_update"
_EXPECTED = (
    f"expected the safetensors metadata key {_KEY!r} with JSON such as "
    '{"wire_bytes": 4000, "metadata": '
    '{"kind": "fedsgd", "batch_size": 1, "loss": "cross_entropy", "mode": "eval"}}'
)


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


@dataclass(frozen=True)
class Update:
    """Update of one client, as the server receives it.

    Attributes:
        tensors: one float32 CPU tensor a trained parameter, in ``named_parameters()`` order: what ARRIVES,
            decoded. Frozen parameters (``requires_grad=False``) are not sent.
        wire_bytes: bytes that the encoded message took.
        facts: public facts.
    """

    tensors: dict[str, Tensor]
    wire_bytes: int
    facts: PublicFacts = PublicFacts()

    def as_gradient(self) -> Update:
        """Return the gradient that a delta stands for: the mean of those of its local steps, to first order.

        A delta is -learning_rate times the sum of the steps' gradients (with momentum or Adam times what the
        optimizer makes of them). A gradient is returned as it is.
        """
        local = self.facts.local
        if local is None:
            return self
        factor = -1 / (local.learning_rate * local.steps)
        tensors = {name: factor * tensor for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, facts=replace(self.facts, kind="fedsgd", local=None))

    def check(self, model: nn.Module) -> None:
        """Check that the tensors are those of the model's trained parameters.

        Raises:
            InputError: a parameter is missing, one too many is there, or a shape differs; names the tensor.
        """
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        for name, shape in shapes.items():
            if name not in self.tensors:
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

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; the folder must exist.

        Raises:
            InputError: a tensor is not finite float32, or the byte count is none.
            VleakError: the file cannot be written.
        """
        where = f"the update for {path}"
        _check_tensors(self.tensors, where)
        _check_bytes(self.wire_bytes, where)
        public = {
            "wire_bytes": self.wire_bytes, "metadata": self.facts.to_dict(), "order": list(self.tensors)
        }  # fmt: skip
        # Cloned, because safetensors refuses tensors that share memory.
        copies = {name: t.detach().cpu().clone().contiguous() for name, t in self.tensors.items()}
        write_atomic(Path(path), to_safetensors(copies, {_KEY: json.dumps(public)}))

    @classmethod
    def load(cls, path: str | Path) -> Update:
        """Read what ``save`` wrote; facts that the file does not name have their defaults.

        Raises:
            InputError: no such file, not safetensors, no metadata, facts that cannot be, or a tensor that is
                not finite float32.
        """
        tensors, text = _read(Path(path))
        if text is None:
            raise InputError(f"{path} has no update metadata; {_EXPECTED}")
        try:
            public = json.loads(text)
            wire_bytes, metadata = public["wire_bytes"], public["metadata"]
            order = public.get("order", list(tensors))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} has update metadata that cannot be read; {_EXPECTED}") from error
        _check_bytes(wire_bytes, str(path))
        facts = _facts(metadata, str(path))
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            order = []
        if sorted(order) != sorted(tensors):
            raise InputError(f"{path} lists other tensors in its metadata than it holds; save it again")
        _check_tensors(tensors, str(path))
        return cls({name: tensors[name] for name in order}, wire_bytes, facts)


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a safetensors file and the text under our metadata key."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected an update written as .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); save it again") from error


def _check_tensors(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse what is not finite float32, naming the tensor."""
    if not tensors:
        raise InputError(f"{where} holds no tensors; expected one a model parameter")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"tensor {name!r} of {where} is {dtype}, expected float32; convert with .float()"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"tensor {name!r} of {where} holds NaN or infinity; nothing can be read from it")


def _check_bytes(wire_bytes: object, where: str) -> None:
    if isinstance(wire_bytes, bool) or not isinstance(wire_bytes, int) or wire_bytes < 0:
        raise InputError(f"wire_bytes of {where} is {wire_bytes!r}, expected a whole number of bytes")


def _facts(metadata: object, where: str) -> PublicFacts:
    if not isinstance(metadata, dict):
        raise InputError(f"metadata of {where} is {type(metadata).__name__}, expected a JSON object of facts")
    try:
        return PublicFacts.from_dict(metadata)
    except InputError as error:
        raise InputError(f"metadata of {where}: {error}") from error
