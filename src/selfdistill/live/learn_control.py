"""The routes under /v1/selfdistill about learning: updates, their approval, and the credit of an answer's tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from selfdistill.analysis.token_credit import CreditQuery, credit
from selfdistill.errors import DataError, JournalError, ModelError, UnknownReceiptError
from selfdistill.live.exchange import RECEIPT_PREFIX
from selfdistill.live.lessons import context_of
from selfdistill.live.schedule import Schedule
from selfdistill.live.service import Service
from selfdistill.live.updates import UpdateRecord, Updates
from selfdistill.prompts.render import Renderer
from selfdistill.protocol.chat import ChatError, read_field, read_request

OFF = "this server does not learn: start it with --learn"


class LearnControl:
    """Answers requests about learning, made as `Control` is; without a schedule the server does not learn."""

    def __init__(
        self,
        service: Service,
        schedule: Schedule | None,
        respond: Callable[[Any], Any],
        body: Callable[[Any], Awaitable[bytes]],
    ) -> None:
        self._service, self._schedule, self._respond, self._body = service, schedule, respond, body
        prefix = "/v1/selfdistill"
        self.handlers: list[tuple[str, str, Callable[[Any], Awaitable[Any]]]] = [
            ("POST", f"{prefix}/learn", self._learn),
            ("GET", f"{prefix}/updates", self._updates),
            ("POST", f"{prefix}/approve", self._approve),
            ("POST", f"{prefix}/reject", self._reject),
            ("POST", f"{prefix}/why", self._why),
        ]

    async def _learn(self, _: Any) -> Any:
        record = await asyncio.to_thread(self._learning().request)
        return self._respond({"update": record.id, "state": record.state})

    async def _updates(self, _: Any) -> Any:
        updates = Updates(self._service.journal.database)
        found = await asyncio.to_thread(lambda: [each.public() for each in updates.all])
        return self._respond({"updates": found})

    async def _approve(self, request: Any) -> Any:
        return await self._decided(request, self._learning().approve)

    async def _reject(self, request: Any) -> Any:
        return await self._decided(request, self._learning().reject)

    async def _why(self, request: Any) -> Any:
        receipt = read_field(await self._body(request), "receipt", str)
        return self._respond(await asyncio.to_thread(self._credit, receipt.removeprefix(RECEIPT_PREFIX)))

    def _credit(self, receipt: str) -> dict[str, Any]:
        """The log-ratio of each token of our answer under what came back for it. Raises `ChatError`."""
        journal, served = self._service.journal, self._service.served
        try:
            exchange = journal.exchange(receipt)
        except UnknownReceiptError as error:
            raise ChatError(error.what, status=HTTPStatus.NOT_FOUND, param="receipt", code="unknown_receipt") from error
        found = context_of(journal.came_back(exchange.seq), exchange.text)
        if isinstance(found, str):
            what = f"nothing explains this answer: {found}"
            raise ChatError(what, status=HTTPStatus.CONFLICT, param="receipt", code="nothing_came_back")
        context, _ = found
        policy = served.policy
        request = read_request(json.dumps(exchange.request).encode())
        renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length, tools=request.tools)
        try:
            query = CreditQuery(request.messages, exchange.sampled_ids, context)
            tokens = credit(policy, renderer, query, top=1).tokens
        except (DataError, ModelError) as error:
            raise ChatError(error.what, status=HTTPStatus.CONFLICT, param="receipt", code="not_measured") from error
        shown = "\n\n".join(filter(None, (context.reply, context.feedback, context.demonstration)))
        ratios = [{"text": token.text, "log_ratio": token.log_ratio} for token in tokens]
        return {"receipt": receipt, "context": shown, "tokens": ratios}

    async def _decided(self, request: Any, decide: Callable[[int], UpdateRecord]) -> Any:
        number = read_field(await self._body(request), "update", int)
        try:
            record = await asyncio.to_thread(decide, number)
        except (JournalError, ModelError) as error:
            what = "; ".join(filter(None, (error.what, str(error.got or ""), error.why)))
            raise ChatError(what, status=HTTPStatus.CONFLICT, param="update", code="not_possible") from error
        return self._respond({"update": record.id, "state": record.state, "version": record.version})

    def _learning(self) -> Schedule:
        if self._schedule is None:
            raise ChatError(OFF, status=HTTPStatus.CONFLICT, code="not_learning")
        return self._schedule
