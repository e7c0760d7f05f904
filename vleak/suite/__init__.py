"""Suite: a frozen protocol that defenses are ranked by, its entries, and their leaderboard."""

from vleak.suite.admission import refusals_of
from vleak.suite.files import entry_name, finished_entry, read_entries, read_entry, write_entry
from vleak.suite.frozen import NEWEST, PROTOCOLS, find_protocol
from vleak.suite.leaderboard import Board, Standing, leaderboard, leakage_of
from vleak.suite.making import make_entries
from vleak.suite.protocol import Protocol, Situation
from vleak.suite.ranks import Rank, ranks_of
from vleak.suite.records import (
    AttackedDefense,
    Attacker,
    ClaimCheck,
    ClipFigures,
    Cost,
    Entry,
    EntryContent,
    Figures,
    Measured,
    Refusal,
    SituationFigures,
    Unaware,
)

__all__ = [
    "NEWEST",
    "PROTOCOLS",
    "AttackedDefense",
    "Attacker",
    "Board",
    "ClaimCheck",
    "ClipFigures",
    "Cost",
    "Entry",
    "EntryContent",
    "Figures",
    "Measured",
    "Protocol",
    "Rank",
    "Refusal",
    "Situation",
    "SituationFigures",
    "Standing",
    "Unaware",
    "entry_name",
    "find_protocol",
    "finished_entry",
    "leaderboard",
    "leakage_of",
    "make_entries",
    "ranks_of",
    "read_entries",
    "read_entry",
    "refusals_of",
    "write_entry",
]
