"""Attacks that learn from public clips, or bring a network as their prior."""

from vleak.attacks.learned.decoder import Decoder
from vleak.attacks.learned.deep_prior import DeepPrior
from vleak.attacks.learned.inverter import Inverter, forget_maps

__all__ = ["Decoder", "DeepPrior", "Inverter", "forget_maps"]
