"""Guard of a client: warning scores before it sends, checks of the server's model, and a decision."""

from vleak.guarding.decision import NO_PROOF, Action, Decision, Tried
from vleak.guarding.findings import CHECKS, Check, Finding
from vleak.guarding.inspection import inspect_model
from vleak.guarding.jacobian import (
    JacobianFacts,
    dominance,
    gradient_by_clips,
    jacobian_facts,
)
from vleak.guarding.judge import guard
from vleak.guarding.samples import HonestFacts, SampleFacts, honest_facts, sample_facts
from vleak.guarding.scores import WarningScores, warning_scores
from vleak.guarding.self_attack import SHORT_ATTACKS, SelfAttack, attack_itself
from vleak.guarding.thresholds import Thresholds

__all__ = [
    "CHECKS",
    "NO_PROOF",
    "SHORT_ATTACKS",
    "Action",
    "Check",
    "Decision",
    "Finding",
    "HonestFacts",
    "JacobianFacts",
    "SampleFacts",
    "SelfAttack",
    "Thresholds",
    "Tried",
    "WarningScores",
    "attack_itself",
    "dominance",
    "gradient_by_clips",
    "guard",
    "honest_facts",
    "inspect_model",
    "jacobian_facts",
    "sample_facts",
    "warning_scores",
]
