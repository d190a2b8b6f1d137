"""Which conversation a request belongs to, which of our answers it replies to, and whether it is a side call.

Clients differ: some send the id of a session, most send none; some strip the white space of our answers, leave earlier
messages out or add answers that nobody sampled. So an answer of ours is known by the hash of what it says, and by
nothing before it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.live.exchange import Exchange, FollowUp, Kind, Status
from selfdistill.live.journal import Journal
from selfdistill.prompts.context import without_thinking
from selfdistill.protocol.chat import ChatRequest, Key, Reply
from selfdistill.types import Completion, Message, TokenIds

# Headers that name a conversation, the first that is there; then fields of the body's `metadata`.
SESSION_HEADERS = (
    "x-session-id", "x-openwebui-chat-id", "x-litellm-session-id", "x-hermes-session-id", "session-id",
    "x-session-affinity",
)  # fmt: skip
SESSION_FIELDS = ("session_id", "conversation_id", "chat_id", "thread_id")
KEPT_HEADERS = (
    *SESSION_HEADERS, "x-turn-type", "x-session-done", "x-openwebui-task", "x-openwebui-message-id", "user-agent",
)  # fmt: skip
NO_IDS = ("", "unknown", "none", "null", "undefined", "default")
ID_LENGTH = 200
DISTINCT = 40  # letters of an answer that no other conversation has by chance

# What the instructions of side calls begin with, each with the name of its rule.
INSTRUCTIONS = (
    ("title", r"title generator|\bgenerates?\b.{0,40}\btitles?\b"),
    ("commit message", r"\bgenerates?\b.{0,40}\bcommit messages?\b"),
    ("summary", r"\bsummari[sz](?:e|es|ing)\b.{0,30}\bconversations?\b"),
    ("tags", r"\bgenerates?\b.{0,40}\btags\b"),
    ("branch name", r"\bgenerates?\b.{0,40}\bbranch names?\b"),
)
# How the last turn of a user begins in a side call.
OPENERS = (("task", r"### Task:\s"), ("title", r"Generate a title for this conversation\b"))
INSTRUCTION_LENGTH = 300  # only the first letters: long instructions of agents mention commits and titles too
# Answers that clients write in our name, between a user's turns.
FILLER = re.compile(r"(?:ok|okay|sure|noted|understood|got it|i see|thank you|thanks)\b[^\n]{0,120}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: its conversation and what found it, main or side and by which rule, what it says since
    the assistant's last turn, and the messages that it brings back for an earlier exchange."""

    request: Mapping[str, Any]
    headers: Mapping[str, str]
    conversation: str
    found_by: str
    kind: Kind = "main"
    rule: str = ""
    new_text: str = ""
    follow_up: FollowUp | None = None

    def exchange(
        self,
        completion: Completion,
        reply: Reply,
        prompt_ids: TokenIds,
        *,
        stop: str = "",
        sampling: Mapping[str, Any] | None = None,
        status: Status = "complete",
    ) -> Exchange:
        """The exchange of this request and an answer to it, to be recorded; its receipt is the id of the reply. `stop`
        where the reason was another than the completion's."""
        return Exchange(
            reply.id,
            self.conversation,
            completion.policy_version,
            self.request,
            reply.message,
            prompt_ids,
            completion.token_ids,
            completion.logprobs,
            stop or str(completion.stop),
            completion.text,
            sampling or {},
            self.headers,
            self.found_by,
            self.kind,
            self.rule,
            status,
            self.new_text,
            reply_hash(reply.key),
            self.follow_up,
        )


def new_receipt() -> str:
    """A receipt that nobody can guess."""
    return secrets.token_hex(12)


def locate(journal: Journal, request: ChatRequest, headers: Mapping[str, str]) -> Place:
    """Where a request stands, by its headers and by our answers in it. Raises `JournalError`."""
    kept = kept_headers(headers)
    named, found_by = session_id(request.body, kept)
    turns = [place for place, key in enumerate(request.keys) if key[0] == "assistant"]
    ours = next(((place, row) for place in reversed(turns) if (row := _ours(journal, request, place, named))), None)
    rule = side_rule(request, kept, ours=ours is not None)
    follow_up = None
    if ours and not rule and (ours[1]["kind"], ours[1]["status"]) == ("main", "complete"):
        messages = _messages_after(request, ours[0])
        follow_up = FollowUp(ours[1]["receipt"], messages) if messages else None
    if not named:
        named, found_by = (ours[1]["conversation"], "reply") if ours else (f"c-{secrets.token_hex(6)}", "new")
    new = "\n\n".join(text for _, text, _ in request.keys[turns[-1] + 1 if turns else 0 :] if text)
    return Place(request.body, kept, named, found_by, "side" if rule else "main", rule, new, follow_up)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a journal keeps, in lower case; never one that authorises."""
    lower = {name.lower(): value for name, value in headers.items()}
    return {name: lower[name][:ID_LENGTH] for name in KEPT_HEADERS if name in lower}


def session_id(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, str]:
    """The id of a conversation that a client sends, and where it stood; two empty texts without."""
    metadata = body.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else {}
    given = [(headers.get(name), name) for name in SESSION_HEADERS]
    given += [(fields.get(name), f"metadata.{name}") for name in SESSION_FIELDS]
    for value, found_by in given:
        text = value.strip()[:ID_LENGTH] if isinstance(value, str) else ""
        if text.lower() not in NO_IDS and "{{" not in text:  # a template that the client did not fill
            return text, found_by
    return "", ""


def side_rule(request: ChatRequest, headers: Mapping[str, str], *, ours: bool) -> str:
    """The rule by which a request is a side call; empty for one of the conversation. `ours`: it holds an answer of
    ours, as instructions to a helper never do."""
    if (turn := headers.get("x-turn-type", "").lower()) in ("main", "side"):
        return "header x-turn-type" if turn == "side" else ""
    if headers.get("x-openwebui-task"):
        return "header x-openwebui-task"
    last = request.keys[-1][1].lstrip()
    for name, pattern in OPENERS if request.keys[-1][0] == "user" else ():
        if re.match(pattern, last):
            return f"the user's turn begins as {name}"
    first = "" if ours else next((text for role, text, _ in request.keys if role == "system"), "")
    for name, pattern in INSTRUCTIONS:
        if re.search(pattern, first[:INSTRUCTION_LENGTH], re.IGNORECASE | re.DOTALL):
            return f"instruction for a {name}"
    return ""


def reply_hash(key: Key) -> str:
    """By what an answer is known again: its text without thinking and without regard to white space, and its calls.
    Empty for an empty answer."""
    _, text, calls = key
    words = _words(without_thinking(text))
    return hashlib.sha256(json.dumps([words, calls]).encode()).hexdigest() if words or calls else ""


def _words(text: str) -> str:
    return " ".join(text.split())


def _ours(journal: Journal, request: ChatRequest, place: int, conversation: str) -> sqlite3.Row | None:
    """The exchange whose answer stands at this place: in this conversation, or after the same words of the user, or
    long enough to be no other; rather one that nothing followed yet."""
    hashed = reply_hash(request.keys[place])
    rows: Sequence[sqlite3.Row] = journal.replied(hashed, conversation) if hashed else ()
    before = next((text for role, text, _ in reversed(request.keys[:place]) if role in ("user", "tool")), "")
    question, answer = _words(before), _words(request.keys[place][1])

    def shared(row: sqlite3.Row) -> bool:
        earlier = _words(row["new_text"])  # with what a client adds to a user's turn while it is the newest
        return bool(question) and (question in earlier or earlier in question)

    known = [row for row in rows if row["conversation"] == conversation or shared(row) or len(answer) >= DISTINCT]
    return max(
        known,
        key=lambda row: (
            row["conversation"] == conversation,
            shared(row),
            row["kind"] == "main",
            not row["followed"],
            row["seq"],
        ),
        default=None,
    )


def _messages_after(request: ChatRequest, place: int) -> tuple[Message, ...]:
    """The turns of the user and of tools after our turn, and after such answers in between as clients write in our
    name; none before another answer, to which they would be replies."""
    found: list[Message] = []
    for key, message in zip(request.keys[place + 1 :], request.messages[place + 1 :], strict=True):
        if key[0] == "assistant":
            if key[2] or not FILLER.fullmatch(key[1]):
                break
            found = []
        elif key[0] in ("user", "tool") and key[1].strip():
            found.append(message)
    return tuple(found)
