"""Which programs verbs stand for: a draw for every use, and the fixed meanings of the known verbs."""

from __future__ import annotations

import random
from functools import cache

from selfdistill.envs.verbs.operations import Kind
from selfdistill.envs.verbs.programs import KIND_WEIGHTS, KINDS, Program, is_held_out, program_space
from selfdistill.envs.verbs.words import known_words

STEP_WEIGHTS = (0.35, 0.45, 0.2)


def draw_program(rng: random.Random, *, held_out: bool = False, steps: int = 0, kind: Kind | None = None) -> Program:
    """A program of one to three steps (or exactly `steps`), from those kept for growing or from those held out."""
    kind = kind or rng.choices(KINDS, KIND_WEIGHTS)[0]
    size = steps or rng.choices((1, 2, 3), STEP_WEIGHTS)[0]
    while True:
        program = program_space(kind).draw(size, rng)
        if size == 1 or is_held_out(program) == held_out:
            return program


@cache
def lexicon() -> dict[str, Program]:
    """The known verbs: four in ten mean one step, four in ten two, two in ten three."""
    rng = random.Random("lexicon")
    words, meanings = known_words(), {}
    for index, word in enumerate(words):
        steps = (1, 1, 2, 2, 3)[index % 5]
        meanings[word] = draw_program(rng, steps=steps)
    return meanings
