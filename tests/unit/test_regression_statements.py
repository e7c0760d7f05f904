"""Claims and audited epsilons in a night: what broke is named, and what a baseline lacks is said."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from nights import run_of

from vleak.conformance import Check, Conformance
from vleak.federated import ClipsNorm, GaussianNoise
from vleak.regression import Baseline, Night, make_baseline, regress, statements
from vleak.report import night_annotations, night_junit, night_markdown, night_sentences
from vleak.results.audit import AuditRecord
from vleak.results.records import RunRecord

DRAWS = range(3)
Outcome = Literal["holds", "broken", "not checked"]


def audited(
    run: RunRecord, *, claimed: float = 8.0, epsilon: float | None = 5.0, log10_e: float = 0.0
) -> RunRecord:
    """The run with an audit of "dp"."""
    refuted = epsilon is None or epsilon > claimed or log10_e >= 4
    audit = AuditRecord(
        pipeline="raw", model="c3d", defense="dp", text="dp", claimed=claimed, delta=1e-5, epsilon=epsilon,
        canary="own clip", e_value=10.0**log10_e, refuted=refuted, confidence=0.9995, own_confidence=0.9995,
    )  # fmt: skip
    return run.model_copy(update={"audits": (audit,)})


def checked(monkeypatch: pytest.MonkeyPatch, noise: Outcome, *, deviation: float = 1.0) -> None:
    """Let the claims of every defense come out like this."""

    def conform(defense: Any, **_: Any) -> Conformance:
        claims = ClipsNorm(limit=1.0), GaussianNoise(deviation=deviation)
        detail = "" if noise == "holds" else "as planted"
        checks = (
            Check("bytes", None, "holds"),
            Check(claims[0].name, claims[0], "holds"),
            Check(claims[1].name, claims[1], noise, detail),
        )
        return Conformance(defense.label, checks)

    monkeypatch.setattr(statements, "conform", conform)


def baseline_of(monkeypatch: pytest.MonkeyPatch, noise: Outcome = "holds", **audit: Any) -> Baseline:
    checked(monkeypatch, noise)
    runs = [audited(run_of(draw, defenses=["dp:noise_multiplier=1.0"]), **audit) for draw in DRAWS]
    return make_baseline(runs, claims=True)


def night_of(baseline: Baseline, **audit: Any) -> Night:
    return regress(audited(run_of(100, defenses=["dp:noise_multiplier=1.0"]), **audit), baseline)


def test_a_baseline_keeps_claims_and_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(monkeypatch)
    assert [(state.name, state.outcome) for state in baseline.claims or ()] == [
        ("bytes", "holds"), ("clip norm", "holds"), ("Gaussian noise", "holds"),
    ]  # fmt: skip
    (audit,) = baseline.audits
    assert (audit.label, audit.claimed, audit.epsilon, audit.refuted) == ("dp", 8.0, 5.0, False)


def test_a_night_in_which_all_claims_hold_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    night = night_of(baseline_of(monkeypatch))
    assert (night.verdict, night.findings, night.notes) == ("held", (), ())
    assert night.promise is not None
    assert night.promise.tests == len(night.tests) + 4  # three checks and an audit


def test_a_claim_that_broke_fails_the_night_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(monkeypatch)
    checked(monkeypatch, "broken")
    night = night_of(baseline)
    assert (night.verdict, night.exit_code) == ("failed", 1)
    (finding,) = night.findings
    assert finding.row == "dp:noise_multiplier=1.0"
    assert finding.what == "the claim 'Gaussian noise' is broken: as planted"
    said = "dp:noise_multiplier=1.0: the claim 'Gaussian noise' is broken: as planted: holds → broken"
    assert said in night_sentences(night)
    assert "Gaussian noise" in night_markdown(night)
    assert "Gaussian noise" in night_junit(night)
    assert any(line.startswith("::error") and "Gaussian noise" in line for line in night_annotations(night))


def test_a_claim_of_less_noise_is_another_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(monkeypatch)
    checked(monkeypatch, "holds", deviation=0.5)
    (finding,) = night_of(baseline).findings
    assert finding.what == "the claim 'Gaussian noise' is another one"
    assert (finding.baseline, finding.tonight) == ("deviation 1.0, unit clip", "deviation 0.5, unit clip")


def test_a_claim_that_was_broken_already_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    assert night_of(baseline_of(monkeypatch, "broken")).verdict == "held"


def test_a_claim_that_cannot_be_checked_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(monkeypatch)
    checked(monkeypatch, "not checked")
    night = night_of(baseline)
    assert (night.verdict, night.exit_code) == ("not judged", 2)
    assert "the claim 'Gaussian noise' was not checked: as planted" in night.not_judged[0]


@pytest.mark.parametrize("epsilon", [9.5, None])
def test_a_bound_above_the_claimed_epsilon_fails_the_night(
    monkeypatch: pytest.MonkeyPatch, epsilon: float | None
) -> None:
    night = night_of(baseline_of(monkeypatch), epsilon=epsilon, log10_e=30)
    assert (night.verdict, night.exit_code) == ("failed", 1)
    (finding,) = night.findings
    assert finding.row == "dp on c3d"
    assert finding.what == "the claimed epsilon is refuted, by the canary 'own clip'"
    assert (finding.baseline, finding.tonight) == (
        "claimed 8", f"at least {'infinity' if epsilon is None else '9.5'}",
    )  # fmt: skip


def test_evidence_of_one_night_is_not_that_of_a_year(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of honest runs one in 2000 is accused by its audit: of 365 nights one in six years."""
    night = night_of(baseline_of(monkeypatch), epsilon=8.1, log10_e=3)
    assert (night.verdict, night.exit_code) == ("not judged", 2)
    assert "dp on c3d: at least epsilon 8.1 where 8 is claimed" in night.not_judged[0]


def test_a_night_without_the_audit_of_the_baseline_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(monkeypatch)
    night = regress(run_of(100, defenses=["dp:noise_multiplier=1.0"]), baseline)
    assert night.exit_code == 2
    assert "dp on c3d: no audit of its epsilon: the run has none" in night.not_judged[0]


def test_a_baseline_without_claims_and_audits_is_said_so() -> None:
    baseline = make_baseline([run_of(draw) for draw in DRAWS])
    night = regress(audited(run_of(100)), baseline)
    assert night.verdict == "held"
    assert [note.partition(",")[0] for note in night.notes] == [
        "the baseline keeps no audits", "the baseline keeps no claims",
    ]  # fmt: skip
    assert any(line.startswith("note: the baseline keeps no claims") for line in night_sentences(night))


def test_claims_of_a_real_defense_are_checked() -> None:
    told = list[tuple[str, int, int]]()
    states = statements.claim_states(
        ["none", "prune:fraction=0.9", "missing"], lambda *seen: told.append(seen)
    )
    by_defense = {state.defense: state for state in states}
    assert by_defense["prune:fraction=0.9"].outcome == "holds"
    assert {state.name for state in states if state.defense == "prune:fraction=0.9"} >= {
        "entries kept",
        "bytes",
    }
    assert (by_defense["missing"].outcome, by_defense["missing"].name) == ("not checked", "all")
    assert told[0] == ("checking claims", 0, 3)


def test_a_setting_that_was_left_out_is_told_in_words() -> None:
    baseline, given = make_baseline([run_of(draw, clips=3) for draw in DRAWS]), run_of(100, clips=3)
    eight = baseline.model_copy(update={"settings": baseline.settings.model_copy(update={"clips": 8})})
    settings = given.settings.model_copy(update={"clips": None})
    night = regress(given.model_copy(update={"settings": settings}), eight)
    assert "other clips (8 before, not given now)" in night.not_judged[0]
