"""One update against the same sums written out with autograd, whole logits and no batching, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from core_parts import sample_of
from selfdistill.losses import (
    Additive,
    FullVocabulary,
    JensenShannon,
    LossSpec,
    PolicyGradient,
    ReverseKL,
    TopK,
    denominators,
)
from selfdistill.losses import divergence as shape_of
from selfdistill.models.load import LoraOptions
from selfdistill.models.teacher import Ema, Frozen, Live, Teacher, TrustRegion
from selfdistill.training.forward import behaviour_pass, reference_pass, teacher_pass
from selfdistill.training.update import micro_batches, update_policy
from selfdistill.types import TrainingSample
from step_parts import (
    ANSWERS,
    PROMPTS,
    TOLD,
    Gradients,
    assert_same,
    batch_of,
    behaviour_logprobs,
    distilled,
    divergence,
    kl,
    literal_gradients,
    moved,
    ppo_loss,
    precise,
    probabilities,
    update,
    weighed,
    whole_logits,
)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_sdpo_update_is_the_gradient_of_the_literal_loss(tiny_policy, family: str, tied: bool, alpha: float) -> None:
    policy = precise(tiny_policy(family, tied=tied))
    start, teacher = deepcopy(policy.base), Teacher(Frozen(), policy)
    moved(policy)
    samples = distilled()
    report, found = update(policy, batch_of(policy, teacher, samples), LossSpec(divergence=shape_of(alpha)))
    loss = torch.zeros((), dtype=torch.float64)
    for s in samples:
        q = probabilities(start, s.teacher_prompts[0], s.completion_ids).detach()
        p = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)
        loss = loss + divergence(alpha, p, q).mean() / 3
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_head_that_are_left_out_have_no_share_on_either_side(tiny_policy, tied: bool) -> None:
    """Softmax over the first 300 of 387 tokens, for the student and for the kept teacher."""
    policy = precise(tiny_policy(tied=tied))
    policy.vocabulary = 300
    teacher, start = Teacher(Frozen(), policy), deepcopy(policy.base)
    moved(policy)
    samples = distilled()
    report, found = update(policy, batch_of(policy, teacher, samples))
    loss = sum(
        divergence(
            0.5,
            whole_logits(policy.base, s.student_prompt_ids, s.completion_ids)[:, :300].softmax(-1),
            whole_logits(start, s.teacher_prompts[0], s.completion_ids)[:, :300].softmax(-1).detach(),
        ).mean()
        / 3
        for s in samples
    )
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_the_same_at_another_temperature_for_both(tiny_policy) -> None:
    policy = precise(tiny_policy())
    teacher, start = Teacher(Frozen(), policy), deepcopy(policy.base)
    moved(policy)
    samples = distilled()
    report, found = update(policy, batch_of(policy, teacher, samples), LossSpec(temperature=0.6))
    loss = sum(
        divergence(
            0.5,
            probabilities(policy.base, s.student_prompt_ids, s.completion_ids, 0.6),
            probabilities(start, s.teacher_prompts[0], s.completion_ids, 0.6).detach(),
        ).mean()
        / 3
        for s in samples
    )
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


@pytest.mark.parametrize("reduction", ["sequence-mean", "token-mean"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_grpo_update_is_the_gradient_of_the_literal_loss(tiny_policy, tied: bool, reduction: str) -> None:
    """Off-policy, so that ratios, clips and both importance weights act."""
    policy = precise(tiny_policy(tied=tied))
    samples = [sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], advantage=(0.75, -0.5, -0.25)[i]) for i in range(3)]
    old = behaviour_logprobs(policy, samples)
    told = [tuple((old[s.uid] - torch.tensor([0.5, -1.2] * 3)[: len(old[s.uid])]).tolist()) for s in samples]
    samples = [replace(s, sampled_logprobs=row) for s, row in zip(samples, told, strict=True)]
    moved(policy, 0.03)
    over = denominators([len(s.completion_ids) for s in samples])
    report, found = update(policy, weighed(samples, over, reduction=reduction, old_logprobs=old))
    loss, clipped = torch.zeros((), dtype=torch.float64), 0
    for s in samples:
        p = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)
        logp = p[range(len(s.completion_ids)), s.completion_ids].log()
        ratio = (logp - old[s.uid]).exp()
        clipped += int(((ratio > 1.28) | (ratio < 0.8)).sum())
        trust = (old[s.uid] - torch.tensor(s.sampled_logprobs)).exp().clamp(max=2.0)
        weight = 1 / (3 * len(s.completion_ids)) if reduction == "sequence-mean" else 1 / 11
        loss = loss + (weight * trust * ppo_loss(ratio, s.advantage)).sum()
    assert 0 < clipped < 11, "some tokens are beyond the clips, some are not"
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_a_reference_pulls_toward_the_start_as_the_literal_kl_does(tiny_policy) -> None:
    policy = precise(tiny_policy())
    reference_policy, start = Teacher(Frozen(), policy), deepcopy(policy.base)
    moved(policy)
    samples = [sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], reference=0.3) for i in range(3)]
    over = denominators([len(s.completion_ids) for s in samples])
    batch = weighed(samples, over, reference=reference_pass(policy, reference_policy, samples, 10_000))
    report, found = update(policy, batch)
    loss = torch.zeros((), dtype=torch.float64)
    for s in samples:
        p = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)
        ref = probabilities(start, s.student_prompt_ids, s.completion_ids).detach()
        loss = loss + 0.3 * kl(p, ref).mean() / 3
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_rehearsal_is_silent_at_the_start_and_brings_a_student_back_that_has_moved(tiny_policy) -> None:
    policy = tiny_policy()
    reference_policy = Teacher(Frozen(), policy)
    samples = [sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], reference=1.0) for i in range(3)]
    over = denominators([2, 6, 3])
    batch = weighed(samples, over, reference=reference_pass(policy, reference_policy, samples, 10_000))
    report, found = update(policy, batch)
    assert report.loss == 0
    assert all(not value.any() for value in found.values())
    moved(policy)
    before = update(policy, batch)[0].loss
    optimizer = torch.optim.AdamW(list(policy.trainable().values()), lr=1e-2, weight_decay=0.0)
    for _ in range(12):
        update_policy(policy, optimizer, [LossSpec()], batch, max_grad_norm=1.0, tokens=10_000)
    assert 0 < update(policy, batch)[0].loss < before / 3


def test_samples_that_ask_for_different_terms_share_one_update(tiny_policy) -> None:
    """Distilled, rewarded and replayed answers side by side: the gradients of the three parts add up."""
    policy = precise(tiny_policy())
    teacher = Teacher(Frozen(), policy)
    moved(policy)
    samples = [
        sample_of("d", PROMPTS[0], ANSWERS[0], teacher=TOLD[0], distil=1.0),
        sample_of("a", PROMPTS[1], ANSWERS[1], advantage=0.5),
        sample_of("r", PROMPTS[2], ANSWERS[2], reference=1.0),
    ]
    over = denominators([2, 6])

    def gradients(chosen: Sequence[TrainingSample]) -> Gradients:
        reference = reference_pass(policy, teacher, chosen, 10_000)
        passes = teacher_pass(policy, teacher, chosen, 10_000)
        return update(policy, weighed(chosen, over, teacher=passes, reference=reference, sampler_correction=False))[1]

    apart = [gradients([sample]) for sample in samples]
    together = gradients(samples)
    assert_same(together, {name: sum(part[name] for part in apart) for name in together}, rtol=1e-9)


@pytest.mark.parametrize("support", [FullVocabulary(), TopK(20)])
@pytest.mark.parametrize("shape", [ReverseKL(), JensenShannon(0.5)])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3"])
def test_a_live_teacher_that_knows_nothing_more_teaches_exactly_nothing(tiny_policy, family, shape, support) -> None:
    """The strictest test of alignment: any shift by a token, any difference in how the two are read would show."""
    policy = tiny_policy(family)
    samples = [sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], teacher=PROMPTS[i], distil=1.0) for i in range(3)]
    for rule in (Live(), Frozen(), TrustRegion(0.3)):
        batch = batch_of(policy, Teacher(rule, policy), samples)
        report, found = update(policy, batch, LossSpec(support, shape))
        assert report.loss == 0, rule
        assert all(not value.any() for value in found.values()), rule
        assert all(u == 0 for row in report.log_ratio.values() for u in row), rule


def test_evidence_is_the_teachers_log_probability_minus_the_students(tiny_policy) -> None:
    policy = precise(tiny_policy())
    teacher = Teacher(Frozen(), policy)
    samples = distilled()
    report, _ = update(policy, batch_of(policy, teacher, samples))
    for s in samples:
        rows = range(len(s.completion_ids))
        q = probabilities(policy.base, s.teacher_prompts[0], s.completion_ids)[rows, s.completion_ids]
        p = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)[rows, s.completion_ids]
        assert report.log_ratio[s.uid] == pytest.approx((q.log() - p.log()).tolist(), rel=1e-6, abs=1e-9)
        whole = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)
        assert report.entropies[s.uid] == pytest.approx((-whole * whole.log()).sum(-1).tolist(), rel=1e-6)


def test_evidence_is_given_of_distilled_answers_only(tiny_policy) -> None:
    policy = tiny_policy()
    teacher = Teacher(Frozen(), policy)
    samples = [*distilled()[:1], sample_of("plain", PROMPTS[1], ANSWERS[1], advantage=1.0)]
    assert update(policy, batch_of(policy, teacher, samples))[0].log_ratio.keys() == {"s0"}


def test_a_teacher_of_two_views_is_the_normalised_product_of_their_opinions(tiny_policy) -> None:
    policy = precise(tiny_policy())
    start, teacher = deepcopy(policy.base), Teacher(TrustRegion(0.3), policy)
    moved(policy)
    samples = distilled()
    batch = batch_of(policy, teacher, samples)
    assert [reading.weight for reading in batch.teacher] == pytest.approx([0.7, 0.3])
    report, found = update(policy, batch, LossSpec(divergence=ReverseKL()))
    loss = torch.zeros((), dtype=torch.float64)
    for s in samples:
        first = probabilities(start, s.teacher_prompts[0], s.completion_ids)
        now = probabilities(policy.base, s.teacher_prompts[0], s.completion_ids)
        product = first.detach() ** 0.7 * now.detach() ** 0.3
        q = product / product.sum(-1, keepdim=True)
        loss = loss + kl(probabilities(policy.base, s.student_prompt_ids, s.completion_ids), q).mean() / 3
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


@pytest.mark.parametrize("rule", [Frozen(), TrustRegion(0.3)])
@pytest.mark.parametrize("tokens", [5, 10_000], ids=["apart", "together"])
def test_several_contexts_of_an_answer_share_a_weight_of_one_whatever_is_read_beside_it(
    tiny_policy, tokens: int, rule
) -> None:
    """Two answers have two contexts and one has one: in micro-batches of like samples, and all in one."""
    policy = precise(tiny_policy())
    start, teacher = deepcopy(policy.base), Teacher(rule, policy)
    moved(policy)
    both = [(TOLD[i], (95, *TOLD[i])) for i in range(2)]
    samples = [replace(s, teacher_prompts=read) for s, read in zip(distilled(), [*both, TOLD[2:]], strict=True)]
    assert [len(part) for part in micro_batches(samples, tokens)] == ([1, 1, 1] if tokens == 5 else [3])
    report, found = update(policy, batch_of(policy, teacher, samples), LossSpec(divergence=ReverseKL()), tokens=tokens)
    loss = torch.zeros((), dtype=torch.float64)
    for s in samples:
        told = [
            probabilities(model, prompt, s.completion_ids).detach().log() * share / len(s.teacher_prompts)
            for prompt in s.teacher_prompts
            for model, share in ([(start, 0.7), (policy.base, 0.3)] if rule != Frozen() else [(start, 1.0)])
        ]
        q = sum(told).softmax(-1)
        loss = loss + kl(probabilities(policy.base, s.student_prompt_ids, s.completion_ids), q).mean() / 3
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_evidence_of_several_contexts_is_read_ahead_as_the_update_reads_it(tiny_policy) -> None:
    """A generation batch in which every answer has two contexts: both looks say the same of every token."""
    policy = precise(tiny_policy())
    teacher = Teacher(Frozen(), policy)
    moved(policy)
    samples = [replace(s, teacher_prompts=(s.teacher_prompts[0], (95, *s.teacher_prompts[0]))) for s in distilled()]
    batch = batch_of(policy, teacher, samples)
    loss_spec = LossSpec(shaping=Additive())
    stats = behaviour_pass(policy, [loss_spec], samples, batch.teacher, 10_000)
    report, _ = update(policy, batch)
    for uid, row in report.log_ratio.items():
        assert stats[uid].log_ratio_N.tolist() == pytest.approx(row)


@pytest.mark.parametrize("rule", [Live(), TrustRegion(0.5), Ema(0.5), Frozen()])
def test_a_teacher_that_was_read_stays_as_it_was_while_the_student_moves(tiny_policy, rule) -> None:
    """Several updates share one reading: the live head must have been copied, not pointed at."""
    policy = tiny_policy(tied=False)
    policy.output.bias = torch.nn.Parameter(torch.linspace(-1, 1, policy.head().vocabulary))
    samples = distilled()
    batch = batch_of(policy, Teacher(rule, policy), samples)
    before = [
        (reading.head.weight_VD.clone(), reading.head.bias_V.clone(), dict(reading.hidden)) for reading in batch.teacher
    ]
    optimizer = torch.optim.SGD(list(policy.trainable().values()), lr=0.5)
    update_policy(policy, optimizer, [LossSpec()], batch, max_grad_norm=0, tokens=10_000)
    for reading, (weight_VD, bias_V, hidden) in zip(batch.teacher, before, strict=True):
        assert torch.equal(reading.head.weight_VD, weight_VD)
        assert torch.equal(reading.head.bias_V, bias_V)
        assert all(torch.equal(reading.hidden[uid], row) for uid, row in hidden.items())
        assert not torch.equal(policy.head().weight_VD, weight_VD)
        assert not torch.equal(policy.head().bias_V, bias_V)


def test_a_live_head_is_copied_once_for_all_contexts_and_not_where_it_never_moves(tiny_policy) -> None:
    twice = [replace(s, teacher_prompts=(s.teacher_prompts[0], (95, *s.teacher_prompts[0]))) for s in distilled()]
    for lora in (None, LoraOptions(rank=2)):
        policy = tiny_policy(lora=lora)
        first, second = teacher_pass(policy, Teacher(Live(), policy), twice, 10_000)
        assert first.head.weight_VD.data_ptr() == second.head.weight_VD.data_ptr()
        live = policy.head().weight_VD.data_ptr()
        assert (first.head.weight_VD.data_ptr() == live) == (lora is not None)


def test_on_policy_the_ratio_is_exactly_one_and_later_it_is_capped(tiny_policy) -> None:
    """One update: r1 = 1 whatever the sampler said. After it, each token weighs min(π/π_old, 2)."""
    policy = precise(tiny_policy())
    teacher = Teacher(Frozen(), policy)
    samples = distilled()
    batch = batch_of(policy, teacher, samples)
    old = behaviour_logprobs(policy, samples)
    with_old = replace(batch, old_logprobs=old)
    assert update(policy, with_old)[0].loss == update(policy, batch)[0].loss
    moved(policy, 0.2)
    loss = torch.zeros((), dtype=torch.float64)
    ratios = []
    for s in samples:
        p = probabilities(policy.base, s.student_prompt_ids, s.completion_ids)
        ratio = p[range(len(s.completion_ids)), s.completion_ids] / old[s.uid].exp()
        ratios += ratio.tolist()
        passes = [reading.head.logits(reading.hidden[s.uid]).softmax(-1) for reading in batch.teacher]
        loss = loss + (ratio.detach().clamp(max=2.0) * divergence(0.5, p, passes[0])).mean() / 3
    assert max(ratios) > 2 > min(ratios)
    report, found = update(policy, with_old)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert report.clipped == pytest.approx(sum(ratio > 2 for ratio in ratios) / 11)
    assert_same(found, literal_gradients(policy, loss))


def test_the_sampler_correction_is_min_of_the_ratio_and_two(tiny_policy) -> None:
    policy = precise(tiny_policy())
    (told,) = behaviour_logprobs(policy, [sample_of("s", PROMPTS[0], ANSWERS[0])]).values()
    shifted = tuple((told - torch.tensor([1.5, -0.5])).tolist())  # π/π_sampler = e^1.5 > 2 and e^-0.5
    samples = [sample_of("s", PROMPTS[0], ANSWERS[0], logprobs=shifted, advantage=1.0)]
    report, _ = update(policy, weighed(samples, denominators([2])))
    assert report.loss == pytest.approx(-(2.0 + 0.60653066) / 2, rel=1e-6)
    assert update(policy, weighed(samples, denominators([2]), sampler_correction=False))[0].loss == pytest.approx(-1.0)


def test_under_lora_only_the_adapter_gets_a_gradient_and_it_is_the_literal_one(tiny_policy) -> None:
    policy = precise(tiny_policy(lora=LoraOptions(rank=2, alpha=4)))
    teacher = Teacher(Frozen(), policy)
    moved(policy)
    with teacher.applied(policy, teacher.views()[0]):
        start = [probabilities(policy.base, s.teacher_prompts[0], s.completion_ids) for s in distilled()]
    samples = distilled()
    report, found = update(policy, batch_of(policy, teacher, samples))
    assert all("lora_" in name for name in found)
    loss = sum(
        divergence(0.5, probabilities(policy.base, s.student_prompt_ids, s.completion_ids), q).mean() / 3
        for s, q in zip(samples, start, strict=True)
    )
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same(found, literal_gradients(policy, loss))


def test_no_gradient_reaches_the_teacher(tiny_policy) -> None:
    policy = tiny_policy()
    for rule in (Live(), Frozen(), TrustRegion(0.5)):
        for reading in batch_of(policy, Teacher(rule, policy), distilled()).teacher:
            assert not reading.head.weight_VD.requires_grad
            assert not any(row.requires_grad for row in reading.hidden.values())


def test_an_update_leaves_the_student_closer_to_its_teacher(tiny_policy) -> None:
    policy = tiny_policy()
    batch = batch_of(policy, Teacher(Frozen(), policy), distilled())
    optimizer = torch.optim.SGD(list(policy.trainable().values()), lr=0.01)
    loss_spec = LossSpec(policy=PolicyGradient())
    losses = [
        update_policy(policy, optimizer, [loss_spec], batch, max_grad_norm=0, tokens=10_000).loss for _ in range(4)
    ]
    assert losses == sorted(losses, reverse=True)
