"""The sapling's tokenizer: everything survives it, and what recurs is one token."""

import json
import random

import pytest

from selfdistill.envs.verbs.lexicon import held_out_words, known_words
from selfdistill.envs.verbs.operations import OPERATIONS
from selfdistill.models.load import _sapling
from tools.sapling.episodes import MAKERS, draw_episode
from tools.sapling.recipe import RECIPES
from tools.sapling.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(1024)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_every_kind_of_episode_survives(tokenizer, maker):
    rng = random.Random(1)
    for _ in range(20):
        episode = maker(rng)
        for text in (episode.answer, *(message.content for message in episode.messages)):
            assert tokenizer.decode(ids(tokenizer, text)) == text


def test_lines_of_programs_and_numbers_are_one_token(tokenizer):
    lines = [operation.line for operations in OPERATIONS.values() for operation in operations]
    assert {len(ids(tokenizer, line)) for line in lines} == {1}
    assert {len(ids(tokenizer, str(number))) for number in range(-99, 1000)} == {1}
    # "[", "3", ", 1", ", 12", "]": a list costs two tokens more than it has items
    assert len(ids(tokenizer, "[3, 1, 12]")) == 5


def test_fresh_words_are_cut_like_known_ones(tokenizer):
    """Else a word would give away whether it means anything."""

    def mean_length(words):
        return sum(len(ids(tokenizer, f" {word}")) for word in words) / len(words)

    assert mean_length(held_out_words()) == pytest.approx(mean_length(known_words()), abs=0.1)


def test_letters_within_quotes_stay_apart(tokenizer):
    # the quotes and five letters: a program over letters must see each of them
    assert len(ids(tokenizer, "'BACDE'")) == 7


def test_it_is_made_the_same_every_time(tokenizer):
    assert build_tokenizer(1024).get_vocab() == tokenizer.get_vocab()


def test_the_chat_template_marks_turns(tokenizer):
    episode = draw_episode(random.Random(3))
    chat = [{"role": message.role, "content": message.content} for message in episode.messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|user|>")
    assert text.endswith("<|end|><|assistant|>")
    assert text.count("<|end|>") == len(episode.messages)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_one_that_ships(tokenizer, name, tmp_path):
    """Growing makes it anew, and the models that ship read with it."""
    tokenizer.save_pretrained(tmp_path)
    ours, theirs = ((folder / "tokenizer.json").read_text() for folder in (tmp_path, _sapling(name)))
    assert json.loads(ours) == json.loads(theirs)
