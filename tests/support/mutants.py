"""Defenses that do not do what they claim, each in one way that was found in published code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.defenses import (
    Composite,
    Compress,
    Dgc,
    DpClient,
    DpClientAdaptive,
    DpSgd,
    Lookalikes,
    NoDefense,
    NvflarePercentile,
    Precode,
    Prune,
    PruneDual,
)
from vleak.errors import CapabilityError, VleakError
from vleak.federated import (
    CarriesError,
    Changes,
    Channel,
    Claim,
    Defense,
    GaussianNoise,
    Loss,
    Message,
    OrthogonalUpdate,
    PoissonSampling,
    Privacy,
    SumsClients,
    Unbiased,
    Update,
    mean_gradient,
)

Gradient = dict[str, Tensor]


def norm(gradient: Gradient) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in gradient.values()))


def clipped(gradient: Gradient, limit: float) -> Gradient:
    return {name: tensor * min(1.0, limit / max(norm(gradient), 1e-30)) for name, tensor in gradient.items()}


def noisy(gradient: Gradient, deviation: float, source: torch.Generator) -> Gradient:
    return {
        name: tensor + deviation * torch.randn(tensor.shape, generator=source)
        for name, tensor in gradient.items()
    }


@dataclass(frozen=True, kw_only=True)
class Idle(Defense):
    """Sends the gradient as it is."""

    def claims(self) -> Sequence[Claim]:
        return (Changes(),)


@dataclass(frozen=True, kw_only=True)
class NoiseAlone(DpSgd):
    """Noise without the clip."""

    name: ClassVar[str] = "noise alone"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        deviation = self.noise_multiplier * self.max_grad_norm / len(clips)
        return noisy(mean_gradient(model, loss, clips, labels), deviation, generator)


@dataclass(frozen=True, kw_only=True)
class AverageClipped(DpSgd):
    """Clip of the average over the batch."""

    name: ClassVar[str] = "average clipped"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        mean = clipped(mean_gradient(model, loss, clips, labels), self.max_grad_norm)
        return noisy(mean, self.noise_multiplier * self.max_grad_norm / len(clips), generator)


@dataclass(frozen=True, kw_only=True)
class FramesClipped(DpSgd):
    """Clip of every frame's part of a clip's gradient."""

    name: ClassVar[str] = "frames clipped"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        total: Gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for clip, label in zip(clips, labels, strict=True):
            for frame in range(clips.shape[2]):
                alone = torch.zeros_like(clip)
                alone[:, frame] = clip[:, frame]
                part = clipped(mean_gradient(model, loss, alone[None], label[None]), self.max_grad_norm)
                total = {name: tensor + part[name] for name, tensor in total.items()}
        deviation = self.noise_multiplier * self.max_grad_norm
        return {name: tensor / len(clips) for name, tensor in noisy(total, deviation, generator).items()}


@dataclass(frozen=True, kw_only=True)
class OneSeed(DpClient):
    """The same noise in every message."""

    name: ClassVar[str] = "one seed"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        return super().transmit(gradient, torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class DividedTwice(DpSgd):
    """Noise divided by the root of the batch size once more."""

    name: ClassVar[str] = "divided twice"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        less = DpSgd(
            noise_multiplier=self.noise_multiplier / math.sqrt(len(clips)), max_grad_norm=self.max_grad_norm
        )
        return less.aggregate(model, loss, clips, labels, generator)


@dataclass(frozen=True, kw_only=True)
class LooseClip(DpSgd):
    """Clip at three times the sensitivity that is declared."""

    name: ClassVar[str] = "loose clip"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        loose = DpSgd(noise_multiplier=self.noise_multiplier / 3, max_grad_norm=3 * self.max_grad_norm)
        return loose.aggregate(model, loss, clips, labels, generator)


@dataclass(frozen=True, kw_only=True)
class FailsOpen(DpSgd):
    """The plain gradient where differential privacy could not be set up."""

    name: ClassVar[str] = "fails open"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        try:
            return super().aggregate(model, loss, clips, labels, generator)
        except VleakError:
            return mean_gradient(model, loss, clips, labels)


@dataclass(frozen=True, kw_only=True)
class NoiseTimesClip(DpSgd):
    """A certificate from the deviation of the noise instead of its multiplier."""

    name: ClassVar[str] = "noise times clip"
    max_grad_norm: float = 4.0

    def privacy(self) -> Privacy | None:
        return DpSgd(noise_multiplier=self.noise_multiplier * self.max_grad_norm).privacy()


@dataclass(frozen=True, kw_only=True)
class RunAsRelease(DpSgd):
    """The epsilon of a training run under sampling, stated for one release."""

    name: ClassVar[str] = "run as release"
    sample_rate: float = 0.01

    def privacy(self) -> Privacy | None:
        proven = super().privacy()
        return None if proven is None else replace(proven, epsilon=proven.training_epsilon)


@dataclass(frozen=True, kw_only=True)
class Projection(Defense):
    """Noise less its part along the gradient, divided by the norm and not by its square."""

    def claims(self) -> Sequence[Claim]:
        return (OrthogonalUpdate(),)

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        noise = noisy({name: torch.zeros_like(g) for name, g in gradient.items()}, 0.1, generator)
        share = sum(float((noise[name] * g).sum()) for name, g in gradient.items()) / self.divisor(gradient)
        sent = {name: noise[name] - share * g for name, g in gradient.items()}
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))

    def divisor(self, gradient: Gradient) -> float:
        return norm(gradient)


@dataclass(frozen=True, kw_only=True)
class RightProjection(Projection):
    """The same with the square."""

    def divisor(self, gradient: Gradient) -> float:
        return norm(gradient) ** 2


@dataclass(frozen=True, kw_only=True)
class ForgetsError(Prune):
    """Claims error feedback, and keeps nothing."""

    name: ClassVar[str] = "forgets error"

    def claims(self) -> Sequence[Claim]:
        return (CarriesError(),)


@dataclass(frozen=True, kw_only=True)
class BytesOfValues(Prune):
    """Bytes of the values that are sent, without their positions."""

    name: ClassVar[str] = "bytes of values"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        sent = super().transmit(gradient, generator).tensors
        return Message(sent, 4 * sum(int((tensor != 0).sum()) for tensor in sent.values()))


@dataclass(frozen=True, kw_only=True)
class KeepsSmallest(Prune):
    """Top-k that keeps the smallest entries."""

    name: ClassVar[str] = "keeps smallest"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        inverse = super().transmit({name: 1 / (g + 1e-20) for name, g in gradient.items()}, generator).tensors
        sent = {name: torch.where(inverse[name] != 0, g, 0.0) for name, g in gradient.items()}
        return Message(sent, 10**6)


@dataclass(frozen=True, kw_only=True)
class RoundsDown(Compress):
    """Rounding towards zero that claims to have no bias."""

    name: ClassVar[str] = "rounds down"

    def claims(self) -> Sequence[Claim]:
        return (Unbiased(),)

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        step = max(float(g.abs().max()) for g in gradient.values()) / 32
        dither = {
            name: 1e-3 * step * torch.randn(g.shape, generator=generator) for name, g in gradient.items()
        }
        sent = {name: ((g + dither[name]) / step).trunc() * step for name, g in gradient.items()}
        return Message(sent, 10**6)


@dataclass(frozen=True, kw_only=True)
class CutsBits(Compress):
    """bf16 by leaving out bits, which rounds towards zero."""

    name: ClassVar[str] = "cuts bits"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        words = {name: g.view(torch.int32) & ~0xFFFF for name, g in gradient.items()}
        sent = {name: word.view(torch.float32) for name, word in words.items()}
        return Message(sent, 2 * sum(tensor.numel() for tensor in sent.values()))


@dataclass(frozen=True, kw_only=True)
class KeepsPositive(Prune):
    """A threshold for values instead of magnitudes."""

    name: ClassVar[str] = "keeps positive"
    which: str = "threshold"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        sent = {name: torch.where(g >= self.threshold, g, 0.0) for name, g in gradient.items()}
        return Message(sent, 10**6)


@dataclass(frozen=True, kw_only=True)
class DropsOneEnd(PruneDual):
    """Dual pruning that drops the smallest entries twice."""

    name: ClassVar[str] = "drops one end"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        lower = PruneDual(largest=0.0, smallest=self.smallest + self.largest)
        return lower.transmit(gradient, generator)


@dataclass(frozen=True, kw_only=True)
class CutsOneSide(NvflarePercentile):
    """Entries cut off above gamma, and not below its negative."""

    name: ClassVar[str] = "cuts one side"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        sent = {name: g.clamp(max=self.gamma) for name, g in gradient.items()}
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))


@dataclass(frozen=True, kw_only=True)
class PrunesUnseen(Composite):
    """Noise and then pruning, by positions from the gradient before the noise."""

    stages: tuple[Defense, ...] = (DpClient(), Prune())

    def transmit_in_round(self, gradient: Gradient, generator: torch.Generator, memory: Gradient) -> Message:
        noise, prune = self.stages
        places = prune.transmit(gradient, generator)
        sent = noise.transmit(gradient, generator).tensors
        kept = {name: torch.where(places.tensors[name] != 0, tensor, 0.0) for name, tensor in sent.items()}
        return Message(kept, places.wire_bytes)


@dataclass(frozen=True, kw_only=True)
class FixedOrder(Defense):
    """The clips of a fixed order, accounted as sampled by coins."""

    rate: float = 0.5

    def claims(self) -> Sequence[Claim]:
        return (PoissonSampling(rate=self.rate),)

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        chosen = self.chosen(len(clips), generator)
        if not len(chosen):
            return {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        mean = mean_gradient(model, loss, clips[chosen], labels[chosen])
        return {name: tensor * len(chosen) / len(clips) for name, tensor in mean.items()}

    def chosen(self, clips: int, generator: torch.Generator) -> Tensor:
        start = int(torch.randint(2, (), generator=generator)) * clips // 2
        return torch.arange(start, start + clips // 2)


@dataclass(frozen=True, kw_only=True)
class Coins(FixedOrder):
    """The same by coins."""

    def chosen(self, clips: int, generator: torch.Generator) -> Tensor:
        return (torch.rand(clips, generator=generator) < self.rate).nonzero().flatten()


@dataclass(frozen=True, kw_only=True)
class NeverDraws(Precode):
    """A bottleneck that decodes the means and draws nothing."""

    name: ClassVar[str] = "never draws"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Gradient:
        return {name: 1.01 * g for name, g in mean_gradient(model, loss, clips, labels).items()}


@dataclass(frozen=True, kw_only=True)
class TellsLoss(DpSgd):
    """The raw loss of the batch travels along."""

    name: ClassVar[str] = "tells loss"

    def aggregate_in_round(
        self,
        model: nn.Module,
        loss: Loss,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: Gradient,
    ) -> Gradient:
        memory["loss"] = loss(model(clips), labels).detach()
        return self.aggregate(model, loss, clips, labels, generator)

    def transmit_in_round(self, gradient: Gradient, generator: torch.Generator, memory: Gradient) -> Message:
        message = super().transmit_in_round(gradient, generator, memory)
        return replace(message, metrics={"loss": float(memory.get("loss", torch.zeros(())))})


@dataclass(frozen=True, kw_only=True)
class TellsNorm(DpClient):
    """The norm of the update before its clip travels along."""

    name: ClassVar[str] = "tells norm"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        return replace(super().transmit(gradient, generator), metrics={"norm": norm(gradient)})


@dataclass(frozen=True, kw_only=True)
class FreeCount(DpClientAdaptive):
    """A count beside an update that has all of the noise already."""

    name: ClassVar[str] = "free count"

    def claims(self) -> Sequence[Claim]:
        _, *others = super().claims()
        return (
            *DpClient(noise_multiplier=self.noise_multiplier, max_norm=self.max_norm).claims(),
            others[-1],
        )

    def transmit_in_round(self, gradient: Gradient, generator: torch.Generator, memory: Gradient) -> Message:
        counted = super().transmit_in_round(gradient, generator, memory)
        plain = DpClient(noise_multiplier=self.noise_multiplier, max_norm=self.max_norm)
        return replace(counted, tensors=plain.transmit(gradient, generator).tensors)


@dataclass(frozen=True, kw_only=True)
class SureCount(DpClientAdaptive):
    """The count without its noise."""

    name: ClassVar[str] = "sure count"

    def transmit_in_round(self, gradient: Gradient, generator: torch.Generator, memory: Gradient) -> Message:
        message = super().transmit_in_round(gradient, generator, memory)
        own = norm(gradient)
        return replace(message, metrics={"unclipped": float(own <= self.max_norm) if own else 0.5})


@dataclass(frozen=True, kw_only=True)
class KeepsMomentum(Dgc):
    """Momentum that is not cleared where an entry was sent."""

    name: ClassVar[str] = "keeps momentum"

    def transmit_in_round(self, gradient: Gradient, generator: torch.Generator, memory: Gradient) -> Message:
        before = {
            name: memory.get(f"dgc/momentum/{name}", torch.zeros_like(g)) for name, g in gradient.items()
        }
        message = super().transmit_in_round(gradient, generator, memory)
        for name, g in gradient.items():
            memory[f"dgc/momentum/{name}"] = self.momentum * before[name] + g
        return message


@dataclass(frozen=True, kw_only=True)
class PeeksAtClips(Lookalikes):
    """Look-alikes that are made of the clips, and claim to ignore them."""

    name: ClassVar[str] = "peeks at clips"
    source: str = "clip"

    def claims(self) -> Sequence[Claim]:
        return Lookalikes().claims()

    def with_public(self, clips: Tensor, labels: Tensor) -> Defense:
        learned = replace(self)
        plain = super().with_public(clips, labels)
        object.__setattr__(learned, "_scenes", vars(plain)["_scenes"])
        return learned


@dataclass(frozen=True, kw_only=True)
class LastOfSum(Defense):
    """The message of one client, claimed to be the sum."""

    def claims(self) -> Sequence[Claim]:
        return (SumsClients(clients=4, each=NoDefense()),)

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return clips[-1:], labels[-1:]


@dataclass(frozen=True, kw_only=True)
class SharedDraw(DpClient):
    """One draw of noise for all entries of a tensor."""

    name: ClassVar[str] = "shared draw"

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        kept = clipped(gradient, self.max_norm)
        deviation = self.noise_multiplier * self.max_norm
        sent = {name: t + deviation * torch.randn((), generator=generator) for name, t in kept.items()}
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))


@dataclass(frozen=True, kw_only=True)
class ProcessRandom(Defense):
    """Noise from the generator of the process."""

    def claims(self) -> Sequence[Claim]:
        return (GaussianNoise(deviation=0.1, unit="client"),)

    def transmit(self, gradient: Gradient, generator: torch.Generator) -> Message:
        sent = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in gradient.items()}
        return Message(sent, sum(tensor.nbytes for tensor in sent.values()))


class OtherChannel(DpSgd):
    """States less noise to attackers than it claims."""

    name = "other_channel"

    def channel(self, update: Update) -> Channel | None:
        channel = super().channel(update)
        assert channel is not None
        return replace(channel, noise_deviation=(channel.noise_deviation or 0.0) / 2)


class NoChannel(Prune):
    """Returns something else than a channel."""

    name = "no_channel"

    def channel(self, update: Update) -> Channel | None:
        return "pruned"  # type: ignore[return-value]


class Choosy(Defense):
    """Refuses every model but its own."""

    name = "choosy"

    def check_model(self, model: nn.Module) -> None:
        raise CapabilityError("choosy: needs a layer named 'mine'")


MUTANTS: dict[str, tuple[Defense, str]] = {
    "no-op": (Idle(), "changed"),
    "noise without the clip": (NoiseAlone(), "clip norm"),
    "projection by the norm": (Projection(), "orthogonal"),
    "fixed seed": (OneSeed(), "Gaussian noise"),
    "clip of the average": (AverageClipped(), "clip norm"),
    "clip per frame": (FramesClipped(), "clip norm"),
    "forgotten error feedback": (ForgetsError(), "error feedback"),
    "bytes without indices": (BytesOfValues(fraction=0.999), "bytes"),
    "noise over the root of the batch": (DividedTwice(), "Gaussian noise"),
    "declared sensitivity unlike the clip": (LooseClip(), "clip norm"),
    "fixed order accounted as Poisson": (FixedOrder(), "Poisson sampling"),
    "fail-open": (FailsOpen(), "fails closed"),
    "biased rounding": (RoundsDown(), "unbiased"),
    "rounding by leaving out bits": (CutsBits(codec="bf16"), "relative error"),
    "threshold of values": (KeepsPositive(), "entries above"),
    "pruned at one end": (DropsOneEnd(), "entries between"),
    "cut off on one side": (CutsOneSide(), "largest entry"),
    "positions of the gradient before its noise": (PrunesUnseen(), "passes through"),
    "the smallest entries": (KeepsSmallest(), "entries kept"),
    "epsilon from noise times clip": (NoiseTimesClip(), "certificate follows from claims"),
    "epsilon of the run as the release's": (RunAsRelease(), "certificate follows from claims"),
    "a bottleneck that draws nothing": (NeverDraws(), "drawn anew"),
    "raw loss beside the message": (TellsLoss(), "side metrics"),
    "raw norm beside the message": (TellsNorm(), "side metrics"),
    "count that costs nothing": (FreeCount(), "certificate follows from claims"),
    "count without noise": (SureCount(), "noisy metric"),
    "momentum of what was sent": (KeepsMomentum(), "sent entries cleared"),
    "look-alikes of the clips": (PeeksAtClips(), "ignores the clips"),
    "one client in place of the sum": (LastOfSum(), "sum of clients"),
    "one draw a tensor": (SharedDraw(), "Gaussian noise"),
    "channel of another defense": (OtherChannel(), "channel agrees with claims"),
    "channel of another kind": (NoChannel(), "channel agrees with claims"),
    "generator of the process": (ProcessRandom(), "one seed, one message"),
}
"""By what is wrong: the defense, and the check that has to find it."""
