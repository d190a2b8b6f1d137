"""A journal as rows for training: the request, our answer, and what came back for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from selfdistill.live.exchange import Exchange, Lesson
from selfdistill.live.journal import Journal
from selfdistill.protocol.chat import read_request


class TrainingRows:
    """The rows of a journal, or of some of its conversations. `left_out` counts, once they were read, the exchanges
    that gave none, by their reason.

    A row has the shape that `load_chats` and `load_data` read: `prompt` (messages), `logged_answer` (as sampled) and
    `user_reply`, with `demonstration` where feedback gave a solution and `rating` where it gave one; results of tools
    are turns of the user. `reply_from` is user, tool or text (of feedback). `conversation_id`, `version` and `created`
    are those of the exchange.
    """

    def __init__(self, journal: Journal, conversations: Sequence[str] = ()) -> None:
        self.left_out: Counter[str] = Counter()
        self._journal, self._conversations = journal, conversations

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.left_out = self._journal.unlearned(self._conversations)
        for _, group in groupby(self._journal.lessons(self._conversations), key=lambda lesson: lesson.exchange.seq):
            lessons = list(group)
            rows = _rows(lessons)
            if not rows:
                only_rated = all(lesson.origin == "rating" for lesson in lessons)
                self.left_out["a rating alone" if only_rated else "no question before the answer"] += 1
            yield from rows


def _rows(lessons: Sequence[Lesson]) -> list[dict[str, Any]]:
    """The rows of one exchange: one for each text that came back, or one for a solution alone."""
    exchange, texts = lessons[0].exchange, [(lesson.origin, _text(lesson)) for lesson in lessons]
    last = dict(texts)  # the newest of each
    prompt = _prompt(exchange)
    if not prompt or prompt[-1]["role"] != "user" or not exchange.text.strip():
        return []
    row: dict[str, Any] = {"prompt": prompt, "logged_answer": exchange.text}
    row |= {"demonstration": last["solution"]} if "solution" in last else {}
    row |= {"rating": float(last["rating"])} if "rating" in last else {}
    row |= {"conversation_id": exchange.conversation, "version": exchange.version, "created": exchange.created}
    replies = [(origin, text) for origin, text in texts if origin not in ("solution", "rating")]
    if not replies and "solution" in last:
        return [{"id": exchange.receipt, **row}]
    return [
        {"id": f"{exchange.receipt}-{place}", **row, "user_reply": text, "reply_from": origin}
        for place, (origin, text) in enumerate(replies)
    ]


def _prompt(exchange: Exchange) -> list[dict[str, str]]:
    """The messages of the request as rows hold them: text alone, of system, user and assistant."""
    messages = read_request(json.dumps(exchange.request).encode()).messages
    roles = {"tool": "user"}
    return [
        {"role": roles.get(message.role, message.role), "content": message.content}
        for message in messages
        if message.content.strip()
    ]


def _text(lesson: Lesson) -> str:
    return "\n\n".join(message.content for message in lesson.messages)
