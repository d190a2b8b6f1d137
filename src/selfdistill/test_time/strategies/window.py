"""What of the past fits into a prompt: a window that slides by tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from selfdistill.prompts.context import teacher_messages, without_thinking
from selfdistill.test_time.strategies.base import Attempt, Prompt, SolveState
from selfdistill.types import Context, DropReason, Message

BETWEEN = "\n"  # two feedbacks, as between two cases of one
NOTHING_SAID = "That was not right."


def told(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Failures that were told something."""
    return [attempt for attempt in attempts if attempt.failed and attempt.feedback.strip()]


def distinct(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Of attempts with equal feedback the last one, which says all that the others did."""
    last = {attempt.feedback: place for place, attempt in enumerate(attempts)}
    return [attempts[place] for place in sorted(last.values())]


def with_feedback(
    state: SolveState, attempts: Sequence[Attempt], window: int, drawn: random.Random | None = None
) -> Prompt:
    """The question with all the feedback that fits, the oldest left out; or, with `drawn`, what chance leaves out.

    Where even one feedback alone is too long, it is cut; where nothing of it fits, the question is asked as it stands.
    """
    texts = [attempt.feedback for attempt in attempts]
    order = list(range(len(texts)))[::-1]
    if drawn is not None:
        drawn.shuffle(order)

    def asking(count: int) -> tuple[Message, ...]:
        kept = [texts[place] for place in sorted(order[:count])]
        return teacher_messages(state.task.messages, Context("feedback", feedback=BETWEEN.join(kept)))

    room = state.room(window)
    count = most(len(texts), lambda count: len(state.renderer.prompt(asking(count))) <= room)
    if count or not texts:
        return Prompt(asking(count), left_out=len(texts) - count)
    alone = Context("feedback", feedback=texts[order[0]])
    found = state.renderer.teacher_prompt(state.task.messages, alone, answer=0, limit=room)
    if isinstance(found, DropReason):
        return Prompt(state.task.messages, left_out=len(texts))
    return Prompt(teacher_messages(state.task.messages, found[1]), left_out=len(texts) - 1, cut=True)


def with_attempts(
    state: SolveState, attempts: Sequence[Attempt], window: int, drawn: random.Random | None = None
) -> Prompt:
    """A conversation of the question, attempts and what was said of them; too long, it loses its oldest turns, or the
    ones that chance leaves out."""
    order = list(range(len(attempts)))[::-1]
    if drawn is not None:
        drawn.shuffle(order)

    def asking(count: int) -> tuple[Message, ...]:
        turns = list(state.task.messages)
        for place in sorted(order[:count]):
            answer, said = without_thinking(attempts[place].text), attempts[place].feedback
            turns += [Message("assistant", answer), Message("user", said if said.strip() else NOTHING_SAID)]
        return tuple(turns)

    room = state.room(window)
    count = most(len(attempts), lambda count: len(state.renderer.prompt(asking(count))) <= room)
    return Prompt(asking(count), left_out=len(attempts) - count)


def most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that fits, where fewer fit whenever more do; 0 is not asked about."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
