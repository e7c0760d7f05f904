"""Classifiers under attack: built-in ones, and any ``package.module:factory`` of the user."""

from vleak.backends import math_attention
from vleak.models.build import MODELS, build_model
from vleak.models.preflight import check_classifier, check_second_derivative
from vleak.models.training import TRAINING_STATES, accuracy, train

__all__ = [
    "MODELS",
    "TRAINING_STATES",
    "accuracy",
    "build_model",
    "check_classifier",
    "check_second_derivative",
    "math_attention",
    "train",
]
