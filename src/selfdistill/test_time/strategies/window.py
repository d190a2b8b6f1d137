"""Prompts from past attempts: as much feedback as fits a window of tokens."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence

from selfdistill.envs.turns import NO_FEEDBACK
from selfdistill.prompts.context import without_thinking
from selfdistill.test_time.strategies.base import Attempt, Prompt, SolveState
from selfdistill.types import Context, DropReason, Message

BETWEEN = "\n"  # joins the feedback on two attempts


def with_text(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The failures that have feedback."""
    return [attempt for attempt in attempts if attempt.failed and attempt.feedback.strip()]


def with_feedback(
    state: SolveState, attempts: Sequence[Attempt], window: int, drawn: random.Random | None = None
) -> Prompt:
    """The question with as much feedback as fits: the newest, or a random choice with `drawn`. Equal feedback is read
    once.

    Where one feedback alone is too long, it is cut; where nothing of it fits, the prompt is the question.
    """
    last = {attempt.feedback: place for place, attempt in enumerate(attempts)}
    texts = sorted(last, key=last.__getitem__)

    def messages(places: Sequence[int]) -> tuple[Message, ...]:
        feedback = BETWEEN.join(texts[place] for place in places)
        return state.renderer.messages(state.task.messages, Context("feedback", feedback=feedback))

    prompt, order = _fitting(state, len(texts), messages, window, drawn)
    if prompt.left_out < len(texts) or not texts:
        return prompt
    alone = Context("feedback", feedback=texts[order[0]])
    found = state.renderer.teacher_prompt(state.task.messages, alone, answer=0, limit=state.room(window))
    if isinstance(found, DropReason):
        return Prompt(state.task.messages, left_out=len(texts))
    return Prompt(state.renderer.messages(state.task.messages, found[1]), left_out=len(texts) - 1, cut=True)


def with_attempts(
    state: SolveState, attempts: Sequence[Attempt], window: int, drawn: random.Random | None = None
) -> Prompt:
    """A conversation of the question and as many attempts with their feedback as fit: the newest, or a random choice
    with `drawn`."""

    def messages(places: Sequence[int]) -> tuple[Message, ...]:
        turns = list(state.task.messages)
        for place in places:
            answer, feedback = without_thinking(attempts[place].text), attempts[place].feedback
            turns += [Message("assistant", answer), Message("user", feedback if feedback.strip() else NO_FEEDBACK)]
        return tuple(turns)

    return _fitting(state, len(attempts), messages, window, drawn)[0]


def _fitting(
    state: SolveState,
    total: int,
    messages: Callable[[Sequence[int]], tuple[Message, ...]],
    window: int,
    drawn: random.Random | None,
) -> tuple[Prompt, list[int]]:
    """The longest prompt that fits, and the order in which attempts enter it."""
    order = list(range(total))[::-1]
    if drawn is not None:
        drawn.shuffle(order)
    room = state.room(window)
    count = most(total, lambda count: len(state.renderer.prompt(messages(sorted(order[:count])))) <= room)
    return Prompt(messages(sorted(order[:count])), left_out=total - count), order


def most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that fits, where fewer fit whenever more do; 0 always fits."""
    return bisect_left(range(1, limit + 1), True, key=lambda count: not fits(count))
