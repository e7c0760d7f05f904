"""Pages: the report of a run, which says what still leaks, and the page of a study."""

from vleak.report.numbers import epsilon_text, plural
from vleak.report.page import write_report
from vleak.report.proof import at_least, audit_note, sandwich_text
from vleak.report.study_page import write_study
from vleak.report.words import client_text, headline, seeds_sentences, unfinished, verdict_text

__all__ = [
    "at_least",
    "audit_note",
    "client_text",
    "epsilon_text",
    "headline",
    "plural",
    "sandwich_text",
    "seeds_sentences",
    "unfinished",
    "verdict_text",
    "write_report",
    "write_study",
]
