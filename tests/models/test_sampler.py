from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfdistill.errors import ConfigError, ModelError
from selfdistill.losses.head import Head
from selfdistill.models import sampler
from selfdistill.models.kept_states import KeptStates
from selfdistill.models.kv_cache import PreallocatedCache
from selfdistill.models.load import LoraOptions, Policy, load_policy
from selfdistill.models.sampler import SamplingOptions, inverse_draw, normalised, nucleus, sample
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.types import Completion, StopReason, TokenIds
from tiny_models import FAMILIES, padded, tiny_policy_dir


def prompts_of(policy: Policy) -> list[TokenIds]:
    """Lengths from 7 to 28 tokens, one of them twice, longer and shorter than the sliding window of 16."""
    return [tuple(policy.tokenizer("What is seven plus five? " * times).input_ids) for times in (1, 3, 2, 1, 4)]


def draw(policy: Policy, prompts: list[TokenIds], seed: int = 0, uids: str = "", **options) -> list[Completion]:
    """Rollout i is named after the i-th letter of `uids`."""
    names = list(uids) if uids else [f"r{index}" for index in range(len(prompts))]
    chosen = SamplingOptions(**{"max_new_tokens": 20} | options)
    return sample(policy, prompts, chosen, seed=seed, uids=names, version=3)


def trainer_logprobs(policy: Policy, prompt: TokenIds, completion: Completion, temperature: float = 1.0) -> list[float]:
    with torch.no_grad():
        logits_NV = policy.head().logits(policy.answer_hidden([(prompt, completion.token_ids)])) / temperature
    ids_N1 = torch.tensor(completion.token_ids)[:, None]
    return logits_NV.log_softmax(-1).gather(-1, ids_N1).squeeze(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_at_temperature_zero_it_samples_what_generate_samples(policy_of, family: str) -> None:
    policy = policy_of(family)
    prompts = prompts_of(policy)
    for prompt, completion in zip(prompts, draw(policy, prompts, temperature=0.0), strict=True):
        options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": sorted(policy.end_ids)}
        wanted = policy.base.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert completion.token_ids == tuple(wanted.tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_the_trainers(policy_of, family: str, temperature: float) -> None:
    policy = policy_of(family)
    prompts = prompts_of(policy)
    for prompt, completion in zip(prompts, draw(policy, prompts, temperature=temperature), strict=True):
        wanted = trainer_logprobs(policy, prompt, completion, temperature)
        assert completion.logprobs == pytest.approx(wanted, abs=3e-5)


def test_greedy_logprobs_are_those_of_temperature_one(policy) -> None:
    (prompt, *_) = prompts_of(policy)
    (completion,) = draw(policy, [prompt], temperature=0.0)
    assert completion.logprobs == pytest.approx(trainer_logprobs(policy, prompt, completion), abs=1e-5)


def test_under_bfloat16_the_two_agree_to_its_precision(policy_of) -> None:
    for lora in (None, LoraOptions(rank=2)):
        policy = policy_of(dtype="bfloat16", lora=lora)
        prompts = prompts_of(policy)
        for prompt, completion in zip(prompts, draw(policy, prompts), strict=True):
            assert completion.logprobs == pytest.approx(trainer_logprobs(policy, prompt, completion), abs=0.15)


def test_sampling_uses_the_adapter(adapted) -> None:
    prompts = prompts_of(adapted)
    before = draw(adapted, prompts, temperature=0.0)
    with torch.no_grad():
        for value in adapted.trainable().values():
            value.add_(0.3)
    after = draw(adapted, prompts, temperature=0.0)
    assert [one.token_ids for one in before] != [one.token_ids for one in after]
    assert after[1].logprobs == pytest.approx(trainer_logprobs(adapted, prompts[1], after[1]), abs=1e-5)


def test_the_seed_decides_and_the_global_generator_is_not_touched(policy) -> None:
    prompts = prompts_of(policy)
    torch.manual_seed(1)
    one = draw(policy, prompts, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, other = draw(policy, prompts, seed=5), draw(policy, prompts, seed=6)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert one == again
    assert [c.token_ids for c in one] != [c.token_ids for c in other]


def test_a_rollout_does_not_depend_on_its_neighbours(policy) -> None:
    prompts = prompts_of(policy)
    together = draw(policy, prompts, uids="abcde")
    for index, uid in enumerate("abcde"):
        (alone,) = draw(policy, [prompts[index]], uids=uid)
        assert alone.token_ids == together[index].token_ids
        assert alone.logprobs == pytest.approx(together[index].logprobs, abs=1e-5)


def test_small_batches_give_the_same_completions(policy) -> None:
    prompts = prompts_of(policy) * 3
    large, small = draw(policy, prompts), draw(policy, prompts, batch_tokens=64)
    assert [c.token_ids for c in large] == [c.token_ids for c in small]


def reads_of(policy: Policy, monkeypatch: pytest.MonkeyPatch, draws: Callable[[], list[Completion]]):
    """What `draws` returns, and the shape [rows, tokens] of everything the model read for it."""
    read: list[tuple[int, ...]] = []
    backbone = Policy.backbone

    def watched(self: Policy, ids_BL: torch.Tensor, *cache) -> torch.Tensor:
        read.append(tuple(ids_BL.shape))
        return backbone(self, ids_BL, *cache)

    with monkeypatch.context() as patched:
        patched.setattr(Policy, "backbone", watched)
        return draws(), read


def test_choosing_a_few_rows_at_a_time_changes_nothing(policy, monkeypatch) -> None:
    prompts = prompts_of(policy)
    at_once = draw(policy, prompts)
    monkeypatch.setattr(sampler, "CACHED_LOGITS", 2 * policy.head().vocabulary)
    for few, all_rows in zip(draw(policy, prompts), at_once, strict=True):
        assert few.token_ids == all_rows.token_ids
        assert few.logprobs == pytest.approx(all_rows.logprobs, abs=1e-5)


def test_the_cache_is_written_in_place_and_keeps_the_rows_it_is_given(policy) -> None:
    layer = PreallocatedCache(policy.base.config).layers[0]
    states_BHLD = torch.arange(3 * 2 * 9 * 4.0).view(3, 2, 9, 4)
    places = set()
    for token in range(9):
        keys, values = layer.update(states_BHLD[:, :, token : token + 1], -states_BHLD[:, :, token : token + 1])
        places.add(keys.data_ptr())
    assert torch.equal(keys, states_BHLD)
    assert torch.equal(values, -states_BHLD)
    assert len(places) == 2, "4 spare tokens: copied with the first, the sixth and no other"
    layer.reorder_cache(torch.tensor([2, 2, 0, 1]))
    assert torch.equal(layer.keys, states_BHLD[[2, 2, 0, 1]])
    assert torch.equal(layer.values, -states_BHLD[[2, 2, 0, 1]])


def test_answers_share_the_forward_pass_of_their_prompt_and_of_equal_beginnings(policy, monkeypatch) -> None:
    prompt = prompts_of(policy)[0]
    group, read = reads_of(policy, monkeypatch, lambda: draw(policy, [prompt] * 8))
    assert len({c.token_ids for c in group}) == 8, "group members are drawn independently"
    beginnings = [len({c.token_ids[:length] for c in group}) for length in range(1, 20)]
    assert read == [(1, len(prompt))] + [(different, 1) for different in beginnings]
    assert beginnings[0] < 8, "with this seed some begin with the same token"


def test_the_same_answer_is_written_once(policy, monkeypatch) -> None:
    prompt = prompts_of(policy)[0]
    group, read = reads_of(policy, monkeypatch, lambda: draw(policy, [prompt] * 8, temperature=0.0))
    assert len({c.token_ids for c in group}) == 1
    assert {rows for rows, _ in read} == {1}


def test_no_step_is_spent_on_a_finished_row(policy, monkeypatch) -> None:
    """With every other token ending the turn, rows finish at about half their number per step."""
    policy.end_ids = frozenset(range(0, len(policy.tokenizer), 2))
    prompts = prompts_of(policy) * 8
    completions, read = reads_of(policy, monkeypatch, lambda: draw(policy, prompts))
    answers = [(prompt, c.token_ids) for prompt, c in zip(prompts, completions, strict=True)]
    longest = max(len(ids) for _, ids in answers)
    # A token is read only where another follows it.
    unfinished = [{(prompt, ids[:end]) for prompt, ids in answers if len(ids) > end} for end in range(1, longest)]
    assert read[1:] == [(len(different), 1) for different in unfinished]
    for prompt, completion in zip(prompts, completions, strict=True):
        *before, last = completion.token_ids
        assert not policy.end_ids.intersection(before)
        assert (last in policy.end_ids) == (completion.stop is StopReason.END)
        assert completion.logprobs == pytest.approx(trainer_logprobs(policy, prompt, completion), abs=1e-5)


def test_the_end_token_is_kept_in_the_ids_and_left_out_of_the_text(policy) -> None:
    (prompt, *_) = prompts_of(policy)
    (free,) = draw(policy, [prompt])
    end = free.token_ids[5]
    assert end not in free.token_ids[:5]
    policy.end_ids = frozenset({end})
    (stopped,) = draw(policy, [prompt])
    assert stopped.token_ids == free.token_ids[:6]
    assert stopped.stop is StopReason.END
    assert free.stop is StopReason.LENGTH
    assert len(free.token_ids) == 20


def test_special_tokens_are_not_part_of_the_text(policy) -> None:
    rare = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        policy.base.model.norm.weight.zero_()  # every next token equally likely, so the first (a special one) is taken
    (completion,) = draw(policy, [prompts_of(policy)[0]], temperature=0.0, max_new_tokens=2)
    assert completion.token_ids == (0, 0)
    assert rare not in completion.token_ids
    assert completion.text == ""


def test_the_record_names_the_rollout_and_its_weights(policy) -> None:
    (completion,) = draw(policy, [prompts_of(policy)[0]], uids="z")
    assert (completion.uid, completion.policy_version) == ("z", 3)
    assert completion.text == policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_an_answer_ends_where_the_context_does(policy) -> None:
    long, short = (5,) * 250, (5,) * 240
    completions = draw(policy, [long, short], max_new_tokens=10)
    assert [len(c.token_ids) for c in completions] == [6, 10]
    assert completions[0].stop is StopReason.LENGTH


def test_a_prompt_that_fills_the_context_or_is_empty_is_refused(policy) -> None:
    with pytest.raises(ModelError, match="256 tokens"):
        draw(policy, [(5,) * 256])
    with pytest.raises(ModelError, match="empty"):
        draw(policy, [()])


def test_rows_of_the_head_beyond_the_tokenizer_are_never_sampled(shelf, tmp_path) -> None:
    """They are the likeliest rows by far here; a published head's are random, and of a tenth of the mass in some."""
    directory = padded(tiny_policy_dir(shelf, tied=False), tmp_path / "padded", 13)
    raw = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        raw.lm_head.weight[-13:] = 20 * raw.lm_head.weight[5:18]
    raw.save_pretrained(directory)
    policy = load_policy(str(directory), device="cpu")
    words = len(policy.tokenizer)
    prompts = prompts_of(policy)
    assert raw(torch.tensor([prompts[0]])).logits.argmax(-1).max() >= words
    for options in ({}, {"temperature": 0.0}, {"top_p": 0.9}):
        for prompt, completion in zip(prompts, draw(policy, prompts, **options), strict=True):
            assert max(completion.token_ids) < words
            if "top_p" not in options:
                assert completion.logprobs == pytest.approx(trainer_logprobs(policy, prompt, completion), abs=1e-4)
    teacher = Teacher(Frozen(), policy)
    with teacher.applied(policy, teacher.views()[0]) as reader:
        assert reader.head().vocabulary == policy.head().vocabulary == words


def test_no_prompts_no_completions(policy) -> None:
    assert draw(policy, []) == []


def test_draws_follow_the_probabilities() -> None:
    """100,000 evenly spaced uniform numbers fall on each token as often as its probability says."""
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform_B = torch.arange(100_000, dtype=torch.float64) / 100_000
    counts = inverse_draw(probabilities.expand(100_000, 4), uniform_B).bincount(minlength=4)
    assert counts.tolist() == pytest.approx([10_000, 0, 60_000, 30_000], abs=2)


def test_a_token_of_probability_zero_is_never_drawn_at_the_edges() -> None:
    probabilities_BV = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    edges_B = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert inverse_draw(probabilities_BV, edges_B).tolist() == [1, 1]


def test_every_token_of_a_large_vocabulary_can_be_drawn() -> None:
    """150,000 tokens of 6.7e-9 each share a thousandth of the mass; float32 holds 16,778 numbers in that thousandth."""
    rare = 150_000
    probabilities_V = torch.full((rare + 1,), 1e-3 / rare)
    probabilities_V[0] = 0.999
    shares = probabilities_V.double() / probabilities_V.double().sum()
    places_B = torch.arange(0, rare, 1_000)
    uniform_B = shares[0] + shares[1] * (places_B.double() + 0.5)
    drawn_B = inverse_draw(probabilities_V.expand(len(places_B), -1), uniform_B)
    assert torch.equal(drawn_B, places_B + 1)


def test_draws_are_those_of_one_running_sum_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities_BV = torch.randn(64, 3 * sampler.BLOCK + 17, generator=generator).mul(3).softmax(-1)
    uniform_B = torch.rand(64, generator=generator, dtype=torch.float64)
    running_BV = probabilities_BV.double().cumsum(-1)
    wanted_B = (running_BV <= uniform_B[:, None] * running_BV[:, -1:]).sum(-1)
    assert torch.equal(inverse_draw(probabilities_BV, uniform_B), wanted_B)


def test_answers_are_drawn_with_more_bits_than_float32_has(policy, monkeypatch) -> None:
    used: list[torch.Tensor] = []
    monkeypatch.setattr(sampler, "inverse_draw", lambda p, u: used.append(u) or inverse_draw(p, u))
    draw(policy, prompts_of(policy))
    scaled = torch.cat(used) * 2**24
    assert not (scaled == scaled.round()).any()


def test_a_head_in_bfloat16_is_multiplied_without_a_copy_of_all_of_it(monkeypatch) -> None:
    """1,300 tokens: three parts. The products are those of the converted weight, in the same order of summation."""
    weight_VD, hidden_ND = torch.randn(1300, 16).bfloat16(), torch.randn(5, 16)
    sizes: list[int] = []
    converted = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: sizes.append(len(self)) or converted(self))
    with torch.no_grad():
        found = Head(weight_VD).logits(hidden_ND)
    monkeypatch.undo()
    assert max(sizes) == 512
    torch.testing.assert_close(found, hidden_ND @ weight_VD.float().T)
    hidden_ND.requires_grad_(True)
    Head(weight_VD).logits(hidden_ND).sum().backward()
    torch.testing.assert_close(hidden_ND.grad, weight_VD.float().sum(0).expand(5, 16))


def test_log_probabilities_over_a_large_vocabulary_keep_their_digits() -> None:
    logits_BV = torch.randn(4, 152_000, generator=torch.Generator().manual_seed(0)) * 3
    wanted_BV = logits_BV.double().log_softmax(-1)
    assert (normalised(logits_BV) - wanted_BV).abs().max() < 5e-6


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logprobs_BV = torch.tensor([[0.5, 0.2, 0.3]]).log()
    assert nucleus(logprobs_BV, 0.49).exp().tolist() == [pytest.approx([1.0, 0.0, 0.0])]
    assert nucleus(logprobs_BV, 0.6).exp().tolist() == [pytest.approx([0.625, 0.0, 0.375])]  # 0.5/0.8, 0.3/0.8
    torch.testing.assert_close(nucleus(logprobs_BV, 1.0), logprobs_BV)


def test_top_p_logprobs_are_those_of_the_nucleus(policy) -> None:
    prompt = prompts_of(policy)[0]
    (completion,) = draw(policy, [prompt], top_p=0.3)
    full = trainer_logprobs(policy, prompt, completion)
    assert all(inside >= whole - 1e-5 for inside, whole in zip(completion.logprobs, full, strict=True))
    # A nucleus of 0.3 holds between 0.3 and 1, so renormalising adds at most log(1/0.3).
    gains = [inside - whole for inside, whole in zip(completion.logprobs, full, strict=True)]
    assert max(gains) <= -math.log(0.3) + 1e-5
    assert max(gains) > 0.1


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_options_check_their_ranges(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SamplingOptions(**{"max_new_tokens": 4} | options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_continued_from_what_was_read_of_it(policy_of, family: str, monkeypatch) -> None:
    """Three turns: the same tokens as without states, log-probabilities of a whole reading, fewer tokens read."""
    policy = policy_of(family)
    prompts, whole, read = prompts_of(policy), prompts_of(policy), list[int]()
    kept = KeptStates(room=10_000)
    counted = Policy.backbone

    def count(self, ids_BL, *rest):
        read.append(ids_BL.shape[1])
        return counted(self, ids_BL, *rest)

    monkeypatch.setattr(Policy, "backbone", count)
    options, names = SamplingOptions(max_new_tokens=6), list("abcde")
    for turn in range(3):
        uids = [f"{name}{turn}" for name in names]
        read.clear()
        found = sample(policy, prompts, options, seed=0, uids=uids, version=0, kept=kept, threads=names)
        longest = max(read)
        again = sample(policy, whole, options, seed=0, uids=uids, version=0)
        assert [done.token_ids for done in found] == [done.token_ids for done in again]
        for prompt, done in zip(prompts, found, strict=True):
            assert done.logprobs == pytest.approx(trainer_logprobs(policy, prompt, done), abs=3e-5)
        if turn and not family.startswith("gemma"):  # layers with a sliding window are read again
            assert longest <= 6, "only the last token and the observation are read"
        prompts = [(*prompt, *done.token_ids, *prompt[:4]) for prompt, done in zip(prompts, found, strict=True)]
        whole = list(prompts)


def test_states_of_conversations_are_bounded_and_belong_to_their_ids(policy) -> None:
    kept = KeptStates(room=50)
    prompts = prompts_of(policy)
    options = SamplingOptions(max_new_tokens=4)
    sample(policy, prompts, options, seed=0, uids=list("abcde"), version=0, kept=kept, threads=list("abcde"))
    lengths = [len(state.ids) for state in kept.states.values()]
    assert 0 < len(lengths) < 5
    assert kept.room == 50 - sum(lengths)
    name, state = next(iter(kept.states.items()))
    assert kept.take(name, (*state.ids[:-1], 1, 2, 3)) is None, "another history"
    assert kept.room == 50 - sum(lengths[1:])
    assert kept.take(name, state.ids) is None
