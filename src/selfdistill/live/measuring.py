"""What admission compares, measured with the served weights and the candidate's: whether answers take a lesson into
account, movements, probe prompts.

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
from selfdistill.live.lessons import RIGHT, WRONG, LiveLesson
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.prompts.context import teacher_messages, without_thinking
from selfdistill.prompts.render import Renderer
from selfdistill.training.signals import repeats
from selfdistill.types import Completion, Context, Message, StopReason, TokenIds, WholePrompt

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
Frame = Literal["section", "together", "instruction", "turns", "feedback"]
FRAMES: tuple[Frame, ...] = ("together", "instruction", "turns")
JUDGES: tuple[Frame, ...] = ("instruction", "turns")
Scores: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Situation:
    """A question to which a lesson is applied: its `own`, or a related one of the past. `replies`: what users said in
    all conversations of the update, one reply of each, in the order in which they came."""

    lesson: LiveLesson
    question: WholePrompt
    own: bool
    replies: str = ""


def teacher_reads(situation: Situation, frame: Frame) -> WholePrompt:
    """The question as the teacher reads it: with what came back as a section or as an instruction, alone or together
    with the replies of other conversations, as feedback on an unsuccessful attempt, or behind the turns in which it
    came."""
    context = situation.lesson.context
    if context.kind != "reply" or frame == "section":
        return replace(situation.question, messages=teacher_messages(situation.question.messages, context))
    if frame == "together":
        return worded(situation, "instruction", situation.replies)
    return worded(situation, frame, context.reply)


def worded(situation: Situation, frame: Frame, words: str) -> WholePrompt:
    """The question behind words of the user about the lesson's answer."""
    lesson, question = situation.lesson, situation.question
    if frame == "turns":
        turns = (*lesson.question.messages, Message("assistant", without_thinking(lesson.answer)))
        system = question.messages[0].role == "system"
        return replace(question, messages=(*turns, Message("user", words), AGREED, *question.messages[system:]))
    text = {"instruction": words} if frame == "instruction" else {"feedback": words}
    return replace(question, messages=teacher_messages(question.messages, Context(frame, **text)))


def opposite_words(lesson: LiveLesson) -> tuple[str, str]:
    """What a user who is content with the answer would say, or one who is not where the lesson says just that; and what
    the lesson says."""
    return (RIGHT if lesson.words != RIGHT else WRONG), lesson.words


def judges(frame: Frame, lesson: LiveLesson) -> tuple[Frame, ...]:
    """The wordings in which the answers of the teacher that reads a lesson in this frame are judged: others than its
    own, which would always find that they follow it."""
    own = "instruction" if frame == "together" else frame
    return tuple(each for each in JUDGES if each != own) if lesson.context.kind == "reply" else ("turns",)


class Measuring:
    """Samples and reads answers under the candidate's weights, and under the served ones inside `served`."""

    def __init__(self, policy: Policy, renderer: Renderer, options: LiveLearning) -> None:
        self.policy, self.renderer, self.options = policy, renderer, options
        self.weights = Teacher(Frozen(), policy)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Inside, the policy computes with the served weights."""
        with self.weights.applied(self.policy, self.weights.views()[0]):
            yield

    @property
    def room(self) -> int:
        """Tokens of a prompt, beside which an answer has room: half of the context, at least."""
        return self.policy.context_length - min(self.options.max_new_tokens, self.policy.context_length // 2)

    def prompt(self, question: WholePrompt) -> TokenIds:
        """The ids of a question."""
        return self.renderer.using(question.tools).prompt(question.messages)

    def reads(self, situation: Situation) -> bool:
        """Whether a lesson can be read at its question in every wording, alone and as a judge, with room for an
        answer."""
        opposite = opposite_words(situation.lesson)
        judged = [worded(situation, judge, words) for judge in JUDGES for words in opposite]
        return all(len(self.prompt(each)) < self.room for each in (teacher_reads(situation, "instruction"), *judged))

    def fitting(self, question: WholePrompt, situation: Situation) -> TokenIds:
        """The ids of a prompt with a lesson, or the bare question where the context leaves no room for an answer."""
        ids = self.prompt(question)
        return ids if len(ids) < self.room else self.prompt(situation.question)

    def sampled(
        self,
        prompts: Sequence[TokenIds],
        label: str,
        *,
        count: int = 1,
        first: int = 0,
        temperature: float = 1.0,
        most: int | None = None,
    ) -> list[list[Completion]]:
        """So many answers to each prompt, numbered from `first` on, of at most `most` tokens."""
        numbers = range(first, first + count)
        wanted = [(prompt, f"{label}-{place}-{number}") for place, prompt in enumerate(prompts) for number in numbers]
        longest = min(most or self.options.max_new_tokens, self.options.max_new_tokens)
        options = SamplingOptions(max_new_tokens=longest, temperature=temperature)
        given, uids = [prompt for prompt, _ in wanted], [uid for _, uid in wanted]
        found = sample(self.policy, given, options, seed=self.options.seed, uids=uids, version=0)
        return [found[start : start + count] for start in range(0, len(found), count)]

    def disregard(
        self, situations: Sequence[Situation], answers: Sequence[Sequence[Completion]], frame: Frame
    ) -> list[Scores]:
        """How little each answer takes the lesson of its situation into account, read in this wording: its
        log-probability where the user is content less that where they say what the lesson says, in nats, over the
        tokens that are learned. None for an answer that is not complete.

        Both prompts hold the same turns, so that an answer which is like them gains nothing by that."""
        most, pairs = self.options.learned_tokens, list[tuple[TokenIds, TokenIds]]()
        for situation, own in zip(situations, answers, strict=True):
            opposite = opposite_words(situation.lesson)
            prompts = [self.fitting(worded(situation, frame, words), situation) for words in opposite]
            complete = [done.token_ids[:most] for done in own if is_complete(done)]
            pairs += [(prompt, ids) for ids in complete for prompt in prompts]
        read = iter([float(row_N.sum()) for row_N in pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)])
        return [tuple(next(read) - next(read) if is_complete(done) else None for done in own) for own in answers]

    def corrections(self, lessons: Sequence[LiveLesson]) -> list[float]:
        """Of each lesson in words of the user log p(words | a correction) − log p(words | a next question), in nats:
        the higher, the rather they want another answer. The words are the same: neither length nor topic counts."""
        pairs = []
        for lesson in lessons:
            question, answer = lesson.question.messages[-1].content, without_thinking(lesson.answer)
            exchange = f"A user asked: {question}\n\nThe assistant answered: {answer}\n\n"
            words = self.renderer.encode(lesson.words)
            for opening in chain(*OPENINGS):
                before = self.renderer.encode(exchange + opening)
                pairs.append((before[-(self.policy.context_length - len(words)) :], words))
        read = [float(row_N.sum()) for row_N in pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)]
        size = 2 * len(OPENINGS)
        return [
            fmean(a - b for a, b in zip(own[::2], own[1::2], strict=True))
            for own in (read[start : start + size] for start in range(0, len(read), size))
        ]

    def kl(self, prompts: Sequence[TokenIds], answers: Sequence[Sequence[Completion]]) -> list[float]:
        """KL(candidate‖served) in nats a token, of each answer that the candidate sampled: the mean of r − 1 − log r,
        with r = p_served / p_candidate, which is never negative."""
        own = [(prompt, done) for prompt, each in zip(prompts, answers, strict=True) for done in each if done.token_ids]
        with self.served():
            ratios = [ratio_N.clamp(-20, 20) for ratio_N in self._since_sampled(own)]
        return [float((ratio_N.exp() - 1 - ratio_N).mean()) for ratio_N in ratios]

    def likelihood_lost(self, prompts: Sequence[TokenIds], answers: Sequence[Completion]) -> list[float]:
        """Nats a token that each answer of the served weights lost under the candidate's."""
        own = [(prompt, done) for prompt, done in zip(prompts, answers, strict=True) if done.token_ids]
        return [float(-ratio_N.mean()) for ratio_N in self._since_sampled(own)]

    def _since_sampled(self, answers: Sequence[tuple[TokenIds, Completion]]) -> list[Tensor]:
        """log p now − log p when sampled, of the tokens of each answer [T]."""
        pairs = [(prompt, done.token_ids) for prompt, done in answers]
        now = pair_logprobs(self.policy, pairs, max_tokens=READ_TOKENS)
        return [new_N - new_N.new_tensor(done.logprobs) for new_N, (_, done) in zip(now, answers, strict=True)]


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
