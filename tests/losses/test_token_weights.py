"""The weight of every token: by hand, as published methods compose it, and with every knob turned."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from token_tables import table

from selfdistill.losses import Clip, ForwardKL, JensenShannon, Tanh
from selfdistill.losses.schedules import Constant, EntropyGate, Linear, Schedule, Trapezoid
from selfdistill.losses.shaping import (
    Additive,
    AdvantageShaping,
    AdvantageSign,
    Attract,
    Centred,
    DistillationSign,
    Multiplicative,
    OppositeAdvantageSign,
    Pooled,
    Repel,
    Separate,
    TokenTable,
)
from selfdistill.losses.spec import LossSpec, TokenMask
from selfdistill.losses.token_weights import WeighedTokens, weigh_tokens


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_defaults_are_the_credits() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], distil=[1.0, 0.25])
    weighed = weigh_tokens(LossSpec(), rows, 0, {})
    close(weighed.distil_N, [1.0, 1.0, 0.25])
    close(weighed.advantage_N, [0.5, 0.5, -1.0])
    assert weighed.memory == {}
    assert weighed.numbers == {"lambda": 1.0, "kept_share": 1.0, "distilled_share": 1.0, "changed_share": 0.0}


def test_credit_direction_allocation_and_schedule_multiply() -> None:
    """Credits 2 and −1, sign away, confidences 1 and 1/2 and 1 over 5/6, λ = 0.25 at step 25."""
    rows = table([2, 1], distil=[2.0, -1.0], teacher_entropy=[0.0, math.log(2), 0.0])
    loss_spec = LossSpec(
        distil_sign=Repel(), token_mask=TokenMask(teacher_confidence=1.0), schedule=Linear(0.5, 0.0, 50)
    )
    close(weigh_tokens(loss_spec, rows, 25, {}).distil_N, [-2 * 0.25 * 6 / 5, -2 * 0.25 * 3 / 5, 0.25 * 6 / 5])


def test_tokens_that_are_not_kept_weigh_nothing_in_both_terms() -> None:
    rows = table([4], advantage=[0.5], logprobs=[-1, -1, -6, -1], counted=[True, True, True, False])
    weighed = weigh_tokens(LossSpec(token_mask=TokenMask(skip_first=1, min_logprob=-5.0)), rows, 0, {})
    close(weighed.distil_N, [0, 1, 0, 0])
    close(weighed.advantage_N, [0, 0.5, 0, 0])
    assert weighed.numbers["kept_share"] == pytest.approx(1 / 3)


def test_a_negative_credit_turns_the_direction_around() -> None:
    rows = table([1, 1], distil=[1.0, -1.0], log_ratio=[0.5, 0.5])
    close(weigh_tokens(LossSpec(shaping=Additive()), rows, 0, {}).advantage_N, [1.5, 0.5])
    close(weigh_tokens(LossSpec(shaping=Multiplicative(0.2)), rows, 0, {}).advantage_N, [1.2, 0.8])


def test_answers_without_credit_keep_their_advantage() -> None:
    rows = table([1, 1], distil=[1.0, 0.0], log_ratio=[0.5, 0.5])
    for shaping in (Additive(), Multiplicative(), Centred()):
        assert weigh_tokens(LossSpec(shaping=shaping), rows, 0, {}).advantage_N[1] == 1.0


def test_a_closed_gate_leaves_the_advantage() -> None:
    rows = table([2], advantage=[0.5], log_ratio=[1.0, -1.0], teacher_entropy=[2.0, 2.0])
    loss_spec = LossSpec(shaping=Additive(), gate=EntropyGate(warmup=2))
    memory: dict[str, float] = {}
    seen = []
    for entropy in (2.0, 2.0, 1.9, 1.8, 1.9, 2.0):
        batch = replace(rows, teacher_entropy_N=torch.full((2,), entropy, dtype=torch.float64))
        weighed = weigh_tokens(loss_spec, batch, 0, memory)
        memory = json.loads(json.dumps(weighed.memory))
        assert weighed.numbers["gate_reading"] == entropy
        assert weighed.numbers["lambda"] == weighed.numbers["gate_open"]
        seen.append(weighed.numbers["gate_open"])
        close(weighed.advantage_N, [1.5, -0.5] if weighed.numbers["gate_open"] else [0.5, 0.5])
    assert seen == [0, 0, 1, 0, 0, 1]


def test_numbers_by_hand() -> None:
    """Log-ratio against the advantage at tokens 1 and 2 of the three where both act; token 3 has none, 4 no A."""
    rows = table([2, 2, 1], advantage=[1.0, -1.0, 0.0], log_ratio=[1.0, -1.0, 1.0, math.nan, 1.0])
    numbers = weigh_tokens(LossSpec(shaping=Additive()), rows, 0, {}).numbers
    assert numbers["sign_disagree"] == pytest.approx(2 / 3)
    assert numbers["changed_share"] == pytest.approx(4 / 5)
    assert numbers["distilled_share"] == 0.0


@pytest.mark.parametrize("shaping", [Separate(), Additive(), Multiplicative(), Centred()], ids=str)
def test_a_batch_that_no_teacher_read(shaping: AdvantageShaping) -> None:
    rows = table([2, 1], advantage=[0.5, -1.0])
    weighed = weigh_tokens(LossSpec(shaping=shaping, gate=EntropyGate()), rows, 0, {})
    close(weighed.advantage_N, [0.5, 0.5, -1.0])
    assert not weighed.distil_N.any()
    assert weighed.memory == {}
    assert "gate_reading" not in weighed.numbers
    assert "sign_disagree" not in weighed.numbers
    json.dumps(weighed.numbers, allow_nan=False)


def test_an_empty_batch() -> None:
    loss_spec = LossSpec(
        distil_sign=Repel(),
        token_mask=TokenMask(teacher_confidence=1.0),
        shaping=Additive(two_path=1.0),
        gate=EntropyGate(),
    )
    weighed = weigh_tokens(loss_spec, table([]), 0, {"other": 1.0})
    assert weighed.distil_N.shape == weighed.advantage_N.shape == (0,)
    assert weighed.memory == {"other": 1.0}
    assert weighed.numbers == {"lambda": 0.0, "gate_open": 0.0}


def test_nothing_is_changed_in_place_and_nothing_is_on_a_graph() -> None:
    rows = table([2, 2], log_ratio=[0.5, -1.0, 2.0, math.nan], teacher_entropy=[1.0, 2.0, 3.0, math.nan])
    rows = replace(rows, logprobs_N=rows.logprobs_N.requires_grad_())
    before = {f.name: getattr(rows, f.name).detach().clone() for f in fields(TokenTable)}
    everything = TokenMask(1, 1.0, -5.0)
    for shaping in (Separate(), Additive(ForwardKL(), Clip(0.1), 0.05, True, 1.0), Multiplicative(), Centred()):
        weighed = weigh_tokens(
            LossSpec(distil_sign=OppositeAdvantageSign(), token_mask=everything, shaping=shaping, gate=EntropyGate()),
            rows,
            0,
            {},
        )
        assert not weighed.distil_N.requires_grad
        assert not weighed.advantage_N.requires_grad
    for name, column in before.items():
        torch.testing.assert_close(getattr(rows, name).detach(), column, rtol=0, atol=0, equal_nan=True)


def test_half_precision_is_weighed_like_single() -> None:
    def weighed(dtype: torch.dtype) -> WeighedTokens:
        rows = table(
            [4, 2], advantage=[0.5, -0.5], log_ratio=[0.5, -1, 2, 0, 1, -2], 
            teacher_entropy=[0.5, 1, 1.5, 2, 2.5, 3], dtype=dtype,
        )  # fmt: skip
        token_mask = TokenMask(teacher_confidence=1.0)
        return weigh_tokens(
            LossSpec(distil_sign=AdvantageSign(), token_mask=token_mask, shaping=Additive(JensenShannon())), rows, 0, {}
        )

    single = weighed(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(weighed(dtype).advantage_N, single.advantage_N, rtol=0, atol=0)


RLSD = LossSpec(distil_sign=AdvantageSign(), shaping=Multiplicative(0.2), schedule=Linear(0.5, 0.0, 50))
RLRT = LossSpec(distil_sign=OppositeAdvantageSign(), shaping=Multiplicative(1.0), schedule=Constant(0.5))
RLCSD = LossSpec(shaping=Additive(clipping=Tanh(0.02), threshold=0.02, keep_sign=True), schedule=Constant(0.5))
SRPO = LossSpec(token_mask=TokenMask(teacher_confidence=1.0))


@pytest.mark.parametrize(("step", "strength"), [(0, 0.5), (25, 0.25), (50, 0.0), (99, 0.0)])
def test_rlsd_against_its_formula(step: int, strength: float) -> None:
    """A[(1 − λ) + λ clip(e^{sign(A) u}, 1 ± 0.2)]."""
    log_ratio, advantage = [0.1, -0.3, 0.0, 2.0], [0.75, 0.75, -0.25, -0.25]
    rows = table([2, 2], advantage=[0.75, -0.25], log_ratio=log_ratio)
    literal = []
    for a, u in zip(advantage, log_ratio, strict=True):
        ratio = min(max(math.exp(math.copysign(1, a) * u), 0.8), 1.2)
        literal.append(a * ((1 - strength) + strength * ratio))
    close(weigh_tokens(RLSD, rows, step, {}).advantage_N, literal)


def test_rlrt_reads_solved_answers_alone() -> None:
    rows = table([1, 1], advantage=[0.5, -0.5], distil=[1.0, 0.0], log_ratio=[math.log(2), math.log(2)])
    close(weigh_tokens(RLRT, rows, 0, {}).advantage_N, [0.5 * (0.5 + 0.5 / 2), -0.5])


def test_rlcsd_against_its_formula() -> None:
    """A + 1[|r| > δ] r with r = λ tanh(e/τ), cut at a change of sign."""
    log_ratio = [0.01, -0.5, 0.0004, 0.01, -0.001, 1.0]
    rows = table([3, 3], advantage=[0.3, -0.3], log_ratio=log_ratio)
    literal = []
    for a, e in zip([0.3] * 3 + [-0.3] * 3, log_ratio, strict=True):
        r = 0.5 * math.tanh(e / 0.02)
        moved = a + (r if abs(r) > 0.02 else 0.0)
        literal.append(max(moved, 0.0) if a > 0 else min(moved, 0.0))
    close(weigh_tokens(RLCSD, rows, 0, {}).advantage_N, literal)


def test_srpo_routes_answers_and_favours_what_the_teacher_knows() -> None:
    """The solved answer has an advantage and no credit, the failed one the reverse; weights e^−H over their mean."""
    rows = table([2, 2], advantage=[0.5, 0.0], distil=[0.0, 1.0], teacher_entropy=[0, 0, 0, math.log(3)])
    weighed = weigh_tokens(SRPO, rows, 0, {})
    close(weighed.advantage_N, [0.5, 0.5, 0.0, 0.0])
    close(weighed.distil_N, [0.0, 0.0, 1.5, 0.5])


def test_learning_from_replies_has_no_advantage() -> None:
    rows = table([3], advantage=[0.0], log_ratio=[1.0, 0.0, -4.0])
    close(weigh_tokens(LossSpec(shaping=Centred()), rows, 0, {}).advantage_N, [2.0, 1.0, -3.0])


# Every field of every value, and another value at which something must come out differently.
KNOBS: dict[tuple[type, str], tuple[LossSpec, Any]] = {
    (TokenMask, "skip_first"): (LossSpec(), 1),
    (TokenMask, "teacher_confidence"): (LossSpec(), 1.0),
    (TokenMask, "min_logprob"): (LossSpec(), -5.0),
    (Additive, "divergence"): (LossSpec(shaping=Additive()), ForwardKL()),
    (Additive, "clipping"): (LossSpec(shaping=Additive()), Tanh(0.1)),
    (Additive, "threshold"): (LossSpec(shaping=Additive()), 0.6),
    (Additive, "keep_sign"): (LossSpec(shaping=Additive()), True),
    (Additive, "two_path"): (LossSpec(shaping=Additive(threshold=0.6)), 1.0),
    (Pooled, "divergence"): (LossSpec(shaping=Pooled()), ForwardKL()),
    (Multiplicative, "clip"): (LossSpec(shaping=Multiplicative()), 0.5),
    (Constant, "value"): (LossSpec(), 0.5),
    (Linear, "start"): (LossSpec(schedule=Linear(steps=4)), 0.7),
    (Linear, "end"): (LossSpec(schedule=Linear(steps=4)), 0.2),
    (Linear, "steps"): (LossSpec(schedule=Linear(steps=4)), 5),
    (Trapezoid, "peak"): (LossSpec(schedule=Trapezoid(1.0, 1, 1, 3)), 2.0),
    (Trapezoid, "warmup"): (LossSpec(schedule=Trapezoid(1.0, 1, 1, 3)), 2),
    (Trapezoid, "hold"): (LossSpec(schedule=Trapezoid(1.0, 1, 1, 3)), 0),
    (Trapezoid, "decay"): (LossSpec(schedule=Trapezoid(1.0, 1, 1, 3)), 2),
    (EntropyGate, "off"): (LossSpec(gate=EntropyGate(warmup=2)), 0.5),
    (EntropyGate, "warmup"): (LossSpec(gate=EntropyGate(warmup=2)), 1),
}
KINDS = [Attract, Repel, AdvantageSign, OppositeAdvantageSign, Separate, Centred, *{kind for kind, _ in KNOBS}]


def course(loss_spec: LossSpec) -> torch.Tensor:
    """All weights of six batches, over which the teacher's entropy falls to 0.7 of what it was and comes back."""
    rows = table(
        [3, 3], advantage=[0.5, -0.5], log_ratio=[0.3, -1.0, 0.5, 2.0, -0.4, 1.0],
        teacher_entropy=[0.2, 0.4, 1.0, 0.6, 1.4, 0.8],
        logprobs=[-0.1, -2.0, -6.0, -1.0, -0.5, -3.0],
    )  # fmt: skip
    memory: dict[str, float] = {}
    seen = []
    for step, level in enumerate([1.0, 1.1, 0.95, 0.7, 1.0, 1.05]):
        batch = replace(rows, teacher_entropy_N=level * rows.teacher_entropy_N)
        weighed = weigh_tokens(loss_spec, batch, step, memory)
        memory = weighed.memory
        seen += [weighed.distil_N, weighed.advantage_N]
    return torch.cat(seen)


def put(loss_spec: LossSpec, kind: type, name: str, value: Any) -> LossSpec:
    """The loss spec with one field of the part of that kind changed."""
    (part,) = [f.name for f in fields(LossSpec) if isinstance(getattr(loss_spec, f.name), kind)]
    return replace(loss_spec, **{part: replace(getattr(loss_spec, part), **{name: value})})


@pytest.mark.parametrize(("kind", "name"), KNOBS, ids=lambda item: item if isinstance(item, str) else item.__name__)
def test_no_knob_is_inert(kind: type, name: str) -> None:
    loss_spec, value = KNOBS[kind, name]
    assert not torch.equal(course(loss_spec), course(put(loss_spec, kind, name, value)))


def test_every_knob_is_turned() -> None:
    kinds = {
        TokenMask,
        *(k for base in (DistillationSign, AdvantageShaping, Schedule) for k in base.__subclasses__()),
        EntropyGate,
    }
    # a class with slots replaces the one that was written: the module has the one to use
    ours = {vars(sys.modules[k.__module__])[k.__name__] for k in kinds if k.__module__.startswith("selfdistill.")}
    assert ours == set(KINDS)
    assert {(kind, field.name) for kind in ours for field in fields(kind)} == set(KNOBS)


def test_no_two_kinds_do_the_same() -> None:
    signs = [course(LossSpec(distil_sign=kind())) for kind in (Attract, Repel, AdvantageSign, OppositeAdvantageSign)]
    kinds = (Separate, Additive, Multiplicative, Centred, Pooled)
    shapings = [course(LossSpec(shaping=kind())) for kind in kinds]
    for family in (signs, shapings):
        assert all(not torch.equal(one, other) for i, one in enumerate(family) for other in family[:i])


def weights(mask: TokenMask, rows: TokenTable) -> tuple[list[float], list[float]]:
    """Of the distillation, and advantages."""
    weighed = weigh_tokens(LossSpec(token_mask=mask), rows, 0, {})
    return weighed.distil_N.tolist(), weighed.advantage_N.tolist()


def test_by_default_every_counted_token_gets_the_same() -> None:
    rows = table([2, 1], counted=[True, False, True])
    assert weights(TokenMask(), rows) == ([1, 0, 1], [1, 0, 1])


def test_answers_without_credit_get_nothing_and_still_take_part() -> None:
    rows = table([1, 1], distil=[1, 0])
    assert weights(TokenMask(), rows) == ([1, 0], [1, 1])


def test_first_tokens_are_skipped_in_both_terms() -> None:
    assert weights(TokenMask(skip_first=1), table([4, 2])) == ([0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1])


def test_rare_tokens_are_dropped_from_both_terms() -> None:
    rows = table([4], logprobs=[-1.0, -4.9, -5.0, -5.1])
    assert weights(TokenMask(min_logprob=-5.0), rows) == ([1, 1, 1, 0], [1, 1, 1, 0])


def test_confidence_by_hand() -> None:
    """H_T = log 1, log 2, log 4: e^−H is 1, 1/2, 1/4 with mean 7/12, so the weights are 12/7, 6/7, 3/7."""
    rows = table([3], teacher_entropy=[0.0, math.log(2), math.log(4)])
    expected = torch.tensor([12 / 7, 6 / 7, 3 / 7], dtype=torch.float64)
    torch.testing.assert_close(weigh_tokens(SRPO, rows, 0, {}).distil_N, expected)


@pytest.mark.parametrize("strength", [0.3, 1.0, 50.0])
def test_confidence_has_mean_1_however_large_the_entropies(strength: float) -> None:
    rows = table([2, 3], teacher_entropy=[500.0, 501.0, 500.5, 502.0, 500.1])
    spec = LossSpec(token_mask=TokenMask(teacher_confidence=strength))
    assert weigh_tokens(spec, rows, 0, {}).distil_N.mean().item() == pytest.approx(1.0)


def test_confidence_without_a_teacher_is_none() -> None:
    confident = TokenMask(teacher_confidence=1.0)
    assert weights(confident, table([2], teacher_entropy=[1.0, math.nan])) == ([1, 0], [1, 1])
    assert weights(confident, table([2])) == ([0, 0], [1, 1])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"skip_first": -1}, "skip_first must be a whole number, 0 or more"),
        ({"teacher_confidence": -1.0}, "teacher_confidence must be a number, 0 or more"),
        ({"teacher_confidence": math.inf}, "teacher_confidence must be a number, 0 or more"),
        ({"min_logprob": 0.0}, "min_logprob must be a number below 0"),
        ({"min_logprob": math.nan}, "min_logprob must be a number below 0"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TokenMask(**wrong)
