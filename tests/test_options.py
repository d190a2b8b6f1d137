from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal, Protocol

import pytest

from selfdistill.errors import ConfigError, Ranged
from selfdistill.options import Where, build, changed, option, override, plain, settings_of, tag


class Mode(StrEnum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Frozen:
    """Never moves."""


@dataclass(frozen=True, slots=True)
class TrustRegion:
    rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError("the rate is a share", got=self.rate, do="choose one in [0, 1]")


class Rule(Protocol):
    def apply(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Sibling:
    kind: ClassVar[str] = "from_sibling"
    success: float = 0.5

    def apply(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    steps: int
    lr: float = option(1e-5, "learning rate")
    name: str = "a"
    ready: bool = False
    mode: Mode = Mode.FAST
    colour: Literal["red", "blue"] = "red"
    sizes: tuple[int, ...] = (1, 2)
    teacher: Frozen | TrustRegion = field(default_factory=Frozen)
    extra: TrustRegion | None = None
    rule: Rule = field(default_factory=Sibling)


def test_build_reads_every_kind_of_value():
    options = build(
        Options,
        {
            "steps": 3,
            "lr": 1,
            "mode": "slow",
            "colour": "blue",
            "sizes": [4],
            "teacher": {"kind": "trust_region", "rate": 0.5},
            "extra": {"rate": 0.1},
            "rule": {"success": 1.0},
        },
    )
    assert options == Options(
        3, 1.0, "a", False, Mode.SLOW, "blue", (4,), TrustRegion(0.5), TrustRegion(0.1), Sibling(1.0)
    )


def test_plain_is_read_back():
    options = Options(3, teacher=TrustRegion(0.25), extra=TrustRegion(), mode=Mode.SLOW, rule=Sibling(0.75))
    assert plain(options)["teacher"] == {"kind": "trust_region", "rate": 0.25}
    assert build(Options, plain(options)) == options


@pytest.mark.parametrize(
    ("settings", "what", "remedy"),
    [
        ({"stepps": 1}, "unknown setting", "did you mean 'steps'?"),
        ({"steps": 1, "zzz": 1}, "zzz = 1", "known: colour, extra"),
        ({"steps": 1, "rate": 1}, "rate = 1", "did you mean 'teacher.rate'?"),
        ({"steps": 1, "teacher": {"kind": "trust_region", "rat": 1}}, "teacher.rat = 1", "'rate'"),
        ({"steps": 1, "teacher": "trust"}, "unknown kind", "'trust_region'"),
        ({"steps": "1"}, "steps should be a whole number", "'1'"),
        ({"steps": 1.5}, "a whole number", "1.5"),
        ({"steps": True}, "a whole number", "True"),
        ({"steps": 1, "lr": "fast"}, "lr should be a number", "'fast'"),
        ({"steps": 1, "ready": 1}, "true or false", "1"),
        ({"steps": 1, "mode": "medium"}, "one of fast, slow", "'medium'"),
        ({"steps": 1, "colour": "green"}, "one of red, blue", "'green'"),
        ({"steps": 1, "sizes": 3}, "a list", "3"),
        ({"steps": 1, "extra": 3}, "a table", "3"),
        ({"steps": 1, "extra": {"rate": 2}}, "extra: the rate is a share", "choose one in"),
        ({}, "a setting is missing", "set steps"),
    ],
)
def test_a_bad_setting_says_what_was_expected_and_what_was_got(settings, what, remedy):
    with pytest.raises(ConfigError) as caught:
        build(Options, settings)
    assert what in str(caught.value)
    assert remedy in str(caught.value)


def test_the_place_where_a_key_was_written_is_named():
    with pytest.raises(ConfigError, match=r"teacher\.rat = 1  \(run\.toml, line 7\)"):
        build(
            Options,
            {"steps": 1, "teacher": {"kind": "trust_region", "rat": 1}},
            Where("", {"teacher.rat": "run.toml, line 7"}),
        )


def test_override_keeps_what_is_not_named():
    options = Options(3, teacher=TrustRegion(0.25), rule=Sibling(0.75))
    assert override(options, {"teacher": {"rate": 0.5}}) == Options(3, teacher=TrustRegion(0.5), rule=Sibling(0.75))
    assert override(options, {"teacher": "frozen"}).teacher == Frozen()
    assert override(options, {"rule": {"success": 0.1}}).rule == Sibling(0.1)
    assert override(Options(3, extra=TrustRegion()), {"extra": "none"}).extra is None


def test_a_union_needs_to_know_which_one():
    with pytest.raises(ConfigError, match="frozen, trust_region"):
        build(Choice, {"one": {"rate": 0.1}})


@dataclass(frozen=True, slots=True)
class Choice:
    one: Frozen | TrustRegion


@dataclass(frozen=True, slots=True)
class Shares(Ranged):
    share: float = option(0.5, "one side's share", least=0, most=1)
    scale: float = option(2.0, "how much", least=0)


@dataclass(frozen=True, slots=True)
class Stronger(Shares):
    scale: float = changed(Shares, "scale", 8.0)


@pytest.mark.parametrize("kind", [Shares, Stronger])
@pytest.mark.parametrize(
    ("settings", "range_"),
    [
        ({"share": -0.1}, "share must be a number from 0 to 1"),
        ({"share": 1.1}, "share must be a number from 0 to 1"),
        ({"share": float("nan")}, "share must be a number from 0 to 1"),
        ({"scale": -1e-9}, "scale must be a number, 0 or more"),
        ({"scale": float("inf")}, "scale must be a number, 0 or more"),
    ],
)
def test_a_number_outside_its_range_is_refused_by_whoever_asks(kind, settings, range_):
    kind(share=0.0, scale=0.0)
    kind(share=1.0, scale=1e9)
    with pytest.raises(ConfigError, match=range_):
        kind(**settings)
    with pytest.raises(ConfigError, match=rf"ranged\.{range_}"):
        build(kind, settings, Where("ranged"))


def test_tags():
    assert tag(TrustRegion) == "trust_region"
    assert tag(Sibling) == "from_sibling"


def test_settings_are_listed_with_what_they_take_and_mean():
    listed = {setting.key: setting for setting in settings_of(Options(3, teacher=TrustRegion()))}
    assert listed["lr"].text == "learning rate"
    assert listed["lr"].expected == "a number"
    assert (listed["teacher.kind"].value, listed["teacher.kind"].expected) == (
        "trust_region",
        "one of frozen, trust_region",
    )
    assert "rule.kind" not in listed, "any class may be given"
    assert listed["teacher.rate"].value == 0.05
    assert listed["teacher.rate"].expected == "a number"
    assert listed["extra"].expected == 'a table or "none"'
    assert [setting.expected for setting in settings_of(Shares())] == ["a number from 0 to 1", "a number, 0 or more"]
