"""Pages of runs, comparisons, audits, nights and studies: a verdict first, then what it rests on."""

from vleak.report.audit_page import write_audit
from vleak.report.audits_page import AuditRow, audit_rows, write_audits
from vleak.report.compare_page import comparison_sentences, write_comparison
from vleak.report.leaderboard import board_markdown, board_page, rank_text, standing_cells
from vleak.report.night import (
    figure_text,
    log_e_text,
    night_annotations,
    night_junit,
    night_markdown,
    night_sentences,
)
from vleak.report.night_page import write_night
from vleak.report.night_plot import draw_nights
from vleak.report.numbers import epsilon_text, gain_text, plural, share_text
from vleak.report.page import write_report
from vleak.report.proof import at_least, audit_note, sandwich_text, seed_note
from vleak.report.sharing import withheld_text
from vleak.report.study_page import write_study
from vleak.report.words import client_text, headline, seeds_sentences, unfinished, verdict_text

__all__ = [
    "AuditRow",
    "at_least",
    "audit_note",
    "audit_rows",
    "board_markdown",
    "board_page",
    "client_text",
    "comparison_sentences",
    "draw_nights",
    "epsilon_text",
    "figure_text",
    "gain_text",
    "headline",
    "log_e_text",
    "night_annotations",
    "night_junit",
    "night_markdown",
    "night_sentences",
    "plural",
    "rank_text",
    "sandwich_text",
    "seed_note",
    "seeds_sentences",
    "share_text",
    "standing_cells",
    "unfinished",
    "verdict_text",
    "withheld_text",
    "write_audit",
    "write_audits",
    "write_comparison",
    "write_night",
    "write_report",
    "write_study",
]
