"""What admission compares, measured with the served weights and the candidate's: complaints, movements, probe prompts.

A policy holds the candidate in its adapter; `served` swaps the served weights in for as long as they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Literal, TypeAlias

from torch import Tensor

from selfdistill.analysis.token_credit import pair_logprobs
from selfdistill.live.admission import Answers
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import LiveLesson
from selfdistill.models.policy import Policy, TokenPair
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.prompts.context import teacher_messages, without_thinking
from selfdistill.prompts.render import Renderer
from selfdistill.training.signals import repeats
from selfdistill.types import Completion, Context, Message, StopReason, TokenIds, WholePrompt

THANKS = ("Thank you, that is just what I needed.", "Great, thanks!")
# How a reply that wants another answer is introduced, and one that goes on: of which is it the likelier continuation?
OPENINGS = (
    (
        'The user is not satisfied with the answer and says how it should have been: "',
        'The user is satisfied with the answer and goes on to the next question: "',
    ),
    ("The user complains about the answer:\n", "The user asks a new question:\n"),
)
AGREED = Message("assistant", "Understood.")
READ_TOKENS = 8192  # of a batch of forward passes; bounds memory
Frame = Literal["section", "instruction", "turns", "feedback"]
FRAMES: tuple[Frame, ...] = ("section", "instruction", "turns")
Scores: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Situation:
    """A question to which a lesson is applied: its `own`, or a related one of the past."""

    lesson: LiveLesson
    question: WholePrompt
    own: bool


def teacher_reads(situation: Situation, frame: Frame) -> WholePrompt:
    """The question as the teacher reads it: with what came back as a section or as an instruction of its last turn, as
    feedback on an unsuccessful attempt, or behind the turns in which it came."""
    lesson, question, context = situation.lesson, situation.question, situation.lesson.context
    if context.kind != "reply" or frame == "section":
        return replace(question, messages=teacher_messages(question.messages, context))
    if frame == "turns":
        turns = (*lesson.question.messages, Message("assistant", without_thinking(lesson.answer)))
        system = question.messages[0].role == "system"
        return replace(question, messages=(*turns, Message("user", context.reply), AGREED, *question.messages[system:]))
    text = {"instruction": context.reply} if frame == "instruction" else {"feedback": context.reply}
    return replace(question, messages=teacher_messages(question.messages, Context(frame, **text)))


class Measuring:
    """Samples and reads answers under the candidate's weights, and under the served ones inside `served`. `cut` counts
    contexts that did not fit."""

    def __init__(self, policy: Policy, renderer: Renderer, options: LiveLearning) -> None:
        self.policy, self.renderer, self.options = policy, renderer, options
        self.weights = Teacher(Frozen(), policy)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Inside, the policy computes with the served weights."""
        with self.weights.applied(self.policy, self.weights.views()[0]):
            yield

    def prompt(self, question: WholePrompt) -> TokenIds:
        """The ids of a question."""
        return self.renderer.using(question.tools).prompt(question.messages)

    def sampled(
        self, prompts: Sequence[TokenIds], label: str, *, count: int = 1, temperature: float = 1.0
    ) -> list[list[Completion]]:
        """So many answers to each prompt."""
        most = self.options.max_new_tokens
        wanted = [
            (prompt, f"{label}-{place}-{number}") for place, prompt in enumerate(prompts) for number in range(count)
        ]
        options = SamplingOptions(max_new_tokens=most, temperature=temperature)
        given, uids = [prompt for prompt, _ in wanted], [uid for _, uid in wanted]
        found = sample(self.policy, given, options, seed=self.options.seed, uids=uids, version=0)
        return [found[start : start + count] for start in range(0, len(found), count)]

    def complaints(self, situations: Sequence[Situation], answers: Sequence[Sequence[Completion]]) -> list[Scores]:
        """The complaint score of each answer in each situation: log-probability of what came back as the next turn,
        less that of thanks, in nats. None for an answer that is not complete."""
        pairs = list[tuple[TokenIds, TokenIds]]()
        for situation, own in zip(situations, answers, strict=True):
            for done in filter(is_complete, own):
                pairs += self._turns(situation, without_thinking(done.text))
        read = iter([float(row_N.sum()) for row_N in pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)])
        return [
            tuple(next(read) - fmean([next(read) for _ in THANKS]) if is_complete(done) else None for done in own)
            for own in answers
        ]

    def corrections(self, lessons: Sequence[LiveLesson]) -> list[float]:
        """Of each lesson in words of the user log p(words | a correction) − log p(words | a next question), in nats:
        the higher, the rather they want another answer. The words are the same: neither length nor topic counts."""
        pairs = []
        for lesson in lessons:
            asked, answer = lesson.question.messages[-1].content, without_thinking(lesson.answer)
            words = self.renderer.encode(lesson.complaint)
            for opening in chain(*OPENINGS):
                before = self.renderer.encode(f"A user asked: {asked}\n\nThe assistant answered: {answer}\n\n{opening}")
                pairs.append((before[-(self.policy.context_length - len(words)) :], words))
        read = [float(row_N.sum()) for row_N in pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)]
        size = 2 * len(OPENINGS)
        return [
            fmean(a - b for a, b in zip(own[::2], own[1::2], strict=True))
            for own in (read[start : start + size] for start in range(0, len(read), size))
        ]

    def _turns(self, situation: Situation, answer: str) -> list[tuple[TokenIds, TokenIds]]:
        """Complaint and thanks as the user's next turn: the ids before it, and its own."""
        question, said = situation.question, (situation.lesson.complaint, *THANKS)
        before = (*question.messages, Message("assistant", answer))
        written = [self.prompt(replace(question, messages=(*before, Message("user", text)))) for text in said]
        start, end = _common(written), _common([ids[::-1] for ids in written])
        return [(ids[:start], ids[start : len(ids) - end] or ids[start : start + 1]) for ids in written]

    def kl(self, prompts: Sequence[TokenIds], answers: Sequence[Sequence[Completion]]) -> list[float]:
        """KL(candidate‖served) in nats a token, of each answer that the candidate sampled: the mean of r − 1 − log r,
        with r = p_served / p_candidate, which is never negative."""
        own = [(prompt, done) for prompt, each in zip(prompts, answers, strict=True) for done in each if done.token_ids]
        pairs = [(prompt, done.token_ids) for prompt, done in own]
        ratios = [lost_N.clamp(-20, 20) for lost_N in self._lost(pairs)]
        return [float((ratio_N.exp() - 1 - ratio_N).mean()) for ratio_N in ratios]

    def likelihood_lost(self, prompts: Sequence[TokenIds], answers: Sequence[Completion]) -> list[float]:
        """Nats a token that each answer of the served weights lost under the candidate's."""
        pairs = [(prompt, done.token_ids) for prompt, done in zip(prompts, answers, strict=True) if done.token_ids]
        return [float(lost_N.mean()) for lost_N in self._lost(pairs)]

    def _lost(self, pairs: Sequence[TokenPair]) -> list[Tensor]:
        """log p_served − log p_candidate of the tokens of each answer [T]."""
        new = pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)
        with self.served():
            old = pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)
        return [old_N - new_N for old_N, new_N in zip(old, new, strict=True)]


def is_complete(done: Completion) -> bool:
    """Whether an answer ended by itself, and says something."""
    return done.stop is StopReason.END and bool(without_thinking(done.text).strip())


def form_of(answers: Sequence[Sequence[Completion]]) -> Answers:
    """The form of all answers of one reader."""
    every = [done for own in answers for done in own]
    cut = sum(done.stop is StopReason.LENGTH for done in every)
    complete = tuple(len(done.token_ids) for done in every if is_complete(done))
    repeated = sum(repeats(done.token_ids) for done in every)
    return Answers(complete, cut, len(every) - cut - len(complete), repeated)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next(
        (place for place, column in enumerate(zip(*rows, strict=False)) if len({*column}) > 1), min(map(len, rows))
    )
