"""The probe set: prompts whose answers an update should leave as they are, some with exact answers."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.data.known import known_tasks
from selfdistill.prompts.context import without_thinking
from selfdistill.prompts.questions import holds
from selfdistill.types import Message


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """A prompt, and its exact answer (empty: it has none)."""

    messages: tuple[Message, ...]
    answer: str = ""


def probe_set(file: str = "") -> list[ProbePrompt]:
    """The prompts of a JSONL file, each row {prompt, answer}, or the short facts. Raises `DataError`."""
    return [ProbePrompt(task.messages, str(task.spec.get("answer") or "")) for task in known_tasks(file)]


def solved(answer: str, text: str) -> bool:
    """Whether a text gives the answer: as words of their own, upper and lower case alike."""
    return holds(answer, without_thinking(text))
