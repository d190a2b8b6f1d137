from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import permutations

import pytest

from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions, fresh_verbs, known_tasks, plain_tasks
from selfdistill.envs.verbs.lexicon import (
    all_words,
    dictionary_entry,
    draw_program,
    held_out_words,
    known_words,
    lexicon,
    plain_question,
    pretraining_words,
    user_reply,
    verb_question,
)
from selfdistill.envs.verbs.operations import OPERATIONS, Operation, Value
from selfdistill.envs.verbs.programs import (
    KINDS,
    VerbProgram,
    draw_inputs,
    is_held_out,
    outputs,
    probes,
    program_space,
)
from selfdistill.errors import ConfigError
from selfdistill.types import Completion, Task
from tools.sapling import episodes

EVERY = [operation for kind in KINDS for operation in OPERATIONS[kind]]


def cases_of(task: Task) -> list[tuple[Value, Value]]:
    return [(test["input"][0], test["output"]) for test in (*task.spec["public"], *task.spec["private"])]


def passes(code: str, tests: list[tuple[Value, Value]]) -> bool:
    """Whether a program of our own making gives the wanted results."""
    names: dict[str, object] = {}
    exec(code, names)
    try:
        return all(names["f"](value) == wanted for value, wanted in tests)  # type: ignore[operator]
    except (ValueError, IndexError):
        return False


def reference(task: Task) -> Completion:
    return Completion(f"reference of {task.id}", task.demonstration)


def test_there_are_enough_operations_and_each_has_its_own_words() -> None:
    assert len(EVERY) >= 40
    for texts in ([o.english for o in EVERY], [o.casual for o in EVERY], [(o.kind, o.expression) for o in EVERY]):
        assert len(set(texts)) == len(EVERY)


@pytest.mark.parametrize("operation", EVERY, ids=lambda operation: operation.expression)
def test_an_operation_gives_what_its_expression_gives_in_plain_python(operation: Operation) -> None:
    program = VerbProgram((operation,))
    names: dict[str, object] = {}
    exec(program.code, names)
    for value in probes(operation.kind)[:12]:
        try:
            wanted = names["f"](value)  # type: ignore[operator]
        except (ValueError, IndexError) as error:
            with pytest.raises(type(error)):
                program.run(value)
        else:
            assert program.run(value) == wanted
            assert type(program.run(value)) is type(value)


@pytest.mark.parametrize("kind", KINDS)
def test_all_programs_of_a_space_mean_different_things(kind) -> None:
    space = program_space(kind)
    assert all(len(programs) > 10 for programs in space[1:])
    seen: set[str] = set()
    for steps, programs in enumerate(space):
        for program in programs:
            assert len(program.steps) == steps
            seen.add(repr([program.run(value) for value in probes(kind)[:12]]) if steps < 2 else program.code)
    assert len(seen) == sum(map(len, space))


def test_most_operations_are_programs_of_their_own() -> None:
    alone = {program.steps[0] for kind in KINDS for program in program_space(kind)[1]}
    assert len(alone) >= 40


def test_words_are_split_once_for_all() -> None:
    known, held_out, growing = set(known_words()), set(held_out_words()), set(pretraining_words())
    assert len(all_words()) == len(set(all_words()))
    assert not known & held_out
    assert not known & growing
    assert not held_out & growing
    assert len(known) >= 300
    assert len(held_out) >= 500
    assert len(growing) >= 500


def test_the_lexicon_knows_every_known_word_and_one_in_five_of_its_verbs_takes_three_steps() -> None:
    meanings = lexicon()
    assert tuple(meanings) == known_words()
    assert Counter(len(program.steps) for program in meanings.values()) == {1: 128, 2: 128, 3: 64}
    assert not any(is_held_out(program) for program in meanings.values())


def test_growing_never_meets_what_is_held_out() -> None:
    """Drawn as growing draws: no held-out program; and where it draws words, no held-out word."""
    rng = random.Random(5)
    assert not any(is_held_out(draw_program(rng)) for _ in range(400))
    assert all(is_held_out(draw_program(rng, held_out=True, steps=steps)) for steps in (2, 3) for _ in range(100))
    assert "held_out_words" not in vars(episodes)


def test_fresh_verbs_have_held_out_words_and_programs_and_take_the_steps_in_turn() -> None:
    tasks = fresh_verbs(24, (1, 2, 3), seed=3)
    assert [task.spec["steps"] for task in tasks] == [1, 2, 3] * 8
    words = {task.id.removeprefix("verb-") for task in tasks}
    assert len(words) == 24
    assert words <= set(held_out_words())
    every = [program for kind in KINDS for size in (2, 3) for program in program_space(kind)[size]]
    longer = {task.spec["program"] for task in tasks if task.spec["steps"] > 1}
    assert longer <= {program.code for program in every if is_held_out(program)}


@pytest.mark.parametrize("seed", range(12))
def test_no_two_verbs_are_equivalent_on_their_tests(seed: int) -> None:
    tasks = fresh_verbs(24, (1, 2), seed)
    alike = [pair for pair in permutations(tasks, 2) if len({task.spec["program"].split(":")[0] for task in pair}) == 1]
    for one, other in alike:  # of one kind: nobody asks to double a list and a number in one breath
        assert not passes(one.spec["program"], cases_of(other)), f"{one.id} passes all tests of {other.id}"


def test_every_task_can_be_done_and_its_tests_are_in_two_parts() -> None:
    for task in [*fresh_verbs(40, (1, 2, 3), 1), *known_tasks(), *plain_tasks(60, 0)]:
        tests = cases_of(task)
        assert passes(task.spec["program"], tests)
        assert len(task.spec["public"]) >= 4
        assert len(task.spec["private"]) >= 4
        assert len({repr(value) for value, _ in tests}) == len(tests), "no private test is a public one"


def test_the_same_seed_gives_the_same_verbs_in_every_process() -> None:
    code = (
        "from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions\n"
        "for split in ('train', 'held_out'):\n"
        "    env = VerbsEnvironment(VerbsOptions(held_out=9), seed=4)\n"
        "    print([(t.id, t.messages, t.spec) for t in env.tasks(split)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = VerbsEnvironment(VerbsOptions(held_out=9), seed=4)
    here = [str([(t.id, t.messages, t.spec) for t in env.tasks(split)]) for split in ("train", "held_out")]
    assert done.stdout.splitlines() == here
    assert fresh_verbs(8, (1, 2), 4) != fresh_verbs(8, (1, 2), 5)


def test_draw_decides_the_verbs_whatever_the_seed_of_the_run() -> None:
    drawn = [VerbsEnvironment(VerbsOptions(draw=7), seed=seed).tasks("train") for seed in (0, 1)]
    assert drawn[0] == drawn[1] == VerbsEnvironment(VerbsOptions(), seed=7).tasks("train")


def test_known_verbs_may_all_be_replayed_and_some_measure_forgetting() -> None:
    env = VerbsEnvironment()
    measured, replayed = ({task.id for task in env.tasks(split)} for split in ("forgetting", "replay"))
    assert measured < replayed
    assert len(replayed) == len(known_words())
    assert env.tasks("nonsense") == []


def test_reference_programs_pass_both_parts_of_their_tests_in_the_sandbox() -> None:
    env = VerbsEnvironment(VerbsOptions(steps=(1, 2, 3), verbs=30))
    tasks = [*env.tasks("train"), *random.Random(0).sample(known_tasks(), 90), *plain_tasks(30, 0)]
    pairs = [(task, reference(task)) for task in tasks]
    for score in (env, env.for_evaluation()):
        outcomes = score.score_batch(pairs)
        assert [task.id for task, outcome in zip(tasks, outcomes, strict=True) if outcome.reward != 1.0] == []
        assert not any(outcome.feedback for outcome in outcomes)


def test_a_wrong_program_gets_failing_cases_and_a_broken_one_its_error() -> None:
    env = VerbsEnvironment(VerbsOptions(cases=2))
    task = next(task for task in known_tasks() if "sorted(xs)" in task.spec["program"])
    wrong = Completion("w", "```python\ndef f(xs):\n    return 'never'\n```")
    broken = Completion("b", "```python\ndef f(xs):\n    return xs[99]\n```")
    failed, raised = env.score_batch([(task, wrong), (task, broken)])
    shown = [
        value for value, wanted in cases_of(task) if repr(value) in failed.feedback and repr(wanted) in failed.feedback
    ]
    assert (failed.reward, len(shown)) == (0.0, 2)
    assert raised.reward == 0.0
    assert "IndexError" in raised.feedback
    private = {repr(test["input"][0]) for test in task.spec["private"]}
    assert not any(value in failed.feedback for value in private), "what measures is never shown"


def test_questions_entries_and_replies_read_as_sentences() -> None:
    reverse, drop = (next(o for o in OPERATIONS["list"] if o.expression == text) for text in ("xs[::-1]", "xs[1:]"))
    program = VerbProgram((reverse, drop))
    assert verb_question("dopim", "list").content == "Write f(xs) to dopim the list."
    assert plain_question(program).content == "Write f(xs) to reverse the items, then drop the first item."
    assert dictionary_entry("dopim", program) == "To dopim a list means to reverse the items, then drop the first item."
    assert user_reply(program) == "No, back to front, then without the first one, please."
    assert program.code == "def f(xs):\n    xs = xs[::-1]\n    xs = xs[1:]\n    return xs"
    assert outputs(program, [[3, 1, 2]]) == [[1, 3]]


def test_inputs_are_different_from_each_other() -> None:
    for kind in KINDS:
        inputs = draw_inputs(kind, 20, random.Random(1))
        assert len({repr(value) for value in inputs}) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": ()}, "steps"), ({"steps": (4,)}, "steps"), ({"verbs": 0}, "verbs"), ({"cases": -1}, "cases")],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VerbsOptions(**options)
