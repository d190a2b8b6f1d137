"""The probe set: prompts whose answers an update should leave as they are, some with exact answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfdistill.data.load import question_rows
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Message

# Short facts: what users prefer in an answer hardly shows in them.
FACTS = {
    **{f"What is {a} + {b}?": str(a + b) for a, b in ((7, 5), (12, 9), (30, 45), (18, 24), (60, 15), (99, 1))},
    **{f"What is {a} * {b}?": str(a * b) for a, b in ((3, 4), (6, 7), (9, 8), (12, 5), (11, 3), (20, 4))},
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Egypt?": "Cairo",
    "What is the chemical symbol of gold?": "Au",
    "What is the chemical symbol of iron?": "Fe",
    "How many days does a week have?": "7",
    "How many minutes does an hour have?": "60",
    "What color is the sky on a clear day?": "blue",
    "Which planet is known as the red planet?": "Mars",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What is the opposite of hot?": "cold",
}
ALONE = " Answer with the result alone."


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """A prompt, and its exact answer (empty: it has none)."""

    messages: tuple[Message, ...]
    answer: str = ""


def probe_set(file: str = "") -> list[ProbePrompt]:
    """The prompts of a JSONL file, each row {prompt, answer}, or the short facts. Raises `DataError`."""
    if not file:
        return [ProbePrompt((Message("user", question + ALONE),), answer) for question, answer in FACTS.items()]
    return [ProbePrompt(task.messages, str(task.spec.get("answer") or "")) for task in question_rows(file)]


def solved(answer: str, text: str) -> bool:
    """Whether a text gives the answer: as words of their own, upper and lower case alike."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", without_thinking(text), re.IGNORECASE))
