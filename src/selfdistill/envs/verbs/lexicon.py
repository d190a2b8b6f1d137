"""Coined words, the programs they stand for, and the sentences about them.

Words are pronounceable, of two syllables, split once for all into known, pretraining and held-out words.
"""

from __future__ import annotations

import random
from functools import cache

from selfdistill.envs.verbs.operations import VARIABLE, Kind
from selfdistill.envs.verbs.programs import KIND_WEIGHTS, KINDS, VerbProgram, is_held_out, program_space
from selfdistill.types import Message

STEP_WEIGHTS = (0.35, 0.45, 0.2)
NOUN: dict[Kind, str] = {"list": "list", "string": "text", "number": "number"}
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
    """Words of the lexicon, whose meanings the embedded model knows."""
    return all_words()[:KNOWN]


def held_out_words() -> tuple[str, ...]:
    """Words that the embedded model never met: fresh verbs are drawn from these."""
    return all_words()[KNOWN : KNOWN + HELD_OUT]


def pretraining_words() -> tuple[str, ...]:
    """Words that mean something else in every pretraining episode."""
    return all_words()[KNOWN + HELD_OUT :]


def draw_program(
    rng: random.Random, *, held_out: bool = False, steps: int = 0, kind: Kind | None = None
) -> VerbProgram:
    """A program of one to three steps (or exactly `steps`), from those of pretraining or from those held out."""
    kind = kind or rng.choices(KINDS, KIND_WEIGHTS)[0]
    size = steps or rng.choices((1, 2, 3), STEP_WEIGHTS)[0]
    while True:
        program = rng.choice(program_space(kind)[size])
        if size == 1 or is_held_out(program) == held_out:
            return program


@cache
def lexicon() -> dict[str, VerbProgram]:
    """The known verbs: four in ten mean one step, four in ten two, two in ten three."""
    rng = random.Random("lexicon")
    return {word: draw_program(rng, steps=(1, 1, 2, 2, 3)[n % 5]) for n, word in enumerate(known_words())}


def verb_question(word: str, kind: Kind) -> Message:
    """A prompt for a program by a coined verb: "Write f(xs) to dopim the list." """
    return Message("user", f"Write f({VARIABLE[kind]}) to {word} the {NOUN[kind]}.")


def plain_question(program: VerbProgram) -> Message:
    """A prompt for a program in plain English: "Write f(xs) to sort the items, then drop the first item." """
    return Message("user", f"Write f({VARIABLE[program.kind]}) to {program.english}.")


def dictionary_entry(word: str, program: VerbProgram) -> str:
    """A document that defines a verb."""
    return f"To {word} a {NOUN[program.kind]} means to {program.english}."


def user_reply(program: VerbProgram) -> str:
    """What a user who had expected `program` answers to something else: "No, smallest first, please." """
    return f"No, {program.casual}, please."
