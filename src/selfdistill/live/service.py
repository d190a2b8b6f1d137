"""A served model: requests become answers that are sampled, recorded and sent.

call = service.chat(body, headers)       or service.text; raises `ChatError` for what cannot be answered
service.start(call, deliver)             the engine samples; pieces come in its thread
replies = service.record(call)           once all answers have ended: durable when it returns
service.publish(path, parent=version)    or `undo`, `pin`: answers come from another version of the weights
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from selfdistill.errors import ConfigError, DataError, JournalError, JournalFullError, ModelError, UnknownReceiptError
from selfdistill.live.answers import ChatAnswer, TextAnswer
from selfdistill.live.batch import Generation, Piece
from selfdistill.live.conversations import Place, kept_headers, locate, new_receipt, session_id
from selfdistill.live.engine import Engine
from selfdistill.live.exchange import RECEIPT_PREFIX, Version, read_feedback
from selfdistill.live.journal import Journal
from selfdistill.live.weights import Weights
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.render import ChatTemplate, Thinking
from selfdistill.protocol.chat import (
    ChatError,
    ChatRequest,
    Reply,
    check_stream_options,
    read_object,
    read_request,
)
from selfdistill.protocol.sampling import WantedSampling, read_sampling
from selfdistill.types import TokenIds

MOST_ANSWERS = 16  # of one request
MOST_TOOLS = 64  # lists of tools whose templates are kept
LEAST_DISK = 16 * 2**20  # free bytes, below which no answer begins that could not be recorded


class Learning(Protocol):
    """What learns from the journal beside the service: why it does not now (empty: it does), and its status."""

    def obstacle(self) -> str: ...
    def status(self) -> dict[str, Any]: ...


class Served(NamedTuple):
    """A version with its weights, and what writes prompts for them: all that changes when another one is served."""

    version: Version
    policy: Policy
    template: Callable[[str], ChatTemplate]
    """That of a list of tools, as JSON."""


@dataclass(slots=True)
class Call:
    """A request with its answers, which share a prompt unless it is a list of plain ones."""

    place: Place
    answers: list[ChatAnswer]
    streams: bool
    wants_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    recorded: bool = False

    @property
    def receipts(self) -> list[str]:
        """The receipts of its answers."""
        return [answer.receipt for answer in self.answers]

    def head(self) -> dict[str, Any]:
        """What every object about it begins with."""
        first = self.answers[0]
        prefix = RECEIPT_PREFIX if first.kind == "chat.completion" else "cmpl-"
        return {"id": f"{prefix}{first.receipt}", "created": self.created, "model": first.model}

    def about(self, answer: ChatAnswer) -> dict[str, Any]:
        """The receipt of an answer."""
        return {"selfdistill": {"receipt": answer.receipt, "conversation": self.place.conversation}}

    def usage(self, replies: list[Reply]) -> dict[str, int]:
        """How many tokens were read and sampled; a prompt counts once."""
        prompts = {id(a.generation.prompt): len(a.generation.prompt) for a in self.answers if a.generation}
        read, sampled = sum(prompts.values()), sum(reply.completion_tokens for reply in replies)
        return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}

    def body(self, replies: list[Reply]) -> dict[str, Any]:
        """All answers as one object."""
        choices = [answer.choice(reply) for answer, reply in zip(self.answers, replies, strict=True)]
        about = {"receipt": self.receipts[0], "receipts": self.receipts, "conversation": self.place.conversation}
        return {
            **self.head(), "object": self.answers[0].kind, "choices": choices, "usage": self.usage(replies),
            "selfdistill": about,
        }  # fmt: skip

    def cancel(self) -> None:
        """Stops what is still being sampled: nobody waits for it."""
        for answer in self.answers:
            if answer.generation:
                answer.generation.cancelled = True


class Service:
    """A model with its engine and its journal. `name` is the model's on the wire, `most` how many answers may be in
    progress, and `max_tokens` the limit of an answer whose request has none. `weights` load other versions.

    Requests that are in progress end with the version with which they began, later ones get the new one."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        journal: Journal,
        version: Version,
        *,
        name: str,
        most: int = 64,
        max_tokens: int = 2048,
        thinking: Thinking = "off",
        weights: Weights | None = None,
    ) -> None:
        self.engine, self.journal, self.weights = engine, journal, weights or Weights(journal)
        self.name, self.most, self.max_tokens, self._thinking = name, most, max_tokens, thinking
        self.started, self.reading, self._seconds = time.time(), 0, 1.0
        self._changing = threading.RLock()
        self.learning: Learning | None = None
        self._swap(version, policy)

    @property
    def policy(self) -> Policy:
        """The weights that answer."""
        return self.served.policy

    @property
    def version(self) -> Version:
        """The version that answers."""
        return self.served.version

    def serve(self, version: Version) -> None:
        """Answers with a version that the journal says is served. Raises `ModelError` where it cannot be loaded; then
        the one before continues."""
        with self._changing:
            self._swap(version, self.weights.load(version))

    def publish(self, path: str, *, parent: int) -> Version:
        """Publishes an adapter, or a checkpoint, that was trained from a version, and answers with it. Raises
        `ModelError` where it cannot be loaded, `VersionError` where it may not follow; then nothing has changed."""
        with self._changing:
            versions, model = self.journal.versions, self.journal.versions.get(parent).model
            policy = self.weights.load(Version(0, parent, "", model, path, "published", False))
            version = versions.publish(model, path, parent=parent)
            self._swap(version, policy)
            return version

    def undo(self, count: int = 1) -> Version:
        """Drops versions, and answers with the one before them. Raises as `publish`."""
        with self._changing:
            policy = self.weights.load(self.journal.versions.before(count))
            version = self.journal.versions.undo(count)
            self._swap(version, policy)
            return version

    def pin(self, version: int | None) -> Version:
        """Answers with a version, an undone one too, until it is unpinned; None unpins. Raises as `publish`."""
        with self._changing:
            if version is None:
                found, policy = self.journal.versions.unpin(), self.policy
            else:
                policy = self.weights.load(self.journal.versions.get(version))
                found = self.journal.versions.pin(version)
            self._swap(found, policy)
            return found

    def _swap(self, version: Version, policy: Policy) -> None:
        template = ChatTemplate(policy.tokenizer, thinking=self._thinking)
        made = lru_cache(MOST_TOOLS)(lambda tools: replace(template, tools=json.loads(tools)))
        self.served = Served(version, policy, made)
        self.engine.serve(policy)

    def chat(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """The answers that a chat asks for. Raises `ChatError`."""
        request = read_request(body, answers=MOST_ANSWERS)
        wanted = read_sampling(request.body, chat=True)
        if request.messages[-1].role == "assistant":
            raise ChatError("the last message should be of the user or of a tool", param="messages")
        self._enough_disk()
        served = self.served
        template = served.template(json.dumps(request.tools if request.may_call else ()))
        try:
            prompt = template.prompt(request.messages)
        except ModelError as error:
            raise ChatError(f"{error.what}: {error.why}", param="messages") from error
        opened = template.opened(prompt)
        place = self._located(partial(locate, self.journal, request, headers))
        made = partial(ChatAnswer, model=self.name, wanted=wanted, tokenizer=served.policy.tokenizer, request=request)
        n = int(request.body.get("n") or 1)
        answers = [made(index, new_receipt(), opened=opened, version=served.version.id) for index in range(n)]
        return self._call(served.policy, place, answers, [prompt] * n, wanted, request)

    def text(self, body: bytes, headers: Mapping[str, str]) -> Call:
        """The answers to plain prompts, texts or token ids. Raises `ChatError`. They are recorded, and never learned
        from: no conversation stands around them."""
        found, served = read_object(body), self.served
        wanted, prompts = read_sampling(found, chat=False), _prompts(served.policy, found.get("prompt"))
        n = found.get("n", 1) or 1
        if not isinstance(n, int) or not 1 <= n * len(prompts) <= MOST_ANSWERS:
            raise ChatError(f"a request has from 1 to {MOST_ANSWERS} answers, prompts times n", param="n")
        check_stream_options(found)
        self._enough_disk()
        kept = kept_headers(headers)
        named, found_by = session_id(found, kept)
        conversation = named or f"c-{secrets.token_hex(8)}"
        new = found["prompt"] if isinstance(found["prompt"], str) else ""
        place = Place(found, kept, conversation, found_by or "new", "side", "plain completion", new)
        request = ChatRequest((), (), body=found)
        each = [prompt for prompt in prompts for _ in range(n)]
        made = partial(TextAnswer, model=self.name, wanted=wanted, tokenizer=served.policy.tokenizer, request=request)
        answers: list[ChatAnswer] = [made(i, new_receipt(), version=served.version.id) for i in range(len(each))]
        return self._call(served.policy, place, answers, each, wanted, request)

    def start(self, call: Call, deliver: Callable[[ChatAnswer, Piece], None]) -> None:
        """Samples the answers of a call."""
        for answer in call.answers:
            assert answer.generation is not None
            answer.generation.deliver = partial(deliver, answer)
        self.engine.submit(*(answer.generation for answer in call.answers if answer.generation))

    def record(self, call: Call) -> list[Reply]:
        """Records all answers of a call, durably. Raises `ChatError` where they cannot be recorded."""
        replies = [answer.reply() for answer in call.answers]
        self._write(call, replies)
        took = time.time() - call.created
        self._seconds += 0.1 * (min(took, 600.0) - self._seconds)
        return replies

    def record_cancelled(self, call: Call) -> None:
        """Records what was sampled for a client that went."""
        call.answers = [answer for answer in call.answers if answer.pieces]
        if call.answers and not call.recorded:
            self._write(call, [answer.reply() for answer in call.answers], cancelled=True)

    def feedback(self, body: bytes) -> dict[str, Any]:
        """Records feedback on an answer. Raises `ChatError`."""
        found = read_object(body)
        try:
            feedback = read_feedback(found)
            new, total = self.journal.add_feedback(feedback)
        except DataError as error:
            raise ChatError(" ".join(filter(None, (error.what, error.do))), code="invalid_feedback") from error
        except UnknownReceiptError as error:
            raise ChatError(error.what, status=HTTPStatus.NOT_FOUND, param="receipt", code="unknown_receipt") from error
        except JournalError as error:
            raise _not_recorded(error) from error
        why = self.learning.obstacle() if self.learning else "this server does not learn"
        if not why and (kind := self.journal.unlearnable(feedback.receipt)):
            why = f"nothing is learned from this answer: it is {kind}"
        learned = {"learned": False, "why": why} if why else {"learned": True}
        return {"receipt": feedback.receipt.removeprefix(RECEIPT_PREFIX), "new": new, "total": total, **learned}

    def status(self) -> dict[str, Any]:
        """The server in numbers."""
        running, waiting = self.engine.load
        return {
            "model": self.name, "version": self.version.id, "paused": self.journal.paused,
            "running": running, "waiting": waiting, "most_answers": self.most, "tokens_sampled": self.engine.sampled,
            "seconds": time.time() - self.started, "journal": str(self.journal.database.path.resolve()),
            **self.journal.counts(), **(self.learning.status() if self.learning else {"learning": False}),
        }  # fmt: skip

    def has_room(self, answers: int) -> bool:
        """Whether so many more answers may be in progress, beside those whose requests are being read."""
        return self.reading + sum(self.engine.load) + answers <= self.most

    def retry_after(self) -> int:
        """Seconds after which a client that found the queue full may try again."""
        return max(1, min(60, round(self._seconds)))

    def _call(
        self,
        policy: Policy,
        place: Place,
        answers: list[ChatAnswer],
        prompts: list[TokenIds],
        wanted: WantedSampling,
        request: ChatRequest,
    ) -> Call:
        context = policy.context_length
        seed = secrets.randbits(48) if wanted.seed is None else wanted.seed
        for answer, prompt in zip(answers, prompts, strict=True):
            if not 0 < len(prompt) < context:
                what = "the prompt is empty"
                if prompt:
                    what = f"This model's maximum context length is {context} tokens, answer included; the prompt has "
                    what += f"{len(prompt)} tokens. Please shorten it"
                code = "context_length_exceeded" if prompt else "empty_prompt"
                raise ChatError(what, param="messages" if answer.kind == "chat.completion" else "prompt", code=code)
            most = min(wanted.max_tokens or self.max_tokens, context - len(prompt))
            try:
                options = SamplingOptions(max_new_tokens=most, temperature=wanted.temperature, top_p=wanted.top_p)
            except ConfigError as error:
                raise ChatError(error.what) from error
            uid = str(answer.index)
            answer.generation = Generation(
                prompt, options, seed, uid, _nothing, stop=wanted.stop, top=wanted.top, policy=policy
            )
        return Call(place, answers, request.streams, request.wants_usage)

    def _enough_disk(self) -> None:
        """Raises `ChatError` before anything is sampled that could not be recorded."""
        place = self.journal.database.path.resolve().parent
        if place.exists() and (free := shutil.disk_usage(place).free) < LEAST_DISK:
            what = (
                f"the disk of the journal is full ({free // 2**20} MiB left): nothing is answered that is not recorded"
            )
            raise ChatError(what, status=HTTPStatus.SERVICE_UNAVAILABLE, code="disk_full")

    def _located(self, find: Callable[[], Place]) -> Place:
        try:
            return find()
        except JournalError as error:
            raise _not_recorded(error) from error

    def _write(self, call: Call, replies: list[Reply], *, cancelled: bool = False) -> None:
        place, exchanges = call.place, []
        for answer, reply in zip(call.answers, replies, strict=True):
            exchanges.append(answer.exchange(place, reply, "cancelled" if cancelled else "complete"))
            place = replace(place, follow_up=None)  # one reply, however many answers are sampled after it
        try:
            self.journal.record(*exchanges)
        except JournalError as error:
            raise _not_recorded(error) from error
        call.recorded = True


def _nothing(_: Piece) -> None:
    """Delivers to nobody."""


def _prompts(policy: Policy, given: Any) -> list[TokenIds]:
    """A prompt, or several, as token ids."""
    several = given if isinstance(given, list) and given and not _is_ids(given) else [given]
    found: list[TokenIds] = []
    for prompt in several:
        if isinstance(prompt, str):
            found.append(tuple(policy.tokenizer(prompt)["input_ids"]))
        elif isinstance(prompt, list) and _is_ids(prompt):
            if not all(0 <= token < policy.vocabulary for token in prompt):
                raise ChatError(f"token ids are from 0 to {policy.vocabulary - 1}", param="prompt")
            found.append(tuple(prompt))
        else:
            raise ChatError("prompt should be a text, a list of token ids, or a list of those", param="prompt")
    return found


def _is_ids(value: list[Any]) -> bool:
    return all(isinstance(token, int) and not isinstance(token, bool) for token in value)


def _not_recorded(error: JournalError) -> ChatError:
    full = isinstance(error, JournalFullError)
    what = f"{error.what}: the exchange was not recorded, so it is not answered"
    code = "disk_full" if full else "journal_error"
    return ChatError(what, status=HTTPStatus.SERVICE_UNAVAILABLE, code=code)
