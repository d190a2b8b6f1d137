"""What the embedded model has words for."""

import random

import pytest
from transformers import AutoTokenizer

from selfdistill.analysis.credit_source import EXAMPLE, foreign_words
from selfdistill.models.load import _sapling
from tools.sapling.episodes import MAKERS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(_sapling("sapling"))


def test_it_knows_every_word_that_it_grew_on(tokenizer):
    rng = random.Random(3)
    makers = [maker for maker in MAKERS for _ in range(3)]
    episodes = [maker(rng) for maker in makers]
    texts = [text for e in episodes for text in (e.answer, *(message.content for message in e.messages))]
    assert foreign_words(tokenizer, texts) == []


def test_it_has_no_words_for_anything_else(tokenizer):
    assert foreign_words(tokenizer, [EXAMPLE.question, EXAMPLE.context.feedback]) == [
        "function", "that", "returns", "numbers", "Don", "include",
    ]  # fmt: skip
    assert foreign_words(tokenizer, ["Grüße, 'Anna' isn't here", "12 + 3 = ["]) == ["Grüße", "isn", "here"]
