"""Several defenses in one client, such as noise and then pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import is_not

import torch
from torch import Tensor, nn

from vleak.defenses.protocol import WeakMasks
from vleak.defenses.sums import channel_of_sum
from vleak.errors import InputError
from vleak.federated import (
    Channel,
    Claim,
    ClipsNorm,
    Defense,
    GaussianNoise,
    LimitsEntries,
    LimitsLevels,
    LimitsRank,
    Loss,
    Message,
    PassesThrough,
    Privacy,
    SumsClients,
    Update,
)
from vleak.federated.channel import Transform
from vleak.registry import Setting

_STEPS = ("prepare_clips", "aggregate", "transmit")
_ACTS_ON = ("the clips", "the gradients of the clips", "the message", "the sum over clients")


@dataclass(frozen=True, kw_only=True)
class Composite(Defense):
    """Defenses one after the other: each takes what the one before leaves.

    A defense acts on the clips, on the gradients of the clips or on the message, and they are given in that
    order. One at most acts on the gradients. Each that acts on the message takes what the server would have
    from the one before, so that the bytes are those of the last. What is proven of a message holds for
    whatever is made of it, and what is proven of a client also for a client that does something else before.

    Attributes:
        stages: two or more defenses, no two of one kind; at most one of them proves something.
    """

    stages: tuple[Defense, ...]

    def __post_init__(self) -> None:
        """Check that the stages go together, and take their names."""
        names = [stage.name for stage in self.stages]
        object.__setattr__(self, "name", "+".join(names))
        if len(names) < 2 or any(isinstance(stage, Composite) for stage in self.stages):
            raise InputError(f"defense {self.name!r}: expected two or more simple defenses, such as dp+prune")
        for stage in self.stages:
            if not _levels(stage):
                raise InputError(f"defense {self.name!r}: {stage.name} does nothing; leave it out")
            if names.count(stage.name) > 1:
                raise InputError(f"defense {self.name!r}: {stage.name} is in it twice; give it once")
        self._check_order()
        self._check_proofs()
        self._check_feedback()
        self._check_masks()

    def _check_order(self) -> None:
        for first, second in zip(self.stages, self.stages[1:], strict=False):
            last, begins = max(_levels(first)), min(_levels(second))
            if last > begins:
                raise InputError(
                    f"defense {self.name!r}: {first.name} acts on {_ACTS_ON[last]}, after {second.name} acts "
                    f"on {_ACTS_ON[begins]}; write {second.name}+{first.name}"
                )
            if last == begins == 1:
                raise InputError(
                    f"defense {self.name!r}: {first.name} and {second.name} both act on the gradients of the "
                    "clips; choose one of them"
                )

    def _check_proofs(self) -> None:
        proving = [stage.name for stage in self.stages if stage.privacy() is not None]
        if len(proving) > 1:
            raise InputError(
                f"defense {self.name!r}: {' and '.join(proving)} each prove something, about different "
                "neighbours, and a record has one certificate; choose one of them"
            )

    def _check_feedback(self) -> None:
        """Refuse error feedback around noise: what one message withholds is then that noise."""
        sending = [stage for stage in self.stages if 2 in _levels(stage)]
        with_it = [stage.name for stage in sending if stage.keeps_error()]
        without = [stage.name for stage in sending if not stage.keeps_error()]
        if with_it and without:
            raise InputError(
                f"defense {self.name!r}: {with_it[0]} has error feedback and {without[0]} has none, so that "
                f"later rounds would make good what {without[0]} does; set error_feedback of both alike"
            )

    def _check_masks(self) -> None:
        """Refuse to do anything to masked messages: masks cancel in the sum of these as they are alone."""
        for masks, after in zip(self.stages, self.stages[1:], strict=False):
            if isinstance(masks, WeakMasks):
                summed = f"take {after.name} alone for what the server learns of the sum"
                instead = summed if after.summed_clients() > 1 else f"write {after.name}+{masks.name}"
                raise InputError(
                    f"defense {self.name!r}: masks cancel in the sum over clients, of messages that nothing "
                    f"else was done to; {instead}"
                )

    @property
    def label(self) -> str:
        """Labels of the stages, such as "dp σ=1 + prune 90 %"."""
        return " + ".join(stage.label for stage in self.stages)

    def settings(self) -> dict[str, Setting]:
        """Return the settings of every stage, each behind its name."""
        return {
            f"{stage.name}.{key}": value for stage in self.stages for key, value in stage.settings().items()
        }

    def channel(self, update: Update) -> Channel | None:
        """Return what all stages leave; None where one of them states nothing, or sums leave something else.

        Noise that a later stage drops or projects away is not in the update; where the largest entries are
        kept, more of it is. Noise in all entries hides which ones an earlier stage dropped. It is known to be
        Gaussian only where nothing became of it.
        """
        clients = self.summed_clients()
        if clients > 1:
            return channel_of_sum(self._each(), update, clients)
        parts = []
        for stage in self.stages:
            part = stage.channel(update)
            if part is None:
                return None
            parts.append(part)
        noisy = max((place for place, part in enumerate(parts) if part.noise_deviation), default=-1)
        after = parts[noisy + 1 :]
        masks, bases, kept = _joined_masks(after), _last_bases(after), min(p.kept_fraction for p in parts)
        energies = [part.noise_energy for part in parts]
        for place in range(noisy + 1):
            if masks is not None:
                energies[place] = noise_left(energies[place], masks, update, largest=kept < 1)
            elif bases is not None:
                energies[place] *= _share_of_bases(bases, update)
        return Channel(
            masks=masks,
            noise_energy=sum(energies),
            noise_deviation=None if _altered(after) else parts[noisy].noise_deviation,
            clip_norm=min(part.clip_norm for part in parts),
            kept_fraction=kept,
            transform=_joined_transform(parts),
            bases=bases,
            key=tuple((stage.name, part.key) for stage, part in zip(self.stages, parts, strict=True)),
        )

    def claims(self) -> Sequence[Claim]:
        """Return that the stages make the message, and what the last one claims of any message."""
        if self.summed_clients() > 1:
            return (SumsClients(clients=self.summed_clients(), each=self._each()),)
        before = [stage for stage in self.stages if min(_levels(stage)) < 2]
        after = [stage for stage in self.stages if min(_levels(stage)) == 2]
        if len(before) > 1:
            head: Defense = Composite(stages=tuple(before))
        else:
            head = before[0] if before else after.pop(0)
        through = (PassesThrough(stages=(head, *after)),) if after else ()
        return (*through, *(claim for claim in self.stages[-1].claims() if self._holds(claim)))

    def _holds(self, claim: Claim) -> bool:
        """Return whether a claim of the last stage holds of the message: noise adds to that of the others."""
        others = [other for stage in self.stages[:-1] for other in stage.claims()]
        noisy = any(isinstance(other, GaussianNoise) for other in others)
        return _holds_alone(claim) and not (noisy and isinstance(claim, GaussianNoise))

    def _each(self) -> Defense:
        """Return what every client does whose message is summed."""
        stages = tuple(stage for stage in self.stages if 3 not in _levels(stage))
        return stages[0] if len(stages) == 1 else Composite(stages=stages)

    def with_public(self, clips: Tensor, labels: Tensor) -> Defense:
        """Let every stage learn from public clips."""
        stages = tuple(stage.with_public(clips, labels) for stage in self.stages)
        return Composite(stages=stages) if any(map(is_not, stages, self.stages)) else self

    def extend_model(self, model: nn.Module) -> nn.Module:
        """Let every stage add to the model."""
        for stage in self.stages:
            model = stage.extend_model(model)
        return model

    def summed_clients(self) -> int:
        """Return of how many clients the stages leave the sum alone."""
        return math.prod(stage.summed_clients() for stage in self.stages)

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Let every stage act on the clips."""
        for stage in self.stages:
            clips, labels = stage.prepare_clips(clips, labels, generator)
        return clips, labels

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Let the stage that acts on the gradients turn the batch into one."""
        return self._acting().aggregate(model, loss, clips, labels, generator)

    def aggregate_in_round(
        self,
        model: nn.Module,
        loss: Loss,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Let the stage that acts on the gradients turn the batch into one."""
        return self._acting().aggregate_in_round(model, loss, clips, labels, generator, memory)

    def combine(self, samples: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Let the stage that acts on the gradients combine those of the clips."""
        return self._acting().combine(samples, generator)

    def _acting(self) -> Defense:
        return next((stage for stage in self.stages if 1 in _levels(stage)), Defense())

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send what the stages make of each other's messages."""
        return self.transmit_in_round(gradient, generator, {})

    def transmit_in_round(
        self, gradient: dict[str, Tensor], generator: torch.Generator, memory: dict[str, Tensor]
    ) -> Message:
        """Send what the stages make of each other's messages."""
        # A sum over clients, say, does nothing to what each of them sends.
        first, *others = [stage for stage in self.stages if 2 in _levels(stage)] or [Defense()]
        message = first.transmit_in_round(gradient, generator, memory)
        for stage in others:
            sent = stage.transmit_in_round(message.tensors, generator, memory)
            message = replace(sent, metrics={**message.metrics, **sent.metrics})
        return message

    def check_model(self, model: nn.Module) -> None:
        """Let every stage refuse the model."""
        for stage in self.stages:
            stage.check_model(model)

    def keeps_error(self) -> bool:
        """Return whether the stages carry on what they withhold."""
        return any(stage.keeps_error() for stage in self.stages)

    def privacy(self) -> Privacy | None:
        """Return the certificate of the stage that has one."""
        return self.privacy_of(1)

    def privacy_of(self, uses: int, updates: int = 1) -> Privacy | None:
        """Return the certificate of the stage that has one.

        Of one clip nothing is proven where a stage before may have mixed the clips.
        """
        mixed = False
        for stage in self.stages:
            proven = stage.privacy()
            if proven is not None:
                if mixed and proven.unit != "one client":
                    return None
                return proven if uses == updates == 1 else stage.privacy_of(uses, updates)
            mixed = mixed or 0 in _levels(stage)
        return None


def _levels(stage: Defense) -> list[int]:
    """Return which of the three steps a defense overrides, and 3 of one that leaves a sum over clients."""
    found = [
        level for level, step in enumerate(_STEPS) if getattr(type(stage), step) is not getattr(Defense, step)
    ]
    return found + [3] * (stage.summed_clients() > 1)


def _holds_alone(claim: Claim) -> bool:
    """Return whether a claim of a stage about its message holds whatever it was given."""
    if isinstance(claim, ClipsNorm | GaussianNoise):
        return claim.unit == "client"
    return isinstance(claim, LimitsEntries | LimitsLevels | LimitsRank)


def _joined_masks(parts: Sequence[Channel]) -> dict[str, Tensor] | None:
    masks: dict[str, Tensor] | None = None
    for part in parts:
        if part.masks is not None:
            own = part.masks
            masks = own if masks is None else {name: mask & own[name] for name, mask in masks.items()}
    return masks


def _joined_transform(parts: Sequence[Channel]) -> Transform | None:
    steps = [part.transform for part in parts if part.transform is not None]

    def transform(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        for step in steps:
            gradient = step(gradient)
        return gradient

    return transform if steps else None


def noise_left(energy: float, masks: dict[str, Tensor], update: Update, *, largest: bool) -> float:
    """Return the energy of noise that is left in the entries that arrived.

    Args:
        energy: of Gaussian noise in all entries, before some were dropped.
        masks: bool by name, True where an entry arrived.
        update: what arrived.
        largest: whether entries were kept for their magnitude. Then an entry of noise alone arrived where its
            noise exceeds the smallest that did, and has more of it than others.
    """
    arrived = torch.cat([tensor[masks[name]].abs() for name, tensor in update.tensors.items()])
    entries, count = sum(mask.numel() for mask in masks.values()), len(arrived)
    if not count or not energy or not largest:
        return energy * count / max(entries, 1)
    least = float(arrived.min()) / math.sqrt(energy / entries)
    density = math.exp(-(least**2) / 2) / math.sqrt(2 * math.pi)
    noise_alone = math.erfc(least / math.sqrt(2))
    units = entries * (2 * least * density + noise_alone) + max(count - entries * noise_alone, 0.0)
    return energy / entries * units


def _altered(parts: Sequence[Channel]) -> bool:
    """Return whether defenses do anything to a message but clip it."""
    return any(p.noise_energy or p.masks or p.transform or p.bases or p.kept_fraction < 1 for p in parts)


def _last_bases(parts: Sequence[Channel]) -> dict[str, Tensor] | None:
    """Return the spans of the last projection, unless entries were changed one by one after it."""
    bases = None
    for part in parts:
        changed = part.masks is not None or part.transform is not None
        bases = part.bases if part.bases is not None else None if changed else bases
    return bases


def _share_of_bases(bases: dict[str, Tensor], update: Update) -> float:
    """Return how many numbers a projected update has, over those of a whole one."""
    counts = {name: tensor.numel() for name, tensor in update.tensors.items()}
    total = sum(counts.values())
    measured = {name: basis.shape[1] * counts[name] // basis.shape[0] for name, basis in bases.items()}
    return sum({**counts, **measured}.values()) / max(total, 1)
