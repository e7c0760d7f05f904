"""What a run found: its records, their store, statistics over clips, and the rows of its table."""

from vleak.results.statistics import Interval, binomial_interval, mean_interval
from vleak.results.store import read_results
from vleak.results.summary import Row, epsilon_text, headline, plural, summarise, unfinished

__all__ = [
    "Interval",
    "Row",
    "binomial_interval",
    "epsilon_text",
    "headline",
    "mean_interval",
    "plural",
    "read_results",
    "summarise",
    "unfinished",
]
