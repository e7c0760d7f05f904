"""Warning scores: what a client can compute of an update before it sends it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.federated import Update
from vleak.guarding.samples import HonestFacts
from vleak.guarding.self_attack import SelfAttack


@dataclass(frozen=True)
class WarningScores:
    """Scores of an update before it is sent; of every one, higher means that more may leak.

    Attributes:
        d_snr: norm of one clip's gradient over the sum of the others', in the layer where it is largest
            (Garov et al., ICLR 2024, arXiv 2306.03013), from 1 / (B - 1); infinite for one clip, which
            nothing hides. Of the honest gradient.
        d_snr_layer: that layer.
        frame_d_snr: how far the update moves with one frame, over the sum of the others', from 1 / (T - 1).
        frame: that frame, from 0.
        gradient_norm: of the honest gradient.
        layer_share: share of the sent update's squared norm in the tensor that has most of it, 0 to 1.
        alignment: squared cosine of what is sent and the honest gradient, 0 to 1: its share of signal.
        jacobian_energy: sum of the squared singular values of the Jacobian of what is sent by the clips, over
            the squared norm of the honest gradient, times ``alignment``: squared relative change of the
            message where every number of the clips moves by the pixel range, less what a defense covers.
        effective_rank: directions of the clips that carry the changes of the honest gradient, from 1.
        attack: the short attack of the client on itself; None where it was not run.
    """

    d_snr: float
    d_snr_layer: str
    frame_d_snr: float
    frame: int
    gradient_norm: float
    layer_share: float
    alignment: float
    jacobian_energy: float
    effective_rank: float
    attack: SelfAttack | None = None

    def numbers(self) -> dict[str, float]:
        """Return every score by name, those of the attack as ``attack_gain_db`` and so on."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        if self.attack is not None:
            for name in ("gain_db", "correlation", "recognised"):
                own[f"attack_{name}"] = getattr(self.attack, name)
        return own


def warning_scores(update: Update, honest: HonestFacts, *, attack: SelfAttack | None = None) -> WarningScores:
    """Return the scores of one update.

    The honest gradient is that of all clips at the weights that were sent, of a delta too.

    Args:
        update: about to be sent, whole.
        honest: facts of the clips behind it.
        attack: of the client on itself.

    Raises:
        InputError: the update has not the entries of the model.
    """
    facts = honest.jacobian
    sent, gradient = flat(update.as_gradient()), facts.gradient.double()
    if len(gradient) != len(sent):
        raise InputError(
            f"the update has {len(sent)} entries, the model {len(gradient)}; scores are of a whole update"
        )
    by_layer = honest.d_snr
    layer = max(by_layer, key=by_layer.__getitem__, default="")
    energies = [float(tensor.double().square().sum()) for tensor in update.tensors.values()]
    share, norm = _squared_cosine(sent, gradient), float(gradient.norm())
    kept = float(facts.entries[sent != 0].double().sum())
    return WarningScores(
        d_snr=by_layer.get(layer, math.inf),
        d_snr_layer=layer,
        frame_d_snr=honest.frame_d_snr,
        frame=max(range(len(facts.frames)), key=facts.frames.__getitem__),
        gradient_norm=norm,
        layer_share=max(energies) / max(math.fsum(energies), 1e-300),
        alignment=share,
        jacobian_energy=kept / max(norm**2, 1e-300) * share,
        effective_rank=facts.effective_rank,
        attack=attack,
    )


def flat(update: Update) -> Tensor:
    """Return all entries of an update, in its order, (entries,), float64."""
    return torch.cat([tensor.flatten() for tensor in update.tensors.values()]).double()


def _squared_cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return min(1.0, (float(a @ b) / norms) ** 2) if norms > 0 else 0.0
