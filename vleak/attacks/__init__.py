"""Attacks: each sees an Observation and nothing else."""

from __future__ import annotations

from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.attacks.closed_form import ClosedForm
from vleak.attacks.decoder import Decoder
from vleak.attacks.deep_prior import DeepPrior
from vleak.attacks.feature_inversion import FeatureInversion
from vleak.attacks.independent import Independent
from vleak.attacks.inverter import Inverter
from vleak.attacks.labels import infer_labels
from vleak.attacks.low_rank import LowRank
from vleak.attacks.matching import Matching, MatchingBlind
from vleak.attacks.null import Grey, PublicMean, ReferenceMean, ReferenceStill, answerable
from vleak.attacks.order import order_identifiable
from vleak.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "matching": Matching,
        "matching_blind": MatchingBlind,
        "deep_prior": DeepPrior,
        "decoder": Decoder,
        "inverter": Inverter,
        "closed_form": ClosedForm,
        "low_rank": LowRank,
        "independent": Independent,
    },
    base=Attack,
)
"""Every attack by the name that the command line takes."""

BASELINES: Registry[Attack] = Registry(
    "baseline",
    {
        "grey": Grey,
        "public_mean": PublicMean,
        "reference_still": ReferenceStill,
        "reference_mean": ReferenceMean,
    },
    base=Attack,
)
"""Attackers with the same knowledge who never see the update; they run in every evaluation."""

NULL_ATTACKS = BASELINES

__all__ = [
    "ATTACKS",
    "BASELINES",
    "NULL_ATTACKS",
    "Attack",
    "ClosedForm",
    "Decoder",
    "DeepPrior",
    "FeatureInversion",
    "Grey",
    "Independent",
    "Inverter",
    "Knowledge",
    "LowRank",
    "Matching",
    "MatchingBlind",
    "Observation",
    "PublicMean",
    "Reconstruction",
    "ReferenceMean",
    "ReferenceStill",
    "answerable",
    "infer_labels",
    "order_identifiable",
]
