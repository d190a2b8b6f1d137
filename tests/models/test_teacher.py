from __future__ import annotations

import pytest
import torch

from selfdistill.errors import ConfigError, RunError
from selfdistill.models.load import Policy
from selfdistill.models.teacher import Ema, Frozen, Live, Snapshot, Teacher, TrustRegion, View
from selfdistill.options import tag

PAIRS = [((5, 6), (7, 8)), ((9, 10, 11), (12,))]
SHADOW, STUDENT = View(1.0, "shadow"), View(1.0, "student")


def move(policy: Policy, by: float) -> None:
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(by)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.trainable().items()}


def shadow(teacher: Teacher, name: str) -> torch.Tensor:
    return teacher.state_dict()[f"shadow.{name}"].clone()


def hidden(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.answer_hidden(PAIRS)


def set_all(policy: Policy, number: float) -> str:
    """Fills every parameter; returns the name of one."""
    with torch.no_grad():
        for value in policy.trainable().values():
            value.fill_(number)
    return next(iter(policy.trainable()))


def test_ema_takes_in_the_rates_share_of_the_student(policy) -> None:
    name = set_all(policy, 1.0)
    teacher = Teacher(Ema(0.25), policy)
    set_all(policy, 5.0)
    teacher.update(policy)
    assert shadow(teacher, name).unique().tolist() == [2.0]  # 0.75 · 1 + 0.25 · 5
    teacher.update(policy)
    assert shadow(teacher, name).unique().tolist() == [2.75]  # 0.75 · 2 + 0.25 · 5


def test_ema_of_rate_zero_never_moves_and_of_rate_one_copies(policy) -> None:
    still, copying = Teacher(Ema(0.0), policy), Teacher(Ema(1.0), policy)
    before = weights(policy)
    move(policy, 0.123)
    for teacher in (still, copying):
        teacher.update(policy)
    for name, value in weights(policy).items():
        assert torch.equal(shadow(still, name), before[name])
        assert torch.equal(shadow(copying, name), value)


def test_ema_is_float32_and_keeps_moves_that_bfloat16_would_lose(policy_of) -> None:
    policy = policy_of(dtype="bfloat16")
    name = set_all(policy, 1.0)
    teacher = Teacher(Ema(0.01), policy)
    set_all(policy, 1.0001)
    teacher.update(policy)
    assert shadow(teacher, name).unique().tolist() == pytest.approx([1.000001], abs=1e-7)
    assert torch.tensor(1.000001, dtype=torch.bfloat16).item() == 1.0


def test_snapshot_copies_after_every_third_batch(policy) -> None:
    name = set_all(policy, 0.0)
    teacher = Teacher(Snapshot(3), policy)
    seen = []
    for batch in range(1, 8):
        set_all(policy, float(batch))
        teacher.update(policy)
        seen.append(shadow(teacher, name).unique().item())
    assert seen == [0, 0, 3, 3, 3, 6, 6]


@pytest.mark.parametrize("rule", [Frozen(), TrustRegion(0.5)])
def test_frozen_and_trust_region_keep_the_start(policy, rule) -> None:
    teacher = Teacher(rule, policy)
    before = weights(policy)
    move(policy, 0.5)
    teacher.update(policy)
    assert all(torch.equal(shadow(teacher, name), value) for name, value in before.items())


def test_views_name_weights_and_exponents() -> None:
    def views(rule, policy=None):
        teacher = Teacher.__new__(Teacher)
        teacher.rule = rule
        return teacher.views()

    assert views(Frozen()) == views(Ema(0.1)) == views(Snapshot(2)) == (SHADOW,)
    assert views(Live()) == (STUDENT,)
    assert views(TrustRegion(0.25)) == (View(0.75, "shadow"), View(0.25, "student"))
    assert views(TrustRegion(0.0)) == (SHADOW,)
    assert views(TrustRegion(1.0)) == (STUDENT,)


def test_trust_region_views_give_the_geometric_mixture(policy) -> None:
    """q ∝ q_ref^(1−ρ) q_θ^ρ, worked from probabilities."""
    teacher = Teacher(TrustRegion(0.3), policy)
    reference_NV = policy.head().logits(hidden(policy)).softmax(-1)
    move(policy, 0.05)
    student_NV = policy.head().logits(hidden(policy)).softmax(-1)
    wanted_NV = reference_NV**0.7 * student_NV**0.3
    wanted_NV = wanted_NV / wanted_NV.sum(-1, keepdim=True)
    mixed_NV = torch.zeros_like(wanted_NV)
    for view in teacher.views():
        with teacher.applied(policy, view) as reader:
            hidden_ND, head = reader.answer_hidden(PAIRS), reader.head()
        mixed_NV += view.weight * head.logits(hidden_ND).log_softmax(-1)
    torch.testing.assert_close(mixed_NV.softmax(-1), wanted_NV, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_inside_applied_the_teacher_computes_and_afterwards_the_student_is_back_to_the_bit(policy_of, tied) -> None:
    policy = policy_of(tied=tied)
    teacher = Teacher(Frozen(), policy)
    hidden_before, logits_before = hidden(policy), policy.head().logits(hidden(policy))
    move(policy, 0.1)
    after, hidden_after = weights(policy), hidden(policy)
    assert not torch.equal(hidden_before, hidden_after)
    with teacher.applied(policy, SHADOW) as reader:
        inside, head = reader.answer_hidden(PAIRS), reader.head().detached()
        assert not inside.requires_grad
    assert torch.equal(inside, hidden_before)
    assert torch.equal(head.logits(inside), logits_before), "outside of `applied`, while the student's head has moved"
    assert not head.weight_VD.requires_grad
    assert all(torch.equal(value, after[name]) for name, value in policy.trainable().items())
    assert torch.equal(hidden(policy), hidden_after)


def test_the_students_view_is_the_student_without_gradients(policy) -> None:
    teacher = Teacher(Live(), policy)
    move(policy, 0.1)
    with teacher.applied(policy, STUDENT) as reader:
        inside, head = reader.answer_hidden(PAIRS), reader.head().detached()
    assert torch.equal(inside, hidden(policy))
    assert not inside.requires_grad
    assert not head.weight_VD.requires_grad
    assert set(teacher.state_dict()) == {"batches"}, "a live teacher keeps no weights"


def test_an_error_inside_applied_gives_the_student_back(policy) -> None:
    teacher = Teacher(Frozen(), policy)
    move(policy, 0.1)
    before = weights(policy)
    with pytest.raises(ZeroDivisionError), teacher.applied(policy, SHADOW):
        _ = 1 / 0
    assert all(torch.equal(value, before[name]) for name, value in policy.trainable().items())
    with teacher.applied(policy, SHADOW):
        pass  # and the next one is welcome


def test_gradients_of_a_student_pass_survive_a_teacher_pass_in_between(policy) -> None:
    def gradient(between: bool) -> torch.Tensor:
        policy.model.zero_grad()
        loss = policy.answer_hidden(PAIRS).square().sum()
        if between:
            with teacher.applied(policy, SHADOW):
                policy.answer_hidden(PAIRS)
        loss.backward()
        return torch.cat([value.grad.flatten() for value in policy.trainable().values()])

    teacher = Teacher(Frozen(), policy)
    move(policy, 0.1)
    assert torch.equal(gradient(between=False), gradient(between=True))


def test_a_lora_students_teacher_is_an_adapter_and_no_second_base(adapted) -> None:
    teacher = Teacher(Ema(0.5), adapted)
    state = teacher.state_dict()
    assert all("lora_" in name for name in state if name != "batches")
    assert sum(value.numel() for value in state.values()) - 1 == 2048
    base = hidden(adapted)  # B = 0: the adapter is silent
    move(adapted, 0.1)
    with teacher.applied(adapted, SHADOW) as reader:
        assert torch.equal(reader.answer_hidden(PAIRS), base)
        assert reader.head().weight_VD.data_ptr() == adapted.head().weight_VD.data_ptr()


def test_a_lora_teacher_averages_factors_from_the_students_own(adapted) -> None:
    start = weights(adapted)
    teacher = Teacher(Ema(0.5), adapted)
    move(adapted, 0.2)
    teacher.update(adapted)
    for name, value in start.items():
        torch.testing.assert_close(shadow(teacher, name), value + 0.1)


@pytest.mark.parametrize("rule", [Frozen(), Ema(0.3), Snapshot(2), TrustRegion(0.1), Live()])
def test_state_comes_back_to_the_bit_and_goes_on_alike(policy_of, rule) -> None:
    policy = policy_of()
    teacher = Teacher(rule, policy)
    move(policy, 0.1)
    teacher.update(policy)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    resumed = Teacher(rule, policy)
    resumed.load_state_dict(state)
    move(policy, 0.1)
    for each in (teacher, resumed):
        each.update(policy)
    assert teacher.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in teacher.state_dict().items())
    assert resumed.batches == 2


def test_the_state_of_another_model_or_rule_is_refused(policy_of, adapted) -> None:
    policy = policy_of()
    with pytest.raises(RunError, match="does not fit"):
        Teacher(Ema(), policy).load_state_dict(Teacher(Ema(), adapted).state_dict())
    with pytest.raises(RunError, match="first difference: shadow"):
        Teacher(Ema(), policy).load_state_dict(Teacher(Live(), policy).state_dict())


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Ema, {"rate": 1.5}),
        (Ema, {"rate": -0.1}),
        (Ema, {"rate": float("nan")}),
        (TrustRegion, {"rate": 2}),
        (Snapshot, {"every": 0}),
    ],
)
def test_rules_check_their_ranges(rule, options) -> None:
    with pytest.raises(ConfigError):
        rule(**options)


def test_each_rule_has_its_name() -> None:
    assert [tag(rule) for rule in (Frozen, Ema, Snapshot, TrustRegion, Live)] == [
        "frozen", "ema", "snapshot", "trust_region", "live",
    ]  # fmt: skip
