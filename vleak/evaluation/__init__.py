"""Running an evaluation: settings, plan, run."""

from vleak.evaluation.run import StoppedError, evaluate
from vleak.evaluation.settings import Settings
from vleak.evaluation.weights import TRAINABLE, train_weights

__all__ = ["TRAINABLE", "Settings", "StoppedError", "evaluate", "train_weights"]
