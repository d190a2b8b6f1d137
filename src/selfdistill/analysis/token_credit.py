"""Token credit: the log-ratio u = log q − log p of every token of one answer.

Legend: N answer positions, C positions of one chunk, V vocabulary; p student (reads the question), q teacher (the same
weights; reads the context too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from selfdistill.errors import DataError
from selfdistill.losses import LossSpec, TokenWeights, fused_loss
from selfdistill.losses.teacher_mixture import log_probs
from selfdistill.models.policy import Policy
from selfdistill.prompts.render import Renderer
from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit
from selfdistill.training.recording import token_texts
from selfdistill.types import Context, DropReason, Message, TokenIds

ROWS = 64  # positions whose logits are held at a time


@dataclass(frozen=True, slots=True)
class CreditQuery:
    """The credit query: a question, the tokens of an answer, and the teacher's context.

    `correct` is a corrected answer, to test whether the model sees the error. `recorded` is the log-ratio that training
    computed, `advantage` the one of GRPO. `temperature` divides all logits, as when the answer was sampled. `prompts`
    of student and teacher are those that a run recorded (None: rendered from question and context).
    """

    question: tuple[Message, ...]
    answer: TokenIds
    context: Context
    correct: TokenIds = ()
    recorded: tuple[float, ...] = ()
    advantage: float | None = None
    temperature: float = 1.0
    prompts: tuple[TokenIds, TokenIds] | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """Sampled tokens, at `places` of the `ids` that stand behind a prompt: that of the student, of the teacher, and of
    the teacher under each control context (none: not tested). The other ids were observed."""

    student: TokenIds
    teacher: TokenIds
    others: tuple[TokenIds, ...]
    ids: TokenIds
    places: tuple[int, ...]

    @property
    def sampled(self) -> TokenIds:
        """The ids that were sampled."""
        return tuple(self.ids[place] for place in self.places)


def credit(
    policy: Policy, renderer: Renderer, query: CreditQuery, control: Sequence[Context] = (), *, top: int = 4
) -> AnswerCredit:
    """The credit of an answer; `control` contexts test whether the model sees the error.

    At every place the `top` likeliest tokens of student and teacher are kept. Raises `DataError` for an answer
    without tokens and for a context that does not fit however much of it is cut; `ModelError` for a question and an
    answer that do not fit.
    """
    if not query.answer:
        raise DataError("the answer is empty", do="give a text of at least one token")
    size = max(len(query.answer), len(query.correct))
    question, found = renderer.prompt(query.question), renderer.teacher_prompt(query.question, query.context, size)
    if query.prompts is not None:
        question, found = query.prompts[0], (query.prompts[1], query.context, False)
    if isinstance(found, DropReason):
        raise DataError(
            "question, context and answer do not fit the model",
            got=f"an answer of {len(query.answer)} tokens",
            why=f"{policy.name} reads {renderer.context_length} tokens, and not even the frame of the context fits",
            do="shorten the answer, or take a model that reads more with --model",
        )
    prompt, _, cut = found
    tried = [renderer.teacher_prompt(query.question, context, size) for context in control]
    others = [found[0] for found in tried if not isinstance(found, DropReason)]
    passage = Passage(question, prompt, tuple(others), query.answer, tuple(range(len(query.answer))))
    tokens, error_visibility = credit_of_passages(policy, query, [passage], top)
    return AnswerCredit(policy.name, query.question, query.context, tokens, cut, error_visibility, query.advantage)


def credit_of_passages(
    policy: Policy, query: CreditQuery, passages: Sequence[Passage], top: int
) -> tuple[tuple[TokenCredit, ...], ErrorVisibility | None]:
    """The credit of the sampled tokens, which together are the answer of the query, and the test of whether the model
    sees the error. A corrected answer is compared with that of the one passage."""
    own, error_visibility = _compared(policy, query, passages)
    return _tokens(policy, query, passages, own, top), error_visibility


@torch.no_grad()
def _tokens(
    policy: Policy, query: CreditQuery, passages: Sequence[Passage], own: Sequence[float | None], top: int
) -> tuple[TokenCredit, ...]:
    student, teacher = list[Tensor](), list[Tensor]()
    for passage in passages:
        hidden_ND = policy.answer_hidden([(passage.student, passage.ids), (passage.teacher, passage.ids)])
        for read, found_ND in zip((student, teacher), torch.split(hidden_ND, len(passage.ids)), strict=True):
            read.append(found_ND[list(passage.places)])
    student_ND, teacher_ND = torch.cat(student), torch.cat(teacher)
    head, found = policy.head().detached(), list[TokenCredit]()
    texts = list(chain(*(token_texts(policy.tokenizer, passage.sampled) for passage in passages)))
    for start in range(0, len(query.answer), ROWS):
        rows = slice(start, start + ROWS)
        log_p_CV = log_probs(head.logits(student_ND[rows]), query.temperature)
        log_q_CV = log_probs(head.logits(teacher_ND[rows]), query.temperature)
        for place, (log_p_V, log_q_V) in enumerate(zip(log_p_CV, log_q_CV, strict=True), start):
            token = query.answer[place]
            recorded = query.recorded[place] if query.recorded else None
            others = _alternatives(policy.tokenizer, log_p_V, log_q_V, top)
            p, q, entropy = log_p_V[token], log_q_V[token], torch.special.entr(log_p_V.exp()).sum()
            found.append(TokenCredit(texts[place], float(p), float(q), others, own[place], recorded, float(entropy)))
    return tuple(found)


def _alternatives(tokenizer: Any, log_p_V: Tensor, log_q_V: Tensor, top: int) -> tuple[Alternative, ...]:
    """The likeliest of both, the teacher's likeliest first."""
    ids = {int(token) for log_V in (log_p_V, log_q_V) for token in log_V.topk(min(top, len(log_V))).indices}
    ordered = sorted(ids, key=lambda token: float(log_q_V[token]), reverse=True)
    return tuple(
        Alternative(
            str(tokenizer.decode([token], clean_up_tokenization_spaces=False)),
            float(log_p_V[token].exp()),
            float(log_q_V[token].exp()),
        )
        for token in ordered
    )


def _compared(
    policy: Policy, query: CreditQuery, passages: Sequence[Passage]
) -> tuple[Sequence[float | None], ErrorVisibility | None]:
    """The own log-ratio of each token, and the test of whether the model sees the error; neither without controls."""
    tested = [passage for passage in passages if passage.others]
    if not tested:
        return [None] * len(query.answer), None
    corrected = [query.correct] if query.correct else []
    by_prompt: list[list[Tensor]] = []  # of the teacher, then of each control context
    for prompts in zip(*((passage.teacher, *passage.others) for passage in tested), strict=True):
        read = [
            answer_logprobs(policy, ids, [passage.ids, *corrected], query.temperature)
            for ids, passage in zip(prompts, tested, strict=True)
        ]
        given_N = [found[0][list(passage.places)] for found, passage in zip(read, tested, strict=True)]
        by_prompt.append([torch.cat(given_N), *read[0][1:]])
    log_q_KN = torch.stack([given_N for given_N, *_ in by_prompt])
    beyond_KN = (log_q_KN - log_q_KN.mean(0)) * len(by_prompt) / (len(by_prompt) - 1)  # less the mean of all the others
    if corrected:
        before = _odds(answer_logprobs(policy, tested[0].student, [tested[0].ids, *corrected], query.temperature))
        values = [_odds(entry) - before for entry in by_prompt]
    else:
        before, values = 0.0, (-beyond_KN.min(1).values).tolist()
    measured = iter(beyond_KN[0].tolist())
    own = [next(measured) if passage.others else None for passage in passages for _ in passage.places]
    return own, ErrorVisibility(bool(corrected), values[0], tuple(values[1:]), before)


def answer_logprobs(policy: Policy, prompt: TokenIds, answers: Sequence[TokenIds], temperature: float) -> list[Tensor]:
    """logprobs_N of each answer after one prompt."""
    return pair_logprobs(policy, [(prompt, answer) for answer in answers], temperature)


@torch.no_grad()
def pair_logprobs(
    policy: Policy, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0, max_tokens: int | None = None
) -> list[Tensor]:
    """logprobs_N of the ids of each pair after its prompt, read in batches of at most `max_tokens` tokens."""
    if not pairs:
        return []
    hidden_ND = policy.answer_hidden(pairs, max_tokens)
    tokens_N = torch.tensor([token for _, ids in pairs for token in ids], device=hidden_ND.device)
    found = fused_loss(LossSpec(temperature=temperature), hidden_ND, policy.head(), tokens_N, TokenWeights())
    return list(torch.split(found.stats.logprobs_N.double().cpu(), [len(ids) for _, ids in pairs]))


def _odds(read: Sequence[Tensor]) -> float:
    """log-probability of the corrected answer less that of the given one."""
    given_N, correct_N = read
    return float(correct_N.sum() - given_N.sum())
