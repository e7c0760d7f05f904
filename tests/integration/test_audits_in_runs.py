"""Audits in runs: claims beside what the messages show, and how a refuted one ends a run."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from torch import Tensor

import vleak
from runs import options, tiny
from vleak.certificates import ASSUMPTIONS, gaussian_epsilon
from vleak.cli import run
from vleak.defenses import DpSgd
from vleak.evaluation import evaluate
from vleak.evaluation.audits import measure_audits
from vleak.evaluation.run import StoppedError
from vleak.evaluation.setup import prepare
from vleak.federated import Privacy
from vleak.results import RunRecord, read_run, summarise


@dataclass(frozen=True, kw_only=True)
class HalvedNoise(DpSgd):
    """Half of the noise that it claims."""

    name: ClassVar[str] = "halved"

    def combine(self, samples: dict[str, Tensor], generator: object) -> dict[str, Tensor]:
        return DpSgd.combine(replace(self, noise_multiplier=self.noise_multiplier / 2), samples, generator)


@dataclass(frozen=True, kw_only=True)
class HalfClips(DpSgd):
    """Acts on the clips too, so that gradients cannot take their place."""

    name: ClassVar[str] = "half clips"

    def prepare_clips(self, clips: Tensor, labels: Tensor, generator: object) -> tuple[Tensor, Tensor]:
        return clips / 2, labels


@dataclass(frozen=True, kw_only=True)
class CertificateOfMoreNoise(DpSgd):
    """An honest channel, and the certificate of four times the noise."""

    name: ClassVar[str] = "more noise"

    def privacy(self) -> Privacy | None:
        return DpSgd(noise_multiplier=4 * self.noise_multiplier).privacy()


NARROW = "c3d_tiny:width=4,depth=1"
HONEST = ("dp:noise_multiplier=1", "dp:noise_multiplier=0.5+prune:fraction=0.5", "prune:fraction=0.9")


def audited(*defenses: str | DpSgd, **changes: object) -> RunRecord:
    return evaluate(
        tiny(
            **{
                "defenses": defenses,
                "model": NARROW,
                "audit_draws": 60,
                "iterations": 1,
                "enhance": "none",
                "engine": "reference",
            }
            | changes
        )
    )


def test_a_run_has_the_audit_of_each_defense_that_claims_something() -> None:
    run = audited(*HONEST, HalfClips(noise_multiplier=1.0))
    plain, pruned, acting = run.audits
    assert [a.text.partition(":")[0] for a in run.audits] == ["dp", "dp+prune", "half clips"]
    assert plain.claimed == gaussian_epsilon(1.0, 1e-5)
    assert 0 < plain.epsilon < plain.claimed
    assert (plain.draws, plain.unit, plain.delta, plain.ok) == (60, "one clip", 1e-5, True)
    assert plain.confidence == 0.9995
    assert plain.own_confidence == pytest.approx(1 - 0.0005 / 3)
    assert {bound.method: bound.assumes for bound in plain.bounds} == {
        name: ASSUMPTIONS[name] for name in ("clopper-pearson", "gaussian-dp", "gaussian")
    }
    assert plain.epsilon == max(bound.epsilon for bound in plain.bounds)
    assert "gaussian" not in {bound.method for bound in pruned.bounds}
    assert acting.status.startswith("not audited: ")
    assert "no function of the clips' gradients" in acting.status
    # Honest defenses are not accused.
    rows = [row for row in summarise(run) if not row.baseline]
    assert not any(row.refuted or row.bound_broken for row in rows)
    assert [row.audit is not None for row in rows] == [False, True, True, False, True]
    assert all(audit.e_value < 100 for audit in run.audits if audit.ok)
    # Further ceilings: the capacity of the noise, which tells nobody more than one clip of three.
    ceilings, none = rows[1].ceilings, rows[3].ceilings
    assert ceilings is not None
    assert 0.7 < ceilings.bits < 0.73
    assert ceilings.fano == 1.0
    assert ceilings.no_prior_psnr_db < 0 < ceilings.van_trees_psnr_db
    assert ceilings.unbiased_psnr_db < ceilings.van_trees_psnr_db
    assert none is not None
    assert (none.bits, none.unbiased_psnr_db) == (8 * rows[3].bytes, None)
    # An audit does not depend on other defenses, but for the confidence that they share.
    (alone,) = audited("dp:noise_multiplier=1").audits
    assert alone.e_value == plain.e_value
    assert alone.epsilon > plain.epsilon


def test_nothing_is_audited_where_nobody_asks() -> None:
    assert audited("dp:noise_multiplier=1", audit_draws=0, clips=1).audits == ()
    assert audited("prune:fraction=0.9", audit_draws=20, clips=1).audits == ()


@pytest.mark.usefixtures("no_plots")
def test_a_refuted_claim_ends_the_run_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    given = options(
        defense="test_audits_in_runs:HalvedNoise:noise_multiplier=1",
        audit_draws=60,
        iterations=1,
        engine="reference",
        enhance="none",
        clips=2,
    )
    assert run(["evaluate", *given, "--out", str(tmp_path / "run"), "--json"]) == 1
    shown = capsys.readouterr()
    assert "ε REFUTED" in shown.err
    assert "CLAIM REFUTED: dp σ=1 on c3d_tiny claims epsilon 4.38 of one release" in shown.err
    (record,) = json.loads(shown.out)["audits"]
    assert record["refuted"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("claim refuted") == 1
    assert "Seed of 32 bits" in page
    assert run(["report", str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("no_plots")
def test_a_bound_that_is_broken_ends_the_run_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(
        defense="test_audits_in_runs:CertificateOfMoreNoise:noise_multiplier=0.3",
        iterations=1,
        engine="reference",
        enhance="none",
    )
    assert run(["evaluate", *given, "--out", str(tmp_path / "run")]) == 1
    assert (
        "BOUND BROKEN: under dp σ=0.3 on c3d_tiny (untrained) who is told the labels"
        in capsys.readouterr().err
    )


def test_too_few_draws_are_refused_with_how_many_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*options(defense="dp"), "--out", str(tmp_path / "run")]
    assert run(["evaluate", *given, "--audit-draws", "20"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--audit-draws 20: too few for a bound on the epsilon of 4 defenses; 23 would do" in error
    assert not (tmp_path / "run").exists()
    for text, words in (("-1", "expected 0 to 10,000,000"), ("x", "expected a whole number")):
        assert run(["evaluate", *given, "--audit-draws", text]) == 2
        assert words in capsys.readouterr().err


def test_a_stopped_run_keeps_its_audits(tmp_path: Path) -> None:
    settings = tiny(
        defenses=("dp:noise_multiplier=1", "dp:noise_multiplier=0.5"),
        model=NARROW,
        audit_draws=30,
        iterations=1,
        engine="reference",
        enhance="none",
        clips=1,
    )
    stop, told = threading.Event(), list[str]()

    def halt(what: str, done: int, total: int) -> None:
        told.append(what)
        if what.startswith("auditing") and done == 1:
            stop.set()

    with pytest.raises(StoppedError, match="stopped while auditing"):
        evaluate(settings, tmp_path, progress=halt, stop=stop)
    (kept,) = read_run(tmp_path).audits
    assert kept.text.startswith("dp:noise_multiplier=1.0,")
    assert kept.draws == 30
    resumed = evaluate(settings, tmp_path)
    assert resumed.audits[0] == kept
    assert [each.draws for each in resumed.audits] == [30, 30]


def test_audits_side_by_side_are_those_one_after_the_other() -> None:
    settings = tiny(defenses=HONEST, model=NARROW, audit_draws=40, iterations=1, engine="reference")
    told: list[tuple[int, int]] = []
    both = []
    for count in (1, 3):
        run = prepare(settings, lambda *_: None)
        audits = measure_audits(
            run.settings, run, (), lambda _, *done: told.append(done), threading.Event(), count=count
        )
        both.append(list(audits))
    assert both[0] == both[1]
    assert [audit.draws for audit in both[0]] == [40, 40]
    assert told == 2 * [(0, 2), (1, 2)]


def test_the_library_has_them_in_its_rows() -> None:
    found = vleak.evaluate(
        defenses=[HalvedNoise(noise_multiplier=1.0)], attacks="matching", clips=2, frames=4, size=16,
        model=NARROW, iterations=1, audit_draws=60, enhance="none", engine="reference",
    )  # fmt: skip
    row = found.rows[-1]
    assert row.refuted
    assert row.audit is not None
    assert row.audit.epsilon > row.epsilon
