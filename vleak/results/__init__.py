"""Results of a run: typed records, their stores, statistics over clips, and the rows of the table."""

from vleak.results.comparison import Comparison, RowPair, compare_runs, differ_in_seed_alone
from vleak.results.folder import read_run, record_files
from vleak.results.records import Cell, ModelRecord, RunHeader, RunRecord
from vleak.results.rows import Row, RowKey, row_key
from vleak.results.seeds import SeedVerdict, over_seeds
from vleak.results.statistics import Interval, binomial_interval, mean_interval
from vleak.results.store import FolderStore, MemoryStore, RunStore
from vleak.results.summary import summarise

__all__ = [
    "Cell",
    "Comparison",
    "FolderStore",
    "Interval",
    "MemoryStore",
    "ModelRecord",
    "Row",
    "RowKey",
    "RowPair",
    "RunHeader",
    "RunRecord",
    "RunStore",
    "SeedVerdict",
    "binomial_interval",
    "compare_runs",
    "differ_in_seed_alone",
    "mean_interval",
    "over_seeds",
    "read_run",
    "record_files",
    "row_key",
    "summarise",
]
