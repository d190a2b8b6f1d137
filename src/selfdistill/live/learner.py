"""One update: lessons → answers → a candidate that is trained, measured, and admitted or not.

    situations      each lesson with its own question and, of a user's reply, past questions that are near to it
    teacher         the served weights, which read the lesson, in the wording under which their answers are best
    training        the divergence from that teacher on fresh answers of the candidate, in a few rounds
    admission       before training, whether there is anything to distil; after it, whether the candidate may be served,
                    or one that goes half as far

The policy's adapter is trained in place: it begins as the served one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from random import Random
from typing import Any

import torch

from selfdistill.config import NamedComponent, OptimiserOptions, RunConfig
from selfdistill.live.admission import (
    Admission,
    Criterion,
    Trained,
    after_training,
    before_training,
    certain,
    undecided,
)
from selfdistill.live.gain import Round, best_of_halves, compared, gain_of_new, measured, with_gain
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import LiveLesson, related, replies_together
from selfdistill.live.measuring import (
    FRAMES,
    READ_TOKENS,
    Frame,
    Measuring,
    Situation,
    form_of,
    judges,
    teacher_reads,
    worded,
)
from selfdistill.live.probe import ProbePrompt, changes
from selfdistill.methods.opcd import OPCD
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.render import Renderer
from selfdistill.training.optimiser import new_optimizer
from selfdistill.training.samples import CreditedRollout, replay_sample
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import (
    Completion,
    Message,
    Rollout,
    RolloutGroup,
    StopReason,
    Task,
    TokenIds,
    TrainingSample,
    WholePrompt,
)

Progress = Callable[[str], None]
CORRECTING = -1.0  # nats, above which a reply is one that corrects
LEAST_ANSWERS = 16  # of each reader
MOST_ANSWERS = 64  # where fewer do not decide
HELD = 3  # one of so many probe prompts is held to the served weights, the others are measured
WARM_UP = 3  # rounds, over which the learning rate rises


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The decision, the lessons that were distilled (those without a gain are not), and numbers for the journal.
    `trained`: the policy now holds a candidate."""

    admission: Admission
    lessons: tuple[LiveLesson, ...]
    trained: bool
    numbers: Mapping[str, Any] = field(default_factory=dict)


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
        fitting = [(prompt, own) for prompt, own in ids if len(own) < self._longest]
        Random(f"probe {seed}").shuffle(fitting)
        self.held = [own for _, own in fitting[::HELD]]
        self.probe = [entry for place, entry in enumerate(fitting) if place % HELD]
        self._config = run_settings(options, policy.name, str(policy.device), "auto")
        method, weights = OPCD(), list(policy.trainable().values())
        served, optimizer = self.measuring.weights, new_optimizer(self._config, weights)
        self._learner = Learner(method, method.loss_specs(1.0), served, served, optimizer, ())

    @property
    def _longest(self) -> int:
        return min(self.options.max_prompt_tokens, self.measuring.room)

    @torch.no_grad()
    def restore(self, share: float = 1.0) -> None:
        """Takes the policy back to the served weights, or a share of the way."""
        with self.measuring.served():
            served = {name: value.data.clone() for name, value in self.policy.trainable().items()}
        for name, value in self.policy.trainable().items():
            value.lerp_(served[name], share)

    def fits(self, question: WholePrompt) -> bool:
        """Whether a conversation can be read, with room for an answer."""
        return len(self.measuring.prompt(question)) < self._longest

    def reads(self, lesson: LiveLesson) -> bool:
        """Whether what came back can be read with its question."""
        texts = dict.fromkeys((lesson.words, lesson.context.demonstration, lesson.context.feedback))
        came = WholePrompt((Message("user", "\n\n".join(filter(None, texts))),))
        return self.fits(came) and self.measuring.reads(Situation(lesson, lesson.question, True))

    def update(self, lessons: Sequence[LiveLesson], past: Sequence[WholePrompt]) -> UpdateResult:
        """Trains the policy on these lessons, applied to past questions too, unless nothing is to be gained."""
        lessons, passed_over = self._correcting(lessons)
        if not lessons:
            reason = f"nothing to learn from: of {len(passed_over)} replies none is about the answer, they go on"
            criterion = Criterion("corrects", max(passed_over.values(), default=0.0), CORRECTING, "fail", reason)
            return UpdateResult(Admission((criterion,)), (), False, {"passed_over": passed_over})
        situations = self.situations(lessons, past)
        self.progress(f"{len(lessons)} lessons on {len(situations)} questions")
        first, others = self._frames(lessons)
        own, *fresh = self._sampled(situations, (None, *first))
        student = self._round(situations, own, first)
        teachers = {name: self._round(situations, read, (name,)) for name, read in zip(first, fresh, strict=True)}
        frame, kept, gain = with_gain(situations, student, teachers)
        for other in others:
            if certain(gain):
                break
            (read,) = self._sampled(situations, (other,))
            known = {**student.scores, **self._round(situations, own, (other,)).scores}
            student, teachers[other] = Round(own, known), self._round(situations, read, (other,))
            frame, kept, gain = with_gain(situations, student, teachers)
        tried = {name: gain_of_new(situations, student, teacher, name) for name, teacher in teachers.items()}
        while undecided(gain) and self._may_add(student):
            teachers = {name: teachers[name] for name in best_of_halves(situations, student, teachers)}
            more, *fresh = self._sampled(situations, (None, *teachers), beside=student.count)
            student += self._round(situations, more, (*teachers,))
            for name, read in zip(teachers, fresh, strict=True):
                teachers[name] += self._round(situations, read, (name,))
            frame, kept, gain = with_gain(situations, student, teachers)
        teacher = teachers[frame]
        chosen = [situations[place] for place in kept]
        forms = form_of(student.answers), form_of(teacher.answers)
        before = before_training(gain, *forms)
        learned = tuple(dict.fromkeys(situation.lesson for situation in chosen))
        judged = measured(situations, student, teacher, frame)
        numbers: dict[str, Any] = {
            "frame": frame,
            "frames": tried,
            "situations": len(situations),
            "without_gain": [each.key for each in lessons if each not in learned and each.key in judged],
            "not_measured": [each.key for each in lessons if each.key not in judged],
            "passed_over": passed_over,
            "student_answers": forms[0].numbers,
            "teacher_answers": forms[1].numbers,
        }
        if not before.admitted:
            return UpdateResult(before, tuple(lessons), False, {**numbers, **before.numbers})
        reference = self._train(chosen, frame, student.at(kept).answers, numbers)
        aside = [each for each in situations if each.lesson not in learned and not each.lesson.older]
        trained = self._measure_candidate(chosen, aside, frame, reference, numbers["skipped"])
        after = after_training(gain, *forms, trained, self.options)
        if after.too_far:
            self.progress(f"half of the way back: {after.reason}")
            numbers["too_far"] = after.numbers["criteria"]
            self.restore(0.5)
            trained = self._measure_candidate(chosen, aside, frame, reference, numbers["skipped"])
            after = after_training(gain, *forms, trained, self.options)
        numbers["candidate_answers"] = trained.answers.numbers
        return UpdateResult(after, learned, True, {**numbers, **after.numbers})

    def _correcting(self, lessons: Sequence[LiveLesson]) -> tuple[list[LiveLesson], dict[str, float]]:
        """The lessons that are about our answer; and of the others, replies that go on, how far they are from it."""
        spoken = [lesson for lesson in lessons if lesson.next_turn]
        scores = {lesson.key: score for lesson, score in zip(spoken, self.measuring.corrections(spoken), strict=True)}
        passed_over = {key: score for key, score in scores.items() if score <= CORRECTING}
        return [lesson for lesson in lessons if lesson.key not in passed_over], passed_over

    def _frames(self, lessons: Sequence[LiveLesson]) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
        """The wordings of a teacher that are tried, and those that are tried where none of these helps for sure."""
        spoken = {lesson.session for lesson in lessons if lesson.context.kind == "reply"}
        together = self.options.together and len(spoken) > 1
        frames = tuple(frame for frame in self.frames if frame != "together" or together)
        return (frames[:-1], frames[-1:]) if spoken and len(frames) > 1 else (frames[:1], ())

    def situations(self, lessons: Sequence[LiveLesson], past: Sequence[WholePrompt]) -> list[Situation]:
        """Each lesson with its own question and, where it is a user's reply, with past questions near to it: of few
        replies with more of them."""
        found, left = [], max(0, self.options.questions - len(lessons))
        spoken = [lesson for lesson in lessons if lesson.context.kind == "reply"]
        replies = len(spoken)
        for lesson in lessons:
            last, own = lesson.context.reply, [Situation(lesson, lesson.question, True)]
            known = "\n".join(replies_together(lesson, spoken))
            if lesson.context.kind == "reply":
                count = -(-left // replies)
                left, replies = left - count, replies - 1
                near = related(lesson.question, past, count, seed=f"{self.seed} {lesson.key}")
                own += [each for question in near if self.measuring.reads(each := Situation(lesson, question, False))]
            for each in own:
                fits = len(self.measuring.prompt(worded(each, "instruction", known))) < self.measuring.room
                found.append(replace(each, replies=known if fits else last))
        return found

    def _sampled(
        self,
        situations: Sequence[Situation],
        readers: Sequence[Frame | None],
        *,
        label: str = "before",
        beside: int = 0,
    ) -> list[list[list[Completion]]]:
        """Fresh answers of the teacher that reads the lessons in each frame (None: without them), sampled side by side,
        as many as there are `beside`."""
        self.progress(f"sampling answers of the {'student and the teacher' if label == 'before' else label}")
        prompts = list[TokenIds]()
        for frame in readers:
            read = [teacher_reads(each, frame) if frame else each.question for each in situations]
            prompts += [self.measuring.fitting(*entry) for entry in zip(read, situations, strict=True)]
        name, size = f"{self.seed}-{label}-{readers[-1] or ''}", len(situations)
        found = self.measuring.sampled(prompts, name, count=beside or self._answers(size), first=beside)
        return [found[start : start + size] for start in range(0, len(found), size)]

    def _round(
        self,
        situations: Sequence[Situation],
        answers: list[list[Completion]],
        frames: Sequence[Frame],
    ) -> Round:
        """The answers as the served weights judge them, for a lesson in any of these frames."""
        judging = {judge: None for each in situations for frame in frames for judge in judges(frame, each.lesson)}
        with self.measuring.served():
            return Round(answers, {frame: self.measuring.disregard(situations, answers, frame) for frame in judging})

    def _both(self, situations: Sequence[Situation], frame: Frame, *, beside: int = 0) -> tuple[Round, Round]:
        """Fresh answers of the served weights and of the candidate. (The student's of before training would not do: the
        lessons were chosen by them, so that a candidate that answers as the student does would seem better.)"""
        with self.measuring.served():
            (old,) = self._sampled(situations, (None,), label="served weights", beside=beside)
        (new,) = self._sampled(situations, (None,), label="candidate", beside=beside)
        return self._round(situations, old, (frame,)), self._round(situations, new, (frame,))

    def _measure_candidate(
        self,
        chosen: Sequence[Situation],
        aside: Sequence[Situation],
        frame: Frame,
        reference: Sequence[Completion],
        skipped: int,
    ) -> Trained:
        """The candidate measured: in the situations that were learned, in those of other new lessons, and by the served
        weights' answers to the probe set."""
        served, candidate = self._both(chosen, frame)
        while undecided(compared(chosen, served, candidate, frame)) and self._may_add(candidate):
            again = self._both(chosen, frame, beside=candidate.count)
            served, candidate = served + again[0], candidate + again[1]
        beside = compared(aside, *self._both(aside, frame), frame) if aside else ()
        prompts = [self.measuring.prompt(situation.question) for situation in chosen]
        lost, tasks, cut = self._probed(reference)
        follows, moved = compared(chosen, served, candidate, frame), self.measuring.kl(prompts, candidate.answers)
        return Trained(follows, moved, form_of(candidate.answers), lost, tasks, skipped, beside=beside, cut=cut)

    def _answers(self, questions: int) -> int:
        """How many answers are sampled to each of so many questions: of few questions more, so that the first reply of
        a journal can be measured."""
        return max(self.options.completions, -(-LEAST_ANSWERS // questions))

    def _may_add(self, known: Round) -> bool:
        """Whether there may be twice as many."""
        return 2 * known.count * len(known.answers) <= MOST_ANSWERS

    def _train(
        self, situations: Sequence[Situation], frame: Frame, first: list[list[Completion]], numbers: dict[str, Any]
    ) -> list[Completion]:
        """A few rounds of fresh answers, the `first` of the served weights, and one optimiser step each; returns the
        served weights' answers to the probe set."""
        measuring, options = self.measuring, self.options
        reference = self._solutions()
        questions = [measuring.prompt(each.question) for each in situations]
        teachers = [measuring.fitting(teacher_reads(each, frame), each) for each in situations]
        totals, reports, size = Totals(), [], min(options.round_questions, len(questions))
        turns, held = cycle(range(len(questions))), cycle(self.held)
        count, replayed = self._answers(size), list[TrainingSample]()
        for number in range(options.rounds):
            self.progress(f"round {number + 1} of {options.rounds}")
            places = list(islice(turns, size))
            answers = [[_beginning(done, options.learned_tokens) for done in first[place][:count]] for place in places]
            if number:
                kept = list(islice(held, options.replay if options.replay_weight else 0))
                given = [*chain.from_iterable([questions[place]] * count for place in places), *kept]
                found = measuring.sampled(given, f"{self.seed}-round-{number}", most=options.learned_tokens)
                answers = [list(chain(*found[n * count : (n + 1) * count])) for n in range(size)]
                replayed = [
                    replay_sample(Rollout(Task(done.uid, ()), prompt, done), options.replay_weight)
                    for prompt, (done,) in zip(kept, found[size * count :], strict=True)
                ]
            groups = [
                _group(situations[place], questions[place], teachers[place], own)
                for place, own in zip(places, answers, strict=True)
            ]
            credited = list(chain(*(entries for _, entries in groups)))
            for group in self._learner.optimizer.param_groups:  # its first steps are as large as the rate allows
                group["lr"] = options.lr * min(1.0, (number + 1) / WARM_UP)
            taken, *_ = update_all(
                self.policy, self._learner, self._config, [group for group, _ in groups], credited, replayed, totals
            )
            reports += taken
            totals.step += 1
        numbers["loss"] = [report.loss for report in reports]
        numbers["grad_norm"] = [report.grad_norm for report in reports]
        numbers["skipped"] = sum(report.skipped for report in reports)
        return reference

    def _solutions(self) -> list[Completion]:
        """The likeliest answers to the probe set, as long as any where an exact one is to be found in them."""
        exact, free = ([ids for prompt, ids in self.probe if bool(prompt.answer) == named] for named in (True, False))
        whole = self.measuring.sampled(exact, "probe", temperature=0.0)
        begun = self.measuring.sampled(free, "probe", temperature=0.0, most=self.options.learned_tokens)
        answers = iter(whole), iter(begun)
        return [next(answers[not prompt.answer])[0] for prompt, _ in self.probe]

    def _probed(self, reference: Sequence[Completion]) -> tuple[list[float], list[float], tuple[int, int]]:
        """Of prompts without an exact answer, the nats a token that the served answers lost; of the others, the changes
        of right ones, and how many were cut before. (A user may want another form of every answer, which is no harm.)
        """
        pairs = [(prompt, ids, old) for (prompt, ids), old in zip(self.probe, reference, strict=True)]
        free = [(ids, old) for prompt, ids, old in pairs if not prompt.answer]
        lost = self.measuring.likelihood_lost([ids for ids, _ in free], [old for _, old in free])
        both = [(prompt.answer, old, new) for (prompt, _, old), new in zip(pairs, self._solutions(), strict=True)]
        return lost, *changes([each for each in both if each[0]])


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


def _beginning(done: Completion, most: int) -> Completion:
    """The first tokens of an answer."""
    if len(done.token_ids) <= most:
        return done
    return replace(done, token_ids=done.token_ids[:most], logprobs=done.logprobs[:most], stop=StopReason.LENGTH)
