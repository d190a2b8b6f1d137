"""Programs of one to three steps, which of them mean the same, and the inputs that tell them apart."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from selfdistill.envs.verbs.operations import OPERATIONS, VARIABLE, Kind, Operation, Value

KINDS: tuple[Kind, ...] = ("list", "string", "number")
KIND_WEIGHTS = (0.5, 0.35, 0.15)
LETTERS = "ABCDEFIMORST"
PROBES = 48
MAX_LENGTH = 14
MAX_NUMBER = 999
MAX_STEPS = 3


@dataclass(frozen=True, slots=True)
class VerbProgram:
    """Some steps, one after the other, all over one kind of value."""

    steps: tuple[Operation, ...]

    @property
    def kind(self) -> Kind:
        """What it takes and what it gives."""
        return self.steps[0].kind

    @property
    def code(self) -> str:
        """The program as Python source, without a trailing newline."""
        name = VARIABLE[self.kind]
        return f"def f({name}):\n" + "".join(step.line for step in self.steps) + f"    return {name}"

    @property
    def answer(self) -> str:
        """The program as an answer: one fenced block."""
        return f"```python\n{self.code}\n```"

    @property
    def english(self) -> str:
        """What it does, as an instruction."""
        return ", then ".join(step.english for step in self.steps)

    @property
    def casual(self) -> str:
        """What it does, in the words of a user who had expected it."""
        return ", then ".join(step.casual for step in self.steps)

    def run(self, value: Value) -> Value:
        """Its result; raises what the real program would raise. Only for programs of our own making."""
        for step in self.steps:
            value = _function(step)(value)
        return value


@cache
def _function(step: Operation) -> Callable[[Value], Value]:
    function: Callable[[Value], Value] = eval(f"lambda {VARIABLE[step.kind]}: {step.expression}")  # our own table
    return function


def draw_inputs(kind: Kind, count: int, rng: random.Random) -> list[Value]:
    """Different inputs from the pool of those that tell one-step programs apart best. At most 20 exist for numbers."""
    return rng.sample(input_pool(kind), count)


@cache
def input_pool(kind: Kind) -> list[Value]:
    """Numbers from 3 to 31, lists of 5-6 digits and strings of 5-6 letters, unsorted and with a repetition.

    Of all candidates those are kept on which the most one-step programs give results of their own: a test that many
    wrong programs pass carries little information.
    """
    rng = random.Random(f"inputs of {kind}")
    if kind == "number":
        candidates: list[Value] = list(range(3, 32))
    else:
        unique = {repr(value): value for value in (_candidate(kind, rng) for _ in range(16_000))}
        candidates = list(unique.values())
    candidates.sort(key=lambda value: -len({repr(_function(step)(value)) for step in OPERATIONS[kind]}))
    return candidates[: 20 if kind == "number" else 4_000]


def _candidate(kind: Kind, rng: random.Random) -> Value:
    size = rng.choice((5, 6))
    items: list[Value] = [rng.choice(LETTERS) if kind == "string" else rng.randrange(10) for _ in range(size)]
    source, target = rng.sample(range(size), 2)
    items[target] = items[source]
    if items == sorted(items):
        return _candidate(kind, rng)
    return "".join(items) if kind == "string" else items


@cache
def probes(kind: Kind) -> tuple[Value, ...]:
    """The fixed inputs on which programs are compared."""
    rng = random.Random(f"probes of {kind}")
    return tuple(range(3, 32)) if kind == "number" else tuple(draw_inputs(kind, PROBES, rng))


@cache
def program_space(kind: Kind) -> list[list[VerbProgram]]:
    """All usable programs of one kind by their number of steps (0 to 3), one for each meaning, with the fewest steps.

    A program is usable when it runs on every probe, keeps its results in range, is not the identity and does not send
    most inputs to the same result. Three steps over lists take a few seconds, once a process.
    """
    met = {tuple(map(repr, probes(kind)))}  # results on the probes, beginning with those of no step
    by_steps: list[list[VerbProgram]] = [[] for _ in range(MAX_STEPS + 1)]
    frontier: list[tuple[tuple[Operation, ...], tuple[Value, ...]]] = [((), probes(kind))]
    for programs in by_steps[1:]:
        grown: list[tuple[tuple[Operation, ...], tuple[Value, ...]]] = []
        for steps, values in frontier:
            for step in OPERATIONS[kind]:
                results = outputs(VerbProgram((step,)), values)
                signature = tuple(map(repr, results or ()))
                if results is None or signature in met:
                    continue
                met.add(signature)
                grown.append(((*steps, step), tuple(results)))
                if max(Counter(signature).values()) <= len(signature) / 3:
                    programs.append(VerbProgram((*steps, step)))
        frontier = grown
    return by_steps


def in_range(value: Value) -> bool:
    """Whether a result is small enough to be shown and read."""
    if isinstance(value, int):
        return abs(value) <= MAX_NUMBER
    return len(value) <= MAX_LENGTH and (isinstance(value, str) or all(-99 <= item <= 199 for item in value))


def outputs(program: VerbProgram, inputs: Sequence[Value]) -> list[Value] | None:
    """Its results on these inputs; None when one raises or leaves the range."""
    try:
        results = [program.run(value) for value in inputs]
    except (ValueError, IndexError):
        return None
    return results if all(in_range(value) for value in results) else None


def is_held_out(program: VerbProgram) -> bool:
    """Whether the sapling never saw this program of two or three steps while it grew (one in eight)."""
    return len(program.steps) > 1 and crc32(program.code.encode()) % 8 == 0
