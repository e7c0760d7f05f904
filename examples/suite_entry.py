"""Entries of the suite from Python, by a small protocol of one's own."""

from __future__ import annotations

# --8<-- [start:entry]
from vleak.suite import Protocol, Situation, leaderboard, make_entries

protocol = Protocol(
    name="mine-1", about="a small one to try", situations=(Situation(name="gradient"),),
    clips=8, frames=4, size=16, attack="matching", iterations=60, non_adaptive=0,
)  # fmt: skip
entries = make_entries(protocol, ["none", "prune:fraction=0.9", "mixup:alpha=1.0"])
board = leaderboard(entries, protocol)
for standing in board.standings:
    rank, low, high = standing.rank
    print(f"{rank} [{low} to {high}]: {standing.entry.defense.label}, leakage {standing.leakage.mean:.2f}")
for entry in board.refused:
    print(f"refused: {entry.defense.label}, {entry.refusals[0].rule}")
# --8<-- [end:entry]
