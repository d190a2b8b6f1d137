"""The coined-verb environment: "Write f(xs) to dopim the list.", where nothing in the prompt defines to dopim.

Answers are programs, run in the code environment's sandbox; the meaning can be learned from failing cases, the solution
of another rollout, a demonstration, a dictionary entry or a user's reply. Plain English is the held-out set; a lexicon
of verbs that the embedded model knows measures forgetting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.envs.code import ProgramEnvironment
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.scoring import CodeOptions
from selfdistill.envs.verbs.lexicon import (
    HELD_OUT,
    dictionary_entry,
    draw_program,
    held_out_words,
    lexicon,
    plain_question,
    user_reply,
    verb_question,
)
from selfdistill.envs.verbs.operations import Value
from selfdistill.envs.verbs.programs import VerbProgram, draw_inputs, outputs
from selfdistill.errors import ConfigError, Ranged
from selfdistill.options import SEED, option
from selfdistill.types import Message, Task

TESTS = 8  # of each split
FORGETTING = 200  # known verbs that measure forgetting


@dataclass(frozen=True, slots=True)
class VerbsOptions(Ranged):
    """Which verbs there are, and how much feedback one failed attempt gets. Raises `ConfigError`."""

    verbs: int = option(16, "fresh verbs to learn", least=1, most=HELD_OUT)
    steps: tuple[int, ...] = option((1, 2), "steps of their programs, 1 to 3, taken in turn", least=1, most=3)
    draw: int = option(-1, "decides which verbs; -1: as the run's seed", least=-1, most=SEED)
    cases: int = option(
        2,
        "failing cases in the feedback, drawn anew for each attempt; 0: it says only Wrong answer",
        least=0,
        most=1000,
    )
    turns: int = option(1, "attempts in one conversation, each after the feedback on the one before", least=1, most=100)
    held_out: int = option(200, "plain-English tasks that are never trained on", least=0)
    allow_weaker: bool = option(False, "run programs also where this machine cannot isolate them fully")

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if not self.steps:
            raise ConfigError("env.steps must be numbers from 1 to 3", got=self.steps, do="for example [1, 2]")


class VerbsEnvironment(ProgramEnvironment):
    """Coined verbs: each names a hidden program of one to three steps, to be learned from failing tests, tracebacks and
    solutions of other rollouts."""

    name = "verbs"

    def __init__(self, options: VerbsOptions | None = None, *, seed: int = 0, sandbox: Sandbox | None = None) -> None:
        self.options = options or VerbsOptions()
        self.seed = seed if self.options.draw < 0 else self.options.draw
        cases, weaker = self.options.cases, self.options.allow_weaker
        super().__init__(CodeOptions(2.0, cases=cases, random_cases=True, allow_weaker=weaker), sandbox=sandbox)

    def tasks(self, split: str) -> list[Task]:
        """Fresh verbs to "train", plain English as "held_out", known verbs as "forgetting" and for "replay"."""
        if split == "train":
            return fresh_verbs(self.options.verbs, self.options.steps, self.seed)
        if split == "held_out":
            return plain_tasks(self.options.held_out, seed=0)
        known = {"forgetting": FORGETTING, "replay": None}
        return known_tasks()[: known[split]] if split in known else []


def fresh_verbs(count: int, steps: Sequence[int], seed: int) -> list[Task]:
    """Verbs with words and programs that the embedded model never met; no answer to one passes another's tests."""
    rng = random.Random(f"fresh verbs {seed}")
    words = rng.sample(held_out_words(), count)
    chosen: list[tuple[VerbProgram, list[Value]]] = []
    tasks: list[Task] = []
    while len(tasks) < count:
        program = draw_program(rng, held_out=True, steps=steps[len(tasks) % len(steps)])
        inputs = usable_inputs(program, rng)
        if inputs and all(_differ((program, inputs), other) for other in chosen):
            chosen.append((program, inputs))
            word = words[len(tasks)]
            tasks.append(program_task(f"verb-{word}", verb_question(word, program.kind), program, inputs, word))
    return tasks


def known_tasks() -> list[Task]:
    """One task for every verb of the lexicon."""
    return [
        program_task(f"known-{word}", verb_question(word, program.kind), program, _certain_inputs(program, word), word)
        for word, program in lexicon().items()
    ]


def plain_tasks(count: int, seed: int, steps: int = 0) -> list[Task]:
    """Programs described in plain English, two- and three-step ones of which the embedded model never met."""
    rng = random.Random(f"plain {seed}")
    tasks = []
    for number in range(count):
        program = draw_program(rng, held_out=True, steps=steps)
        inputs = _certain_inputs(program, f"{seed} {number}")
        tasks.append(program_task(f"plain-{seed}-{number}", plain_question(program), program, inputs))
    return tasks


def program_task(
    identity: str, question: Message, program: VerbProgram, inputs: Sequence[Value], word: str = ""
) -> Task:
    """A task whose tests are what `program` does on `inputs`: the first half public, the second private."""
    results = outputs(program, inputs)
    assert results is not None, "inputs were drawn so that the program runs on them"
    tests: list[Any] = [{"input": [value], "output": result} for value, result in zip(inputs, results, strict=True)]
    public, private = _halves(tests)
    spec = {
        "kind": "functional", "fn_name": "f", "public": public, "private": private, "steps": len(program.steps),
        "program": program.code,
    }  # fmt: skip
    document = dictionary_entry(word, program) if word else ""
    return Task(
        identity, (question,), spec, demonstration=program.answer, document=document, user_reply=user_reply(program)
    )


def usable_inputs(program: VerbProgram, rng: random.Random) -> list[Value] | None:
    """Inputs for both splits on which the program runs; None where it fails too often (numbers have 20 inputs)."""
    good = [value for value in draw_inputs(program.kind, 20, rng) if outputs(program, [value]) is not None]
    return good[: 2 * TESTS] if len(good) >= TESTS else None


def _certain_inputs(program: VerbProgram, key: str) -> list[Value]:
    inputs = usable_inputs(program, random.Random(f"inputs {key}"))
    assert inputs is not None, "programs of the space run on all probes"
    return inputs


def _differ(one: tuple[VerbProgram, list[Value]], other: tuple[VerbProgram, list[Value]]) -> bool:
    """Whether two programs differ on the public and on the private tests of either."""
    if one[0].kind != other[0].kind:
        return True
    halves = [half for _, inputs in (one, other) for half in _halves(inputs)]
    return all(outputs(one[0], half) != outputs(other[0], half) for half in halves)


def _halves(values: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
    """Of inputs or tests: the public ones, and the private ones."""
    return values[: len(values) // 2], values[len(values) // 2 :]
