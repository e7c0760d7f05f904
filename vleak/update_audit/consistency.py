"""Consistency of a captured update with its model and its public facts, before anything is attacked.

Beside it stand updates of dummies: public clips that a client of the same facts sends. Where users of every
attack library get lost is here: a gradient that is a delta, a sum that should be a mean, weights of another
round, batch norm in another mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vleak.attacks import infer_labels
from vleak.attacks.flags import NEGATED, REVERSED
from vleak.attacks.sign import sign_flags
from vleak.errors import VleakError
from vleak.federated import Update, trained_part
from vleak.federated.dropout import drops
from vleak.update_audit.given import Given
from vleak.update_audit.records import Check
from vleak.update_audit.setup import Mode, Setup

__all__ = ["Dummies", "check_all", "cosine", "dummies_of", "inferred"]

_FACTOR = 8.0
"""Times the largest, or part of the smallest, norm of the dummies from which a norm is doubted."""
_FAR = 1e3  # the same, from which it is no honest update of these facts
_UNLIKE = 6.0
"""Factor in the share of a layer, beyond twice the range of the dummies, from which it is doubted."""
_ROUNDING = 1e-6  # share of the norm below which a tensor is nothing but rounding
_COUNT = 6
_STEPS = (1, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Dummies:
    """Updates of public clips.

    Attributes:
        clips: (K, B, C, T, H, W). labels: (B,) int64, of all of them.
        updates: one each, through the stated defense, by mode of the model.
        honest: the same without a defense, in the client's mode.
    """

    clips: Tensor
    labels: Tensor
    updates: dict[str, list[Update]]
    honest: list[Update]


def dummies_of(setup: Setup, labels: Tensor) -> Dummies:
    """Return updates of up to six batches of public clips, with the labels of the captured update.

    Args:
        setup: of the audit.
        labels: (B,) int64, as inferred.
    """
    size = len(labels)
    count = max(1, min(_COUNT, len(setup.public) // size))
    rows = torch.arange(count * size) % len(setup.public)
    clips = setup.public[rows].reshape(count, size, *setup.shape)
    updates: dict[str, list[Update]] = {}
    modes: tuple[Mode, ...] = ("eval", "train")
    for mode in modes:
        try:
            updates[mode] = [
                setup.sent(batch, labels, "dummy", i, mode=mode, defense=setup.defense)
                for i, batch in enumerate(clips)
            ]
        except VleakError:
            if mode == setup.update.facts.mode:
                raise
    honest = [setup.sent(batch, labels, "dummy", i) for i, batch in enumerate(clips)]
    return Dummies(clips, labels, updates, honest)


def check_all(setup: Setup, given: Given, dummies: Dummies) -> tuple[Check, ...]:
    """Return every check of a captured update, those that fit among them."""
    checks = [
        _tensors(setup, given),
        _empty_tensors(setup, dummies),
        _sign(setup),
        _norm(setup, dummies),
        *_steps(setup, dummies),
        _buffers(setup, given),
        _mode(setup, dummies),
        _profile(setup, dummies),
        *_marks(setup, dummies),
        _labels(setup, dummies),
    ]
    return tuple(checks)


# --- names and numbers --------------------------------------------------------------------------------------


def _tensors(setup: Setup, given: Given) -> Check:
    count = sum(p.requires_grad for p in setup.model.parameters())
    have = len(setup.update.tensors)
    notes = "; ".join(given.update.notes)
    detail = f"{have} of {count} trained parameters, shapes as the model's"
    return _check("tensors", "fits" if have == count else "note", f"{detail}; {notes}" if notes else detail)


def _empty_tensors(setup: Setup, dummies: Dummies) -> Check:
    zeros = [name for name, tensor in setup.update.tensors.items() if not bool(tensor.any())]
    own = [
        name
        for name in zeros
        if any(_counts(update, name) for update in dummies.updates[setup.update.facts.mode])
    ]
    if len(zeros) == len(setup.update.tensors):
        return _check("zeros", "wrong", "every entry is 0, so that nothing was trained; capture it again")
    if own:
        return _check(
            "zeros", "doubt",
            f"{len(own)} tensors are 0 throughout where dummies' are not, such as {own[0]!r}; were they "
            "frozen "
            "in the client, or dropped by a defense?",
        )  # fmt: skip
    return _check("zeros", "fits", f"{len(zeros)} tensors are 0 throughout, as those of dummies")


def _counts(update: Update, name: str) -> bool:
    """Return whether a tensor is more than rounding, such as that of a bias which batch norm takes away."""
    return float(update.tensors[name].double().norm()) > _ROUNDING * _size(update)


def _sign(setup: Setup) -> Check:
    observation = setup.observe(setup.update, setup.client())
    flags = sign_flags(observation)
    if NEGATED in flags:
        return _check(
            "sign", "wrong",
            "by its last layer it is a negated gradient or a delta, and was given as a gradient; give its "
            "learning rate to read it as a delta, or turn it round",
        )  # fmt: skip
    if REVERSED in flags:
        return _check(
            "sign", "wrong",
            "by its last layer the delta is reversed, weights before less weights after; turn it round, "
            "or give "
            "it as a gradient",
        )  # fmt: skip
    return _check("sign", "fits", "by its last layer nothing speaks against its sign")


def _norm(setup: Setup, dummies: Dummies) -> Check:
    norm = _size(setup.update)
    sizes = [_size(update) for update in dummies.updates[setup.update.facts.mode]]
    low, high = min(sizes), max(sizes)
    if not norm:
        return _check("norm", "wrong", "norm 0; there is nothing in it")
    told = f"norm {norm:.3g}; dummies of the same facts have {low:.3g} to {high:.3g}"
    if low / _FACTOR <= norm <= high * _FACTOR:
        return _check("norm", "fits", told)
    ratio = norm / (high if norm > high else max(low, 1e-30))
    outcome = "doubt" if 1 / _FAR < ratio < _FAR else "wrong"
    return _check("norm", outcome, f"{told}, {_times(ratio)}; {_remedy(setup, ratio)}")


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times the largest" if ratio > 1 else f"1/{1 / ratio:.3g} of the smallest"


def _remedy(setup: Setup, ratio: float) -> str:
    facts = setup.update.facts
    power = math.log2(ratio) if ratio > 0 else 0.0
    if ratio >= 2**10 and abs(power - round(power)) < 0.6:
        return (
            f"is it a gradient under mixed precision whose scale, about 2^{round(power)}, was not taken out?"
        )
    if facts.kind == "fedavg":
        return (
            "is the learning rate, the number of steps or the optimizer another, or are these weights "
            "of another round?"
        )
    if ratio > 1:
        return "is it a sum over clips where a mean is expected, or are these weights of another round?"
    return (
        "was it clipped, averaged with others, or multiplied by a learning rate, or is the model "
        "trained further?"
    )


def _steps(setup: Setup, dummies: Dummies) -> Iterator[Check]:
    """Yield what the length of a delta says of the number of its steps."""
    local = setup.update.facts.local
    if local is None:
        return
    own = _size(setup.update)
    sizes = torch.tensor([_size(update) for update in dummies.updates[setup.update.facts.mode]])
    ratio = own / float(sizes.median().clamp(min=1e-30))
    estimate = min(_STEPS, key=lambda steps: abs(math.log(max(local.steps * ratio, 1e-9) / steps)))
    told = f"stated are {local.steps} at learning rate {local.learning_rate:g}"
    if 1 / 3 < ratio < 3:
        yield _check("local steps", "fits", f"{told}: its length is that of dummies (times {ratio:.2g})")
    else:
        yield _check(
            "local steps", "doubt",
            f"{told}: its length is {ratio:.2g} times that of dummies, as after about {estimate} steps or at "
            f"{ratio:.2g} times the learning rate; clips unlike the public ones make a factor of some 3",
        )  # fmt: skip


# --- mode ---------------------------------------------------------------------------------------------------


def _buffers(setup: Setup, given: Given) -> Check:
    norms = [m for m in setup.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if given.buffers is None:
        which = (
            f"none came along; the model has {len(norms)} batch-norm layers"
            if norms
            else "the model has none"
        )
        return _check("buffers", "note" if norms else "fits", which)
    moved = [name for name, change in given.buffers.items() if bool(change.any())]
    mode = setup.update.facts.mode
    if moved and mode == "eval":
        return _check(
            "buffers", "wrong",
            f"{len(moved)} batch-norm statistics moved, such as {moved[0]!r}: the client was in train "
            "mode, and "
            "eval was stated; give mode train",
        )  # fmt: skip
    if norms and not moved and mode == "train":
        return _check(
            "buffers", "doubt",
            "no batch-norm statistic moved, as in eval mode, and train was stated; give mode eval, "
            "unless the "
            "client sends them as they were",
        )  # fmt: skip
    return _check("buffers", "fits", f"{len(moved)} of {len(given.buffers)} moved, as mode {mode} lets them")


def _mode(setup: Setup, dummies: Dummies) -> Check:
    """Check by whose profile over layers the update's is nearer: dummies in eval or in train mode."""
    mode = setup.update.facts.mode
    other = "train" if mode == "eval" else "eval"
    if drops(trained_part(setup.model)) and mode == "train":
        return _check("mode", "note", "train mode with dropout: its masks are unknown to the attacker")
    if other not in dummies.updates:
        return _check("mode", "note", f"the model cannot be run in {other} mode, so that it is not compared")
    own, rival = (_gap(setup.update, dummies.updates[which]) for which in (mode, other))
    same = _gap(dummies.updates[mode][0], dummies.updates[other][:1])
    if same < 1e-3:
        return _check("mode", "fits", "the model sends the same in both modes")
    told = (
        f"distance of its profile over layers to dummies in {mode} mode {own:.2g}, in {other} mode "
        f"{rival:.2g}"
    )
    if rival < 0.5 * own:
        return _check("mode", "doubt", f"{told}; was the client in {other} mode?")
    return _check("mode", "fits", told)


def _profile(setup: Setup, dummies: Dummies) -> Check:
    """Check which layer's share of the norm stands out from those of the dummies."""
    table = torch.stack([_shares(update) for update in dummies.updates[setup.update.facts.mode]])
    gaps = (_shares(setup.update) - table.median(0).values).abs()
    spread = 2 * (table.amax(0) - table.amin(0)) + math.log(_UNLIKE)
    worst = int((gaps / spread).argmax())
    name = list(setup.update.tensors)[worst]
    told = f"{name!r} stands out most, by a factor of {math.exp(min(float(gaps[worst]), 50)):.3g}"
    if float(gaps[worst] / spread[worst]) <= 1:
        return _check("layers", "fits", f"shares of the norm are those of dummies; {told}")
    return _check(
        "layers", "doubt",
        f"shares of the norm are not those of dummies; {told}; are these the weights that the client was "
        "sent?",
    )  # fmt: skip


def _gap(update: Update, others: Sequence[Update]) -> float:
    """Return the mean distance of a profile over layers to the middle of others."""
    table = torch.stack([_shares(other) for other in others])
    return float((_shares(update) - table.median(0).values).abs().clamp(max=10).mean())


def _shares(update: Update) -> Tensor:
    """Return the logarithms of the shares of every tensor in the norm, none below rounding."""
    norms = torch.stack([tensor.double().norm() for tensor in update.tensors.values()])
    return (norms / norms.square().sum().sqrt().clamp(min=1e-300)).clamp(min=_ROUNDING).log()


# --- marks of a defense -------------------------------------------------------------------------------------


def _marks(setup: Setup, dummies: Dummies) -> Iterator[Check]:
    """Yield what looks like the work of a defense."""
    own = _flat(setup.update)
    honest = _flat(dummies.updates[setup.update.facts.mode][0])
    zeros, usual = (float((flat == 0).double().mean()) for flat in (own, honest))
    stated = setup.defense.label
    if zeros > usual + 0.2:
        yield _check(
            "defense", "note",
            f"{100 * zeros:.0f} % of its entries are 0, of a dummy's {100 * usual:.0f} %: it looks pruned or "
            f"masked; stated is {stated!r}",
        )  # fmt: skip
    levels = max((len(torch.unique(tensor)) for tensor in setup.update.tensors.values()), default=0)
    if levels <= 256 < max(tensor.numel() for tensor in setup.update.tensors.values()):
        yield _check("defense", "note", f"at most {levels} different numbers a tensor: it looks quantised")
    norm = float(own.norm())
    if norm and abs(norm - round(norm, 2)) < 1e-6 * norm and 0 < round(norm, 2) <= 100:
        yield _check("defense", "note", f"its norm is {norm:.6g}, a round number: it looks clipped to it")


def _labels(setup: Setup, dummies: Dummies) -> Check:
    labels = dummies.labels.tolist()
    back = inferred(setup, dummies.updates[setup.update.facts.mode][0]).tolist()
    if sorted(back) == sorted(labels):
        return _check(
            "labels", "fits", f"inferred {labels}; of a dummy with these labels they are inferred rightly"
        )
    return _check(
        "labels",
        "doubt",
        f"inferred {labels}; of a dummy with these labels {back} are inferred, so that they are a guess",
    )


def inferred(setup: Setup, update: Update) -> Tensor:
    """Return the labels (B,) that an update tells of, on the model in the client's mode."""
    observation = setup.observe(update, setup.client())
    model = copy.deepcopy(trained_part(setup.model)).train(update.facts.mode == "train")
    return infer_labels(replace(observation, model=model).as_gradient())


def cosine(one: Update, other: Update) -> float:
    """Return the cosine of two updates of the same tensors; 0 where one of them is 0."""
    a, b = _flat(one), _flat(other)
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def _flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])


def _size(update: Update) -> float:
    return float(_flat(update).norm())


def _check(name: str, outcome: str, detail: str) -> Check:
    return Check(name=name, outcome=outcome, detail=detail)  # type: ignore[arg-type]  # one of the four
