"""Attacks: each sees an Observation and nothing else."""

from __future__ import annotations

from vleak.attacks.analytic import ClosedForm, Independent, LowRank, Tokens
from vleak.attacks.base import Attack, Hooks, Task, Work, reconstruct_all
from vleak.attacks.baselines import (
    SHARED_GUESSES,
    Grey,
    LabelMean,
    PublicMean,
    ReferenceMean,
    ReferenceNearest,
    ReferenceStill,
    answerable,
)
from vleak.attacks.feature_inversion import FeatureInversion
from vleak.attacks.knowledge import Knowledge
from vleak.attacks.labels import infer_labels
from vleak.attacks.learned import Decoder, DeepPrior, Inverter
from vleak.attacks.linkage import LINK_DRAWS, link_chance, link_rank, link_scores
from vleak.attacks.matching import DENOISERS, Matching, NonAdaptiveMatching
from vleak.attacks.observation import Observation
from vleak.attacks.order import order_identifiable
from vleak.attacks.reconstruction import Reconstruction
from vleak.attacks.refinement import Refinement
from vleak.attacks.retrieval import Retrieval
from vleak.attacks.sign import update_sign
from vleak.attacks.simulation import simulated_channel
from vleak.attacks.strongest import Strongest
from vleak.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "strongest": Strongest,
        "matching": Matching,
        "matching_blind": NonAdaptiveMatching,
        "deep_prior": DeepPrior,
        "decoder": Decoder,
        "inverter": Inverter,
        "refinement": Refinement,
        "retrieval": Retrieval,
        "closed_form": ClosedForm,
        "low_rank": LowRank,
        "independent": Independent,
        "tokens": Tokens,
    },
    base=Attack,
)
"""Attacks by name; settings follow it, as in ``matching:rule=lbfgs,spatial=0.01``."""

BASELINES: Registry[Attack] = Registry(
    "baseline",
    {
        "grey": Grey,
        "public_mean": PublicMean,
        "label_mean": LabelMean,
        "reference_still": ReferenceStill,
        "reference_mean": ReferenceMean,
        "reference_nearest": ReferenceNearest,
    },
    base=Attack,
)
"""Attackers with the same knowledge who never see the update, by name; they run in every evaluation."""

__all__ = [
    "ATTACKS",
    "BASELINES",
    "DENOISERS",
    "LINK_DRAWS",
    "SHARED_GUESSES",
    "Attack",
    "ClosedForm",
    "Decoder",
    "DeepPrior",
    "FeatureInversion",
    "Grey",
    "Hooks",
    "Independent",
    "Inverter",
    "Knowledge",
    "LabelMean",
    "LowRank",
    "Matching",
    "NonAdaptiveMatching",
    "Observation",
    "PublicMean",
    "Reconstruction",
    "ReferenceMean",
    "ReferenceNearest",
    "ReferenceStill",
    "Refinement",
    "Retrieval",
    "Strongest",
    "Task",
    "Tokens",
    "Work",
    "answerable",
    "infer_labels",
    "link_chance",
    "link_rank",
    "link_scores",
    "order_identifiable",
    "reconstruct_all",
    "simulated_channel",
    "update_sign",
]
