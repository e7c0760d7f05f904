"""Evaluation: settings, plan and run."""

from vleak.evaluation.groups import StoppedError
from vleak.evaluation.run import Progress, evaluate
from vleak.evaluation.settings import Settings
from vleak.evaluation.workers import Limits
from vleak.pipelines import TRAINABLE, train_weights

__all__ = ["TRAINABLE", "Limits", "Progress", "Settings", "StoppedError", "evaluate", "train_weights"]
