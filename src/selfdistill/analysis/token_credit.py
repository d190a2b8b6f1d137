"""Where the credit goes: the log-ratio u = log q − log p of every token of one answer, q the model that was told.

Legend: N answer positions, C positions of one chunk, V vocabulary; p student (reads the question), q teacher (the same
weights, which read the context too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfdistill.errors import DataError
from selfdistill.losses import token_logprobs
from selfdistill.losses.teacher_mixture import log_probs
from selfdistill.models.policy import Policy
from selfdistill.prompts.render import Renderer
from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit
from selfdistill.training.recording import token_texts
from selfdistill.types import Context, DropReason, Message, TokenIds

ROWS = 64  # positions whose logits are held at a time


@dataclass(frozen=True, slots=True)
class CreditQuery:
    """An answer, token by token, to a question, and what the teacher knows beside the question.

    `correct` is a corrected answer, for the test of whether the model sees what is wrong. `recorded` is the log-ratio
    of an earlier reading (of the teacher that trained on this answer); `advantage` the one number that GRPO would give
    to every token. `temperature` divides all logits; it is the one the answer was sampled at. `prompts` are those of
    student and teacher as a run recorded them (None: written from question and context).
    """

    question: tuple[Message, ...]
    answer: TokenIds
    context: Context
    correct: TokenIds = ()
    recorded: tuple[float, ...] = ()
    advantage: float | None = None
    temperature: float = 1.0
    prompts: tuple[TokenIds, TokenIds] | None = None


def credit(
    policy: Policy, renderer: Renderer, asked: CreditQuery, control: Sequence[Context] = (), *, top: int = 4
) -> AnswerCredit:
    """Reads the answer with and without the context, and under `control` contexts for the test of sight.

    `top` likeliest tokens of the student and of the teacher are kept at every place. Raises `DataError` for an answer
    without tokens and for a context that does not fit however much of it is cut; `ModelError` for a question and an
    answer that do not fit.
    """
    if not asked.answer:
        raise DataError("the answer is empty", do="give a text of at least one token")
    size = max(len(asked.answer), len(asked.correct))
    question, told = renderer.prompt(asked.question), renderer.teacher_prompt(asked.question, asked.context, size)
    if asked.prompts is not None:
        question, told = asked.prompts[0], (asked.prompts[1], asked.context, False)
    if isinstance(told, DropReason):
        raise DataError(
            "question, context and answer do not fit the model",
            got=f"an answer of {len(asked.answer)} tokens",
            why=f"{policy.name} reads {renderer.context_length} tokens, and not even the frame of the context fits",
            do="shorten the answer, or take a model that reads more with --model",
        )
    prompt, _, cut = told
    own, error_visibility = _compared(policy, renderer, asked, question, prompt, control)
    tokens = _tokens(policy, asked, question, prompt, own, top)
    return AnswerCredit(policy.name, asked.question, asked.context, tokens, cut, error_visibility, asked.advantage)


@torch.no_grad()
def _tokens(
    policy: Policy, asked: CreditQuery, question: TokenIds, prompt: TokenIds, own: Sequence[float | None], top: int
) -> tuple[TokenCredit, ...]:
    hidden_ND = policy.answer_hidden([(question, asked.answer), (prompt, asked.answer)])
    student_ND, teacher_ND = torch.split(hidden_ND, len(asked.answer))
    head, texts, found = policy.head().detached(), token_texts(policy.tokenizer, asked.answer), list[TokenCredit]()
    for start in range(0, len(asked.answer), ROWS):
        rows = slice(start, start + ROWS)
        log_p_CV = log_probs(head.logits(student_ND[rows]), asked.temperature)
        log_q_CV = log_probs(head.logits(teacher_ND[rows]), asked.temperature)
        for place, (log_p_V, log_q_V) in enumerate(zip(log_p_CV, log_q_CV, strict=True), start):
            token = asked.answer[place]
            recorded = asked.recorded[place] if asked.recorded else None
            others = _alternatives(policy.tokenizer, log_p_V, log_q_V, top)
            found.append(
                TokenCredit(texts[place], float(log_p_V[token]), float(log_q_V[token]), others, own[place], recorded)
            )
    return tuple(found)


def _alternatives(tokenizer: Any, log_p_V: Tensor, log_q_V: Tensor, top: int) -> tuple[Alternative, ...]:
    """The likeliest of both, the teacher's likeliest first."""
    ids = {int(token) for log_V in (log_p_V, log_q_V) for token in log_V.topk(min(top, len(log_V))).indices}
    ordered = sorted(ids, key=lambda token: float(log_q_V[token]), reverse=True)
    return tuple(
        Alternative(_decoded(tokenizer, [token]), float(log_p_V[token].exp()), float(log_q_V[token].exp()))
        for token in ordered
    )


def _compared(
    policy: Policy,
    renderer: Renderer,
    asked: CreditQuery,
    question: TokenIds,
    prompt: TokenIds,
    control: Sequence[Context],
) -> tuple[Sequence[float | None], ErrorVisibility | None]:
    """The own log-ratio of each token, and the test of sight; nothing of either without unrelated contexts that fit."""
    size = max(len(asked.answer), len(asked.correct))
    tried = [renderer.teacher_prompt(asked.question, context, size) for context in control]
    others = [ids for ids, *_ in (entry for entry in tried if not isinstance(entry, DropReason))]
    if not others:
        return [None] * len(asked.answer), None
    answers = [asked.answer, *([asked.correct] if asked.correct else [])]
    read = [_logprobs(policy, ids, answers, asked.temperature) for ids in (prompt, *others)]
    log_q_KN = torch.stack([given_N for given_N, *_ in read])
    count = len(others)
    beyond_KN = (log_q_KN - log_q_KN.mean(0)) * (count + 1) / count  # each less the mean of all the others
    if asked.correct:
        before = _odds(_logprobs(policy, question, answers, asked.temperature))
        values = [_odds(entry) - before for entry in read]
    else:
        before, values = 0.0, (-beyond_KN.min(1).values).tolist()
    return beyond_KN[0].tolist(), ErrorVisibility(bool(asked.correct), values[0], tuple(values[1:]), before)


@torch.no_grad()
def _logprobs(policy: Policy, prompt: TokenIds, answers: Sequence[TokenIds], temperature: float) -> list[Tensor]:
    """logprobs_N of each answer after one prompt."""
    hidden_ND = policy.answer_hidden([(prompt, answer) for answer in answers])
    tokens_N = torch.tensor([token for answer in answers for token in answer], device=hidden_ND.device)
    logprobs_N, _ = token_logprobs(hidden_ND, policy.head().detached(), tokens_N, temperature)
    return list(torch.split(logprobs_N.double().cpu(), [len(answer) for answer in answers]))


def _odds(read: Sequence[Tensor]) -> float:
    """log-probability of the corrected answer less that of the given one."""
    given_N, correct_N = read
    return float(correct_N.sum() - given_N.sum())


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
