"""Models: classifiers of raw frames, frozen extractors, heads on features, and factories of the user."""

from vleak.models.adapt import Layout, adapt, read_layout
from vleak.models.build import (
    MODELS,
    SMALL_MODELS,
    build_model,
    call_factory,
    is_built_in,
    make_model,
    on_trial,
)
from vleak.models.checkpoint import check_checkpoint, load_checkpoint
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
from vleak.models.training import GIVEN, TRAINING_STATES, accuracy, hits, train, training_steps
from vleak.models.unwrap import Plain, plain_module, unwrapped_module
from vleak.switches import math_attention

__all__ = [
    "EXTRACTORS",
    "GIVEN",
    "HEADS",
    "MODELS",
    "SMALL_MODELS",
    "TRAINING_STATES",
    "BagPair",
    "Extractor",
    "Layout",
    "Plain",
    "accuracy",
    "adapt",
    "build_extractor",
    "build_head",
    "build_model",
    "call_factory",
    "check_checkpoint",
    "check_classifier",
    "check_head",
    "check_second_derivative",
    "hits",
    "is_built_in",
    "load_checkpoint",
    "make_model",
    "math_attention",
    "on_trial",
    "plain_module",
    "pretrained",
    "read_layout",
    "train",
    "train_extractor",
    "training_steps",
    "unwrapped_module",
    "wrap_extractor",
]
