"""What can be known at best: the share of the prior that the right program has among those that fit."""

import random

import pytest

from selfdistill.envs.verbs.lexicon import STEP_WEIGHTS, draw_program
from selfdistill.envs.verbs.programs import draw_inputs, outputs, program_space
from tools.sapling.posterior import identifiable


def by_enumeration(target, inputs):
    """The same, program by program, every one run from its start."""
    wanted, fitting, own = outputs(target, inputs), 0.0, 0.0
    for size, programs in enumerate(program_space(target.kind)[1:], start=1):
        weight = STEP_WEIGHTS[size - 1] / len(programs)
        fitting += weight * sum(outputs(program, inputs) == wanted for program in programs)
        own = weight if size == len(target.steps) else own
    return own / fitting


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shared_prefixes_change_nothing(steps):
    rng = random.Random(steps)
    target = draw_program(rng, steps=steps, kind="number")
    inputs = draw_inputs("number", 2, rng)
    assert identifiable(target, inputs)[0] == pytest.approx(by_enumeration(target, inputs))


def test_more_cases_tell_more():
    rng = random.Random(4)
    target = draw_program(rng, steps=2, kind="string")
    inputs = draw_inputs("string", 4, rng)
    shares = [identifiable(target, inputs[:count])[0] for count in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1


def test_the_likeliest_is_the_shortest_that_fits():
    """Nothing shown: every program fits, and a one-step program is the likeliest."""
    rng = random.Random(5)
    assert identifiable(draw_program(rng, steps=1, kind="number"), [])[1]
    assert not identifiable(draw_program(rng, steps=3, kind="number"), [])[1]
