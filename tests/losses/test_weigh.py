"""The whole way from a table to weights: by hand, as published methods compose it, and with every knob turned."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from signal_tables import Weights, table

from selfdistill.losses import Clip, ForwardKL, JensenShannon, Tanh
from selfdistill.losses.distil_sign import AdvantageSign, Attract, DistillationSign, OppositeAdvantageSign, Repel
from selfdistill.losses.gate import EntropyGate, Gate
from selfdistill.losses.schedules import Constant, Linear, Schedule, Trapezoid
from selfdistill.losses.shaping import Additive, AdvantageShaping, Centred, Multiplicative, Pooled, Separate
from selfdistill.losses.table import TokenTable
from selfdistill.losses.token_mask import TokenMask
from selfdistill.losses.weighing import WeighedTokens, weigh_tokens


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_defaults_are_the_credits() -> None:
    rows = table([2, 1], advantage=[0.5, -1.0], distil=[1.0, 0.25])
    weighed = weigh_tokens(Weights(), rows, 0, {})
    close(weighed.distil_N, [1.0, 1.0, 0.25])
    close(weighed.advantage_N, [0.5, 0.5, -1.0])
    assert weighed.memory == {}
    assert weighed.numbers == {"lambda": 1.0, "kept_share": 1.0, "distilled_share": 1.0, "changed_share": 0.0}


def test_credit_direction_allocation_and_schedule_multiply() -> None:
    """Credits 2 and −1, direction away, confidences 1 and 1/2 and 1 over 5/6, λ = 0.25 at step 25."""
    rows = table([2, 1], distil=[2.0, -1.0], teacher_entropy=[0.0, math.log(2), 0.0])
    loss_spec = Weights(Repel(), TokenMask(teacher_confidence=1.0), schedule=Linear(0.5, 0.0, 50))
    close(weigh_tokens(loss_spec, rows, 25, {}).distil_N, [-2 * 0.25 * 6 / 5, -2 * 0.25 * 3 / 5, 0.25 * 6 / 5])


def test_tokens_that_are_not_kept_weigh_nothing_in_both_terms() -> None:
    rows = table([4], advantage=[0.5], logprobs=[-1, -1, -6, -1], counted=[True, True, True, False])
    weighed = weigh_tokens(Weights(token_mask=TokenMask(skip_first=1, min_logprob=-5.0)), rows, 0, {})
    close(weighed.distil_N, [0, 1, 0, 0])
    close(weighed.advantage_N, [0, 0.5, 0, 0])
    assert weighed.numbers["kept_share"] == pytest.approx(1 / 3)


def test_a_negative_credit_turns_the_direction_around() -> None:
    rows = table([1, 1], distil=[1.0, -1.0], mixture=[0.5, 0.5])
    close(weigh_tokens(Weights(shaping=Additive()), rows, 0, {}).advantage_N, [1.5, 0.5])
    close(weigh_tokens(Weights(shaping=Multiplicative(0.2)), rows, 0, {}).advantage_N, [1.2, 0.8])


def test_answers_without_credit_keep_their_verdict() -> None:
    rows = table([1, 1], distil=[1.0, 0.0], mixture=[0.5, 0.5])
    for shaping in (Additive(), Multiplicative(), Centred()):
        assert weigh_tokens(Weights(shaping=shaping), rows, 0, {}).advantage_N[1] == 1.0


def test_a_closed_gate_leaves_the_verdict() -> None:
    rows = table([2], advantage=[0.5], mixture=[1.0, -1.0], teacher_entropy=[2.0, 2.0])
    loss_spec = Weights(shaping=Additive(), gate=EntropyGate(warmup=2))
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
    """Log-ratio against the verdict at tokens 1 and 2 of the three where both act; token 3 has none, 4 no verdict."""
    rows = table([2, 2, 1], advantage=[1.0, -1.0, 0.0], mixture=[1.0, -1.0, 1.0, math.nan, 1.0])
    numbers = weigh_tokens(Weights(shaping=Additive()), rows, 0, {}).numbers
    assert numbers["sign_disagree"] == pytest.approx(2 / 3)
    assert numbers["changed_share"] == pytest.approx(4 / 5)
    assert numbers["distilled_share"] == 0.0


@pytest.mark.parametrize("shaping", [Separate(), Additive(), Multiplicative(), Centred()], ids=str)
def test_a_batch_that_no_teacher_read(shaping: AdvantageShaping) -> None:
    rows = table([2, 1], advantage=[0.5, -1.0])
    weighed = weigh_tokens(Weights(shaping=shaping, gate=EntropyGate()), rows, 0, {})
    close(weighed.advantage_N, [0.5, 0.5, -1.0])
    assert not weighed.distil_N.any()
    assert weighed.memory == {}
    assert "gate_reading" not in weighed.numbers
    assert "sign_disagree" not in weighed.numbers
    json.dumps(weighed.numbers, allow_nan=False)


def test_an_empty_batch() -> None:
    loss_spec = Weights(Repel(), TokenMask(teacher_confidence=1.0), Additive(two_path=1.0), gate=EntropyGate())
    weighed = weigh_tokens(loss_spec, table([]), 0, {"other": 1.0})
    assert weighed.distil_N.shape == weighed.advantage_N.shape == (0,)
    assert weighed.memory == {"other": 1.0}
    assert weighed.numbers == {"lambda": 0.0, "gate_open": 0.0}


def test_nothing_is_changed_in_place_and_nothing_is_on_a_graph() -> None:
    rows = table([2, 2], mixture=[0.5, -1.0, 2.0, math.nan], teacher_entropy=[1.0, 2.0, 3.0, math.nan])
    rows = replace(rows, logprobs_N=rows.logprobs_N.requires_grad_())
    before = {f.name: getattr(rows, f.name).detach().clone() for f in fields(TokenTable)}
    everything = TokenMask(1, 1.0, -5.0)
    for shaping in (Separate(), Additive(ForwardKL(), Clip(0.1), 0.05, True, 1.0), Multiplicative(), Centred()):
        weighed = weigh_tokens(Weights(OppositeAdvantageSign(), everything, shaping, gate=EntropyGate()), rows, 0, {})
        assert not weighed.distil_N.requires_grad
        assert not weighed.advantage_N.requires_grad
    for name, column in before.items():
        torch.testing.assert_close(getattr(rows, name).detach(), column, rtol=0, atol=0, equal_nan=True)


def test_half_precision_is_weighed_like_single() -> None:
    def weighed(dtype: torch.dtype) -> WeighedTokens:
        rows = table(
            [4, 2], advantage=[0.5, -0.5], mixture=[0.5, -1, 2, 0, 1, -2], entropy=[0.5, 1, 2, 3, 4, 0.25],
            teacher_entropy=[0.5, 1, 1.5, 2, 2.5, 3], dtype=dtype,
        )  # fmt: skip
        token_mask = TokenMask(teacher_confidence=1.0)
        return weigh_tokens(Weights(AdvantageSign(), token_mask, Additive(JensenShannon())), rows, 0, {})

    single = weighed(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(weighed(dtype).advantage_N, single.advantage_N, rtol=0, atol=0)


RLSD = Weights(AdvantageSign(), shaping=Multiplicative(0.2), schedule=Linear(0.5, 0.0, 50))
RLRT = Weights(OppositeAdvantageSign(), shaping=Multiplicative(1.0), schedule=Constant(0.5))
RLCSD = Weights(shaping=Additive(clipping=Tanh(0.02), threshold=0.02, keep_sign=True), schedule=Constant(0.5))
SRPO = Weights(token_mask=TokenMask(teacher_confidence=1.0))


@pytest.mark.parametrize(("step", "strength"), [(0, 0.5), (25, 0.25), (50, 0.0), (99, 0.0)])
def test_rlsd_against_its_formula(step: int, strength: float) -> None:
    """A[(1 − λ) + λ clip(e^{sign(A) u}, 1 ± 0.2)]."""
    mixture, advantage = [0.1, -0.3, 0.0, 2.0], [0.75, 0.75, -0.25, -0.25]
    rows = table([2, 2], advantage=[0.75, -0.25], mixture=mixture)
    literal = []
    for a, u in zip(advantage, mixture, strict=True):
        ratio = min(max(math.exp(math.copysign(1, a) * u), 0.8), 1.2)
        literal.append(a * ((1 - strength) + strength * ratio))
    close(weigh_tokens(RLSD, rows, step, {}).advantage_N, literal)


def test_rlrt_reads_solved_answers_alone() -> None:
    rows = table([1, 1], advantage=[0.5, -0.5], distil=[1.0, 0.0], mixture=[math.log(2), math.log(2)])
    close(weigh_tokens(RLRT, rows, 0, {}).advantage_N, [0.5 * (0.5 + 0.5 / 2), -0.5])


def test_rlcsd_against_its_formula() -> None:
    """A + 1[|r| > δ] r with r = λ tanh(e/τ), cut at a change of sign."""
    mixture = [0.01, -0.5, 0.0004, 0.01, -0.001, 1.0]
    rows = table([3, 3], advantage=[0.3, -0.3], mixture=mixture)
    literal = []
    for a, e in zip([0.3] * 3 + [-0.3] * 3, mixture, strict=True):
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


def test_learning_from_replies_has_no_verdict() -> None:
    rows = table([3], advantage=[0.0], mixture=[1.0, 0.0, -4.0])
    close(weigh_tokens(Weights(shaping=Centred()), rows, 0, {}).advantage_N, [2.0, 1.0, -3.0])


# Every field of every value, and another value at which something must come out differently.
KNOBS: dict[tuple[type, str], tuple[Weights, Any]] = {
    (TokenMask, "skip_first"): (Weights(), 1),
    (TokenMask, "teacher_confidence"): (Weights(), 1.0),
    (TokenMask, "min_logprob"): (Weights(), -5.0),
    (Additive, "divergence"): (Weights(shaping=Additive()), ForwardKL()),
    (Additive, "clipping"): (Weights(shaping=Additive()), Tanh(0.1)),
    (Additive, "threshold"): (Weights(shaping=Additive()), 0.6),
    (Additive, "keep_sign"): (Weights(shaping=Additive()), True),
    (Additive, "two_path"): (Weights(shaping=Additive(threshold=0.6)), 1.0),
    (Pooled, "divergence"): (Weights(shaping=Pooled()), ForwardKL()),
    (Multiplicative, "clip"): (Weights(shaping=Multiplicative()), 0.5),
    (Constant, "value"): (Weights(), 0.5),
    (Linear, "start"): (Weights(schedule=Linear(steps=4)), 0.7),
    (Linear, "end"): (Weights(schedule=Linear(steps=4)), 0.2),
    (Linear, "steps"): (Weights(schedule=Linear(steps=4)), 5),
    (Trapezoid, "peak"): (Weights(schedule=Trapezoid(1.0, 1, 1, 3)), 2.0),
    (Trapezoid, "warmup"): (Weights(schedule=Trapezoid(1.0, 1, 1, 3)), 2),
    (Trapezoid, "hold"): (Weights(schedule=Trapezoid(1.0, 1, 1, 3)), 0),
    (Trapezoid, "decay"): (Weights(schedule=Trapezoid(1.0, 1, 1, 3)), 2),
    (EntropyGate, "off"): (Weights(gate=EntropyGate(warmup=2)), 0.5),
    (EntropyGate, "warmup"): (Weights(gate=EntropyGate(warmup=2)), 1),
}
KINDS = [Attract, Repel, AdvantageSign, OppositeAdvantageSign, Separate, Centred, *{kind for kind, _ in KNOBS}]


def course(loss_spec: Weights) -> torch.Tensor:
    """All weights of six batches, over which the teacher's entropy falls to 0.7 of what it was and comes back."""
    rows = table(
        [3, 3], advantage=[0.5, -0.5], mixture=[0.3, -1.0, 0.5, 2.0, -0.4, 1.0],
        entropy=[0.1, 0.9, 0.3, 0.7, 0.2, 0.5], teacher_entropy=[0.2, 0.4, 1.0, 0.6, 1.4, 0.8],
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


def put(loss_spec: Weights, kind: type, name: str, value: Any) -> Weights:
    """The signal with one field of the part of that kind changed."""
    (part,) = [f.name for f in fields(Weights) if isinstance(getattr(loss_spec, f.name), kind)]
    return replace(loss_spec, **{part: replace(getattr(loss_spec, part), **{name: value})})


@pytest.mark.parametrize(("kind", "name"), KNOBS, ids=lambda item: item if isinstance(item, str) else item.__name__)
def test_no_knob_is_inert(kind: type, name: str) -> None:
    loss_spec, value = KNOBS[kind, name]
    assert not torch.equal(course(loss_spec), course(put(loss_spec, kind, name, value)))


def test_every_knob_is_turned() -> None:
    kinds = {
        TokenMask,
        *(k for base in (DistillationSign, AdvantageShaping, Schedule, Gate) for k in base.__subclasses__()),
    }
    # a class with slots replaces the one that was written: the module has the one to use
    ours = {vars(sys.modules[k.__module__])[k.__name__] for k in kinds if k.__module__.startswith("selfdistill.")}
    assert ours == set(KINDS)
    assert {(kind, field.name) for kind in ours for field in fields(kind)} == set(KNOBS)


def test_no_two_kinds_do_the_same() -> None:
    directions = [course(Weights(kind())) for kind in (Attract, Repel, AdvantageSign, OppositeAdvantageSign)]
    kinds = (Separate, Additive, Multiplicative, Centred, Pooled)
    couplings = [course(Weights(shaping=kind())) for kind in kinds]
    for family in (directions, couplings):
        assert all(not torch.equal(one, other) for i, one in enumerate(family) for other in family[:i])
