"""A journal with a client that talks to it, for the tests of `live/`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.live.conversations import Place, locate, new_receipt
from selfdistill.live.exchange import Exchange
from selfdistill.live.journal import Journal
from selfdistill.protocol.chat import ChatRequest, read_request, reply_to
from selfdistill.types import Completion

IDS, LOGPROBS = (7, 8, 2), (-0.25, -1.5, -0.125)


def served(path: Path) -> Journal:
    """A journal that a server has, with a version."""
    journal = Journal.serve(path)
    if not journal.versions.served:
        journal.versions.publish("sapling")
    return journal


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def request(*messages: Mapping[str, Any], **body: Any) -> ChatRequest:
    return read_request(json.dumps({"model": "m", "messages": messages, **body}).encode())


def ask(
    journal: Journal, *messages: Mapping[str, Any], answer: str = "An answer.", headers: Mapping[str, str] = {}
) -> Exchange:
    """Answers a request, and records it, as a server does."""
    asked = request(*messages)
    place = locate(journal, asked, headers)
    return answered(journal, place, asked, answer)


def answered(journal: Journal, place: Place, asked: ChatRequest, answer: str, **given: Any) -> Exchange:
    version = journal.versions.served
    assert version
    completion = Completion(new_receipt(), answer, IDS, LOGPROBS, policy_version=version.id)
    exchange = place.exchange(completion, reply_to(asked, completion), (5, 6), **given)
    journal.record(exchange)
    return journal.exchange(exchange.receipt)
