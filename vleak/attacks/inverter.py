"""Learning to invert: fit a map from updates to clips by playing the client on public clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.augment import augment
from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.attacks.labels import infer_labels
from vleak.attacks.matching import _in_mode
from vleak.attacks.memo import Memo, digest_of, digest_of_model
from vleak.attacks.rows import NEAR_ZERO
from vleak.errors import InputError
from vleak.federated import LOSSES, Client, Update
from vleak.federated.gradients import mean_gradient, per_clip_gradients
from vleak.seeds import generator as seeded

#: Entries of an update that are kept apart; a longer one is folded with random signs (a count sketch).
_WIDTH = 2**17
_TOGETHER = 8  # clips whose gradients are computed at once
#: Ridges that are tried, in units of the mean eigenvalue.
_RIDGES = tuple(10 ** (exponent / 2) for exponent in range(-4, 11))


class Inverter(Attack):
    """Learning to Invert (Wu et al., UAI 2023, arXiv 2210.10880): a learned map from update to clip.

    The attacker plays the client on public clips, altered in many ways, under the private clip's label, and
    fits a linear map from what the defense would send to the clip, by kernel ridge regression in the space of
    updates: for some hundreds of samples it has a closed form, and its answer is the best linear estimate
    under the defense's noise. How much of the noise is in which tensor, and how strong the ridge has to be,
    is measured on public clips sent through the defense and left out of the fit, with all their versions.

    It never asks how well its answer explains the update, so it stays behind matching where little noise is,
    and is ahead of it where there is much. It does not iterate: ``iterations``, ``restarts`` and ``engine``
    are taken as every attack takes them, and change nothing. Its answer does not depend on the generator:
    the map is the same for all clips behind one defense on one model, fitted once, kept in the process.
    """

    name: ClassVar[str] = "inverter"

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        engine: Literal["native", "inductor", "reference"] = "native",
        copies: int = 8,
        rehearsals: int = 24,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations, restarts, engine: no meaning here.
            copies: versions of every public clip to fit on, at least 1; memory and the time of the first
                answer grow with it.
            rehearsals: public clips sent through the defense to choose the ridge, at least 1; fewer where
                there are fewer.

        Raises:
            InputError: a number below 1.
        """
        if min(iterations, restarts, copies, rehearsals) < 1:
            raise InputError(
                "inverter: expected at least 1 iteration, 1 restart, 1 copy and 1 rehearsal, got "
                f"{iterations}, {restarts}, {copies} and {rehearsals}"
            )
        self.iterations, self.restarts, self.engine = iterations, restarts, engine
        self.copies, self.rehearsals = copies, rehearsals

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        knowledge = observation.knowledge
        public = check_public(knowledge, self.name)
        mode = observation.update.facts.mode
        observation = replace(observation, model=_in_mode(observation.model, mode))
        labels = infer_labels(observation) if knowledge.labels is None else knowledge.labels
        told = knowledge.defense is not None
        clips = public.mean(0).expand(knowledge.batch_shape).clone()
        flags: tuple[str, ...] = (NEAR_ZERO,)
        if any(bool(t.any()) for t in observation.update.tensors.values()):
            fitted = self._fitted(observation, labels, _Hooks(progress, stop))
            clips, flags = (clips if fitted is None else fitted.answer(observation.update)), ()
        return Reconstruction(clips=clips, labels=labels, adaptive=told, flags=flags)

    def _fitted(self, observation: Observation, labels: Tensor, hooks: _Hooks) -> _Map | None:
        """Return the map for this model, defense and label; None where it was stopped."""
        knowledge, public_facts = observation.knowledge, observation.update.facts
        sender = _Sender(
            observation.model,
            public_facts.loss,
            public_facts.mode,
            labels,
            knowledge.defense or "none",
            knowledge.defense_settings,
            knowledge.simulate,
        )
        public = check_public(knowledge, self.name)
        facts = (digest_of_model(observation.model), digest_of(public, labels), sender.loss, sender.mode,
                 self.copies)  # fmt: skip
        told = knowledge.defense is not None and knowledge.simulate is not None
        defense = (sender.defense, repr(sorted(sender.settings.items())), told)
        try:
            rehearsal = _rehearsed.get(
                (facts, sender.deterministic), lambda: _rehearse(sender, public, self.copies, hooks)
            )
            return _maps.get(
                (facts, defense, self.rehearsals), lambda: _fit(sender, rehearsal, self.rehearsals, hooks)
            )
        except _StoppedError:
            return None


def check_public(knowledge: Knowledge, name: str) -> Tensor:
    """Return the public clips of an attack that learns from them.

    Raises:
        InputError: there are fewer than two.
    """
    if knowledge.public_clips is None or len(knowledge.public_clips) < 2:
        raise InputError(
            f"attack {name!r} learns from public clips and has fewer than two; give more, or another attack"
        )
    return knowledge.public_clips


class _StoppedError(Exception):
    """The caller wants no more; what was begun is not kept."""


@dataclass(frozen=True)
class _Hooks:
    progress: Callable[[int], None] | None
    stop: Callable[[], bool] | None

    def __call__(self, done: int) -> None:
        if self.stop is not None and self.stop():
            raise _StoppedError
        if self.progress is not None:
            self.progress(done)


# ---------------------------------------------------------------------------------------------------------
# Playing the client


@dataclass(frozen=True)
class _Sender:
    """What a client with some clips under the private labels sends: in truth, and on average."""

    model: nn.Module
    loss: str
    mode: Literal["eval", "train"]
    labels: Tensor
    defense: str
    settings: Mapping[str, Any]
    simulate: Callable[[Tensor, Tensor, torch.Generator], Update] | None

    @property
    def deterministic(self) -> tuple[float, ...]:
        """The part of the defense that `expected` applies: (pruned fraction, clipping norm)."""
        fraction = float(self.settings.get("fraction", 0.0)) if self.defense == "prune" else 0.0
        clip = float(self.settings["max_grad_norm"]) if self.defense == "dp" else math.inf
        return fraction, clip

    def sent(self, clips: Tensor, source: torch.Generator) -> Update:
        """Return a message for a batch (B, ...), the defense's noise included."""
        if self.simulate is not None:
            return self.simulate(clips, self.labels, source)
        return Client(self.model, self.loss, mode=self.mode).update(clips, self.labels, source)

    def expected(self, batches: Tensor) -> dict[str, Tensor]:
        """Return (n, *parameter shape) by name: of batches (n, B, ...), the messages without noise."""
        fraction, clip = self.deterministic
        weight = next(self.model.parameters())
        loss, labels, batches = LOSSES[self.loss], self.labels.to(weight.device), batches.to(weight)
        if self.mode == "train":  # clips of a batch may share statistics
            singles = [mean_gradient(self.model, loss, batch, labels) for batch in batches]
            each = {name: torch.stack([single[name] for single in singles])[:, None] for name in singles[0]}
        else:
            found = per_clip_gradients(self.model, loss, batches.flatten(0, 1), labels.repeat(len(batches)))
            each = {name: t.view(*batches.shape[:2], *t.shape[1:]) for name, t in found.items()}
        norms = sum(t.reshape(*t.shape[:2], -1).square().sum(2) for t in each.values())
        assert isinstance(norms, Tensor)
        factor = (clip / norms.sqrt().clamp(min=1e-30)).clamp(max=1.0)
        mean = {
            name: (t * factor.view(*factor.shape, *[1] * (t.ndim - 2))).mean(1).cpu()
            for name, t in each.items()
        }
        return _pruned(mean, fraction) if fraction else mean


def _pruned(gradients: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Keep the largest entries of every row over all tensors, as `prune` does."""
    sizes = torch.cat([t.reshape(len(t), -1).abs() for t in gradients.values()], 1)
    kept = max(1, round((1 - fraction) * sizes.shape[1]))
    least = sizes.topk(kept, 1).values[:, -1]
    return {
        name: torch.where(t.abs() >= least.view(-1, *[1] * (t.ndim - 1)), t, 0.0)
        for name, t in gradients.items()
    }


def _folded(tensors: Mapping[str, Tensor], entries: int) -> list[Tensor]:
    """Return rows (n, width) of every tensor (n, ...), short enough to be kept; inner products survive."""
    parts = []
    for name, tensor in tensors.items():
        rows = tensor.reshape(len(tensor), -1)
        width = max(1, min(rows.shape[1], rows.shape[1] * _WIDTH // entries))
        if width < rows.shape[1]:
            signs = torch.randint(2, (rows.shape[1],), generator=seeded("fold", name)) * 2 - 1
            rows = F.pad(rows * signs, (0, -rows.shape[1] % width)).view(len(rows), -1, width).sum(1)
        parts.append(rows)
    return parts


@dataclass(frozen=True)
class _Rehearsal:
    """Batches of public clips, and what their sender would send without noise.

    Attributes:
        clips: (N, C, T, H, W), every version of every public clip, those as they are first.
        slots: (N, B), which clip stands where in each batch; the first slot counts up. In the first batches,
            one a public clip, all stand as they are, each once in every slot.
        sources: (N, B), from which public clip it was made.
        messages: (N, width) bfloat16 a tensor, of norm as it was.
        entries: P, the length of an update.
    """

    clips: Tensor
    slots: Tensor
    sources: Tensor
    messages: list[Tensor]
    entries: int

    @property
    def public(self) -> int:
        """M, how many public clips there are."""
        return int(self.sources.max()) + 1

    def inner(self, queries: list[Tensor]) -> Tensor:
        """Return the inner products (tensor, N, queries) of messages with queries (queries, width)."""
        return torch.stack([
            torch.cat([part.float() @ q.T for part in torch.split(m, 64)])
            for m, q in zip(self.messages, queries, strict=True)
        ])  # fmt: skip


def _rehearse(sender: _Sender, public: Tensor, copies: int, hooks: _Hooks) -> _Rehearsal:
    source = seeded("inverter", copies, len(public))
    clips, batch = augment(public, copies, source), len(sender.labels)
    rows, altered = torch.arange(len(clips)), len(clips) - len(public)
    others = [
        torch.cat([
            torch.randperm(len(public), generator=source),
            len(public) + torch.randperm(altered, generator=source),
        ])
        for _ in range(batch - 1)
    ]  # fmt: skip
    slots = torch.stack([rows, *others], 1)
    entries = sum(p.numel() for p in sender.model.parameters())
    parts: list[list[Tensor]] = []
    for some in torch.split(rows, max(1, _TOGETHER // batch)):
        hooks(int(some[0]))
        folded = _folded(sender.expected(clips[slots[some]]), entries)
        parts.append([part.bfloat16() for part in folded])
    messages = [torch.cat(part) for part in zip(*parts, strict=True)]
    return _Rehearsal(clips, slots, slots % len(public), messages, entries)


# ---------------------------------------------------------------------------------------------------------
# The map


@dataclass(frozen=True)
class _Map:
    """An affine map from updates to clips, in terms of inner products with the rehearsed messages.

    Attributes:
        rehearsal: the messages.
        trust: (tensor,) weight of each tensor's inner product.
        scales: (N,) factors on the messages.
        unit: whether updates are brought to norm 1 first.
        gain: mean of what arrives over what was expected.
        centre: (N,) inner product of every message with the mean of the unaltered ones.
        solution: (N, N), from centred inner products to weights on what stands in the rehearsed batches.
    """

    rehearsal: _Rehearsal
    trust: Tensor
    scales: Tensor
    unit: bool
    gain: float
    centre: Tensor
    solution: Tensor

    def answer(self, update: Update) -> Tensor:
        """Return the clips (B, C, T, H, W) of an update."""
        queries = _queries([update], self.rehearsal, unit=self.unit)
        inner = self.rehearsal.inner([q / self.gain for q in queries])[..., 0]
        products = self.scales * (self.trust[:, None] * inner).sum(0)
        clips, mean = self.rehearsal.clips, _unaltered(self.rehearsal)
        weights = self.solution @ _centred(products - self.centre, mean).double()
        shares = _shares(self.rehearsal, mean, weights[:, None])[..., 0].float()
        return (shares @ clips.flatten(1)).view(len(shares), *clips.shape[1:]).clamp(0, 1)


def _queries(updates: list[Update], rehearsal: _Rehearsal, *, unit: bool) -> list[Tensor]:
    stacked = {name: torch.stack([u.tensors[name] for u in updates]) for name in updates[0].tensors}
    folded = _folded(stacked, rehearsal.entries)
    if not unit:
        return folded
    norms = sum(part.square().sum(1, keepdim=True) for part in folded)
    assert isinstance(norms, Tensor)
    return [part / norms.sqrt().clamp(min=1e-30) for part in folded]


def _fit(sender: _Sender, rehearsal: _Rehearsal, count: int, hooks: _Hooks) -> _Map:
    """Fit the map: how far to trust each tensor, and the ridge, from clips sent through the defense."""
    # Behind DP the noise of a message hides its norm, and clipping has told it already.
    unit = sender.defense != "dp"
    some = torch.randperm(rehearsal.public, generator=seeded("inverter", "queries"))[:count]
    updates: list[Update] = []
    for index in some.tolist():
        hooks(len(rehearsal.clips) + len(updates))
        updates.append(
            sender.sent(rehearsal.clips[rehearsal.slots[index]], seeded("inverter", "sent", index))
        )
    sent = _queries(updates, rehearsal, unit=unit)
    norms = torch.stack([m.float().square().sum(1) for m in rehearsal.messages]).sum(0).sqrt()
    scales = 1 / norms.clamp(min=1e-30) if unit else torch.ones_like(norms)
    expected = [m[some].float() * scales[some, None] for m in rehearsal.messages]
    gain = _gain(sent, expected) if unit else 1.0
    sent = [s / gain for s in sent]
    trust = _trust(rehearsal.messages, scales, sent, expected)
    gram = sum(
        weight * (m.float() @ m.float().T) for weight, m in zip(trust, rehearsal.messages, strict=True)
    )
    assert isinstance(gram, Tensor)
    gram = scales[:, None] * gram * scales
    products = scales[:, None] * (trust[:, None, None] * rehearsal.inner(sent)).sum(0)
    ridge = _best_ridge(rehearsal, some, gram.double(), products.double())
    mean = _unaltered(rehearsal)
    centre = gram @ mean.float()
    gram = _centred(_centred(gram.double(), mean).T, mean)
    solution = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    return _Map(rehearsal, trust, scales, unit, gain, centre, solution)


def _gain(sent: list[Tensor], expected: list[Tensor]) -> float:
    """Return what part of messages of norm 1 is what was expected; the rest is the defense's noise."""
    agreement = sum(float((s * e).sum()) for s, e in zip(sent, expected, strict=True))
    return max(agreement / max(sum(float(e.square().sum()) for e in expected), 1e-30), 0.01)


def _trust(messages: list[Tensor], scales: Tensor, sent: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Return a weight a tensor: one over what the defense's noise, and some of the signal, vary in it."""
    found = []
    for message, arrived, meant in zip(messages, sent, expected, strict=True):
        noise = float((arrived - meant).square().mean())
        signal = float((message.float() * scales[:, None]).var(0).mean())
        found.append(1 / (noise + 0.1 * signal) if signal > 0 else 0.0)
    return torch.tensor(found) / max(max(found), 1e-30)


# Messages and clips are centred alike, on those that are not altered: where the noise leaves nothing, the
# answer is then the mean public clip, and where there is no noise, the map has no offset that clips lack.


def _unaltered(rehearsal: _Rehearsal, kept: Tensor | None = None) -> Tensor:
    """Return weights (N,) of a mean over the unaltered batches, or over all where none of them is kept."""
    kept = torch.ones(len(rehearsal.slots), dtype=torch.bool) if kept is None else kept
    first = kept & (torch.arange(len(kept)) < rehearsal.public)
    chosen = (first if bool(first.any()) else kept).double()
    return chosen / chosen.sum()


def _centred(products: Tensor, mean: Tensor) -> Tensor:
    """Return products (N, ...) of messages with their mean, of weights (N,), taken out."""
    middle: Tensor = torch.tensordot(mean.to(products), products, 1)
    return products - middle


def _shares(rehearsal: _Rehearsal, mean: Tensor, weights: Tensor) -> Tensor:
    """Return (B, N, n), what part of the answer every clip is: the mean, and weights (N, n) times offsets."""
    shares = weights + mean[:, None] * (1 - weights.sum(0))
    return torch.stack([torch.zeros_like(shares).index_add(0, slot, shares) for slot in rehearsal.slots.T])


def _best_ridge(rehearsal: _Rehearsal, some: Tensor, gram: Tensor, products: Tensor) -> float:
    """Return the ridge that rebuilds the rehearsed queries best, each left out of the fit.

    Args:
        rehearsal: the messages.
        some: (queries,), the batches that were sent.
        gram: (N, N), inner products of messages. products: (N, queries), of messages with what was sent.
    """
    mean = _unaltered(rehearsal)
    energy = float(_centred(_centred(gram, mean).T, mean).trace()) / len(gram)
    # Messages that are all alike differ by rounding, which is not to be inverted.
    least = 1e-12 * float(gram.trace()) / len(gram)
    ridges = torch.tensor(_RIDGES, dtype=gram.dtype) * max(energy, least, 1e-30)
    flat = rehearsal.clips.flatten(1)
    likeness = (flat @ flat.T).double()
    errors = torch.zeros_like(ridges)
    for at, query in enumerate(some.tolist()):
        errors += _left_out(rehearsal, query, gram, products[:, at], likeness, ridges)
    # Where batches leave nothing to fit on, all ridges are alike, and the largest claims least.
    return float(ridges[errors <= errors.min()].max())


def _left_out(
    rehearsal: _Rehearsal, query: int, gram: Tensor, products: Tensor, likeness: Tensor, ridges: Tensor
) -> Tensor:
    """Return the squared error for every ridge of a query whose clips, in all their versions, are left out.

    They are left out of the means too: with them in, one clip of few is what the others lack.
    """
    kept = ~torch.isin(rehearsal.sources, rehearsal.sources[query]).any(1)
    if not bool(kept.any()):
        return torch.zeros_like(ridges)
    mean = _unaltered(rehearsal, kept)
    centred = _centred(_centred(gram, mean).T, mean)[kept][:, kept]
    values, vectors = torch.linalg.eigh(centred)
    projected = vectors.T @ _centred(products - gram @ mean, mean)[kept]
    weights = torch.zeros(len(gram), len(ridges), dtype=gram.dtype)
    weights[kept] = vectors @ (projected[:, None] / (values.clamp(min=0)[:, None] + ridges))
    gaps = -_shares(rehearsal, mean, weights)
    gaps[torch.arange(len(gaps)), rehearsal.slots[query]] += 1
    errors: Tensor = torch.einsum("bir,ij,bjr->r", gaps, likeness, gaps)
    return errors


_rehearsed: Memo[_Rehearsal] = Memo(8)
_maps: Memo[_Map] = Memo(8)
