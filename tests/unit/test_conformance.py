"""Conformance: planted faults are found by the check that is about them, honest defenses hold."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from mutants import MUTANTS, Coins, RightProjection

from vleak.cli.app import invoke
from vleak.conformance import Check, conform
from vleak.conformance.contract import CONTRACT, information
from vleak.conformance.statistics import is_binomial, is_standard_normal, mean_is_zero
from vleak.defenses import DEFENSES, Compress, Defense, DpSgd, PowerSgd, Prune, parse_defenses
from vleak.errors import InputError
from vleak.seeds import generator

#: DP-SGD in other forms, a second or more each; of them `dp` and `dp_adaptive` are among the fast ones.
LIKE_DP = ("dp_hooks", "dp_layers", "dp_video")
SWEEPS = {name: parse_defenses(name) for name in DEFENSES if DEFENSES.find(name).built_in}
STRONGEST = [strengths[-1] for name, strengths in SWEEPS.items() if name not in LIKE_DP]
WEAKER = [strength for strengths in SWEEPS.values() for strength in strengths[:-1]]

OTHERS = [
    Prune(which="random", error_feedback=True),
    Prune(which="threshold"),
    Compress(codec="bf16"),
    Compress(codec="sign", error_feedback=True),
    PowerSgd(error_feedback=False),
    *(
        strength
        for text in (
            "prune:fraction=0.5+dp_client:noise_multiplier=0.1",
            "censor:trials=3+compress:codec=qsgd,bits=4",
            "prune:fraction=0.5+powersgd:rank=2,error_feedback=false",
            "prune:fraction=0.9+secure_sum:clients=2",
        )
        for strength in parse_defenses(text)
    ),
]
#: those with noise on every clip, a second or more each; the fast ones are the strongest of the others.
HEAVY = [
    *(SWEEPS[name][-1] for name in LIKE_DP),
    DpSgd(max_grad_norm=0.01),
    *(
        strength
        for text in (
            "dp:noise_multiplier=1+prune:fraction=0.9",
            "dp_adaptive:noise_multiplier=0.1+prune:fraction=0.9",
            "dp:noise_multiplier=1+secure_sum:clients=4",
        )
        for strength in parse_defenses(text)
    ),
]


def checks_about(name: str, defense: Defense, monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Run the checks of one name; the others would take most of the time."""
    module = importlib.import_module("vleak.conformance.conform")  # the package has a function of this name
    claims = [claim for claim in module._claims(defense) if claim.name == name]
    monkeypatch.setattr(module, "_claims", lambda given: claims)
    monkeypatch.setattr(module, "CONTRACT", {key: CONTRACT[key] for key in CONTRACT.keys() & {name}})
    return list(conform(defense).checks)


@pytest.mark.parametrize("fault", MUTANTS)
def test_planted_faults_are_found_by_their_check(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defense, name = MUTANTS[fault]
    broken = [check for check in checks_about(name, defense, monkeypatch) if check.outcome == "broken"]
    assert {check.name for check in broken} == {name}
    assert all(check.detail for check in broken)


@pytest.mark.parametrize(
    "defense",
    [
        *STRONGEST, Prune(error_feedback=True), Compress(error_feedback=True), *OTHERS,
        *(pytest.param(defense, marks=pytest.mark.slow) for defense in (*HEAVY, *WEAKER)),
    ],
    ids=lambda defense: defense.label,
)  # fmt: skip
def test_honest_defenses_hold(defense: Defense) -> None:
    result = conform(defense)
    assert [check for check in result.checks if check.outcome != "holds"] == []
    assert result.holds
    assert len(result.checks) == 7 + len(defense.claims())


RIGHT = [(Coins(), "Poisson sampling"), (RightProjection(), "orthogonal")]


@pytest.mark.parametrize(("defense", "name"), RIGHT)
def test_the_right_form_of_a_fault_holds(
    defense: Defense, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [check.outcome for check in checks_about(name, defense, monkeypatch)] == ["holds"]


@pytest.mark.slow
@pytest.mark.parametrize("defense", [defense for defense, _ in RIGHT])
def test_the_right_form_of_a_fault_holds_in_all_else_too(defense: Defense) -> None:
    assert conform(defense).holds


@pytest.mark.slow
@pytest.mark.parametrize("defense", [Compress(codec="qsgd", bits=2), DpSgd(), Coins()])
def test_no_honest_defense_is_accused_in_200_runs(defense: Defense) -> None:
    assert all(conform(defense, seed=seed).holds for seed in range(200))


def test_settings_and_claims_that_cannot_be_checked_are_refused() -> None:
    with pytest.raises(InputError, match="false_alarm is 0"):
        conform(DpSgd(), false_alarm=0)
    for given in ("dp", DpSgd):
        with pytest.raises(InputError, match=r"defense is .*, expected an object of vleak\.Defense"):
            conform(given)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# Statistics


def test_true_statements_are_called_false_as_rarely_as_promised() -> None:
    draws = generator("conformance", "null")
    false_alarm, runs = 0.02, 1000
    rows = torch.randn((runs, 4, 50), generator=draws, dtype=torch.float64)
    means = torch.randn((runs, 12), generator=draws, dtype=torch.float64)
    hits = (torch.rand((runs, 80), generator=draws) < 0.3).sum(1)
    alarms = [
        sum(bool(is_standard_normal(row, false_alarm)) for row in rows),
        sum(bool(mean_is_zero(row, false_alarm)) for row in means),
        sum(bool(is_binomial(int(count), 80, 0.3, false_alarm)) for count in hits),
    ]
    # 36 of 1,000 is 3.6 standard errors above 2 %.
    assert max(alarms) <= 36
    assert min(alarms[1:]) >= 3


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: 1.2 * rows,
        lambda rows: rows + 0.3,
        lambda rows: rows.sign() * rows.square().mean().sqrt(),
        lambda rows: rows[:, :1].expand_as(rows),
        lambda rows: rows[:1].expand_as(rows),
    ],
    ids=["deviation", "mean", "distribution", "one draw a message", "one message"],
)
def test_noise_that_is_not_as_stated_is_told(change: object) -> None:
    rows = torch.randn((8, 400), generator=generator("conformance", "noise"), dtype=torch.float64)
    assert not is_standard_normal(rows, 1e-6)
    assert is_standard_normal(change(rows), 1e-6)  # type: ignore[operator]


def test_information_has_known_answers() -> None:
    draws = generator("conformance", "information")
    entries = torch.zeros(1024)
    assert information(entries) == 0
    entries[3] = 1.0
    assert information(entries) == pytest.approx((10 + 1) / 8)  # one place of 1,024, and a sign
    signs = torch.randint(2, (4096,), generator=draws) * 2.0 - 1
    assert information(signs) == pytest.approx(4096 / 8, rel=1e-3)
    uniform = torch.rand(4096, generator=draws) / 2 + 0.5  # one exponent; torch draws 24 bits
    assert 4096 * 22 / 8 <= information(uniform) <= 4096 * 4


# ---------------------------------------------------------------------------------------------------------
# Command


def test_command_prints_what_is_broken_and_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert invoke(["conformance", "prune:fraction=0.9", "--json"]) == 0
    (defense,) = json.loads(capsys.readouterr().out)["defenses"]
    assert defense["holds"]
    assert defense["checks"][-1]["settings"] == {"fraction": pytest.approx(0.1), "which": "largest"}
    assert invoke(["conformance", "mutants:ForgetsError"]) == 1
    shown = capsys.readouterr()
    assert "broken: error feedback: after 160 rounds" in shown.out
    assert shown.err == ""


def test_a_command_that_could_check_nothing_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["conformance", "prune:fraction=0.9", "mutants:Choosy"]) == 2
    shown = capsys.readouterr()
    assert "no message could be checked of choosy: choosy: needs a layer named 'mine'" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nosuch"], "unknown defense 'nosuch'; did you mean noise?"),
        (["dp:noise=1"], "unknown setting of defense dp 'noise'"),
        ([""], "conformance: an empty name"),
        (["prune:fraction=nan"], "fraction takes a finite number, got 'nan'"),
        (["dp", "--seed", "x"], "should be a valid integer"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["conformance", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert line in shown.err
    assert shown.err.count("\n") == 1
