"""Settings of a run that say what its clients do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from vleak.errors import InputError, argument, unknown_name
from vleak.federated import MODES, LocalTraining
from vleak.pipelines import ClientSettings

__all__ = ["ClientChoice", "numbers"]

Mode = Literal["eval", "train"]
_EXAMPLES = {"reference_frames": "0,1,4", "batch": "1,4,8", "rounds": "1,3"}


def numbers(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    """Return the whole numbers of a setting, each once.

    Raises:
        InputError: there is none, or one is no whole number from ``least``.
    """
    found = tuple(dict.fromkeys(values))
    if not found or not all(type(value) is int and value >= least for value in found):
        text, example = ",".join(map(str, found)), _EXAMPLES.get(name, "0,1,5")
        raise InputError(f"{argument(name, text)}: expected numbers from {least}, such as {example}")
    return found


@dataclass(frozen=True, kw_only=True)
class ClientChoice:
    """Settings of a run that say what its clients do; several numbers are rows of their own.

    Attributes:
        batch: how many private clips a client has, each number a row of its own.
        mode: mode of the model while a client computes, "eval" or "train", or both, each a row of its own.
        trainable: patterns of parameter names with commas between them, such as "head.*"; only those are
            trained and sent.
        local_steps: steps of local training before a client sends its delta, each number a row; 0 for the
            gradient of one batch. local_epochs: the same in passes over the client's clips.
        local_batch: clips of a local step; 0 for all of the client. local_rate, local_momentum, local_decay,
            local_optimizer: as `vleak.federated.LocalTraining` has them.
        rounds: rounds of training, each number a row; between them the server moves the weights, by a delta
            as it is, or by a gradient times ``local_rate``. participation: chance of the client to take part
            in a round that is not the last; another client, with public clips, does else. round_clips:
            "same" clips in every round, or "new" ones in each.
    """

    batch: Sequence[int] = (1,)
    mode: str | Sequence[str] = "eval"
    trainable: str = "*"
    local_steps: Sequence[int] = (0,)
    local_epochs: Sequence[int] = (0,)
    local_batch: int = 0
    local_rate: float | None = None
    local_momentum: float = 0.0
    local_decay: float = 0.0
    local_optimizer: str = "sgd"
    rounds: Sequence[int] = (1,)
    participation: float = 1.0
    round_clips: str = "same"

    def check_clients(self) -> None:
        """Check everything that no data is needed for.

        Raises:
            InputError: a setting is out of its range.
        """
        modes = tuple(dict.fromkeys(self.mode)) if isinstance(self.mode, list | tuple) else (self.mode,)
        object.__setattr__(self, "mode", modes or ("",))
        for kind, value, known in (*(("mode", mode, MODES) for mode in self.mode),
                                   ("round_clips", self.round_clips, ("same", "new"))):  # fmt: skip
            if not isinstance(value, str) or value not in known:
                raise unknown_name(kind, str(value), known)
        for name, least in (("batch", 1), ("rounds", 1), ("local_steps", 0), ("local_epochs", 0)):
            object.__setattr__(self, name, numbers(name, getattr(self, name), least))
        if not (isinstance(self.participation, int | float) and 0 < self.participation <= 1):
            raise InputError(f"{argument('participation', self.participation)}: expected a number in (0, 1]")
        if self.local_steps != (0,) and self.local_epochs != (0,):
            raise InputError(
                "local_steps and local_epochs both say how long a client trains; give one of them"
            )
        if not any((*self.local_steps, *self.local_epochs)):
            self._check_no_training()
        self.clients()

    def _check_no_training(self) -> None:
        """Refuse settings of local training where no client trains."""
        unused = {"local_batch": 0, "local_momentum": 0, "local_decay": 0, "local_optimizer": "sgd"}
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise InputError(
                    f"{argument(name, getattr(self, name))}: no local step uses it; give "
                    f"{argument('local_steps', 5)} too"
                )

    def clients(self) -> list[ClientSettings]:
        """Settings of the clients, each a row: every mode and batch size with every length of local training.

        Raises:
            InputError: a setting of local training is out of its range.
        """
        new = self.round_clips == "new"
        self._check_rate()
        shared = {"participation": self.participation, "server_rate": self.local_rate or 0.0}
        return [
            ClientSettings(
                batch_size=size, mode=cast("Mode", mode), local=local, rounds=rounds, new_clips=new, **shared
            )
            for mode in self.mode
            for size in self.batch
            for rounds in self.rounds
            for local in self._trainings(size)
        ]

    def _check_rate(self) -> None:
        """Refuse steps, of a client or of the server, without a learning rate, and a rate without steps."""
        least = {"local_steps": 0, "local_epochs": 0, "rounds": 1}
        used = {name: most for name in least if (most := max(getattr(self, name))) > least[name]}
        if self.local_rate is None:
            if used:
                name, most = next(iter(used.items()))
                raise InputError(
                    f"{argument(name, most)}: needs a learning rate; give one, such as "
                    f"{argument('local_rate', 0.01)}"
                )
            return
        given = argument("local_rate", self.local_rate)
        if not (isinstance(self.local_rate, int | float) and 0 < self.local_rate < math.inf):
            raise InputError(f"{given}: expected a number above 0")
        if not used:
            raise InputError(
                f"{given}: no step uses it; give {argument('local_steps', 5)} or more rounds too"
            )

    def _trainings(self, clips: int) -> list[LocalTraining | None]:
        return [
            self._local(clips, steps, epochs) for steps in self.local_steps for epochs in self.local_epochs
        ]

    def _local(self, clips: int, steps: int, epochs: int) -> LocalTraining | None:
        size = self.local_batch or clips
        if epochs:
            steps = epochs * -(-clips // min(size, clips))
        if not steps:
            return None
        return LocalTraining(
            steps=steps, batch_size=self.local_batch, learning_rate=cast("float", self.local_rate),
            momentum=self.local_momentum, weight_decay=self.local_decay,
            optimizer=cast("Any", self.local_optimizer),
        )  # fmt: skip
