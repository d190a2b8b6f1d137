"""The sapling's pretraining data: short conversations from the programs, texts, feedback and teacher prompts of
training.

An episode ends with the right answer. Words are fresh (another meaning in every episode, to be read from the context)
or known (a fixed lexicon). A new kind of episode is a maker in `MAKERS`, with its weight.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from selfdistill.envs.scoring import TestRecord, TestStatus, feedback_text, missing_block_text
from selfdistill.envs.verbs.lexicon import (
    dictionary_entry,
    draw_program,
    known_words,
    lexicon,
    plain_question,
    pretraining_words,
    user_reply,
    verb_question,
)
from selfdistill.envs.verbs.operations import OPERATIONS, Kind
from selfdistill.envs.verbs.programs import VerbProgram, draw_inputs, is_held_out, outputs
from selfdistill.prompts.context import teacher_messages
from selfdistill.types import Context, Message

PYTHON_TYPE: dict[Kind, str] = {"list": "list", "string": "str", "number": "int"}


@dataclass(frozen=True, slots=True)
class Episode:
    """A conversation and the answer that should follow it."""

    messages: tuple[Message, ...]
    answer: str


Maker = Callable[[random.Random], Episode]


def attempt(target: VerbProgram, rng: random.Random) -> VerbProgram:
    """Another program than `target`, as a learner tries it: a blind guess, or a near miss; never one held out."""
    while True:
        guess = _near(target, rng) if rng.random() < 0.4 else draw_program(rng, kind=target.kind)
        if guess.steps != target.steps and not is_held_out(guess):
            return guess


def _near(target: VerbProgram, rng: random.Random) -> VerbProgram:
    steps = list(target.steps)
    change = rng.randrange(3)
    if change == 0 and len(steps) > 1:
        del steps[rng.randrange(len(steps))]
    elif change == 1 and len(steps) < 3:
        steps.insert(rng.randrange(len(steps) + 1), rng.choice(OPERATIONS[target.kind]))
    else:
        steps[rng.randrange(len(steps))] = rng.choice(OPERATIONS[target.kind])
    return VerbProgram(tuple(steps))


def failing_records(target: VerbProgram, guess: VerbProgram, count: int, rng: random.Random) -> list[TestRecord]:
    """Up to `count` wrong cases of a guess, or the error that it raises first; empty when they agree."""
    records: list[TestRecord] = []
    for value in draw_inputs(target.kind, min(3 * count + 3, 20), rng):
        expected = outputs(target, [value])
        if expected is None:
            continue
        try:
            got = guess.run(value)
        except (ValueError, IndexError) as error:
            line = 1 + failing_step(guess, value)
            return [
                TestRecord(TestStatus.ERROR, repr(value), error=f"{type(error).__name__}: {error}\nLine {line} in f")
            ]
        if got != expected[0]:
            records.append(TestRecord(TestStatus.WRONG, repr(value), repr(got), repr(expected[0])))
        if len(records) == count:
            break
    return records


def failing_step(guess: VerbProgram, value: object) -> int:
    """The number (from 1) of the step that raises on this input."""
    for size in range(1, len(guess.steps)):
        try:
            VerbProgram(guess.steps[:size]).run(value)
        except (ValueError, IndexError):
            return size
    return len(guess.steps)


def feedback_on(target: VerbProgram, rng: random.Random, cases: int) -> tuple[VerbProgram, str]:
    """A wrong attempt at `target` and the feedback of its tests."""
    while True:
        guess = attempt(target, rng)
        records = failing_records(target, guess, cases, rng)
        if records and (len(records) == cases or records[0].status is TestStatus.ERROR):
            return guess, feedback_text(records, cases=cases, limit=4000)


def _fresh(rng: random.Random) -> tuple[str, VerbProgram]:
    return rng.choice(pretraining_words()), draw_program(rng)


def _known(rng: random.Random) -> tuple[str, VerbProgram]:
    word = rng.choice(known_words())
    return word, lexicon()[word]


def _either(rng: random.Random) -> tuple[str, VerbProgram]:
    return _known(rng) if rng.random() < 0.06 else _fresh(rng)


def plain(rng: random.Random) -> Episode:
    """Plain English, no context."""
    program = draw_program(rng)
    return Episode((plain_question(program),), program.answer)


def known_bare(rng: random.Random) -> Episode:
    """A known verb, no context."""
    word, program = _known(rng)
    return Episode((verb_question(word, program.kind),), program.answer)


def fresh_bare(rng: random.Random) -> Episode:
    """A fresh verb, no context: what is learned is to guess evenly."""
    word, program = _fresh(rng)
    return Episode((verb_question(word, program.kind),), program.answer)


def with_feedback(rng: random.Random) -> Episode:
    """The teacher prompt of a failed attempt: one to six failing cases, or an error."""
    word, program = _either(rng)
    cases = rng.choices((1, 2, 3, 4, 6), (0.24, 0.34, 0.3, 0.08, 0.04))[0]
    _, feedback = feedback_on(program, rng, cases)
    return _with_context(word, program, Context("feedback", feedback=feedback))


def with_solution(rng: random.Random) -> Episode:
    """The teacher prompt with a group member's solution, sometimes beside own feedback."""
    word, program = _either(rng)
    feedback = feedback_on(program, rng, 2)[1] if rng.random() < 0.3 else ""
    return _with_context(word, program, Context("solution", solution=program.answer, feedback=feedback))


def with_demonstration(rng: random.Random) -> Episode:
    """The teacher prompt with a demonstration."""
    word, program = _either(rng)
    return _with_context(word, program, Context("demonstration", demonstration=program.answer))


def with_document(rng: random.Random) -> Episode:
    """The teacher prompt with a dictionary of one to four entries, one of which matters."""
    word, program = _either(rng)
    entries = [dictionary_entry(word, program)]
    entries += [dictionary_entry(*_fresh(rng)) for _ in range(rng.choice((0, 0, 0, 1, 2, 3)))]
    rng.shuffle(entries)
    return _with_context(word, program, Context("document", document="\n".join(entries)))


def with_reply(rng: random.Random) -> Episode:
    """The teacher prompt with what the user will answer."""
    word, program = _either(rng)
    return _with_context(word, program, Context("reply", reply=user_reply(program)))


def conversation(rng: random.Random) -> Episode:
    """Several attempts in one conversation, each answered with feedback, the last at times by the user."""
    word, program = _either(rng)
    messages: list[Message] = [verb_question(word, program.kind)]
    for _ in range(rng.choices((1, 2, 3, 5), (0.35, 0.35, 0.2, 0.1))[0]):
        guess, feedback = feedback_on(program, rng, rng.choice((1, 1, 2)))
        messages += [Message("assistant", guess.answer), Message("user", feedback)]
    if rng.random() < 0.1:
        messages[-1] = Message("user", user_reply(program))
    return Episode(tuple(messages), program.answer)


def feedbacks_only(rng: random.Random) -> Episode:
    """The feedback of several attempts in one prompt, without the attempts."""
    word, program = _either(rng)
    texts = [feedback_on(program, rng, rng.choice((1, 2)))[1] for _ in range(rng.choice((2, 2, 3, 4)))]
    return _with_context(word, program, Context("feedback", feedback="\n".join(texts)))


def broken(rng: random.Random) -> Episode:
    """An attempt that was no program at all, or not understood by Python: the answer follows from the question."""
    word, program = _known(rng)
    question = plain_question(program) if rng.random() < 0.5 else verb_question(word, program.kind)
    value = repr(draw_inputs(program.kind, 1, rng)[0])
    line = 2 + rng.randrange(len(program.steps))
    errors = (
        f"NameError: name 'ys' is not defined\nLine {line} in f",
        f"TypeError: unsupported operand type(s) for +: 'int' and 'str'\nLine {line} in f",
        f"AttributeError: '{PYTHON_TYPE[program.kind]}' object has no attribute 'items'\nLine {line} in f",
        f"SyntaxError: invalid syntax\nLine {line}",
        f"IndexError: list index out of range\nLine {line} in f",
    )
    record = TestRecord(TestStatus.ERROR, value, error=rng.choice(errors))
    texts = (feedback_text([record]), missing_block_text(False), missing_block_text(True))
    feedback = rng.choices(texts, (0.7, 0.15, 0.15))[0]
    return Episode(teacher_messages([question], Context("feedback", feedback=feedback)), program.answer)


def _with_context(word: str, program: VerbProgram, context: Context) -> Episode:
    return Episode(teacher_messages([verb_question(word, program.kind)], context), program.answer)


MAKERS: dict[Maker, float] = {
    plain: 0.06,
    known_bare: 0.11,
    fresh_bare: 0.03,
    with_feedback: 0.47,
    with_solution: 0.03,
    with_demonstration: 0.01,
    with_document: 0.03,
    with_reply: 0.04,
    conversation: 0.13,
    feedbacks_only: 0.06,
    broken: 0.03,
}


def draw_episode(rng: random.Random) -> Episode:
    """One episode of a kind drawn by its weight."""
    maker = rng.choices(list(MAKERS), list(MAKERS.values()))[0]
    return maker(rng)
