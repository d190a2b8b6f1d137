"""The fused kernel against autograd through textbook formulas, and reading without learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import textbook
import torch
from kernel_runs import run
from torch import Tensor

from selfdistill.losses import (
    FullVocabulary,
    Head,
    LossSpec,
    ReferenceKL,
    ReverseKL,
    SampledToken,
    Support,
    TeacherStates,
    TokenWeights,
    TopK,
    divergence,
    fused_loss,
)

Outcomes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SUPPORTS: dict[str, tuple[Support, Outcomes]] = {
    "full": (FullVocabulary(), lambda p, q: (p, q)),
    "top3-tail": (TopK(3), lambda p, q: textbook.top_k_with_tail(p, q, 3)),
    "top3-renormalised": (TopK(3, tail=False), lambda p, q: textbook.top_k_renormalised(p, q, 3)),
}


def assert_same_gradients(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("softcap", "bias", "scale"), [(None, False, 1.0), (None, True, 0.4), (3.0, False, 1.0), (3.0, True, 0.4)]
)
def test_loss_and_gradients_equal_autograd(
    alpha: float, support: str, temperature: float, softcap: float | None, bias: bool, scale: float
) -> None:
    case = textbook.problem(bias=bias, softcap=softcap, scale=scale)
    ours, outcomes = SUPPORTS[support]
    p, q = (textbook.probabilities(v.hidden_ND, v.head, temperature) for v in (case, case.teacher))
    expected = (case.weight_N * textbook.divergence(alpha, *outcomes(p, q))).sum()
    result = run(case, LossSpec(support=ours, divergence=divergence(alpha), temperature=temperature), chunk=4)
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    assert_same_gradients(textbook.gradients(result.loss, case), textbook.gradients(expected, case))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_sampled_token_equals_its_surrogate(temperature: float, softcap: float | None) -> None:
    case = textbook.problem(bias=True, softcap=softcap)
    at = (torch.arange(6), case.tokens_N)
    p, q = (textbook.probabilities(v.hidden_ND, v.head, temperature)[at] for v in (case, case.teacher))
    surrogate = (case.weight_N * (p / q).log().detach() * p.log()).sum()
    result = run(case, LossSpec(support=SampledToken(), divergence=ReverseKL(), temperature=temperature))
    torch.testing.assert_close(result.loss, (case.weight_N * (p / q).log()).sum())
    assert_same_gradients(textbook.gradients(result.loss, case), textbook.gradients(surrogate, case))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("support", SUPPORTS)
def test_low_precision_inputs_are_computed_in_float32(
    dtype: torch.dtype, tolerance: float, alpha: float, support: str
) -> None:
    """Against float64 on the same rounded inputs: the loss is exact to float32, gradients to their own format."""
    case = textbook.problem(dtype=dtype, bias=True, softcap=3.0)
    exact = replace(
        case,
        hidden_ND=case.hidden_ND.detach().double().requires_grad_(),
        head=_double(case.head),
        teacher=TeacherStates(case.teacher.hidden_ND.double(), _double(case.teacher.head)),
    )
    ours, outcomes = SUPPORTS[support]
    p, q = (textbook.probabilities(v.hidden_ND, v.head) for v in (exact, exact.teacher))
    expected = (case.weight_N * textbook.divergence(alpha, *outcomes(p, q.detach()))).sum()
    result = run(case, LossSpec(support=ours, divergence=divergence(alpha)), chunk=4)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss.double(), expected, rtol=0, atol=1e-5)
    gradients = textbook.gradients(result.loss, case)
    assert {g.dtype for g in gradients} == {dtype}
    assert_same_gradients(gradients, textbook.gradients(expected, exact), tolerance)


def _double(head: Head) -> Head:
    bias = None if head.bias_V is None else head.bias_V.detach().double().requires_grad_()
    return replace(head, weight_VD=head.weight_VD.detach().double().requires_grad_(), bias_V=bias)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("support", SUPPORTS)
def test_gradient_equals_finite_differences_on_five_tokens(alpha: float, support: str) -> None:
    z = torch.tensor([[1.0, 0.2, -0.5, 0.7, -1.3]], dtype=torch.float64)
    teacher = TeacherStates(
        torch.tensor([[-0.3, 1.1, 0.4, 0.0, 0.9]], dtype=torch.float64), Head(torch.eye(5).double())
    )
    loss_spec = LossSpec(support=SUPPORTS[support][0], divergence=divergence(alpha), temperature=0.8)

    def loss(hidden: Tensor) -> Tensor:
        weights = TokenWeights(distil_N=torch.ones(1).double())
        head = Head(torch.eye(5).double())
        return fused_loss(loss_spec, hidden, head, torch.tensor([2]), weights, teacher=[teacher]).loss

    leaf = z.clone().requires_grad_()
    loss(leaf).backward()
    step = 1e-6
    steps = step * torch.eye(5, dtype=torch.float64)
    numeric = torch.stack([(loss(z + d) - loss(z - d)) / (2 * step) for d in steps])
    torch.testing.assert_close(leaf.grad[0], numeric, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("support", [FullVocabulary(), TopK(3), TopK(3, tail=False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_context_gives_exactly_nothing(alpha: float, support: Support, dtype: torch.dtype) -> None:
    """Teacher and student read the same: log-ratio 0, loss 0, gradient 0, to the last bit; two equal views too."""
    case = textbook.problem(positions=9, vocabulary=33, dtype=dtype, bias=True, softcap=5.0)
    itself = TeacherStates(case.hidden_ND.detach(), case.head)
    for views in ([itself], [replace(itself, weight=0.7), replace(itself, weight=0.3)]):
        result = run(
            case, LossSpec(support=support, divergence=divergence(alpha), temperature=0.7), teacher=views, chunk=4
        )
        assert result.loss.item() == 0
        assert result.stats.log_ratio_N.count_nonzero() == 0
        assert all(g.count_nonzero() == 0 for g in textbook.gradients(result.loss, case))


def test_a_shift_by_one_token_is_not_nothing() -> None:
    case = textbook.problem()
    shifted = TeacherStates(case.hidden_ND.detach().roll(1, 0), case.head)
    assert run(case, LossSpec(), teacher=[shifted]).stats.log_ratio_N.abs().min() > 1e-3


def test_no_gradient_reaches_the_teacher() -> None:
    """Check 4, first part: neither its hidden states nor its head, even where they require one."""
    case = textbook.problem()
    own = case.teacher.head.weight_VD.clone().requires_grad_()
    view = TeacherStates(case.teacher.hidden_ND.clone().requires_grad_(), Head(own))
    run(case, LossSpec(), teacher=[view]).loss.backward()
    assert view.hidden_ND.grad is None
    assert own.grad is None
    assert case.hidden_ND.grad is not None


def test_a_shared_head_learns_from_the_student_side_only() -> None:
    """Student and teacher share the head weight: its gradient is that of the student's logits alone."""
    case = textbook.problem()
    view = TeacherStates(case.teacher.hidden_ND, case.head)
    q = textbook.probabilities(view.hidden_ND, case.head).detach()
    expected = (case.weight_N * textbook.kl(textbook.probabilities(case.hidden_ND, case.head), q)).sum()
    result = run(case, LossSpec(divergence=ReverseKL()), teacher=[view])
    assert_same_gradients(textbook.gradients(result.loss, case), textbook.gradients(expected, case))


def test_tied_embeddings_collect_both_gradients() -> None:
    table = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids, teacher = torch.tensor([1, 3, 3]), TeacherStates(torch.ones(3, 4), Head(torch.ones(7, 4)))
    weights = TokenWeights(distil_N=torch.ones(3))
    hidden = table[ids].tanh()
    loss = fused_loss(LossSpec(divergence=ReverseKL()), hidden, Head(table), ids, weights, teacher=[teacher]).loss
    (ours,) = torch.autograd.grad(loss, table)
    literal = -torch.log_softmax(table[ids].tanh() @ table.T, -1).exp()
    log_p = torch.log_softmax(table[ids].tanh() @ table.T, -1)
    q = torch.full((7,), 1 / 7)
    (theirs,) = torch.autograd.grad((-literal * (log_p - q.log())).sum(), table)
    torch.testing.assert_close(ours, theirs)


def test_temperature_applies_to_student_and_teacher_alike() -> None:
    """Check 4, second part: at temperature τ both sides are softmax(z/τ), so dividing all logits by τ is the same."""
    case = textbook.problem()
    halved = replace(
        case,
        head=replace(case.head, scale=0.5),
        teacher=replace(case.teacher, head=replace(case.teacher.head, scale=0.5)),
    )
    torch.testing.assert_close(run(case, LossSpec(temperature=2.0)).loss, run(halved, LossSpec()).loss)


def test_trust_region_is_the_normalised_geometric_mixture() -> None:
    """Check 7: q ∝ q_ref^(1−ρ) q_θ^ρ in probability space; ρ = 0 and 1 are the two ends."""
    case = textbook.problem()
    other = textbook.problem(seed=1).teacher
    q_ref, q_now = (textbook.probabilities(v.hidden_ND, v.head) for v in (case.teacher, other))
    for rho in (0.0, 0.01, 0.3, 1.0):
        views = [replace(case.teacher, weight=1 - rho), replace(other, weight=rho)]
        mixture = q_ref ** (1 - rho) * q_now**rho
        mixture = mixture / mixture.sum(-1, keepdim=True)
        expected = textbook.kl(textbook.probabilities(case.hidden_ND, case.head), mixture)
        stats = run(case, LossSpec(divergence=ReverseKL()), teacher=views).stats
        torch.testing.assert_close(stats.divergence_N, expected.detach())
        chosen = mixture.gather(-1, case.tokens_N[:, None])[:, 0]
        torch.testing.assert_close(stats.teacher_logprobs_N, chosen.log())


@pytest.mark.parametrize("support", [FullVocabulary(), TopK(2), TopK(2, tail=False)], ids=str)
def test_chunk_size_changes_nothing(support: Support) -> None:
    case = textbook.problem(positions=11, bias=True, softcap=4.0)
    advantage = torch.linspace(-1, 1, 11, dtype=torch.float64)
    everything: dict[str, Any] = {
        "weights": TokenWeights(distil_N=case.weight_N, advantage_N=advantage, reference_N=case.weight_N),
        "reference": TeacherStates(case.hidden_ND.detach() * 0.5, case.head),
        "sampler_logprobs_N": torch.full((11,), -1.5, dtype=torch.float64),
    }
    loss_spec = LossSpec(support=support, reference=ReferenceKL(0.1))
    whole = run(case, loss_spec, chunk=11, **everything)
    expected = textbook.gradients(whole.loss, case)
    for chunk in (1, 2, 5, 100, None):
        cut = run(case, loss_spec, chunk=chunk, **everything)
        torch.testing.assert_close(cut.loss, whole.loss, rtol=0, atol=1e-13)
        assert_same_gradients(textbook.gradients(cut.loss, case), expected, 1e-13)
        torch.testing.assert_close(cut.stats.divergence_N, whole.stats.divergence_N, rtol=0, atol=1e-13)


def test_terms_add_up() -> None:
    """Distillation, policy gradient and reference KL together are their sum, and equal autograd through all three."""
    case = textbook.problem(bias=True)
    draw = torch.Generator().manual_seed(8)
    advantage = torch.randn(6, generator=draw, dtype=torch.float64)
    reference = TeacherStates(torch.randn(6, 4, generator=draw, dtype=torch.float64), case.teacher.head)
    p, q, p_ref = (textbook.probabilities(v.hidden_ND, v.head, 0.9) for v in (case, case.teacher, reference))
    logprob = p.log().gather(-1, case.tokens_N[:, None])[:, 0]
    expected = (
        (case.weight_N * textbook.divergence(0.5, p, q)).sum()
        + textbook.ppo_loss(logprob, logprob.detach(), case.weight_N * advantage).sum()
        + 0.03 * (case.weight_N * textbook.kl(p, p_ref)).sum()
    )
    result = run(
        case,
        LossSpec(reference=ReferenceKL(0.03), temperature=0.9),
        weights=TokenWeights(case.weight_N, case.weight_N * advantage, case.weight_N),
        reference=reference,
    )
    torch.testing.assert_close(result.loss, expected, rtol=0, atol=1e-12)
    assert_same_gradients(textbook.gradients(result.loss, case), textbook.gradients(expected, case))
    torch.testing.assert_close(result.stats.reference_N, textbook.kl(p, p_ref).detach())


def test_stats_are_the_textbook_numbers() -> None:
    case = textbook.problem()
    stats = run(case, LossSpec(temperature=0.7)).stats
    p, q = (textbook.probabilities(v.hidden_ND, v.head, 0.7).detach() for v in (case, case.teacher))
    at = (torch.arange(6), case.tokens_N)
    torch.testing.assert_close(stats.logprobs_N, p[at].log())
    torch.testing.assert_close(stats.teacher_logprobs_N, q[at].log())
    torch.testing.assert_close(stats.log_ratio_N, (q[at] / p[at]).log())
    torch.testing.assert_close(stats.entropy_N, -(p * p.log()).sum(-1))
    torch.testing.assert_close(stats.teacher_entropy_N, -(q * q.log()).sum(-1))
    torch.testing.assert_close(stats.divergence_N, textbook.divergence(0.5, p, q))
    assert not stats.logprobs_N.requires_grad


def test_numbers_of_a_term_without_weight_are_absent() -> None:
    case = textbook.problem()
    weight = torch.tensor([1.0, 0, 0, 0, 0, 0.5])
    for chunk in (1, 4, None):
        stats = run(case, LossSpec(), weights=TokenWeights(distil_N=weight), chunk=chunk).stats
        for number in (stats.divergence_N, stats.teacher_logprobs_N, stats.teacher_entropy_N, stats.log_ratio_N):
            assert torch.equal(number.isnan(), weight == 0)
        assert stats.reference_N.isnan().all()
        assert stats.logprobs_N.isfinite().all()


def test_backward_scales_with_what_comes_from_above_and_can_be_repeated() -> None:
    case = textbook.problem()
    loss = run(case, LossSpec()).loss
    one, three = (torch.autograd.grad(k * loss, case.hidden_ND, retain_graph=True)[0] for k in (1, 3))
    torch.testing.assert_close(three, 3 * one)


def test_only_what_requires_a_gradient_gets_one() -> None:
    case = textbook.problem(bias=True)
    frozen = replace(case, head=case.head.detached())
    run(frozen, LossSpec()).loss.backward()
    assert case.head.weight_VD.grad is None
    (expected,) = torch.autograd.grad(run(case, LossSpec()).loss, case.hidden_ND)
    torch.testing.assert_close(case.hidden_ND.grad, expected)
    with torch.no_grad():
        assert not run(case, LossSpec()).loss.requires_grad


def test_autocast_around_the_kernel_does_not_lower_its_precision() -> None:
    case = textbook.problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(case, LossSpec()).loss
    assert torch.equal(inside, run(case, LossSpec()).loss)


def test_padded_vocabulary_entries_stay_out() -> None:
    """A bias of −inf is a token that cannot be sampled: the loss is that of the others, and nothing becomes NaN."""
    case = textbook.problem(vocabulary=5)
    pad = torch.tensor([0.0] * 5 + [-torch.inf] * 2, dtype=torch.float64)
    padded = [
        Head(torch.cat([h.weight_VD.detach(), torch.ones(2, 4).double()]), pad) for h in (case.head, case.teacher.head)
    ]
    wide = replace(case, head=padded[0], teacher=replace(case.teacher, head=padded[1]))
    for alpha, support in product((0.0, 0.5, 1.0), (FullVocabulary(), TopK(2), TopK(6))):
        loss_spec = LossSpec(support=support, divergence=divergence(alpha))
        plain, result = run(case, loss_spec), run(wide, loss_spec)
        torch.testing.assert_close(result.loss, plain.loss)
        (ours,), (theirs,) = (torch.autograd.grad(r.loss, case.hidden_ND) for r in (result, plain))
        torch.testing.assert_close(ours, theirs)


def test_no_positions_is_a_loss_of_zero() -> None:
    case = textbook.problem(positions=0)
    result = run(case, LossSpec())
    result.loss.backward()
    assert result.loss.item() == 0
    assert result.stats.logprobs_N.shape == (0,)
    assert case.head.weight_VD.grad.count_nonzero() == 0


def test_missing_or_misaligned_inputs_are_refused() -> None:
    case = textbook.problem()
    ones = TokenWeights(distil_N=case.weight_N)
    with pytest.raises(ValueError, match="no teacher"):
        run(case, LossSpec(), teacher=[])
    with pytest.raises(ValueError, match=r"no reference, no weights\.reference_N"):
        run(case, LossSpec(reference=ReferenceKL(0.1)))
    with pytest.raises(ValueError, match=r"distil_N.*\(5,\)"):
        run(case, LossSpec(), weights=TokenWeights(distil_N=torch.ones(5)))
    with pytest.raises(ValueError, match="old_logprobs_N"):
        run(case, LossSpec(), weights=ones, old_logprobs_N=torch.ones(7))
    with pytest.raises(ValueError, match="5 positions of 7 tokens"):
        run(case, LossSpec(), teacher=[replace(case.teacher, hidden_ND=case.teacher.hidden_ND[1:])])
    with pytest.raises(ValueError, match="must sum to 1"):
        run(case, LossSpec(), teacher=[case.teacher, case.teacher])


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        LossSpec(temperature=temperature)


def test_a_negative_reference_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match="coefficient must be a number, 0 or more"):
        ReferenceKL(-0.1)


def test_logprobs_and_entropy_are_those_of_the_update() -> None:
    case = textbook.problem(bias=True, softcap=3.0)
    spec, ones = LossSpec(temperature=0.7), torch.ones(6).double()
    stats = run(case, spec, [], weights=TokenWeights(), chunk=4).stats
    logprobs, entropy = stats.logprobs_N, stats.entropy_N
    p = textbook.probabilities(case.hidden_ND, case.head, 0.7)
    torch.testing.assert_close(logprobs, p.log().gather(-1, case.tokens_N[:, None])[:, 0].detach())
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1).detach())
    assert not logprobs.requires_grad
    update = run(case, spec, weights=TokenWeights(ones, ones), chunk=4)
    assert torch.equal(update.stats.logprobs_N, logprobs)


def test_log_ratios_telescopes_to_the_odds_of_the_answer() -> None:
    """Σ u(y_t) is log of how much more likely the teacher finds the whole answer."""
    case = textbook.problem()
    seen = run(case, LossSpec(), chunk=2).stats
    at = (torch.arange(6), case.tokens_N)
    p, q = (textbook.probabilities(v.hidden_ND, v.head)[at].detach() for v in (case, case.teacher))
    torch.testing.assert_close(seen.log_ratio_N.sum(), (q.prod() / p.prod()).log())


def test_log_ratios_is_absent_where_nobody_read() -> None:
    case = textbook.problem()
    here = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    here_states = replace(case.teacher, present_N=here)
    seen = run(case, LossSpec(), [here_states], weights=TokenWeights(here.double())).stats
    whole = run(case, LossSpec()).stats
    assert torch.equal(seen.log_ratio_N.isnan(), ~here)
    torch.testing.assert_close(seen.log_ratio_N[here], whole.log_ratio_N[here])
    with pytest.raises(ValueError, match="no teacher"):
        run(case, LossSpec(), [])
