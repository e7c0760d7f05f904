"""Defenses that a client can run, one file a family, and the registry that finds those from outside."""

from vleak.defenses.censor import Censor
from vleak.defenses.composite import Composite
from vleak.defenses.compress import Compress
from vleak.defenses.data import HeldFrames, Mixup, MotionBlur
from vleak.defenses.dgc import Dgc
from vleak.defenses.dp import DpSgd
from vleak.defenses.dp_adaptive import DpAdaptive, DpClientAdaptive
from vleak.defenses.dp_client import DpClient
from vleak.defenses.dp_hooks import DpHooks
from vleak.defenses.dp_variants import DpLayers, DpVideo
from vleak.defenses.flower import FlowerClipping, FlowerLocalDp
from vleak.defenses.lookalikes import Lookalikes
from vleak.defenses.lowrank import PowerSgd
from vleak.defenses.noise import Noise, OptimalNoise, Outpost
from vleak.defenses.none import NoDefense
from vleak.defenses.nvflare import NvflarePercentile, NvflareSvt
from vleak.defenses.oasis import Oasis
from vleak.defenses.precode import Precode
from vleak.defenses.protocol import SecureSum, WeakMasks
from vleak.defenses.prune import Prune, PruneDual
from vleak.defenses.references import DEFENSES, defense_text, parse_defenses
from vleak.defenses.representation import Soteria
from vleak.federated import Defense

__all__ = [
    "DEFENSES",
    "Censor",
    "Composite",
    "Compress",
    "Defense",
    "Dgc",
    "DpAdaptive",
    "DpClient",
    "DpClientAdaptive",
    "DpHooks",
    "DpLayers",
    "DpSgd",
    "DpVideo",
    "FlowerClipping",
    "FlowerLocalDp",
    "HeldFrames",
    "Lookalikes",
    "Mixup",
    "MotionBlur",
    "NoDefense",
    "Noise",
    "NvflarePercentile",
    "NvflareSvt",
    "Oasis",
    "OptimalNoise",
    "Outpost",
    "PowerSgd",
    "Precode",
    "Prune",
    "PruneDual",
    "SecureSum",
    "Soteria",
    "WeakMasks",
    "defense_text",
    "parse_defenses",
]
