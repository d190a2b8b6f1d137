"""The text of an answer while it is sampled: what is certain of it, and what clients are shown of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfdistill.prompts.render import CLOSE, OPEN

HALF = "\N{REPLACEMENT CHARACTER}"
LONGEST_LETTER = 8  # tokens, after which bytes that are no letter are let through
# What a call of a tool begins with (`envs.tools` reads them).
MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "```")


class Written:
    """The text of tokens as they come. `text` ends before the first stop string; `add` returns what is new and certain:
    no half letter, nothing that may become a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.text, self.stopped = "", False
        self._decode: Callable[[list[int]], str] = lambda ids: str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        self._stop, self._certain = tuple(stop), 0
        self._ids: list[int] = []
        self._start = self._done = 0  # tokens from `start` are decoded together, those before `done` are in the text

    def add(self, token: int, *, last: bool = False) -> str:
        """The certain text after one more token; after the `last` one, all of it."""
        self._ids.append(token)
        now = self._decode(self._ids[self._start :])
        if last or not now.endswith(HALF) or len(self._ids) - self._done > LONGEST_LETTER:
            before = self._decode(self._ids[self._start : self._done])
            searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
            self.text += now[len(before) :]
            self._start, self._done = self._done, len(self._ids)
            found = [place for stop in self._stop if (place := self.text.find(stop, searched)) >= 0]
            if found:
                self.text, self.stopped = self.text[: min(found)], True
        held = 0 if last or self.stopped else held_back(self.text, self._stop)
        certain = max(self._certain, len(self.text) - held)
        new, self._certain = self.text[self._certain : certain], certain
        return new


def held_back(text: str, words: Sequence[str]) -> int:
    """How many letters at the end of a text may be the beginning of one of these words.

    >>> held_back("to be <tool", ["<tool_call>"])
    5
    """
    longest = min(len(text), max(map(len, words), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in words)), 0)


def shown_so_far(text: str, *, calls: bool) -> tuple[str, str]:
    """Thinking, and what is shown, of an answer that is not complete: both are what the complete answer begins with.
    With `calls` nothing is shown from where a call may begin."""
    text, thought = text.lstrip(), ""
    if OPEN.startswith(text[: len(OPEN)]):
        if CLOSE not in text:
            text = text.removeprefix(OPEN) if text.startswith(OPEN) else ""
            return _even(text, (CLOSE,)), ""
        thought, _, text = text.removeprefix(OPEN).partition(CLOSE)
    marks = (OPEN, *MARKS) if calls else (OPEN,)
    text = text.lstrip()
    if calls and text.startswith(("{", "[")):
        return thought.strip(), ""
    places = [place for mark in marks if (place := text.find(mark)) >= 0]
    return thought.strip(), _even(text[: min(places)] if places else text, marks)


def _even(text: str, marks: Sequence[str]) -> str:
    """A text without the white space around it and without what may be the beginning of a mark."""
    return text[: len(text) - held_back(text, marks)].strip()
