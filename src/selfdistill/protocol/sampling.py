"""What a request asks of sampling, in the fields of OpenAI's API, for chats and for plain completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfdistill.protocol.chat import ChatError

MOST_STOPS, MOST_TOP = 16, 20


@dataclass(frozen=True, slots=True)
class WantedSampling:
    """Settings of a request; None: the server's own. `top` is how many likeliest tokens are listed for each sampled
    one; `logprobs` and `token_ids`, whether those of the sampled tokens are."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top: int = 0
    token_ids: bool = False


def read_sampling(body: Mapping[str, Any], *, chat: bool) -> WantedSampling:
    """The settings of a request. Raises `ChatError` for one that has a wrong type or value, or would have no effect."""
    _refuse_what_has_no_effect(body)
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(text, str) and text for text in stops):
        raise ChatError("stop should be a text, or a list of texts", param="stop")
    if len(stops) > MOST_STOPS:
        raise ChatError(f"at most {MOST_STOPS} texts stop an answer, got {len(stops)}", param="stop")
    limits = [_whole(body, name, least=1) for name in ("max_completion_tokens", "max_tokens")]
    if chat:
        logprobs, top = bool(body.get("logprobs")), _whole(body, "top_logprobs", least=0, most=MOST_TOP) or 0
        if top and not logprobs:
            raise ChatError("top_logprobs needs logprobs: true", param="top_logprobs")
    else:
        count = _whole(body, "logprobs", least=0, most=MOST_TOP)
        logprobs, top = count is not None, count or 0
    return WantedSampling(
        next((limit for limit in limits if limit is not None), None),
        _number(body, "temperature", 0, 2),
        _number(body, "top_p", 0, 1, above=True),
        tuple(stops),
        _whole(body, "seed"),
        logprobs,
        top,
        bool(body.get("return_token_ids")),
    )


def _refuse_what_has_no_effect(body: Mapping[str, Any]) -> None:
    for name in ("frequency_penalty", "presence_penalty", "logit_bias", "functions", "audio", "echo", "suffix"):
        if body.get(name):
            raise ChatError(f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
    if body.get("best_of") not in (None, 1):
        raise ChatError("best_of is not supported: ask for n answers", param="best_of", code="unsupported_parameter")
    wanted = body.get("response_format")
    if wanted and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        what = "only response_format text is supported: nothing forces an answer into a form"
        raise ChatError(what, param="response_format", code="unsupported_parameter")
    if body.get("tool_choice") not in (None, "auto", "none"):
        what = "only tool_choice auto and none are supported: nothing forces a call"
        raise ChatError(what, param="tool_choice", code="unsupported_parameter")


def _whole(body: Mapping[str, Any], name: str, *, least: int = -(2**63), most: int = 2**63 - 1) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f" from {least} to {most}" if most < 2**63 - 1 else f", {least} or more" if least > -(2**63) else ""
        raise ChatError(f"{name} should be a whole number{bounds}, got {value!r}", param=name)
    return value


def _number(body: Mapping[str, Any], name: str, least: float, most: float, *, above: bool = False) -> float:
    value = body.get(name)
    if value is None:
        return 1.0
    right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not right or (above and value == least):
        low = "above" if above else "from"
        raise ChatError(f"{name} should be a number {low} {least} to {most}, got {value!r}", param=name)
    return float(value)
