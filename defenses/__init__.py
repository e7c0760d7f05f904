"""Defenses that a client can run, one file a family, and the registry that finds those from outside."""

from vleak.defenses.compress import Compress
from vleak.defenses.dp import DpSgd
from vleak.defenses.dp_client import DpClient
from vleak.defenses.none import NoDefense
from vleak.defenses.prune import Prune
from vleak.defenses.references import DEFENSES, defense_text, parse_defenses
from vleak.federated import Defense

__all__ = [
    "DEFENSES",
    "Compress",
    "Defense",
    "DpClient",
    "DpSgd",
    "NoDefense",
    "Prune",
    "defense_text",
    "parse_defenses",
]
