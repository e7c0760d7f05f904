"""What a client of federated learning computes and sends."""

from vleak.federated.client import Client
from vleak.federated.defense import Defense, Message, Privacy
from vleak.federated.gradients import Loss, mean_gradient, per_clip_gradients
from vleak.federated.losses import LOSSES, UNITS
from vleak.federated.update import Update

__all__ = [
    "LOSSES",
    "UNITS",
    "Client",
    "Defense",
    "Loss",
    "Message",
    "Privacy",
    "Update",
    "mean_gradient",
    "per_clip_gradients",
]
