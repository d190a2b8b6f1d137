"""Forward passes: sharing a prompt against reading every pair whole, in values and in tokens read; batches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import Cache

from selfdistill.models.batching import SharedBatch, length_buckets, plan_sharing, tokens_read
from selfdistill.models.load import Policy
from selfdistill.models.policy import padded, read_shared, read_unshared
from selfdistill.types import TokenIds
from tiny_models import FAMILIES

Pairs = list[tuple[TokenIds, TokenIds]]


def tokens(count: int, seed: int) -> TokenIds:
    return tuple(random.Random(seed).randrange(5, 380) for _ in range(count))


def group_members(prompt: int, answers: Sequence[int], seed: int = 0) -> Pairs:
    """Answers of these lengths to one prompt of `prompt` tokens."""
    return [(tokens(prompt, seed), tokens(length, 100 * seed + place)) for place, length in enumerate(answers)]


def alone(policy: Policy, pairs: Pairs) -> Tensor:
    """Every pair whole, by itself: no padding, no cache."""
    return torch.cat([policy.answer_hidden([pair]) for pair in pairs])


class Counted:
    """Stands before a policy's backbone and keeps the shape of every batch and how much of a cache it had before it."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[tuple[int, int]] = []
        self.behind: list[int] = []
        self.read = policy.backbone
        monkeypatch.setattr(policy, "backbone", self)

    def __call__(self, ids_BL: Tensor, cache: Cache | None = None, mask_BL: Tensor | None = None) -> Tensor:
        self.batches.append(tuple(ids_BL.shape))
        self.behind.append(cache.get_seq_length() if cache is not None else 0)
        return self.read(ids_BL, cache, mask_BL)

    @property
    def tokens(self) -> int:
        return sum(rows * length for rows, length in self.batches)


@pytest.mark.parametrize("max_tokens", [None, 150])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sharing_gives_the_states_of_every_pair_read_whole(policy_of, family: str, max_tokens: int | None) -> None:
    """Prompts shorter and longer than the window (16), padded beside each other; answers of one token and of many;
    a prompt that nobody shares; group members that are not neighbours."""
    policy = policy_of(family)
    pairs = [
        *group_members(40, [1, 2, 9, 30], seed=1),
        *group_members(33, [60, 1, 3], seed=2),
        *group_members(12, [20, 20], seed=3),
        *group_members(25, [6], seed=4),
        *group_members(40, [5, 17], seed=1),
    ]
    assert plan_sharing(pairs, max_tokens)
    torch.testing.assert_close(policy.answer_hidden(pairs, max_tokens), alone(policy, pairs), atol=1e-5, rtol=1e-5)
    policy.launched = 10_000  # as on an accelerator, where short and long ones are read together
    torch.testing.assert_close(policy.answer_hidden(pairs, max_tokens), alone(policy, pairs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sharing_holds_up_to_the_end_of_the_context(policy_of) -> None:
    """A row of 256 tokens fills the context; padding beside it reaches past the end."""
    policy = policy_of()
    pairs = group_members(200, [56, 50], seed=1) + group_members(190, [56, 40], seed=2)
    torch.testing.assert_close(policy.answer_hidden(pairs), alone(policy, pairs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_fresh_and_a_moved_adapter_share_too(adapted) -> None:
    pairs = group_members(30, [4, 8, 2], seed=1)
    for value in adapted.trainable().values():
        value.add_(0.05)
    torch.testing.assert_close(adapted.answer_hidden(pairs), alone(adapted, pairs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sharing_in_bfloat16_stays_within_its_precision(policy_of) -> None:
    policy = policy_of(dtype="bfloat16")
    pairs = group_members(30, [4, 8, 2], seed=1)
    differences = (policy.answer_hidden(pairs) - alone(policy, pairs)).float().abs()
    assert differences.max() < 0.5
    assert differences.mean() < 0.02


@torch.no_grad()
def test_an_accelerator_reads_long_and_short_rows_together(policy, monkeypatch) -> None:
    pairs = [pair for seed in range(6) for pair in group_members(10 + 20 * seed, [4], seed=seed)]
    counted = Counted(policy, monkeypatch)
    policy.answer_hidden(pairs)
    assert counted.batches == [(1, 13), (2, 53), (2, 93), (1, 113)]
    policy.launched = 6 * 113
    policy.answer_hidden(pairs)
    assert counted.batches[4:] == [(6, 113)]


@torch.no_grad()
def test_a_prompt_of_eight_answers_is_read_once(policy, monkeypatch) -> None:
    counted = Counted(policy, monkeypatch)
    policy.answer_hidden(group_members(40, [11] * 8))
    assert counted.batches == [(1, 40), (8, 10)]  # the last token of an answer predicts nothing
    assert counted.tokens == 40 + 8 * 10  # read whole: 8 · 50 = 400
    assert counted.behind == [0, 40]


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages behind these tensors."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@torch.no_grad()
def test_states_that_are_kept_hold_no_batch_alive(policy) -> None:
    """8 answers of 3 tokens behind 60 hold 8 · 3 states of 32 numbers; as views they held 8 · 62. Shared, they are
    the same; answers of one token look at one state, the last of their prompt."""
    pairs = group_members(60, [3] * 8)
    assert held(read_unshared(policy, pairs, range(8), None).values()) == 8 * 3 * 32 * 4
    for length in (3, 1):
        short = group_members(60, [length] * 8)
        [batch] = plan_sharing(short)
        assert held(read_shared(policy, short, batch).values()) == (8 * 3 if length == 3 else 1) * 32 * 4


@torch.no_grad()
def test_answers_of_one_token_cost_their_prompt_alone(policy, monkeypatch) -> None:
    counted = Counted(policy, monkeypatch)
    assert policy.answer_hidden(group_members(40, [1] * 8)).shape == (8, 32)
    assert counted.batches == [(1, 40)]


def test_with_gradients_a_prompt_is_read_once_too(policy_of, monkeypatch) -> None:
    policy = policy_of("gemma3")
    pairs, gradients = group_members(40, [11, 1, 30, 7]), []
    for read in (policy.answer_hidden, partial(alone, policy)):
        read(pairs).square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in policy.trainable().items()})
        policy.model.zero_grad()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-4, rtol=1e-4)
    counted = Counted(policy, monkeypatch)
    policy.answer_hidden(pairs)
    assert counted.batches == [(1, 40), (2, 10), (1, 29)]


@torch.no_grad()
def test_what_different_prompts_begin_with_is_read_once(policy, monkeypatch) -> None:
    """Three contexts of 20 tokens behind a question of 50, two behind another, all behind a system message of 5."""
    system, pairs = tokens(5, 0), []
    for question, contexts in ((1, 3), (2, 2)):
        asked = system + tokens(45, question)
        pairs += [(asked + tokens(20, 10 * question + n), tokens(11, n)) for n in range(contexts)]
    pairs.append((pairs[0][0], tokens(4, 9)))
    wanted = alone(policy, pairs)
    counted = Counted(policy, monkeypatch)
    torch.testing.assert_close(policy.answer_hidden(pairs), wanted, atol=1e-5, rtol=1e-5)
    assert counted.batches == [(2, 50), (6, 30)]
    assert tokens_read(pairs, shares=True) == 100 + 180
    assert tokens_read(pairs, shares=False) == 6 * 80


@torch.no_grad()
def test_one_long_answer_is_not_paid_for_by_the_others(policy, monkeypatch) -> None:
    """32 answers, 4 to each of 8 prompts of 40 tokens; a quarter has 101 tokens, the rest 7: mean/max is 0.3."""
    counted = Counted(policy, monkeypatch)
    pairs = [pair for seed in range(8) for pair in group_members(40, [101, 7, 7, 7], seed=seed)]
    policy.answer_hidden(pairs, 1024)
    # With the 40 before them, 22 short answers or 7 long ones fit into a batch of 1024 tokens.
    assert counted.batches == [(8, 40), (22, 6), (2, 6), (7, 100), (1, 100)]
    assert counted.tokens == 320 + 144 + 800  # 1264; one rectangle of whole pairs: 32 · 140 = 4480


@torch.no_grad()
def test_ragged_answers_to_different_prompts_pay_for_their_padded_buckets_only(policy, monkeypatch) -> None:
    """Nothing to share, mean/max 0.3: 24 pairs of 50 tokens beside 8 of 140 cost no token more than they have."""
    counted = Counted(policy, monkeypatch)
    pairs = [pair for seed in range(32) for pair in group_members(40, [101 if seed % 4 == 0 else 11], seed=seed)]
    policy.answer_hidden(pairs, 1024)
    assert counted.batches == [(20, 50), (4, 50), (7, 140), (1, 140)]
    assert counted.tokens == 24 * 50 + 8 * 140  # 2320 of the rectangle's 32 · 140 = 4480


@torch.no_grad()
def test_no_batch_with_what_it_has_read_is_larger_than_the_budget(policy, monkeypatch) -> None:
    counted = Counted(policy, monkeypatch)
    lengths = random.Random(0)
    pairs = [
        pair
        for seed in range(6)
        for pair in group_members(lengths.randrange(20, 90), [lengths.randrange(1, 60) for _ in range(8)], seed=seed)
    ]
    policy.answer_hidden(pairs, 300)
    spent = [rows * (behind + length) for (rows, length), behind in zip(counted.batches, counted.behind, strict=True)]
    assert max(spent) <= 300
    assert sum(behind == 0 for behind in counted.behind) < len(pairs) / 8, "prompts are read once"


def test_padding_within_a_bucket_is_a_quarter_and_sixteen_tokens_at_most() -> None:
    lengths = random.Random(1)
    answers = [max(1, min(200, int(lengths.expovariate(1 / 60)))) for _ in range(64)]
    (batch,) = plan_sharing(group_members(90, answers))
    assert 0.25 < sum(answers) / len(answers) / max(answers) < 0.35
    for bucket in batch.buckets:
        longest = max(answers[index] for index in bucket) - 1
        assert all(longest <= 1.25 * (answers[index] - 1) + 16 for index in bucket)
    needed = sum(answers) - 64
    read = sum(len(bucket) * (max(answers[index] for index in bucket) - 1) for bucket in batch.buckets)
    assert needed < read < 1.25 * needed
    assert 64 * (max(answers) - 1) > 3.5 * needed  # what one rectangle would cost


def test_sharing_pays_from_a_quarter_of_the_tokens() -> None:
    """Two group members of prompt P and T = 30 tokens behind it: 2 · (P + 30) whole, P + 60 shared, P saved."""
    assert plan_sharing(group_members(29, [31, 31])) == []  # 29 of 118
    assert plan_sharing(group_members(30, [31, 31])) == [
        SharedBatch((tokens(30, 0),), ((0, 1),), {0: 0, 1: 0}, 90)
    ]  # 30 of 120


def test_a_prompt_that_occurs_once_is_no_part_of_the_plan() -> None:
    pairs = group_members(40, [4], seed=1) + group_members(50, [5, 6], seed=2) + group_members(50, [7], seed=3)
    assert [list(batch.places) for batch in plan_sharing(pairs)] == [[1, 2]]
    assert plan_sharing(pairs[:1] + pairs[3:]) == []
    assert plan_sharing([]) == []


def test_a_model_that_keeps_more_than_keys_and_values_does_not_share(policy, monkeypatch) -> None:
    """Layers that carry a recurrent state: a pad before the prompt would move it."""
    assert policy.shares_prompts
    policy.base.config.layer_types = ["linear_attention", "full_attention"]
    assert not policy.shares_prompts


def test_buckets_hold_similar_lengths_and_keep_the_order_of_equals() -> None:
    assert length_buckets([5, 90, 5, 6]) == [[0, 2, 3], [1]]


def test_a_bucket_reaches_a_quarter_and_sixteen_tokens_beyond_its_shortest() -> None:
    assert length_buckets([100, 141]) == [[0, 1]]  # 1.25 · 100 + 16 = 141
    assert length_buckets([100, 142]) == [[0], [1]]


def test_the_token_budget_counts_padding() -> None:
    assert length_buckets([4, 4, 5], max_tokens=14) == [[0, 1], [2]]  # three rows of 5 would be 15
    assert length_buckets([4, 4, 5], max_tokens=15) == [[0, 1, 2]]


def test_the_token_budget_counts_what_every_row_has_behind_it() -> None:
    assert length_buckets([4, 4, 5], max_tokens=44, behind=10) == [[0, 1], [2]]  # three rows of 15 would be 45
    assert length_buckets([4, 4, 5], max_tokens=45, behind=10) == [[0, 1, 2]]
    assert length_buckets([1, 18], behind=1000) == [[0], [1]]  # similar by their own length: 1.25 · 1 + 16 < 18


def test_a_sequence_over_the_budget_still_gets_a_bucket() -> None:
    assert length_buckets([4, 50], max_tokens=10) == [[0], [1]]


def test_no_sequences_no_buckets() -> None:
    assert length_buckets([]) == []


def test_a_batch_that_costs_no_more_than_its_launch_takes_any_length() -> None:
    assert length_buckets([5, 90, 5, 6], launched=360) == [[0, 2, 3, 1]]
    assert length_buckets([5, 90, 5, 6], launched=359) == [[0, 2, 3], [1]]
    assert length_buckets([5, 90, 5, 6], max_tokens=100, launched=360) == [[0, 2, 3], [1]], "memory bounds it"


def test_padding_is_added_on_either_side(policy) -> None:
    pad = policy.tokenizer.pad_token_id
    ids_BL, mask_BL = padded(policy, [(1, 2, 3), (4,)], "right")
    assert ids_BL.tolist() == [[1, 2, 3], [4, pad, pad]]
    assert mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids_BL, mask_BL = padded(policy, [(1, 2, 3), (4,)], "left")
    assert ids_BL.tolist() == [[1, 2, 3], [pad, pad, 4]]
    assert mask_BL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert mask_BL.dtype == torch.int64
    assert padded(policy, [(1, 2), (3, 4)], "left")[1] is None
