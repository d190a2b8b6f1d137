"""Growing: batches, weights of the loss, a stop that costs nothing, and a model that plain transformers loads."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.errors import RunError
from tools.sapling.grow import encode, grow, round_batches
from tools.sapling.recipe import RECIPES, SAPLING
from tools.sapling.tokenizer import build_tokenizer

TINY = replace(
    SAPLING, hidden=32, layers=1, heads=2, key_value_heads=1, intermediate=32, rounds=2, episodes_per_round=120,
    batch_tokens=640, warmup_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TINY.context_length)


def test_batches_weigh_the_answer_fully_and_the_context_less(tokenizer):
    for ids_BL, weight_BL in round_batches(TINY, tokenizer, 0):
        assert ids_BL.numel() <= max(TINY.batch_tokens, ids_BL.shape[1])
        assert ids_BL.shape[1] in TINY.buckets
        assert {round(weight, 4) for weight in weight_BL.unique().tolist()} <= {0.0, 0.3, 1.0}
        assert bool((weight_BL[:, 0] == 0).all())  # nothing predicts the first token
        assert bool((weight_BL[ids_BL == tokenizer.pad_token_id] == 0).all())
        # an answer is a fence, a head, one to three lines, a return, a fence and the end: 6 to 8 tokens
        assert set((weight_BL == 1.0).sum(1).tolist()) <= {6, 7, 8}


def test_rounds_differ_and_repeat(tokenizer):
    first, again, other = (next(iter(round_batches(TINY, tokenizer, number)))[0] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_encoded_answers_end_the_turn(tokenizer):
    from random import Random

    from tools.sapling.episodes import draw_episode

    [(ids, answer)] = encode(tokenizer, [draw_episode(Random(0))])
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[-answer:-1]).startswith("```python\ndef f(")


def test_a_stopped_growth_goes_on_to_the_same_model(tmp_path, tokenizer):
    whole = list(grow(TINY, tmp_path / "whole", device="cpu", compile_model=False))
    stopped = grow(TINY, tmp_path / "parts", device="cpu", compile_model=False)
    next(stopped)
    stopped.close()
    rest = list(grow(TINY, tmp_path / "parts", device="cpu", compile_model=False))
    assert [now.round for now in rest] == [2]
    assert rest[-1].tokens == whole[-1].tokens
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("whole", "parts")]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_a_state_that_is_damaged_or_of_another_size_is_refused(tmp_path):
    growing = grow(TINY, tmp_path, device="cpu", compile_model=False)
    next(growing)
    growing.close()
    with pytest.raises(RunError, match=r"cannot be resumed[\s\S]*state\.pt"):
        next(grow(replace(TINY, hidden=16), tmp_path, device="cpu", compile_model=False))
    (tmp_path / "state.pt").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"cannot be resumed[\s\S]*state\.pt"):
        next(grow(TINY, tmp_path, device="cpu", compile_model=False))


def test_growing_learns_and_loads_with_plain_transformers(tmp_path, tokenizer):
    recipe = replace(TINY, rounds=6)
    progress = list(grow(recipe, tmp_path, device="cpu", compile_model=False))
    assert progress[-1].answer_loss < progress[0].answer_loss - 1
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.chat_template == tokenizer.chat_template
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "model").iterdir())


def test_recipes_keep_to_the_size_they_may_have():
    assert all(recipe.hidden % recipe.heads == 0 for recipe in RECIPES.values())


def test_progress_is_the_share_of_the_rounds_that_is_over() -> None:
    assert replace(RECIPES["sapling"], rounds=10).progress(3, 0.5) == pytest.approx(0.35)
