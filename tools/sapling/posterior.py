"""What can be known at best: of all programs that fit the cases shown, how much of the prior is the right one's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from selfdistill.envs.verbs.lexicon import STEP_WEIGHTS
from selfdistill.envs.verbs.operations import Operation, Value
from selfdistill.envs.verbs.programs import VerbProgram, outputs, program_space


def identifiable(target: VerbProgram, inputs: Sequence[Value]) -> tuple[float, bool]:
    """(probability that a draw from all fitting programs means the same as `target`, whether it is the likeliest).

    The prior is that of growing: a number of steps by `STEP_WEIGHTS`, then a program of that many steps evenly. One
    program stands for each meaning, so another one that fits does differ on some input.
    """
    space = program_space(target.kind)
    wanted = outputs(target, inputs)
    assert wanted is not None, "the target runs on the inputs it is shown on"
    prior = [weight / len(space[size]) for size, weight in enumerate(STEP_WEIGHTS, start=1)]
    own = prior[len(target.steps) - 1]
    fitting = [prior[len(steps) - 1] for steps in _fitting(space[1:], inputs, wanted)]
    return own / sum(fitting), own >= max(fitting)


def _fitting(
    by_steps: Sequence[Sequence[VerbProgram]], inputs: Sequence[Value], wanted: Sequence[Value]
) -> Iterator[tuple[Operation, ...]]:
    """Programs that give `wanted`; what a prefix gives is computed once."""
    known: dict[tuple[Operation, ...], list[Value] | None] = {(): list(inputs)}
    for programs in by_steps:
        for program in programs:
            results = _extended(program.steps, known)
            known[program.steps] = results
            if results == wanted:
                yield program.steps


def _extended(
    steps: tuple[Operation, ...], known: dict[tuple[Operation, ...], list[Value] | None]
) -> list[Value] | None:
    prefix = steps[:-1]
    if prefix not in known:  # a prefix that is no program of the space itself: it means what a shorter one does
        known[prefix] = outputs(VerbProgram(prefix), known[()] or [])
    before = known[prefix]
    return outputs(VerbProgram(steps[-1:]), before) if before is not None else None
