"""What an update weighs: answers, tokens, micro-batches, dropped answers; and what it does with bad gradients."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core_parts import sample_of
from selfdistill.losses import (
    LossSpec,
    TokenMask,
    denominators,
)
from selfdistill.models.batching import tokens_read
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.training.forward import behaviour_pass, reference_pass
from selfdistill.training.update import micro_batches, update_policy
from selfdistill.types import TokenIds
from step_parts import (
    ANSWERS,
    PROMPTS,
    TOLD,
    Caught,
    assert_same,
    batch_of,
    behaviour_logprobs,
    distilled,
    divergence,
    kl,
    literal_gradients,
    moved,
    precise,
    probabilities,
    update,
    weighed,
)


@pytest.mark.parametrize("tokens", [1, 12, 25, 10_000])
@pytest.mark.parametrize("reduction", ["sequence-mean", "token-mean"])
def test_micro_batches_and_order_change_nothing(tiny_policy, tokens: int, reduction: str) -> None:
    policy = precise(tiny_policy("gemma2"))
    teacher = Teacher(Frozen(), policy)
    moved(policy)
    samples = distilled(advantage=0.4)
    batch = batch_of(policy, teacher, samples, reduction=reduction)
    wanted_report, wanted = update(policy, batch)
    shuffled = random.Random(tokens).sample(samples, 3)
    report, found = update(policy, replace(batch, samples=shuffled), tokens=tokens)
    assert report.loss == pytest.approx(wanted_report.loss, rel=1e-6)
    assert report.log_ratio.keys() == wanted_report.log_ratio.keys()
    for uid, row in report.log_ratio.items():
        assert row == pytest.approx(wanted_report.log_ratio[uid], rel=1e-6)
    assert_same(found, wanted)  # the models' norms compute in float32


def test_micro_batches_hold_every_sample_once_within_their_budget() -> None:
    samples = [sample_of(f"s{n}", (n % 7,) * (n % 7 + 1), (2,) * (n % 5 + 1)) for n in range(40)]
    for shares, fewest in ((True, 8), (False, 9)):
        parts = micro_batches(samples, 24, shares=shares)
        assert sorted(s.uid for part in parts for s in part) == sorted(s.uid for s in samples)
        pairs = [[(s.student_prompt_ids, s.completion_ids) for s in part] for part in parts]
        assert all(tokens_read(part, shares=shares) <= 24 for part in pairs)
        assert fewest <= len(parts) < 20


def test_rollouts_of_one_prompt_are_learned_from_behind_one_reading_of_it(tiny_policy, monkeypatch) -> None:
    """Prompts of 40 tokens with four answers of up to 9: 40 + 8 + 8 + 6 + 6 tokens are read, not 188."""
    policy, read = precise(tiny_policy()), []
    prompt, backbone = tuple(range(60, 100)), policy.backbone
    samples = [sample_of(f"s{n}", prompt, tuple(range(100, 109 - n % 3)), advantage=1.0 - n) for n in range(4)]
    batch = weighed(samples, sampler_correction=False)
    wanted_report, wanted = update(policy, batch, tokens=1)
    monkeypatch.setattr(
        policy, "backbone", lambda ids_BL, *rest: (read.append(ids_BL.shape), backbone(ids_BL, *rest))[1]
    )
    report, found = update(policy, batch)
    assert read == [(1, 40), (4, 8)]
    assert report.loss == pytest.approx(wanted_report.loss, rel=1e-6)
    assert_same(found, wanted)


def test_one_long_answer_weighs_as_much_as_a_short_one_or_as_its_tokens(tiny_policy) -> None:
    """Advantages 1 on both answers: the loss −Σ w·A is −1 for either mean, the gradient differs."""
    policy = precise(tiny_policy())
    samples = [sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], advantage=1.0) for i in (0, 1)]
    reports = {
        how: update(policy, weighed(samples, reduction=how, sampler_correction=False))
        for how in ("sequence-mean", "token-mean")
    }
    assert [report.loss for report, _ in reports.values()] == pytest.approx([-1.0, -1.0])
    log_p = [probabilities(policy.base, s.student_prompt_ids, s.completion_ids).log() for s in samples]
    chosen = [row[range(len(s.completion_ids)), s.completion_ids] for row, s in zip(log_p, samples, strict=True)]
    wanted = {
        "sequence-mean": -(chosen[0].sum() / 4 + chosen[1].sum() / 12),
        "token-mean": -(chosen[0].sum() + chosen[1].sum()) / 8,
    }
    for how, (_, found) in reports.items():
        named = policy.trainable()
        grads = torch.autograd.grad(wanted[how], list(named.values()), retain_graph=True)
        assert_same(found, dict(zip(named, grads, strict=True)))


def test_dropped_answers_dilute_the_mean_only_when_counted(tiny_policy) -> None:
    policy = precise(tiny_policy())
    teacher = Teacher(Frozen(), policy)
    moved(policy)
    samples = distilled()
    batch = batch_of(policy, teacher, samples)
    full = update(policy, batch)[0].loss
    over = denominators([2, 6, 3], [4, 4, 4], count_dropped=True)
    diluted = weighed(samples, over, teacher=batch.teacher, sampler_correction=False)
    assert update(policy, diluted)[0].loss == pytest.approx(full / 2, rel=1e-6)


def test_looking_ahead_holds_the_states_of_one_budget_at_a_time_and_keeps_siblings_together(
    tiny_policy, monkeypatch
) -> None:
    """Three questions with three answers each, of 2, 6 and 3 tokens: 11 tokens a question, two questions in 24."""
    policy = precise(tiny_policy())
    samples = [sample_of(f"q{q}a{a}", PROMPTS[q], ANSWERS[a]) for a in range(3) for q in range(3)]
    whole, read, asked = behaviour_logprobs(policy, samples), policy.answer_hidden, []

    def watched(pairs: list[tuple[TokenIds, TokenIds]], tokens: int) -> Tensor:
        asked.append([prompt for prompt, _ in pairs])
        return read(pairs, tokens)

    monkeypatch.setattr(policy, "answer_hidden", watched)
    stats = behaviour_pass(policy, [LossSpec()], samples, [], 24)
    found = {uid: numbers.logprobs_N for uid, numbers in stats.items()}
    assert asked == [[PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, [PROMPTS[2]] * 3]
    assert found.keys() == whole.keys()
    for uid, row in found.items():
        torch.testing.assert_close(row, whole[uid])


@pytest.mark.parametrize(
    "loss_spec", [LossSpec(), LossSpec(token_mask=TokenMask(skip_first=1))], ids=["plain", "weighed"]
)
def test_tokens_outside_the_spans_weigh_nothing_in_any_term(tiny_policy, loss_spec: LossSpec) -> None:
    """Tokens 1, 2 and 4 of six: divergence, advantage and reference of these alone, each 1/6."""
    policy = precise(tiny_policy())
    teacher, start = Teacher(Frozen(), policy), deepcopy(policy.base)
    moved(policy)
    credits = {"distil": 0.7, "advantage": 0.4, "reference": 0.3}
    sample = sample_of("s", PROMPTS[1], ANSWERS[1], teacher=TOLD[1], spans=((1, 3), (4, 5)), **credits)
    reference = reference_pass(policy, teacher, [sample], 10_000)
    batch = batch_of(policy, teacher, [sample], reference=reference)
    if loss_spec.needs_table:
        stats = behaviour_pass(policy, [loss_spec], [sample], batch.teacher, 10_000)
        batch = replace(batch, weights=weighed([sample], loss_spec=loss_spec, stats=stats).weights)
    report, found = update(policy, batch, loss_spec)
    p, ref = (probabilities(model, PROMPTS[1], ANSWERS[1]) for model in (policy.base, start))
    q = probabilities(start, TOLD[1], ANSWERS[1]).detach()
    log_p = p[range(6), ANSWERS[1]].log()
    each = 0.7 * divergence(0.5, p, q) - 0.4 * (log_p - log_p.detach()).exp() + 0.3 * kl(p, ref.detach())
    loss = each[[1, 2, 4]].sum() / 6
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_gradients_are_scaled_down_to_the_norm_that_is_allowed(tiny_policy) -> None:
    policy = tiny_policy()
    samples = [sample_of("s", PROMPTS[0], ANSWERS[0], advantage=50.0)]
    caught = Caught(policy)
    batch = weighed(samples, denominators([2]), sampler_correction=False)
    report = update_policy(policy, caught, [LossSpec()], batch, max_grad_norm=1.0, tokens=100)
    norm = torch.stack([value.norm() for value in caught.gradients.values()]).norm()
    assert report.grad_norm > 1
    assert float(norm) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_and_is_said(tiny_policy, poison: float) -> None:
    policy = tiny_policy()
    optimizer = torch.optim.AdamW(list(policy.trainable().values()), lr=0.1)
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    samples = [sample_of("s", PROMPTS[0], ANSWERS[0], advantage=poison)]
    batch = weighed(samples, denominators([2]), sampler_correction=False)
    report = update_policy(policy, optimizer, [LossSpec()], batch, max_grad_norm=1.0, tokens=100)
    assert report.skipped
    assert all(torch.equal(value, before[name]) for name, value in policy.trainable().items())
    assert all(value.grad is None for value in policy.trainable().values())
    assert not optimizer.state
    sane = weighed([replace(samples[0], advantage=1.0)], denominators([2]), sampler_correction=False)
    assert not update_policy(policy, optimizer, [LossSpec()], sane, max_grad_norm=1.0, tokens=100).skipped
    assert any(not torch.equal(value, before[name]) for name, value in policy.trainable().items())
