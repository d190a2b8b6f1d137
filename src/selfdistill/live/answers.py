"""The answers to one request while they are sampled: what a client is sent of them, and what the journal records.

Two shapes: `ChatAnswer`, with thinking and calls of tools apart, and `TextAnswer`, a plain completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from selfdistill.envs.tools import before_calls, parse_calls
from selfdistill.live.batch import Generation, Piece
from selfdistill.live.conversations import Place
from selfdistill.live.exchange import Exchange, Status
from selfdistill.live.written import HALF, shown_so_far
from selfdistill.protocol.chat import ChatRequest, Finish, Reply, reply_to
from selfdistill.protocol.sampling import WantedSampling
from selfdistill.types import Completion, StopReason

LEAST_LOGPROB = -9999.0  # what OpenAI writes for a token that cannot be drawn; JSON has no infinity


@dataclass(slots=True)
class ChatAnswer:
    """An answer of a chat, in the place `index` among those of its request. `opened` is the tag of thinking with which
    its prompt ends, `sent` what its client has of thinking and text."""

    kind: ClassVar[str] = "chat.completion"
    index: int
    receipt: str
    model: str
    wanted: WantedSampling
    tokenizer: Any
    request: ChatRequest
    opened: str = ""
    version: int = 0
    generation: Generation | None = None
    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    sent: tuple[str, str] = ("", "")
    listed: int = 0  # tokens whose log-probabilities its client has
    ended: str = ""
    why: str = ""

    def add(self, piece: Piece) -> None:
        """Takes what the engine delivers."""
        self.text += piece.text
        if piece.token is not None:
            self.pieces.append(piece)
        self.ended, self.why = piece.ended, piece.why

    @property
    def completion(self) -> Completion:
        """The answer so far as sampled, up to a stop string."""
        ids, logprobs = (tuple(getattr(each, name) for each in self.pieces) for name in ("token", "logprob"))
        stop = StopReason.LENGTH if self.ended == "length" else StopReason.END
        return Completion(self.receipt, self.text, ids, logprobs, stop, self.version)

    def reply(self) -> Reply:
        """The answer on the wire; what was sent already stays."""
        assert self.generation is not None
        done = replace(self.completion, text=self.opened + self.text)
        found = parse_calls(done.text) if self.request.may_call else []
        calls = [(call.name, call.arguments) for call in found if call.name and not call.fault]
        before = before_calls(done.text) if calls else ""
        reply = reply_to(self.request, done, calls, before, prompt_tokens=len(self.generation.prompt))
        thought, shown = self.sent
        thought = reply.reasoning if reply.reasoning.startswith(thought) else thought
        shown = reply.content if reply.content.startswith(shown) else shown
        return replace(reply, model=self.model, logprobs=self.logprobs(), reasoning=thought, content=shown)

    def exchange(self, place: Place, reply: Reply, status: Status = "complete") -> Exchange:
        """The answer with its request, for the journal."""
        assert self.generation is not None
        options = self.generation.options
        sampling = {
            **{name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p")},
            "seed": self.generation.seed, "uid": self.generation.uid, "stop": list(self.generation.stop),
        }  # fmt: skip
        stop = self.ended or "cancelled"
        prompt = self.generation.prompt
        return place.exchange(self.completion, reply, prompt, stop=stop, sampling=sampling, status=status)

    def first(self) -> dict[str, Any]:
        """The chunk that begins the stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Chunks of what is new and certain."""
        thought, shown = shown_so_far(self.opened + self.text, calls=self.request.may_call)
        yield from self._new(thought, shown)

    def last(self, reply: Reply, about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Chunks of the rest, its calls, and why it ended, with more `about` the answer."""
        yield from self._new(reply.reasoning, reply.content)
        calls = [{**call, "index": place} for place, call in enumerate(reply.message.get("tool_calls", ()))]
        if calls:
            yield self._chunk({"tool_calls": calls})
        yield {**self._chunk({}, reply.finish), **about}

    def _new(self, thought: str, shown: str) -> Iterator[dict[str, Any]]:
        for place, (name, text) in enumerate((("reasoning_content", thought), ("content", shown))):
            before = self.sent[place]
            if len(text) > len(before) and text.startswith(before):
                self.sent = (text, self.sent[1]) if place == 0 else (self.sent[0], text)
                yield self._chunk({name: text[len(before) :]})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        logprobs = self.logprobs(self.listed) if delta.get("content") or finish else None
        self.listed = len(self.pieces) if logprobs else self.listed
        choice = {"index": self.index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {"object": f"{self.kind}.chunk", "choices": [choice]}

    def logprobs(self, start: int = 0) -> dict[str, Any] | None:
        """The log-probabilities of sampled tokens from a place on; None where they are not wanted."""
        if not self.wanted.logprobs:
            return None
        return {
            "content": [
                {
                    **self._token(piece.token, piece.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in piece.top],
                }
                for piece in self.pieces[start:]
            ],
            "refusal": None,
        }

    def _token(self, token: int | None, logprob: float) -> dict[str, Any]:
        text = self.word(token)
        raw = None if HALF in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": raw}

    def word(self, token: int | None) -> str:
        """The text of one token."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def choice(self, reply: Reply) -> dict[str, Any]:
        """The answer as one of those in an object."""
        ids = {"token_ids": list(self.completion.token_ids)} if self.wanted.token_ids else {}
        return {**reply.choice(self.index), **ids}


@dataclass(slots=True)
class TextAnswer(ChatAnswer):
    """An answer to a plain prompt: its text as it is."""

    kind: ClassVar[str] = "text_completion"

    def reply(self) -> Reply:
        """The text on the wire."""
        assert self.generation is not None
        read, sampled = len(self.generation.prompt), len(self.pieces)
        finish: Finish = "length" if self.ended == "length" else "stop"
        return Reply(
            self.receipt, self.model, self.text, finish, prompt_tokens=read, completion_tokens=sampled,
            logprobs=self.logprobs(),
        )  # fmt: skip

    def first(self) -> dict[str, Any]:
        """The chunk that begins the stream."""
        return self._piece("", None)

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Chunks of what is new and certain."""
        if len(self.text) > len(self.sent[1]):
            new, self.sent = self.text[len(self.sent[1]) :], ("", self.text)
            yield self._piece(new, None)

    def last(self, reply: Reply, about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunk of the rest, and why it ended."""
        yield {**self._piece(reply.content[len(self.sent[1]) :], reply.finish), **about}

    def choice(self, reply: Reply) -> dict[str, Any]:
        """The answer as one of those in an object."""
        return self._choice(reply.content, reply.finish, 0)

    def logprobs(self, start: int = 0) -> dict[str, Any] | None:
        """The log-probabilities of sampled tokens from a place on; None where they are not wanted."""
        if not self.wanted.logprobs:
            return None
        words = [self.word(piece.token) for piece in self.pieces]
        offsets = [sum(map(len, words[:place])) for place in range(start, len(words))]
        top = [
            {self.word(token): max(logprob, LEAST_LOGPROB) for token, logprob in piece.top}
            for piece in self.pieces[start:]
        ]
        logprobs = [piece.logprob for piece in self.pieces[start:]]
        return {"tokens": words[start:], "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _piece(self, text: str, finish: str | None) -> dict[str, Any]:
        choice = self._choice(text, finish, self.listed)
        self.listed = len(self.pieces)
        return {"object": self.kind, "choices": [choice]}

    def _choice(self, text: str, finish: str | None, start: int) -> dict[str, Any]:
        ids = {}
        if self.wanted.token_ids:
            assert self.generation is not None
            ids = {"token_ids": [piece.token for piece in self.pieces[start:]]}
            ids |= {} if start else {"prompt_token_ids": list(self.generation.prompt)}
        return {"index": self.index, "text": text, "finish_reason": finish, "logprobs": self.logprobs(start), **ids}
