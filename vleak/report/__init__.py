"""Pages: the report of a run, which says what still leaks, and the page of a study."""

from vleak.report.page import write_report
from vleak.report.study_page import write_study
from vleak.report.words import headline

__all__ = ["headline", "write_report", "write_study"]
