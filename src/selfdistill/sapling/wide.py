"""More programs than any verb stands for, for growing alone.

A model that sees a few hundred two-step programs again and again learns which of them occur instead of working out
what they do, and fails on those it never saw. So its fresh words stand for programs over these steps as well: sixteen
times as many, of which each is seen a few times. No verb of the world uses them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from selfdistill.worlds.verbs.lexicon import STEP_WEIGHTS
from selfdistill.worlds.verbs.operations import OPERATIONS, Kind, Operation
from selfdistill.worlds.verbs.programs import (
    KIND_WEIGHTS,
    KINDS,
    Program,
    ProgramSpace,
    is_held_out,
    program_space,
    signature_of,
)

LETTERS = "BCDEFIMRST"


def _lists() -> Iterator[str]:
    for k in (3, 4):
        yield from (f"xs[{k}:]", f"xs[:-{k}]")
    yield from (
        "xs[:-2]",
        "xs[:1]",
        "xs[:2]",
        "xs[:4]",
        "xs[-1:]",
        "xs[-2:]",
        "xs[-4:]",
        "xs[1::2]",
        "xs[::3]",
        "xs[::-2]",
    )
    for k in range(1, 9):
        yield from (f"[x for x in xs if x != {k}]", f"[{k}] + xs", f"xs + [{k}]")
    for k in (1, 2, 3, 5, 6, 7):
        yield from (f"[x for x in xs if x > {k}]", f"[x for x in xs if x < {k + 1}]")
    for k in (3, 4, 5, 6, 7, 8, 9, 10):
        yield from (f"[x + {k} for x in xs]", f"[{k} - x for x in xs]")
    for k in (1, 2, 3, 4):
        yield f"[x - {k} for x in xs]"
    for k in (3, 4, 5, 10):
        yield from (f"[x * {k} for x in xs]", f"[x % {k} for x in xs]", f"[x // {k} for x in xs]")
    for k in (0, 1, 2):
        yield f"[x for x in xs if x % 3 == {k}]"
    yield from ("xs[2:] + xs[:2]", "xs[-2:] + xs[:-2]", "xs + xs[:1]", "xs + xs[:2]", "xs[-1:] + xs", "xs + xs[::-1]")
    yield from ("xs + [min(xs)]", "[max(xs)] + xs", "[len(xs)] + xs", "[sum(xs)] + xs", "[-x for x in xs]")
    yield from ("[x * x for x in xs]", "[a + b for a, b in zip(xs, xs[1:])]", "[max(a, b) for a, b in zip(xs, xs[1:])]")
    yield from (
        "[x + i for i, x in enumerate(xs)]",
        "[x for i, x in enumerate(xs) if x != i]",
        "[abs(x - 5) for x in xs]",
    )


def _strings() -> Iterator[str]:
    yield from (
        "s[3:]",
        "s[:-2]",
        "s[:-3]",
        "s[:1]",
        "s[:2]",
        "s[:4]",
        "s[-1:]",
        "s[-2:]",
        "s[-4:]",
        "s[1::2]",
        "s[::3]",
    )
    for letter in LETTERS:
        yield from (f"s + '{letter}'", f"'{letter}' + s", f"s.replace('{letter}', '')", f"s.replace('{letter}', 'X')")
    yield from ("s.replace('O', 'A')", "s.replace('A', '')", "s.replace('O', '')", "s.replace(s[-1], '')", "s * 3")
    yield from ("s[2:] + s[:2]", "s[-2:] + s[:-2]", "s[::-1] + s", "s + s[0]", "s + s[-1]", "s[0] + s", "s[-1] + s")
    yield from ("'+'.join(s)", "''.join(sorted(s, reverse=True))", "str(len(s)) + s", "''.join(c * 3 for c in s)")
    yield from ("s.replace(s[0], 'X')", "''.join(c for c in s if c > 'E')", "''.join(c for c in s if c < 'M')")
    yield from ("''.join(c for c in s if s.count(c) == 1)", "''.join(c for c in s if s.count(c) > 1)", "s[1:-1]")


def _numbers() -> Iterator[str]:
    for k in (2, 4, 5, 6, 7, 8, 9, 11, 12, 15, 20):
        yield f"n + {k}"
    for k in (2, 3, 5, 6, 7, 8, 9, 10, 12, 15, 20):
        yield f"n - {k}"
    for k in (4, 5, 6, 7, 8, 9, 10, 11):
        yield from (f"n * {k}", f"n % {k - 1}")
    yield from ("n // 4", "n // 5", "n // 10", "n - n % 5", "n - n % 3", "n - n % 7", "n % 3", "n % 2", "n * n - n")
    for k in (5, 10, 12, 25, 30, 40):
        yield from (f"abs(n - {k})", f"max(n, {k})", f"min(n, {k})", f"{k} - n")
    yield from ("n ^ 2", "n ^ 3", "n ^ 7", "n | 1", "n & 6", "n | 8", "n * 2 + 1", "n * 3 + 1", "n * 10 + 1")
    yield from (
        "int(str(n)[::-1]) + n",
        "int(str(n)[0])",
        "n + int(str(n)[0])",
        "n + n % 10",
        "max(int(d) for d in str(n))",
    )


def _extra(kind: Kind, expressions: Iterator[str]) -> tuple[Operation, ...]:
    """Steps without words for them; those that the world has are left out."""
    known = {operation.expression for operation in OPERATIONS[kind]}
    return tuple(Operation(kind, text, "", "") for text in dict.fromkeys(expressions) if text not in known)


EXTRA: dict[Kind, tuple[Operation, ...]] = {
    "list": _extra("list", _lists()),
    "string": _extra("string", _strings()),
    "number": _extra("number", _numbers()),
}


@cache
def wide_space(kind: Kind) -> ProgramSpace:
    """Programs of one and two steps over all operations, the world's first: one for each meaning."""
    return ProgramSpace(kind, 2, (*OPERATIONS[kind], *EXTRA[kind]))


def draw_wide(rng: random.Random) -> Program:
    """A program over all operations, half of its steps the world's, of as many steps as it needs.

    None that is held out, in whatever words.
    """
    kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
    size = rng.choices((1, 2, 3), STEP_WEIGHTS)[0]
    while True:
        steps = tuple(rng.choice(OPERATIONS[kind] if rng.random() < 0.5 else EXTRA[kind]) for _ in range(size))
        meaning = signature_of(Program(steps))
        if meaning is None or meaning == wide_space(kind).identity:
            continue
        same = program_space(kind).meaning.get(meaning)
        program = wide_space(kind).meaning.get(meaning, same or Program(steps))  # the first of those that do the same
        if len(program.steps) == size and (same is None or not is_held_out(same)):
            return program
