"""The report of a run: one HTML file that answers what still leaks and shows the pictures."""

from vleak.report.media import read_array
from vleak.report.page import write_report
from vleak.report.study_page import write_study

__all__ = ["read_array", "write_report", "write_study"]
