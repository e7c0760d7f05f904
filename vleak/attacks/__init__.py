"""Attacks: each sees an Observation and nothing else."""

from __future__ import annotations

from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.attacks.decoder import Decoder
from vleak.attacks.deep_prior import DeepPrior
from vleak.attacks.inverter import Inverter
from vleak.attacks.labels import infer_labels
from vleak.attacks.matching import Matching, MatchingBlind
from vleak.attacks.null import Grey, PublicMean

#: name -> class; the first line of each docstring is shown by `vleak list attacks`.
ATTACKS: dict[str, type[Attack]] = {
    "matching": Matching,
    "matching_blind": MatchingBlind,
    "deep_prior": DeepPrior,
    "decoder": Decoder,
    "inverter": Inverter,
}
#: attackers with the same knowledge and no gradient; they run in every evaluation.
NULL_ATTACKS: dict[str, type[Attack]] = {"grey": Grey, "public_mean": PublicMean}

__all__ = [
    "ATTACKS",
    "NULL_ATTACKS",
    "Attack",
    "Decoder",
    "DeepPrior",
    "Grey",
    "Inverter",
    "Knowledge",
    "Matching",
    "MatchingBlind",
    "Observation",
    "PublicMean",
    "Reconstruction",
    "infer_labels",
]
