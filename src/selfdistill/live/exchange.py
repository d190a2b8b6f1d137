"""The values of a journal: exchanges, what followed them, feedback on them, versions of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from selfdistill.errors import DataError, nearest
from selfdistill.types import Message, TokenIds

Kind = Literal["main", "side"]
Status = Literal["complete", "cancelled"]
Origin = Literal["user", "tool", "text", "rating", "solution"]
RECEIPT_PREFIX = "chatcmpl-"  # of the id of an answer on the wire, which holds the receipt


@dataclass(frozen=True, slots=True)
class FollowUp:
    """The messages of a user or a tool that came back after one of our turns, whose exchange has this receipt."""

    receipt: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and our answer, token by token.

    `request` is the body that was sent, `reply` the message that went back, `text` the answer as sampled, thinking and
    calls included. `prompt_ids` were read and `sampled_ids` [T] sampled by the weights `version`, under the settings
    `sampling`; `logprobs` [T] are nats. `stop` is why sampling ended. A side call, and which `rule` found it, is never
    learned from; neither is a cancelled answer, whose client went. `conversation` was found by `found_by`.

    `new_text` is what the request says since the assistant's last turn, `follow_up` what it brings back for an earlier
    exchange, `reply_hash` that by which the reply is known again. The journal sets `seq`, the order of exchanges, and
    `created`, UTC.
    """

    receipt: str
    conversation: str
    version: int
    request: Mapping[str, Any]
    reply: Mapping[str, Any]
    prompt_ids: TokenIds
    sampled_ids: TokenIds
    logprobs: tuple[float, ...]
    stop: str
    text: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    found_by: str = "new"
    kind: Kind = "main"
    rule: str = ""
    status: Status = "complete"
    new_text: str = ""
    reply_hash: str = ""
    follow_up: FollowUp | None = None
    created: str = ""
    seq: int = 0

    def __post_init__(self) -> None:
        assert len(self.logprobs) in (0, len(self.sampled_ids)), "a log-probability for each sampled token, or none"


@dataclass(frozen=True, slots=True)
class Lesson:
    """Something that came back after an exchange of ours: from a `user`, a `tool`, or the `text` or `solution` of
    feedback."""

    exchange: Exchange
    origin: Origin
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback on an exchange: a `text` about the answer, a `rating` from 0 (useless) to 1 (right), or a `solution`,
    how the answer should have been. At least one of them."""

    receipt: str
    text: str = ""
    rating: float | None = None
    solution: str = ""

    def __post_init__(self) -> None:
        if not (self.text.strip() or self.solution.strip() or self.rating is not None):
            raise DataError("feedback without content", do="give a text, a rating from 0 to 1, or a solution")
        if self.rating is not None and not 0 <= self.rating <= 1:
            raise DataError("a rating is a number from 0 (useless) to 1 (right)", got=self.rating)

    @property
    def parts(self) -> list[tuple[Origin, str]]:
        """Each content with its name, as the journal stores them."""
        rating = "" if self.rating is None else f"{self.rating:g}"
        given: list[tuple[Origin, str]] = [("text", self.text), ("rating", rating), ("solution", self.solution)]
        return [(origin, value) for origin, value in given if value.strip()]


def read_feedback(body: Mapping[str, Any]) -> Feedback:
    """The feedback of a request, `{receipt, text | rating | solution}`. Raises `DataError`."""
    known: Mapping[str, type | tuple[type, ...]] = {
        "receipt": str,
        "text": str,
        "rating": (int, float),
        "solution": str,
    }
    for name, value in body.items():
        if name not in known:
            raise DataError(f"feedback has no field {name!r}", do=nearest(name, known))
        if value is not None and not isinstance(value, known[name]):
            raise DataError(f"the field {name!r} of feedback is of the wrong type", got=repr(value)[:200])
    given = {name: value for name, value in body.items() if value is not None}
    if not given.get("receipt"):
        raise DataError("feedback names no receipt", do="give the receipt of the answer, which came with it")
    if "rating" in given:
        given["rating"] = float(given["rating"])
    return Feedback(**given)


class FeedbackResult(NamedTuple):
    """How many of the contents are `new` (a content that was given before is stored once), and how many different
    ones the exchange has in `total`."""

    new: int
    total: int


@dataclass(frozen=True, slots=True)
class Version:
    """Weights that were published: those of `model`, with the adapter or checkpoint at `path` unless it is empty.
    `parent` is the version that they were trained from. The server answers with the one that is served; a pinned one
    stays until it is unpinned."""

    id: int
    parent: int | None
    created: str
    model: str
    path: str
    state: Literal["served", "published", "undone"]
    pinned: bool

    @property
    def is_adapter(self) -> bool:
        """Whether its directory holds an adapter, and not a whole model."""
        return bool(self.path) and (Path(self.path) / "adapter_config.json").is_file()


class Conversation(NamedTuple):
    """A conversation in numbers: its exchanges, the main ones among them, the times of the first and of the last, and
    the words that began it."""

    id: str
    found_by: str
    exchanges: int
    main: int
    first: str
    last: str
    begins: str


class Deletion(NamedTuple):
    """How many exchanges went. Not `complete`: another process reads the journal, and copies stay in the file beside
    it whose name ends in -wal until that process is done."""

    exchanges: int
    complete: bool
