"""One registry: names, references, entry points, settings; and defenses as text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins import install

from vleak.attacks import ATTACKS, BASELINES, DENOISERS
from vleak.data import SOURCES
from vleak.defenses import (
    DEFENSES,
    Compress,
    Defense,
    DpSgd,
    NoDefense,
    Prune,
    defense_text,
    parse_defenses,
)
from vleak.enhance import ENHANCERS
from vleak.errors import InputError
from vleak.evaluation import Settings
from vleak.metrics import METRICS
from vleak.models import EXTRACTORS, HEADS, MODELS
from vleak.registry import Registry, split_reference

ALL: list[Registry[Any]] = [
    DEFENSES, ATTACKS, BASELINES, DENOISERS, MODELS, EXTRACTORS, HEADS, METRICS, ENHANCERS, SOURCES
]  # fmt: skip


class Shape:
    """What the things of these tests inherit from."""

    def __init__(
        self, *, side: int = 3, scale: float = 1.0, word: str = "plain", filled: bool = False
    ) -> None:
        self.settings = (side, scale, word, filled)


class Square(Shape):
    """A square. Its second sentence."""


def shapes() -> Registry[Shape]:
    return Registry("shape", {"square": Square}, base=Shape)


def refusal(text: str, registry: Registry[Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        (shapes() if registry is None else registry).build(text)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- every registry


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind)
def test_what_is_built_in_is_found_with_one_line_about_it(registry: Registry[Any]) -> None:
    assert list(registry) == list(registry.builtin) == registry.names()
    for name in registry:
        entry = registry.find(name)
        assert (entry.name, entry.origin, entry.built_in) == (name, "built in", True)
        assert entry.summary.endswith(".")
        assert registry[name] is entry.factory
        assert registry.parse(name).text == name
        assert split_reference(name) == (name, "")


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind)
def test_a_misspelt_name_is_answered_with_the_nearest(registry: Registry[Any]) -> None:
    name = next(iter(registry))
    assert f"unknown {registry.kind} '{name}x'; did you mean " in refusal(f"{name}x", registry)
    assert f"{name}x" not in registry


# ---- settings


def test_settings_have_the_type_of_their_default() -> None:
    built = shapes().build("square:side=4,scale=2,word=7,filled=true")
    assert built.settings == (4, 2.0, "7", True)
    assert [type(value) for value in built.settings] == [int, float, str, bool]
    assert shapes().build("square").settings == shapes().build("square:").settings == (3, 1.0, "plain", False)


def test_arguments_of_the_caller_come_before_settings_of_the_text() -> None:
    assert shapes().build("square:side=4", side=9).settings[0] == 9


def test_canonical_text_shows_what_differs_in_the_order_of_the_settings() -> None:
    parse = shapes().parse
    assert parse("square:filled=TRUE,side=3,scale=2").text == "square:scale=2.0,filled=True"
    assert parse(parse("square:filled=true,word=a b").text).text == "square:word=a b,filled=True"
    assert parse("square:side=3").text == "square"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square:sides=3", "unknown setting of shape square 'sides'; did you mean side?"),
        ("square:side=1.5", "shape 'square:side=1.5': side takes a whole number, got '1.5'"),
        ("square:scale=much", "scale takes a number, got 'much'"),
        ("square:filled=1", "filled takes true or false, got '1'"),
        ("square:side=1,side=2", "side is given twice"),
        ("square:side=", "side is given no value"),
        ("square:side=1,2", "expected square:setting=value, got '2'"),
        ("", "unknown shape ''; known: square (or package.module:Class)"),
    ],
)
def test_settings_that_do_not_fit(text: str, message: str) -> None:
    assert message in refusal(text)


# ---- package.module:Class


REFERENCES = """
from test_registry import Shape

class Circle(Shape):
    "A circle."

class Bare:
    pass

class Refusing(Shape):
    def __init__(self, *, side: int = 3):
        raise RuntimeError("no sides\\nat all")

def make(*, side: int = 5):
    "Makes a circle."
    return Circle(side=side)

def wrong():
    return Bare()

number = 3
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with a module of shapes."""
    (tmp_path / "outside_shapes.py").write_text(REFERENCES)
    (tmp_path / "outside_broken.py").write_text("raise SystemExit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("outside_shapes", "outside_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("outside")
def test_a_reference_is_a_class_or_a_function_with_settings() -> None:
    registry = shapes()
    assert registry.build("outside_shapes:Circle:side=7").settings[0] == 7
    assert registry.build("outside_shapes:make").settings[0] == 5
    entry = registry.find("outside_shapes:make")
    assert (entry.origin, entry.summary, entry.built_in) == ("outside_shapes:make", "Makes a circle.", False)
    assert registry.parse("outside_shapes:make:side=5").text == "outside_shapes:make"
    assert registry.parse("outside_shapes:make:side=6").text == "outside_shapes:make:side=6"


def test_a_reference_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text(REFERENCES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert shapes().build("beside_me:Circle").settings[0] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "no.such_module:Thing",
            "shape 'no.such_module:Thing': cannot import 'no.such_module': ModuleNotFound",
        ),
        ("outside_broken:Thing", "cannot import 'outside_broken': SystemExit: 1"),
        ("outside_shapes:Circl", "'outside_shapes' has no 'Circl'; did you mean Circle?"),
        ("outside_shapes:xyz", "has no 'xyz'; it defines Bare, Circle, Refusing, make, wrong"),
        ("outside_shapes:number", "is int, expected a class or a function"),
        ("outside_shapes:Bare", "does not inherit from test_registry.Shape; derive it from that class"),
        ("outside_shapes:Refusing", "cannot be made: RuntimeError: no sides"),
        ("outside_shapes:wrong", "made Bare, expected test_registry.Shape"),
        (":Circle", "expected package.module:name"),
    ],
)
@pytest.mark.usefixtures("outside")
def test_references_that_cannot_be_used(text: str, message: str) -> None:
    assert message in refusal(text)


# ---- entry points


def points(outside: Path, package: str, **entries: str) -> None:
    install(outside, package, {}, {"vleak.shape": entries})
    sys.path.append(f"{outside}/again")  # a changed path is read again; the fixture takes it back


@pytest.fixture
def site(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return outside


def test_entry_points_are_names_like_the_built_in_ones(site: Path) -> None:
    points(site, "rounds", circle="outside_shapes:Circle")
    registry = shapes()
    assert registry.names() == ["square", "circle"]
    assert registry.find("circle").origin == "entry point of rounds 1.2"
    assert registry.build("circle:side=2").settings[0] == 2
    assert registry.parse("circle:side=2").text == "circle:side=2"
    assert "did you mean circle?" in refusal("circl")


def test_a_plug_in_that_cannot_be_imported_leaves_the_others_alone(site: Path) -> None:
    points(site, "torn", circle="outside_shapes:Circle", torn="outside_broken:Thing", gone="outside_shapes:X")
    assert refusal("torn") == (
        "shape 'torn' (entry point of torn 1.2) cannot be imported: SystemExit: 1; mend or uninstall that "
        "package"
    )
    assert "shape 'gone' (entry point of torn 1.2) cannot be imported: AttributeError" in refusal("gone")
    assert shapes().build("circle").settings == shapes().build("square").settings


def test_a_plug_in_of_another_class_is_refused_by_its_package(site: Path) -> None:
    points(site, "wrong", bare="outside_shapes:Bare")
    assert "shape 'bare' (entry point of wrong 1.2) does not inherit from test_registry.Shape" in refusal(
        "bare"
    )


def test_a_taken_name_stays_built_in_and_the_plug_in_is_named(site: Path) -> None:
    points(site, "thief", square="outside_shapes:Circle")
    with pytest.warns(
        UserWarning, match="entry point of thief 1.2 registers shape 'square', which is built in"
    ):
        assert type(shapes().build("square")) is Square
    assert shapes().names() == ["square"]


def test_two_plug_ins_of_one_name_are_both_named_and_others_go_on(site: Path) -> None:
    points(site, "one", circle="outside_shapes:Circle", ring="outside_shapes:Circle")
    points(site, "two", circle="outside_shapes:make")
    said = refusal("circle")
    assert "entry point of one 1.2" in said
    assert "entry point of two 1.2" in said
    assert shapes().build("ring").settings == shapes().build("square").settings


# ---- defenses as text

STRENGTHS = [strength for name in DEFENSES for strength in DEFENSES[name].sweep()]
ODD = [
    DpSgd(noise_multiplier=1 / 3, max_grad_norm=1e-7, delta=1e-9, rounds=17, sample_rate=0.1 + 0.2),
    DpSgd(noise_multiplier=0.0),
    Prune(fraction=0.0),
    Compress(codec="qsgd", bits=3, bucket=7),
]


@dataclass(frozen=True, kw_only=True)
class Outside(Defense):
    """A defense that no registry knows."""

    strength: float = 0.5
    sure: bool = True


@pytest.mark.parametrize(
    "defense", [*STRENGTHS, *ODD, Outside(), Outside(strength=0.1, sure=False)], ids=defense_text
)
def test_the_text_of_a_defense_makes_it_again(defense: Defense) -> None:
    assert parse_defenses(defense_text(defense)) == [defense]


def test_texts_are_apart_and_known() -> None:
    assert len({defense_text(defense) for defense in STRENGTHS}) == len(STRENGTHS)
    assert defense_text(NoDefense()) == "none"
    assert defense_text(DpSgd(noise_multiplier=0.5, delta=1e-6)) == "dp:noise_multiplier=0.5,delta=1e-06"
    assert defense_text(DpSgd()) == "dp:noise_multiplier=1.0"  # "dp" alone would be a sweep
    assert defense_text(Outside(sure=False)) == "test_registry:Outside:sure=False"


def test_a_bare_name_is_a_sweep_and_a_colon_one_strength() -> None:
    assert parse_defenses("prune") == list(Prune.sweep())
    assert parse_defenses("dp:") == [DpSgd()]
    assert parse_defenses("test_registry:Outside") == [Outside()]
    assert parse_defenses(DpSgd(rounds=3)) == [DpSgd(rounds=3)]


def test_values_have_the_type_of_the_setting() -> None:
    (defense,) = parse_defenses("dp:rounds=3,noise_multiplier=1")
    types = {field.name: type(getattr(defense, field.name)) for field in fields(defense)}
    assert types["rounds"] is int
    assert set(types.values()) == {int, float}


@pytest.mark.parametrize("name", DEFENSES)
def test_what_a_run_writes_down_asks_for_the_same_run(name: str) -> None:
    for given in [(name,), *((defense_text(strength),) for strength in DEFENSES[name].sweep())]:
        written = Settings(defenses=given).resolved().defenses
        assert Settings(defenses=written).resolved().defenses == written


def test_the_undefended_comes_first_and_nothing_twice() -> None:
    given = ("prune", "prune:fraction=0.9", "none", "dp:noise_multiplier=1", "dp:noise_multiplier=1.0")
    assert [defense_text(defense) for defense in Settings(defenses=given).strengths()] == [
        "none", *map(defense_text, Prune.sweep()), "dp:noise_multiplier=1.0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown defense ''; known: blur, censor, compress, dgc, dp, "),
        ("DP", "unknown defense 'DP'; known: blur, censor, compress, dgc, dp, "),
        ("dpp:noise_multiplier=1", "unknown defense 'dpp'; did you mean dp?"),
        ("dp:noise_multipler=1", "unknown setting of defense dp 'noise_multipler'; did you mean noise_multi"),
        ("dp:name=prune", "unknown setting of defense dp 'name'; known: delta, "),
        ("dp:0.5", "defense 'dp:0.5': expected dp:setting=value, got '0.5'"),
        ("dp:noise_multiplier=nan", "noise_multiplier takes a finite number, got"),
        ("prune:fraction=1", "prune: fraction is 1.0, expected 0 <= fraction < 1"),
        ("compress:codec=zip", "unknown codec 'zip'; known: bf16, fp16, fp8, int8, qsgd, sign, terngrad"),
        ("none:strength=1", "defense 'none:strength=1': none has no settings, got 'strength=1'"),
        ("test_registry:Shape", "does not inherit from vleak.federated.Defense"),
        ("test_registry:OddSweep", "sweep raised KeyError: 'strengths'"),
        ("test_registry:NoSweep", "sweep returned [], expected defenses"),
    ],
)
def test_defenses_that_cannot_be_had(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_defenses(text)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


class OddSweep(Defense):
    """Its sweep fails."""

    @classmethod
    def sweep(cls) -> list[Any]:
        return {}["strengths"]


class NoSweep(Defense):
    """Its sweep is empty."""

    @classmethod
    def sweep(cls) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class Masked(Defense):
    """Its setting is no number."""

    mask: torch.Tensor


def test_a_defense_that_no_text_can_give_is_refused() -> None:
    with pytest.raises(InputError, match="defense Masked: setting mask is Tensor, expected a number"):
        defense_text(Masked(mask=torch.ones(3, 3)))
    with pytest.raises(InputError, match=r"^Outside: strength is Tensor, expected a number$"):
        Outside(strength=torch.ones(3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_setting_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="noise_multiplier takes a finite number"):
        DEFENSES.parse(f"dp:noise_multiplier={value}")
