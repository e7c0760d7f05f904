"""Clients, defenses, channels and updates of federated learning."""

from vleak.federated.channel import Channel, Scales, column_bases, surviving_entries
from vleak.federated.claims import (
    CarriesError,
    Changes,
    Claim,
    ClearsSent,
    ClipsNorm,
    DrawsAnew,
    GaussianNoise,
    IgnoresClips,
    KeepsAbove,
    KeepsBetween,
    KeepsEntries,
    LimitsEntries,
    LimitsLevels,
    LimitsRank,
    NoisyMetric,
    OrthogonalUpdate,
    PassesThrough,
    PoissonSampling,
    RelativeError,
    SumsClients,
    Unbiased,
)
from vleak.federated.client import Client
from vleak.federated.defense import Defense, Message, Privacy
from vleak.federated.dropout import drops, fill_masks, mask_limits, with_masks, without_dropout
from vleak.federated.federation import Federation, Training, train_federation
from vleak.federated.gradients import Loss, mean_gradient, per_clip_gradients
from vleak.federated.jacobian import JacobianProducts, Send, random_signs
from vleak.federated.loading import load_update
from vleak.federated.local import LocalTraining
from vleak.federated.losses import LOSSES, UNITS
from vleak.federated.trained import freeze_others, moved, trained_part
from vleak.federated.update import MODES, PublicFacts, Update

__all__ = [
    "LOSSES",
    "MODES",
    "UNITS",
    "CarriesError",
    "Changes",
    "Channel",
    "Claim",
    "ClearsSent",
    "Client",
    "ClipsNorm",
    "Defense",
    "DrawsAnew",
    "Federation",
    "GaussianNoise",
    "IgnoresClips",
    "JacobianProducts",
    "KeepsAbove",
    "KeepsBetween",
    "KeepsEntries",
    "LimitsEntries",
    "LimitsLevels",
    "LimitsRank",
    "LocalTraining",
    "Loss",
    "Message",
    "NoisyMetric",
    "OrthogonalUpdate",
    "PassesThrough",
    "PoissonSampling",
    "Privacy",
    "PublicFacts",
    "RelativeError",
    "Scales",
    "Send",
    "SumsClients",
    "Training",
    "Unbiased",
    "Update",
    "column_bases",
    "drops",
    "fill_masks",
    "freeze_others",
    "load_update",
    "mask_limits",
    "mean_gradient",
    "moved",
    "per_clip_gradients",
    "random_signs",
    "surviving_entries",
    "train_federation",
    "trained_part",
    "with_masks",
    "without_dropout",
]
