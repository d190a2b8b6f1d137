"""Every number that a user can set, with values that are slips: refused by its key, or one that the range allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from selfdistill.config import load_config
from selfdistill.envs.registry import ENVIRONMENTS, environment_options
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS, get_method
from selfdistill.options import Setting, settings_of
from selfdistill.test_time.config import Limits, solve_config
from selfdistill.test_time.strategies import STRATEGIES, get_strategy

SLIPS = (-1, 0, -0.5, math.inf, -math.inf, math.nan, 1e308, -1e308, 10**30, 2**63)
WHOLE_RUN = ["replay.per_step=4", "lora.rank=4"]
Load = Callable[[str, object], object]


def every_number() -> Iterator[tuple[str, Setting, Load]]:
    """Each with what reads it, under a name."""

    def numbers(name: str, value: object, prefix: str, load: Load) -> Iterator[tuple[str, Setting, Load]]:
        for setting in settings_of(value, prefix):
            if type(setting.value) in (int, float):
                yield f"{name} {setting.key}", setting, load

    yield from numbers("run", load_config(None, WHOLE_RUN), "", lambda k, v: load_config(None, [*WHOLE_RUN, (k, v)]))
    for kind in ("ema", "trust_region", "snapshot"):
        teacher = load_config(None, [f"teacher={kind}"]).teacher
        yield from numbers(
            kind, teacher, "teacher.", lambda k, v, own=f"teacher={kind}": load_config(None, [own, (k, v)])
        )
    for name in METHODS:
        own = f"method={name}"
        method = get_method(name, {})
        yield from numbers(name, method, "method.", lambda k, v, own=own: load_config(None, [own, (k, v)]))
    for name in ENVIRONMENTS:
        yield from numbers(
            name, environment_options(name, {}), "", lambda k, v, own=name: environment_options(own, {k: v})
        )
    for name in STRATEGIES:
        yield from numbers(
            name, get_strategy(name, {}), "strategy.", lambda k, v, own=name: solve_config(own, [(k, v)])
        )
    yield from numbers("limits", Limits(), "", lambda k, v: solve_config(limits={k: v}))


NUMBERS = list(every_number())


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(NUMBERS) > 120
    assert len({name for name, _, _ in NUMBERS}) == len(NUMBERS)


def refused(load: Load, key: str, value: object) -> str:
    try:
        load(key, value)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("setting", "load"), [pytest.param(s, load, id=name) for name, s, load in NUMBERS])
def test_a_slip_is_refused_by_its_key_or_is_within_the_range_that_is_listed(setting: Setting, load: Load) -> None:
    name = setting.key.rpartition(".")[2]
    for slip in SLIPS:
        refusal = refused(load, setting.key, slip)
        if refusal:
            assert name in refusal, slip
            assert "\n  got  " in refusal, slip
        else:
            assert not math.isnan(slip), "NaN is no number"
            assert abs(slip) <= 1e9 or "or inf" in setting.expected or name == "min_logprob", f"{slip} was taken"
            assert slip >= 0 or name in ("draw", "min_logprob", "success"), f"{slip} was taken"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimiser.lr", "inf", r"optimiser\.lr must be a number above 0, up to 1\n  got  optimiser\.lr = inf"),
        ("method.top_k", "-1", r"method\.top_k must be a whole number, 0 or more"),
        ("sampling.top_p", "1.5", r"sampling\.top_p must be a number above 0, up to 1"),
        ("evaluation.rollouts", "0", r"evaluation\.rollouts must be a whole number from 1 to 100000"),
        ("method.ratio_cap", "0", r"method\.ratio_cap must be a number above 0, or inf"),
        ("steps", "1" + "0" * 30, r"steps must be a whole number, 1 or more"),
        ("lora.seed", "-3", r"lora\.seed must be a whole number from 0 to 9223372036854775807"),
    ],
)
def test_the_message_names_key_range_and_meaning(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(None, [f"{key}={value}"])
    assert caught.value.why


def test_what_ends_a_cap_may_be_infinite() -> None:
    assert load_config(None, ["method.ratio_cap=inf"]).method.options == {"ratio_cap": math.inf}
