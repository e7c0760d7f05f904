"""Defenses as text: what a run writes down makes the same defense again."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vleak.defenses import DEFENSES, Compress, Defense, DpSgd, Prune, parse, spell, sweep
from vleak.errors import InputError
from vleak.evaluation import Settings

STRENGTHS = [strength for name in DEFENSES for strength in sweep(name)]


@pytest.mark.parametrize("defense", STRENGTHS, ids=spell)
def test_every_strength_of_every_sweep_comes_back(defense: Defense) -> None:
    assert parse(spell(defense), DEFENSES) == defense
    assert type(parse(spell(defense), DEFENSES)) is type(defense)


@pytest.mark.parametrize(
    "defense",
    [
        DpSgd(noise_multiplier=1 / 3, max_grad_norm=1e-7, delta=1e-9, rounds=17, sample_rate=0.1 + 0.2),
        DpSgd(noise_multiplier=0.0),
        DpSgd(delta=1e-6),
        Prune(fraction=0.0),
        Compress(codec="qsgd", bits=3, bucket=7),
    ],
    ids=spell,
)
def test_every_setting_comes_back_exactly(defense: Defense) -> None:
    assert parse(spell(defense), DEFENSES) == defense


def test_strengths_are_spelled_apart() -> None:
    assert len({spell(defense) for defense in STRENGTHS}) == len(STRENGTHS)


def test_known_spellings() -> None:
    assert spell(Defense()) == "none"
    assert spell(DpSgd(noise_multiplier=0.5, delta=1e-6)) == "dp:noise_multiplier=0.5,delta=1e-06"
    assert spell(Compress(codec="qsgd", bits=4)) == "compress:codec=qsgd,bits=4"
    assert spell(DpSgd()) == "dp:noise_multiplier=1.0"  # "dp" alone would be a sweep


def test_a_bare_name_has_its_defaults() -> None:
    assert [parse(name, DEFENSES) for name in DEFENSES] == [kind() for kind in DEFENSES.values()]
    assert parse("dp:", DEFENSES) == DpSgd()


def test_values_have_the_type_of_the_setting() -> None:
    defense = parse("dp:rounds=3,noise_multiplier=1", DEFENSES)
    assert {f.name: type(getattr(defense, f.name)) for f in fields(defense)} == {
        "noise_multiplier": float,
        "max_grad_norm": float,
        "delta": float,
        "rounds": int,
        "sample_rate": float,
    }


@pytest.mark.parametrize("name", DEFENSES)
def test_what_a_run_writes_down_asks_for_the_same_run(name: str) -> None:
    for given in [(name,), *((spell(strength),) for strength in sweep(name))]:
        written = Settings(defenses=given).resolved()["defenses"]
        assert Settings(defenses=tuple(written)).resolved()["defenses"] == written


def test_the_undefended_comes_first_and_nothing_twice() -> None:
    given = ("prune", "prune:fraction=0.9", "none", "dp:noise_multiplier=1", "dp:noise_multiplier=1.0")
    assert [spell(defense) for defense in Settings(defenses=given).strengths()] == [
        "none",
        *map(spell, sweep("prune")),
        "dp:noise_multiplier=1.0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown defense ''; known: compress, dp, none, prune"),
        ("dpp", "unknown defense 'dpp'; did you mean dp?"),
        ("DP", "unknown defense 'DP'; known: compress, dp, none, prune"),
        ("dpp:noise_multiplier=1", "unknown defense 'dpp'; did you mean dp?"),
        (
            "dp:noise_multipler=1",
            "unknown setting of defense dp 'noise_multipler'; did you mean noise_multiplier?",
        ),
        ("dp:label=1", "unknown setting of defense dp 'label'; known: delta, max_grad_norm, noise_multi"),
        ("dp:name=prune", "unknown setting of defense dp 'name'; known: delta, "),
        ("dp:0.5", "defense 'dp:0.5': expected dp:setting=value, got '0.5'"),
        ("dp:noise_multiplier=much", "noise_multiplier takes a number, got 'much'"),
        ("dp:noise_multiplier=", "noise_multiplier takes a number, got ''"),
        ("dp:rounds=1.5", "defense 'dp:rounds=1.5': rounds takes a whole number, got '1.5'"),
        ("dp:noise_multiplier=1,noise_multiplier=2", "noise_multiplier is given twice; repeat --defense"),
        ("dp:noise_multiplier=nan", "noise_multiplier is nan, expected a finite number, 0 or more"),
        ("prune:fraction=1", "prune: fraction is 1.0, expected 0 <= fraction < 1"),
        ("compress:codec=zip", "unknown codec 'zip'; known: int8, qsgd"),
        ("none:strength=1", "defense 'none:strength=1': none has no settings, got 'strength=1'"),
    ],
)
def test_refusals_say_what_was_given_and_what_is_known(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, DEFENSES)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sweep_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="unknown defense 'prun'; did you mean prune"):
        sweep("prun")
