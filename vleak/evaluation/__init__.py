"""Running an evaluation: plan, run, store, statistics and summary."""

from vleak.evaluation.run import StoppedError, evaluate
from vleak.evaluation.settings import Settings
from vleak.evaluation.statistics import Interval, binomial_interval, mean_interval
from vleak.evaluation.store import read_results
from vleak.evaluation.summary import Row, epsilon_text, headline, plural, summarise, unfinished

__all__ = [
    "Interval",
    "Row",
    "Settings",
    "StoppedError",
    "binomial_interval",
    "epsilon_text",
    "evaluate",
    "headline",
    "mean_interval",
    "plural",
    "read_results",
    "summarise",
    "unfinished",
]
