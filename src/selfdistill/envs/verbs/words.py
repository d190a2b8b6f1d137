"""Coined words: pronounceable, two syllables, split once for all into known, growing and held-out words."""

from __future__ import annotations

import random
from functools import cache

FIRST = 64
SECOND = 40
KNOWN = 320
HELD_OUT = 640


@cache
def all_words() -> tuple[str, ...]:
    """Every coined word, in an order that is fixed for ever."""
    rng = random.Random("coined words")
    onsets, vowels, codas = "bdfgklmnprstvz", "aeiou", "bdgklmnprst"
    first = rng.sample([o + v + c for o in onsets for v in vowels for c in codas], FIRST)
    second = rng.sample([v + c for v in vowels for c in codas], SECOND)
    words = [a + b for a in first for b in second]
    rng.shuffle(words)
    return tuple(words)


def known_words() -> tuple[str, ...]:
    """Words whose meanings the sapling learns by heart."""
    return all_words()[:KNOWN]


def held_out_words() -> tuple[str, ...]:
    """Words that never occur while the sapling grows: fresh verbs are drawn from these."""
    return all_words()[KNOWN : KNOWN + HELD_OUT]


def pretraining_words() -> tuple[str, ...]:
    """Words that mean something else in every episode of growing."""
    return all_words()[KNOWN + HELD_OUT :]
