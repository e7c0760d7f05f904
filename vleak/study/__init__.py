"""Study: claims about gradient inversion on video, each judged on runs of its own by intervals over clips.

The claims are those of "Images in Motion?" (2025, arXiv 2509.09742) and two questions that it leaves open.
Its tables are not compared with.
"""

from vleak.study.records import ClaimRecord, ComparisonRecord, StudyRecord, read_study
from vleak.study.run import run_study
from vleak.study.settings import Study

__all__ = ["ClaimRecord", "ComparisonRecord", "Study", "StudyRecord", "read_study", "run_study"]
