"""The probe set: prompts whose answers an update should leave as they are, some with exact answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.data.known import known_tasks
from selfdistill.prompts.context import without_thinking
from selfdistill.prompts.questions import holds
from selfdistill.types import Completion, Message, StopReason


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """A prompt, and its exact answer (empty: it has none)."""

    messages: tuple[Message, ...]
    answer: str = ""


def probe_set(file: str = "") -> list[ProbePrompt]:
    """The prompts of a JSONL file, each row {prompt, answer}, or the short facts. Raises `DataError`."""
    return [ProbePrompt(task.messages, str(task.spec.get("answer") or "")) for task in known_tasks(file)]


def changes(answered: Sequence[tuple[str, Completion, Completion]]) -> tuple[list[float], tuple[int, int]]:
    """Of exact answers, each with the completions of two readers: 1 for one that only the second gives, −1 for one that
    only the first gives, 0 for others; and how many each had cut at the limit before it was given, which are none of
    these."""
    found, cut = list[float](), [0, 0]
    for answer, *both in answered:
        right = [solved(answer, done.text) for done in both]
        lost = [done.stop is StopReason.LENGTH and not known for done, known in zip(both, right, strict=True)]
        cut = [count + each for count, each in zip(cut, lost, strict=True)]
        if not any(lost):
            found.append(float(right[1]) - float(right[0]))
    return found, (cut[0], cut[1])


def solved(answer: str, text: str) -> bool:
    """Whether a text gives the answer: as words of their own, upper and lower case alike."""
    return holds(answer, without_thinking(text))
