"""Gate before the wire: what a client is about to send is recorded, audited, and held back above a level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from vleak.errors import InputError, VleakError, argument, unknown_name
from vleak.federated import LocalTraining, PublicFacts
from vleak.federated.captured import Arrays
from vleak.files import write_atomic
from vleak.seeds import tensor_digest
from vleak.update_audit import Audit, audit, read_given
from vleak.update_audit.payloads import Kind

__all__ = ["Gate", "RefusedError"]

_LEVELS = ("low", "moderate", "high")


class RefusedError(VleakError):
    """Error of an update that is not sent; its text, which a server may see, tells of nothing private."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is done with every update that a client is about to send.

    Attributes:
        model: of the architecture of the client; its weights count where none are given with an update.
        local: how the client trains.
        batch_size: clips of the client.
        mode: of the model in the client.
        folder: where updates are recorded, as safetensors, and audits, as JSON; None records nothing.
        input_shape: (C, T, H, W) of a clip, for audits; None audits nothing.
        refuse_from: risk from which an update is refused: "low", "moderate" or "high". An undetermined risk
            is refused too. None sends everything.
        settings: further arguments of `vleak.audit`.
    """

    model: nn.Module
    local: LocalTraining | None
    batch_size: int = 1
    mode: str = "train"
    folder: Path | str | None = None
    input_shape: Sequence[int] | None = None
    refuse_from: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked before any training.

        Raises:
            InputError: an unknown level, a guard without the shape of a clip, or a folder that is none.
        """
        if self.refuse_from is not None and self.refuse_from not in _LEVELS:
            raise unknown_name("refuse_from", self.refuse_from, _LEVELS)
        if self.refuse_from is not None and self.input_shape is None:
            raise InputError(
                f"{argument('refuse_from', self.refuse_from)}: needs `input_shape`, (C, T, H, W)"
            )
        if self.folder is not None and not Path(self.folder).is_dir():
            raise InputError(f"{argument('folder', self.folder)}: there is no such folder; make it first")
        self._facts()

    def check(
        self, sent: Arrays, *, kind: Kind, before: Arrays | None = None, who: str = "client"
    ) -> Audit | None:
        """Record and audit an update before it is sent.

        Args:
            sent: weights, a delta or a gradient, as the framework holds them.
            kind: which of these.
            before: weights that the client was sent.
            who: client, for the names of files.

        Returns:
            the audit; None without `input_shape`.

        Raises:
            RefusedError: it must not be sent.
            InputError: it is no update of this model.
        """
        given = read_given(sent, self.model, self._facts(), kind=kind, before=before)
        name = f"{who}-{tensor_digest(*given.update.tensors.values())[:12]}"
        if self.folder is not None:
            given.update.save(Path(self.folder) / f"{name}.safetensors")
        if self.input_shape is None:
            return None
        how = {"defenses": (), "attacks": ("matching",), "seconds": 60.0, **self.settings}
        made = audit(given.model, given.update, input_shape=self.input_shape, **how)
        if self.folder is not None:
            text = json.dumps(made.record.content(), ensure_ascii=False, allow_nan=False)
            write_atomic(Path(self.folder) / f"{name}.json", text)
        self._guard(made)
        return made

    def _guard(self, made: Audit) -> None:
        if self.refuse_from is None:
            return
        refused = (*_LEVELS[_LEVELS.index(self.refuse_from) :], "undetermined")
        if made.risk in refused:
            raise RefusedError(
                f"the update is not sent: its audit says {made.risk}, refused from {self.refuse_from}"
            )

    def _facts(self) -> PublicFacts:
        kind = "fedsgd" if self.local is None else "fedavg"
        facts = PublicFacts(kind, self.batch_size, local=self.local)  # type: ignore[arg-type]  # it checks itself
        return replace(facts, mode=self.mode)  # type: ignore[arg-type]
