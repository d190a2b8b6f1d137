"""What the sapling reads while it grows: right answers, real feedback, nothing that is kept for measuring."""

import random

import pytest

from selfdistill.envs.scoring import TestStatus
from selfdistill.envs.verbs.env import VerbsEnvironment
from selfdistill.envs.verbs.lexicon import draw_program, held_out_words, known_words, lexicon
from selfdistill.envs.verbs.operations import OPERATIONS
from selfdistill.envs.verbs.programs import VerbProgram, is_held_out
from selfdistill.types import Completion, Task
from tools.sapling.episodes import MAKERS, draw_episode, failing_records, feedback_on


def step(kind, expression):
    return next(operation for operation in OPERATIONS[kind] if operation.expression == expression)


def texts(episode):
    return [message.content for message in episode.messages] + [episode.answer]


def test_episodes_follow_from_the_seed():
    assert draw_episode(random.Random(5)) == draw_episode(random.Random(5))


def test_no_word_kept_for_measuring_occurs():
    rng, words = random.Random(2), set(held_out_words())
    for _ in range(500):
        spoken = " ".join(texts(draw_episode(rng))).replace(".", " ").split()
        assert not words & set(spoken)


def test_no_program_kept_for_measuring_occurs():
    rng = random.Random(3)
    for _ in range(500):
        for text in texts(draw_episode(rng)):
            for code in text.split("```python\n")[1:]:
                lines = code.split("\n```")[0].splitlines(keepends=True)[1:-1]
                steps = [op for line in lines for ops in OPERATIONS.values() for op in ops if op.line == line]
                assert len(steps) == len(lines)
                assert not is_held_out(VerbProgram(tuple(steps)))


def test_known_verbs_always_mean_the_same_and_are_not_held_out():
    meanings = lexicon()
    assert len(meanings) == len(known_words()) >= 300
    assert not any(is_held_out(program) for program in meanings.values())
    assert {len(program.steps) for program in meanings.values()} == {1, 2, 3}


def test_feedback_of_a_wrong_guess_by_hand():
    target = VerbProgram((step("number", "n + 1"),))
    guess = VerbProgram((step("number", "n + 3"),))
    for record in failing_records(target, guess, 2, random.Random(0)):
        assert record.status is TestStatus.WRONG
        assert int(record.expected) == int(record.input) + 1
        assert int(record.output) == int(record.input) + 3


def test_errors_read_as_the_sandbox_writes_them():
    """Growing runs our own programs in this process; the text must be the one that training shows."""
    guess = VerbProgram((step("number", "-n"), step("number", "int(str(n)[::-1])")))
    target = VerbProgram((step("number", "n + 1"),))
    [record] = failing_records(target, guess, 1, random.Random(0))
    value = int(record.input)
    task = Task("t", (), {"kind": "functional", "fn_name": "f", "public": [{"input": [value], "output": value + 1}]})
    outcome = VerbsEnvironment().score(task, Completion("u", guess.answer))
    assert f"Runtime error.\n{record.error}\nLast input: {value}" == outcome.feedback


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_as_many_cases_as_asked_for(cases):
    rng = random.Random(cases)
    for _ in range(50):
        _, text = feedback_on(draw_program(rng), rng, cases)
        assert text.startswith("Runtime error.") or text.count("Expected: ") == cases


def test_weights_of_the_makers_sum_to_one():
    assert sum(MAKERS.values()) == pytest.approx(1.0)
