from __future__ import annotations

from dataclasses import replace

import torch
from formulas import towards

from core_parts import group, rollout
from selfdistill.config import load_config
from selfdistill.methods import ERL
from selfdistill.methods.base import Credit
from selfdistill.prompts.stages import Attempts, ReflectedAttempts, Reflections
from selfdistill.testing import QUESTION, three_token_policy
from selfdistill.types import DropReason, Message, Outcome, Rollout, RolloutGroup

REFLECTED = (Message("system", "reflected"), *QUESTION.messages)


def test_defaults_are_those_of_the_paper() -> None:
    method, config = ERL(), load_config(None, ["method=erl", "model=tiny"])
    assert method.stages == (Attempts(), Reflections(0.5), ReflectedAttempts())
    assert (method.teacher, method.clip_high, method.reference_kl, method.needs_reference) == (None, 0.28, 0.001, True)
    assert (method.success, method.internalise, method.needs_reward) == (0.5, 1.0, "yes")
    assert (config.tasks_per_step, config.rollouts_per_task, config.optimiser.lr) == (64, 4, 1e-6)
    assert config.sampling.temperature == 0.7


def later(number: int, stage: str, of: int, reward: float | None = None) -> Rollout:
    outcome = None if reward is None else Outcome(reward)
    return replace(rollout(number), stage=stage, of=of, outcome=outcome)


def test_three_streams_each_among_their_own_and_successes_as_answers_to_the_question() -> None:
    """First attempts 1, 0, 0, 0; reflections on two of the failures, whose attempts get 0.8 and 0."""
    tries = group([1.0, 0.0, 0.0, 0.0], "wrong").rollouts
    noted = (later(4, Reflections.name, 1), later(5, Reflections.name, 2))
    again = (later(6, ReflectedAttempts.name, 4, 0.8), later(7, ReflectedAttempts.name, 5, 0.0))
    found = ERL(reference_kl=0.5).credits(RolloutGroup(tries[0].task, (*tries, *noted, *again)))
    assert found == [
        (Credit(advantage=0.75, reference=0.5),),
        *[(Credit(advantage=-0.25, reference=0.5),)] * 3,
        (Credit(advantage=0.4, reference=0.5),),
        (Credit(advantage=-0.4, reference=0.5),),
        (Credit(advantage=0.4, reference=0.5), Credit(advantage=0.8, question=tries[0].task.messages)),
        (Credit(advantage=-0.4, reference=0.5),),
    ]


def test_a_lone_second_attempt_that_succeeds_is_learned_and_its_reflection_has_nobody_to_be_compared_with() -> None:
    tries = group([0.0, 0.0], "wrong").rollouts
    noted, again = later(2, Reflections.name, 0), later(3, ReflectedAttempts.name, 2, 1.0)
    found = ERL().credits(RolloutGroup(tries[0].task, (*tries, noted, again)))
    lesson, held = Credit(advantage=1.0, question=tries[0].task.messages), Credit(reference=0.001)
    assert found == [(held,), (held,), (held,), (held, lesson)], "a zero-advantage stream is held to the start"
    assert ERL(reference_kl=0.0).credits(RolloutGroup(tries[0].task, (*tries, noted, again))) == [
        *[DropReason.ZERO_ADVANTAGE] * 3,
        (lesson,),
    ]


def test_what_took_a_reflection_moves_the_bare_question_and_its_own_prompt() -> None:
    """Three rollouts share the step: a lone failure, held to the start (where the student still is), a solved second
    attempt, a failed one."""
    bare, reflected = [[0.5, 0.3, 0.2]], [[0.2, 0.6, 0.2]]
    toy = three_token_policy({"question": bare, "reflected": reflected})
    attempts = [
        toy.answer(letter, reward, stage=ReflectedAttempts.name, messages=REFLECTED, of=0)
        for letter, reward in (("b", 1.0), ("a", 0.0))
    ]
    found = toy.update(ERL(), toy.group(toy.answer("a"), *attempts)).gradients
    own = 0.5 * towards("b", reflected[0]) - 0.5 * towards("a", reflected[0])
    torch.testing.assert_close(found["reflected"][0], -own / 3, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["question"][0], -towards("b", bare[0]) / 3, atol=1e-6, rtol=0)
