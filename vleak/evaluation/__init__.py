"""Running an evaluation: plan, run, store, statistics and summary."""

from vleak.evaluation.run import StoppedError, evaluate
from vleak.evaluation.settings import Settings
from vleak.evaluation.statistics import Interval, binomial_interval, mean_interval
from vleak.evaluation.store import read_results
from vleak.evaluation.study import Study, run_study
from vleak.evaluation.summary import Row, epsilon_text, headline, plural, summarise, unfinished
from vleak.evaluation.weights import TRAINABLE, train_weights

__all__ = [
    "TRAINABLE",
    "Interval",
    "Row",
    "Settings",
    "StoppedError",
    "Study",
    "binomial_interval",
    "epsilon_text",
    "evaluate",
    "headline",
    "mean_interval",
    "plural",
    "read_results",
    "run_study",
    "summarise",
    "train_weights",
    "unfinished",
]
