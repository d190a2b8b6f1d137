"""One update: lessons → answers → a candidate that is trained, measured, and admitted or not.

    situations      each lesson with its own question and, of a user's reply, past questions that are near to it
    teacher         the served weights, which read the lesson, in the wording under which their answers are best
    training        the divergence from that teacher on fresh answers of the candidate, in a few rounds
    admission       before training, whether there is anything to distil; after it, whether the candidate may be served

The policy's adapter is trained in place: it begins as the served one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from statistics import fmean
from typing import Any

import torch

from selfdistill.config import NamedComponent, OptimiserOptions, RunConfig
from selfdistill.live.admission import (
    Admission,
    Answers,
    Complaints,
    Criterion,
    Trained,
    after_training,
    before_training,
)
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import LiveLesson, related
from selfdistill.live.measuring import FRAMES, READ_TOKENS, Frame, Measuring, Scores, Situation, form_of, teacher_reads
from selfdistill.live.probe import ProbePrompt, solved
from selfdistill.methods.opcd import OPCD
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.render import Renderer
from selfdistill.training.optimiser import new_optimizer
from selfdistill.training.samples import CreditedRollout, replay_sample
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import Completion, Rollout, RolloutGroup, Task, TokenIds, TrainingSample, WholePrompt

Progress = Callable[[str], None]
CORRECTING = -1.0  # nats, above which a reply is one that corrects
LEAST_ANSWERS = 32  # of each reader
TRIED = 4  # situations on which the wordings of the teacher's prompt are compared
HALVES = (slice(None, None, 2), slice(1, None, 2))  # of the answers to one question


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The decision, the lessons that were distilled (those without a gain are not), and numbers for the journal.
    `trained`: the policy now holds a candidate."""

    admission: Admission
    lessons: tuple[LiveLesson, ...]
    trained: bool
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """The answers of one reader in every situation, and their complaint scores."""

    answers: list[list[Completion]]
    scores: list[Scores]

    def at(self, places: Sequence[int]) -> Round:
        """Those of some situations."""
        return Round([self.answers[place] for place in places], [self.scores[place] for place in places])


class LiveLearner:
    """What one update works with."""

    def __init__(
        self,
        policy: Policy,
        renderer: Renderer,
        probe: Sequence[ProbePrompt],
        options: LiveLearning,
        *,
        seed: int = 0,
        frames: Sequence[Frame] = FRAMES,
        progress: Progress = lambda _: None,
    ) -> None:
        self.policy, self.renderer, self.options, self.frames = policy, renderer, options, tuple(frames)
        self.measuring, self.progress, self.seed = Measuring(policy, renderer, options), progress, seed
        ids = [(prompt, renderer.prompt(prompt.messages)) for prompt in probe]
        self.probe = [(prompt, own) for prompt, own in ids if len(own) < self._longest]
        self._config = run_settings(options, policy.name, str(policy.device), "auto")
        method, weights = OPCD(), list(policy.trainable().values())
        teacher, optimizer = self.measuring.weights, new_optimizer(self._config, weights)
        self._learner = Learner(method, method.loss_specs(1.0), teacher, teacher, optimizer, ())

    @property
    def _longest(self) -> int:
        return min(self.options.max_prompt_tokens, self._room)

    @property
    def _room(self) -> int:
        """Tokens of a prompt, beside which an answer has room: half of the context, at least."""
        return self.policy.context_length - min(self.options.max_new_tokens, self.policy.context_length // 2)

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the policy the served weights back."""
        with self.measuring.served():
            served = {name: value.data.clone() for name, value in self.policy.trainable().items()}
        for name, value in self.policy.trainable().items():
            value.copy_(served[name])

    def fits(self, question: WholePrompt) -> bool:
        """Whether a conversation can be read, with room for an answer."""
        return len(self.measuring.prompt(question)) < self._longest

    def update(self, lessons: Sequence[LiveLesson], past: Sequence[WholePrompt]) -> UpdateResult:
        """Trains the policy on these lessons, applied to past questions too, unless nothing is to be gained."""
        lessons, passed_over = self._correcting(lessons)
        if not lessons:
            reason = f"nothing to learn from: of {len(passed_over)} replies none is about the answer, they go on"
            criterion = Criterion("corrects", max(passed_over.values(), default=0.0), CORRECTING, "fail", reason)
            return UpdateResult(Admission((criterion,)), (), False, {"passed_over": passed_over})
        situations = self.situations(lessons, past)
        self.progress(f"{len(lessons)} lessons on {len(situations)} questions")
        student = self._round(situations, "student")
        frame, tried = self._frame(situations, student)
        teacher = self._round(situations, f"teacher-{frame}", frame)
        kept, gain = _with_gain(situations, student, teacher)
        chosen, own = [situations[place] for place in kept], student.at(kept)
        forms = form_of(student.answers), form_of(teacher.answers)
        before = before_training(gain, *forms)
        learned = tuple(dict.fromkeys(situation.lesson for situation in chosen))
        numbers: dict[str, Any] = {
            "frame": frame,
            "frames": tried,
            "situations": len(situations),
            "without_gain": [lesson.key for lesson in lessons if lesson not in learned],
            "passed_over": passed_over,
            **_form_numbers(student=forms[0], teacher=forms[1]),
        }
        if not before.admitted:
            return UpdateResult(before, tuple(lessons), False, {**numbers, **_criteria(before)})
        reference = self._train(chosen, frame, own.answers, numbers)
        candidate = self._round(chosen, "candidate", served=True)
        prompts = [self.measuring.prompt(situation.question) for situation in chosen]
        lost, tasks = self._probed(reference)
        form, moved = form_of(candidate.answers), self.measuring.kl(prompts, candidate.answers)
        trained = Trained(_compared(chosen, own, candidate), moved, form, lost, tasks, numbers["skipped"])
        after = after_training(gain, *forms, trained, self.options)
        return UpdateResult(after, learned, True, {**numbers, **_form_numbers(candidate=form), **_criteria(after)})

    def _correcting(self, lessons: Sequence[LiveLesson]) -> tuple[list[LiveLesson], dict[str, float]]:
        """The lessons that are about our answer; and of the others, replies that go on, how far they are from it."""
        spoken = [lesson for lesson in lessons if lesson.next_turn]
        scores = {lesson.key: score for lesson, score in zip(spoken, self.measuring.corrections(spoken), strict=True)}
        passed_over = {key: score for key, score in scores.items() if score <= CORRECTING}
        return [lesson for lesson in lessons if lesson.key not in passed_over], passed_over

    def situations(self, lessons: Sequence[LiveLesson], past: Sequence[WholePrompt]) -> list[Situation]:
        """Each lesson with its own question and, where it is a user's reply, with past questions near to it."""
        found = []
        for lesson in lessons:
            found.append(Situation(lesson, lesson.question, True))
            if lesson.context.kind == "reply":
                others = related(lesson.question, past, self.options.related, seed=f"{self.seed} {lesson.key}")
                found += [Situation(lesson, question, False) for question in others]
        return found

    def _round(
        self, situations: Sequence[Situation], label: str, frame: Frame | None = None, *, served: bool = False
    ) -> Round:
        """Fresh answers, of a teacher that reads the lessons in this frame or of a student, and their scores.
        `served`: the policy has moved, and the served weights read what users would say."""
        self.progress(f"sampling the answers of the {label.partition('-')[0]}")
        read = [teacher_reads(each, frame) if frame else each.question for each in situations]
        prompts = [self._cut(question, each) for question, each in zip(read, situations, strict=True)]
        answers = self.measuring.sampled(prompts, f"{self.seed}-{label}", count=self._answers(len(prompts)))
        if served:
            with self.measuring.served():
                return Round(answers, self.measuring.complaints(situations, answers))
        return Round(answers, self.measuring.complaints(situations, answers))

    def _answers(self, questions: int) -> int:
        """How many answers are sampled to each of so many questions: of few questions more, so that the first reply of
        a journal can be measured."""
        return max(self.options.completions, -(-LEAST_ANSWERS // questions))

    def _cut(self, question: WholePrompt, situation: Situation) -> TokenIds:
        """The ids of a teacher's prompt, or the bare question where the context leaves no room for an answer."""
        ids = self.measuring.prompt(question)
        return ids if len(ids) < self._room else self.measuring.prompt(situation.question)

    def _frame(self, situations: Sequence[Situation], student: Round) -> tuple[Frame, dict[str, float]]:
        """The wording under which the teacher's answers make complaints least likely, on a few situations whose
        measurement does not count for admission; and what was measured of each."""
        if len(self.frames) == 1 or all(each.lesson.context.kind != "reply" for each in situations):
            return self.frames[0], {}
        places = _spread(len(situations), TRIED)
        some, found = [situations[place] for place in places], dict[str, float]()
        for frame in self.frames:
            read = self._round(some, f"wording-{frame}", frame)
            pairs = _compared(some, student.at(places), read)
            found[frame] = fmean([fmean(p.before) - fmean(p.after) for p in pairs] or [0.0])
        return max(self.frames, key=found.__getitem__), found

    def _train(
        self, situations: Sequence[Situation], frame: Frame, first: list[list[Completion]], numbers: dict[str, Any]
    ) -> list[Completion]:
        """A few rounds of fresh answers, the `first` of the served weights, and one optimiser step each; returns the
        served weights' answers to the probe set."""
        measuring, options = self.measuring, self.options
        probes = [ids for _, ids in self.probe]
        reference = [own[0] for own in measuring.sampled(probes, "probe", temperature=0.0)] if probes else []
        questions = [measuring.prompt(each.question) for each in situations]
        teachers = [self._cut(teacher_reads(each, frame), each) for each in situations]
        totals, reports = Totals(), []
        held = cycle(range(len(probes)))
        for number in range(options.rounds):
            self.progress(f"round {number + 1} of {options.rounds}")
            answers = first
            if number:
                count = self._answers(len(questions))
                answers = measuring.sampled(questions, f"{self.seed}-round-{number}", count=count)
            groups = [_group(*entry) for entry in zip(situations, questions, teachers, answers, strict=True)]
            places = list(islice(held, options.replay if probes and options.replay_weight else 0))
            fresh = measuring.sampled([probes[p] for p in places], f"{self.seed}-replay-{number}")
            replayed = [
                replay_sample(Rollout(Task(done.uid, ()), probes[p], done), options.replay_weight)
                for p, (done,) in zip(places, fresh, strict=True)
            ]
            credited = list(chain(*(entries for _, entries in groups)))
            found, *_ = update_all(
                self.policy, self._learner, self._config, [group for group, _ in groups], credited, replayed, totals
            )
            reports += found
            totals.step += 1
        numbers["loss"] = [report.loss for report in reports]
        numbers["grad_norm"] = [report.grad_norm for report in reports]
        numbers["skipped"] = sum(report.skipped for report in reports)
        return reference

    def _probed(self, reference: Sequence[Completion]) -> tuple[list[float], list[float]]:
        """Nats a token that the served answers to the probe set lost, and the changes of exact answers."""
        prompts = [ids for _, ids in self.probe]
        if not prompts:
            return [], []
        lost = self.measuring.likelihood_lost(prompts, reference)
        now = [own[0] for own in self.measuring.sampled(prompts, "probe", temperature=0.0)]
        tasks = [
            float(solved(prompt.answer, new.text)) - float(solved(prompt.answer, old.text))
            for (prompt, _), new, old in zip(self.probe, now, reference, strict=True)
            if prompt.answer
        ]
        return lost, tasks


def run_settings(options: LiveLearning, model: str, device: str, dtype: str) -> RunConfig:
    """An update as the settings of a run, for the training step and the plan of memory."""
    return RunConfig(
        model=model, method=NamedComponent("opcd"), device=device, dtype=dtype, lora=options.lora,
        micro_batch_tokens=READ_TOKENS, rollouts_per_task=options.completions,
        optimiser=OptimiserOptions(lr=options.lr, warmup_steps=0, weight_decay=0.0),
        sampling=SamplingOptions(max_new_tokens=options.max_new_tokens),
    )  # fmt: skip


def _group(
    situation: Situation, question: TokenIds, teacher: TokenIds, answers: Sequence[Completion]
) -> tuple[RolloutGroup, list[CreditedRollout]]:
    """The answers to one question as training reads them."""
    task = Task(situation.lesson.key, situation.question.messages)
    rollouts = tuple(Rollout(task, question, done) for done in answers)
    samples = [
        TrainingSample(
            done.uid, question, (teacher,), done.token_ids, done.logprobs, distil=1.0,
            context_kind=situation.lesson.context.kind,
        )
        for done in answers
    ]  # fmt: skip
    return RolloutGroup(task, rollouts), [
        CreditedRollout(rollout, (sample,)) if sample.completion_ids else CreditedRollout(rollout)
        for rollout, sample in zip(rollouts, samples, strict=True)
    ]


def _compared(
    situations: Sequence[Situation], before: Round, after: Round, part: slice = slice(None)
) -> list[Complaints]:
    """The scores of two readers' complete answers, or a part of them, in the situations in which both have some."""
    found = []
    for situation, *both in zip(situations, before.scores, after.scores, strict=True):
        old, new = (tuple(score for score in scores[part] if score is not None) for scores in both)
        if old and new:
            found.append(Complaints(situation.lesson.session, old, new))
    return found


def _with_gain(situations: Sequence[Situation], student: Round, teacher: Round) -> tuple[list[int], list[Complaints]]:
    """The places of the situations whose lesson the teacher's answers make less likely, over all its questions (all of
    them where no lesson has such a gain), and scores that were not chosen by their own size: those of each half of the
    answers, of the lessons with a gain in the other half.

    A lesson without a gain asks for something new rather than for another answer, or the teacher cannot follow it.
    """
    by_lesson: dict[str, list[int]] = {}
    for place, situation in enumerate(situations):
        by_lesson.setdefault(situation.lesson.key, []).append(place)
    kept, scores = list[int](), [(list[float](), list[float]()) for _ in situations]
    for places in by_lesson.values():
        if _helps(situations, student, teacher, places, slice(None)):
            kept += places
        for chosen, tested in (HALVES, HALVES[::-1]):
            for place in places if _helps(situations, student, teacher, places, chosen) else ():
                for read, found in zip(scores[place], (student, teacher), strict=True):
                    read += [score for score in found.scores[place][tested] if score is not None]
    gain = [
        Complaints(situation.lesson.session, tuple(before), tuple(after))
        for situation, (before, after) in zip(situations, scores, strict=True)
        if before and after
    ]
    if not kept:
        return list(range(len(situations))), _compared(situations, student, teacher)
    return kept, gain


def _helps(situations: Sequence[Situation], student: Round, teacher: Round, places: Sequence[int], part: slice) -> bool:
    """Whether the teacher's answers make a lesson less likely, in a part of them."""
    own = [situations[place] for place in places]
    pairs = _compared(own, student.at(places), teacher.at(places), part)
    return bool(pairs) and fmean(fmean(p.before) - fmean(p.after) for p in pairs) > 0


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, evenly over all."""
    return sorted({place * count // min(count, most) for place in range(min(count, most))})


def _form_numbers(**found: Answers) -> dict[str, Any]:
    return {
        f"{name}_answers": {"count": a.count, "truncated": a.truncated, "empty": a.empty, "repeated": a.repeated}
        for name, a in found.items()
    }


def _criteria(found: Admission) -> dict[str, Any]:
    """Every criterion as JSON."""
    return {
        "undecided": found.undecided,
        "criteria": [
            {"name": c.name, "value": c.value, "low": c.low, "high": c.high, "threshold": c.threshold,
             "finding": c.finding, "reason": c.reason}
            for c in found.criteria
        ]
    }  # fmt: skip
