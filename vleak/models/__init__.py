"""Models: classifiers of raw frames, frozen extractors, heads on features, and factories of the user."""

from vleak.models.build import MODELS, build_model, call_factory
from vleak.models.extractors import (
    EXTRACTORS,
    Extractor,
    build_extractor,
    pretrained,
    train_extractor,
    wrap_extractor,
)
from vleak.models.heads import HEADS, BagPair, build_head
from vleak.models.preflight import check_classifier, check_head, check_second_derivative
from vleak.models.training import TRAINING_STATES, accuracy, train
from vleak.switches import math_attention

__all__ = [
    "EXTRACTORS",
    "HEADS",
    "MODELS",
    "TRAINING_STATES",
    "BagPair",
    "Extractor",
    "accuracy",
    "build_extractor",
    "build_head",
    "build_model",
    "call_factory",
    "check_classifier",
    "check_head",
    "check_second_derivative",
    "math_attention",
    "pretrained",
    "train",
    "train_extractor",
    "wrap_extractor",
]
