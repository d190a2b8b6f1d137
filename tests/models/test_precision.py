"""Which numbers are rounded, and which are not. What only CUDA does is computed here by the same code on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from selfdistill.losses import LossSpec, TokenWeights, fused_loss
from selfdistill.losses.head import Head
from selfdistill.losses.teacher_mixture import TeacherStates
from selfdistill.models import precision, sampler
from selfdistill.models.kv_cache import PreallocatedCache
from selfdistill.models.load import load_policy
from selfdistill.models.precision import without_cudnn_attention
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Ema, Frozen, Teacher

BF16 = torch.bfloat16
PROMPTS = [(5, 6, 7), (9, 10, 11, 12, 13), (5, 6, 7)]


def test_a_head_of_rounded_products_sums_and_learns_in_float32() -> None:
    """Value and gradients are those of rounded factors, in float64; the master weight stays what is trained."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 16), (40, 16), (6, 16))
    hidden_ND, weight_VD, teacher_ND = (torch.randn(*shape, generator=generator) for shape in shapes)
    hidden_ND, weight_VD = hidden_ND.requires_grad_(), weight_VD.requires_grad_()
    head = Head(weight_VD, products=BF16)
    teacher = [TeacherStates(teacher_ND, head.detached())]
    weights = TokenWeights(torch.full((6,), 1 / 6))
    result = fused_loss(LossSpec(), hidden_ND, head, torch.arange(6), weights, teacher=teacher, chunk=4)
    result.loss.backward()
    h, w, t = (value.detach().to(BF16).double().requires_grad_() for value in (hidden_ND, weight_VD, teacher_ND))
    p, q = (h @ w.T).softmax(-1), (t @ w.T).softmax(-1).detach()
    m = (p + q) / 2
    loss = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
    loss.backward()
    assert float(result.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert weight_VD.grad.dtype == torch.float32
    torch.testing.assert_close(weight_VD.grad.double(), w.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hidden_ND.grad.double(), h.grad, rtol=1e-4, atol=1e-6)


def test_products_with_the_head_are_rounded_on_cuda_alone(policy_of) -> None:
    assert precision.HEAD_PRODUCTS == {("cuda", BF16): BF16}
    assert policy_of(dtype="bfloat16").head().products is None


def test_under_bfloat16_keys_and_values_take_half_the_memory_and_nothing_changes(policy_of, monkeypatch) -> None:
    """Attention rounds the keys to bfloat16 in any case."""
    policy, caches = policy_of(dtype="bfloat16"), []
    options = SamplingOptions(max_new_tokens=6)

    def sampled(kept: torch.dtype | None):
        def made(config, dtype):
            assert dtype == BF16
            caches.append(PreallocatedCache(config, kept))
            return caches[-1]

        monkeypatch.setattr("selfdistill.models.kv_cache.PreallocatedCache", made)
        return sample(policy, PROMPTS, options, seed=0, uids=["a", "b", "c"], version=0)

    assert sampled(BF16) == sampled(None)
    assert [{layer.keys.dtype for layer in cache.layers} for cache in caches] == [{BF16}, {torch.float32}]
    pairs = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13))]
    monkeypatch.setattr("selfdistill.models.batching.PAYS_FROM", -10.0)
    with torch.no_grad():
        found = policy.answer_hidden(pairs)
        monkeypatch.setattr(precision, "cache_dtype", lambda dtype: None)
        assert torch.equal(found, policy.answer_hidden(pairs))


def test_attention_is_a_fused_kernel(policy) -> None:
    assert policy.base.config._attn_implementation == "sdpa"
    assert sampler.cache_dtype(policy.dtype) is None


def test_a_loaded_model_does_not_compute_attention_by_cudnn(model_dir) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(str(model_dir), device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a kernel of CUDA")
@pytest.mark.parametrize("length", [64, 192, 704])
def test_attention_on_cuda_has_a_finite_gradient_where_a_row_scores_low_or_sees_nothing(length) -> None:
    """Keys 64 beyond a multiple of 128; scores of -120, and rows of padding, which see nothing."""
    without_cudnn_attention()
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (2, 1, length, 64)
    query, key, value = (torch.randn(shape, generator=generator, device="cuda", dtype=BF16) / 10 for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -120 * 8.0
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril().repeat(2, 1, 1, 1)
    mask[1, :, :, :20] = False
    inputs = [each.requires_grad_() for each in (query, key, value)]
    F.scaled_dot_product_attention(*inputs, attn_mask=mask).square().sum().backward()
    assert all(each.grad.isfinite().all() for each in inputs)


def test_a_shadow_that_never_moves_is_stored_in_bfloat16_where_that_is_exact(policy_of) -> None:
    policy = policy_of(dtype="bfloat16")
    for value in policy.trainable().values():
        value.data = value.data.to(BF16).float()  # as of a published model
    exact, moving = Teacher(Frozen(), policy), Teacher(Ema(), policy)
    name = next(iter(policy.trainable()))
    policy.trainable()[name].data[0] += 1e-4
    other = Teacher(Frozen(), policy)
    dtypes = [{key: value.dtype for key, value in each.state_dict().items()} for each in (exact, moving, other)]
    assert {kept[f"shadow.{name}"] for kept in dtypes[1:]} == {torch.float32}
    assert {dtype for key, dtype in dtypes[0].items() if key != "batches"} == {BF16}
    assert sum(dtype == torch.float32 for dtype in dtypes[2].values()) == 1
    exact.load_state_dict(other.state_dict())
    assert all(torch.equal(exact.state_dict()[key], value) for key, value in other.state_dict().items())
