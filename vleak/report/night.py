"""Views of a night: sentences, Markdown, JUnit XML, and annotations of GitHub Actions."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from vleak.regression import Finding, MovedFigure, Night, NightLine, TestRecord
from vleak.report.numbers import number, percent, plural

__all__ = [
    "figure_text",
    "log_e_text",
    "night_annotations",
    "night_junit",
    "night_markdown",
    "night_sentences",
]

_WORSE = {
    "leakage": "leaks more",
    "message": "the message is closer to the undefended one",
    "attack": "the attack on the undefended model got weaker",
    "certificate": "more is identified than the certificate allows",
    "bytes": "more bytes are sent",
    "utility": "less is learned",
}
_MARKS = {"held": "✅ held", "failed": "❌ failed", "not judged": "⚠️ not judged"}
_SHOWN = 20  # moved figures in a text
_BARS = "▁▂▃▄▅▆▇█"
_CONTROL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def figure_text(value: float | None, unit: str, *, signed: bool = False) -> str:
    """Figure with its unit, for people: "+0.4 dB", "83 %", "45813"."""
    if value is None:
        return "–"
    sign = "+" if signed and value >= 0 else ""
    if unit == "share":
        return f"{sign}{percent(value)}"
    if unit == "bytes":
        return f"{sign}{value:,.0f}"
    return f"{sign}{value:.2f} dB" if unit == "dB" else f"{sign}{number(value)}"


def log_e_text(value: float) -> str:
    """Logarithm of an e-value to one digit, without a negative zero."""
    return f"{round(value, 1) + 0.0:.1f}"


def night_sentences(night: Night) -> list[str]:
    """What a person reads first: the verdict, then each reason for it."""
    return [_first(night), *map(_worse, _alarms(night)), *map(_found, night.findings), *_moved(night),
            *(f"not judged: {reason}" for reason in night.not_judged),
            *(f"note: {note}" for note in night.notes)]  # fmt: skip


def night_markdown(
    night: Night, nights: Sequence[NightLine] = (), names: Sequence[str] = (), plot: str | None = None
) -> str:
    """Summary in Markdown.

    Args:
        night: that was judged.
        nights: those of the history, with this one; for the course of each figure.
        names: of the tests in their lines.
        plot: path of the plot of the history, relative to the file; None without one.
    """
    first, *reasons = night_sentences(night)
    lines = [f"# {_MARKS[night.verdict]}", "", _escaped(first), ""]
    lines += [f"- {_escaped(reason)}" for reason in reasons] + ([""] if reasons else [])
    course = {name: [line.means[place] for line in nights] for place, name in enumerate(names)}
    if night.tests:
        lines += _table(night, course)
    if night.moves:
        lines += ["## Moves of level", ""]
        lines += [
            f"- {_escaped(move.name)}: since night {move.night}, {number(move.before)} → {number(move.after)}"
            for move in night.moves
        ] + [""]
    if plot is not None:
        lines += [f"![course of the figures]({plot.replace(' ', '%20')})", ""]
    return "\n".join(lines)


def night_junit(night: Night) -> str:
    """JUnit XML: a case for each tested figure, each replayed draw, each finding, and what was not judged."""
    suite = ElementTree.Element("testsuite", name="vleak regress")
    for test in night.tests:
        case = _case(suite, test.row, f"{test.subject}: {test.figure}")
        if test.outcome == "worse":
            _part(case, "failure", _worse(test))
        elif test.outcome == "not judged":
            _part(case, "error", test.reason)
    for draw in night.replayed:
        case = _case(suite, "replay", f"draw {draw}")
        for moved in (one for one in night.moved if one.draw == draw):
            _part(case, "failure", _drift(moved))
    for finding in night.findings:
        _part(_case(suite, finding.row, finding.what), "failure", _found(finding))
    told = {
        f"{test.row}, {test.figure}: {test.reason}" for test in night.tests if test.outcome == "not judged"
    }
    for reason in night.not_judged:
        if reason not in told:  # those of a test are the error of its own case
            _part(_case(suite, "not judged", reason), "error", reason)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for name in ("failure", "error"):
        suite.set(f"{name}s", str(sum(case.find(name) is not None for case in cases)))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def night_annotations(night: Night) -> list[str]:
    """Workflow commands of GitHub Actions: errors for what got worse, warnings for what was not judged."""
    errors = [*map(_worse, _alarms(night)), *map(_found, night.findings), *_moved(night)]
    notes = [("error", text) for text in errors] + [("warning", text) for text in night.not_judged]
    notes = notes or [("notice", _first(night))]
    return [f"::{level} title=vleak regress::{_command_text(text)}" for level, text in notes]


def _first(night: Night) -> str:
    parts = []
    if night.promise is not None:
        parts.append(f"night {night.night}, draw {night.draw}: {len(night.tests)} figures tested")
    if night.replayed:
        parts.append(f"{night.compared} figures replayed, {len(night.moved)} moved")
    return f"{night.verdict}: {'; '.join(parts) or 'nothing could be compared'}"


def _alarms(night: Night) -> list[TestRecord]:
    return [test for test in night.tests if test.outcome == "worse"]


def _worse(test: TestRecord) -> str:
    then, now = figure_text(test.baseline, test.unit), figure_text(test.tonight, test.unit)
    since = "" if test.since is None else f", since night {test.since}"
    return (
        f"{test.row}: {_WORSE[test.subject]}: {test.figure} {then} → {now} over {test.samples} "
        f"sample{plural(test.samples)}{since} (e-value e^{test.log_e:.1f})"
    )


def _found(finding: Finding) -> str:
    return f"{finding.row}: {finding.what}: {finding.baseline} → {finding.tonight}"


def _moved(night: Night) -> list[str]:
    texts = [_drift(moved) for moved in night.moved[:_SHOWN]]
    more = len(night.moved) - _SHOWN
    return texts + ([f"and {more} more figures moved in the replay"] if more > 0 else [])


def _drift(moved: MovedFigure) -> str:
    then, now = number(moved.baseline), number(moved.tonight)
    change = ""
    if moved.baseline is not None and moved.tonight is not None:
        change = f" ({moved.tonight - moved.baseline:+.3g} {moved.unit}{', worse' if moved.worse else ''})"
    return f"replay of draw {moved.draw}: {moved.row}, {moved.sample}: {moved.figure} {then} → {now}{change}"


def _table(night: Night, course: dict[str, list[float | None]]) -> list[str]:
    assert night.promise is not None
    head = ["defense, attack", "what", "figure", "baseline", "tonight", "difference", "log e", "outcome"]
    head += ["course"] if course else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for test in night.tests:
        cells = [
            _escaped(test.row), test.subject, test.figure, figure_text(test.baseline, test.unit),
            figure_text(test.tonight, test.unit), figure_text(test.difference, test.unit, signed=True),
            log_e_text(test.log_e), "**worse**" if test.outcome == "worse" else test.outcome,
        ]  # fmt: skip
        cells += [_sparkline(course.get(test.name, []))] if course else []
        lines.append("| " + " | ".join(cells) + " |")
    promise = night.promise
    return [
        *lines,
        "",
        f"A figure is worse at log e ≥ {promise.log_threshold:.1f}: a chance of at most "
        f"{percent(promise.alarm)} of any false alarm in {promise.nights} nights, over all "
        f"{promise.tests} tests.",
        "",
    ]


def _sparkline(values: Sequence[float | None]) -> str:
    """Course of a series in block characters, its last 30 nights."""
    known = [value for value in values[-30:] if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / span) if span else 0] for value in known)


def _escaped(text: str) -> str:
    """Text as Markdown shows it, whatever is in the names."""
    text = re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_xml_text(group), name=_xml_text(name))


def _part(case: ElementTree.Element, kind: str, message: str) -> None:
    ElementTree.SubElement(case, kind, message=_xml_text(message))


def _xml_text(text: str) -> str:
    """Text without what XML cannot hold."""
    return _CONTROL.sub("?", text)


def _command_text(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
