"""Context gain, measured before any training: does the model answer better with a context, and due to its content?

The student learns from the model's own predictions given a context. If answers with the context are no better, there is
nothing to distil; if another task's context helps as much, the gain is not due to the content.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from selfdistill.analysis.control_contexts import SHUFFLED
from selfdistill.config import RunConfig, resolved
from selfdistill.data.lines import CHECKED_ROWS
from selfdistill.data.tasks import usable_tasks
from selfdistill.envs.base import SOLVED
from selfdistill.envs.scoring import extract_code
from selfdistill.errors import DataError
from selfdistill.prompts.context import Demonstration, Document, SolutionOrFeedback, UserReply, without_thinking
from selfdistill.prompts.stages import PrivilegedRollouts, failures
from selfdistill.runs import Estimate, EvalRecord, RunDir
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.runs.records import to_json
from selfdistill.runs.stats import SignFlipTest, holm, paired_difference
from selfdistill.runs.store import write_atomic
from selfdistill.training.ahead import refuse_servers
from selfdistill.training.evaluation import accuracy
from selfdistill.training.preflight import MEASURED
from selfdistill.training.recording import check_environment, rollout_record
from selfdistill.training.samples import CreditedRollout, session_groups, solved
from selfdistill.training.session import Session, open_session
from selfdistill.types import ANSWER, Context, DropReason, Rollout, RolloutGroup, Task, TokenIds

# Defaults of `eval --teacher`. One greedy answer a task detects large gains only: with 24 tasks, accuracy .2 without a
# context and .5 with it, one answer detects the gain about half of the time, four nearly always.
ANSWERS = {"evaluation": {"rollouts": 4, "temperature": 1.0}}
FEWEST = 6  # tasks, at least: a gain on every one of them is chance once in 2⁶ = 64 times
LEVEL = 0.05  # of a false "go" for any kind, where no kind has an effect
SLICE = 64  # answers between two reports of progress
RULE = (
    "Rule: go where answers with the context are better than without any and better than with another task's, both by "
    f"an exact sign-flip test over tasks, one-sided, p ≤ {LEVEL:g} after Holm's correction for the kinds tried."
)


@dataclass(frozen=True, slots=True)
class ContextGain:
    """The gain in accuracy from one kind of context, with paired 95 % intervals over tasks.

    `bare` and `with_context` are accuracies on the tasks that have such a context, `gain` their difference. `shuffled`
    is another task's context less none, `over_control` the own context less another task's (None: there is no other).
    `copied` is the share of answers that repeat the solution in the context (None: there is none). `cut` contexts were
    shortened, `left_out` tasks have no room for theirs.

    `more` counts for each task how many more answers are right than without a context, `more_than_control` than with
    another task's. `p` is the larger p-value of both, corrected for the kinds tried (None: not tested); `needed` is
    the least number of tasks for any outcome to be significant.
    """

    kind: str
    tasks: int
    bare: float
    with_context: float
    gain: Estimate
    shuffled: Estimate | None = None
    copied: float | None = None
    cut: int = 0
    left_out: int = 0
    over_control: Estimate | None = None
    more: tuple[int, ...] = ()
    more_than_control: tuple[int, ...] = ()
    p: float | None = None
    needed: int = FEWEST

    @property
    def tests(self) -> tuple[SignFlipTest, SignFlipTest]:
        """Of the gain over no context, and over another task's."""
        return SignFlipTest(self.more), SignFlipTest(self.more_than_control)

    @property
    def compared(self) -> int:
        """The tasks that both tests have."""
        return min(len(self.more), len(self.more_than_control))

    @property
    def against(self) -> str:
        """The reason against this kind; empty: go."""
        if self.p is None:
            if self.compared == 0 and self.tasks >= self.needed:
                return "no other context to compare with"
            return f"cannot decide: it needs {self.needed} tasks, and there are {min(self.tasks, self.compared)}"
        if self.p <= LEVEL:
            return ""
        bare, control = (test.p for test in self.tests)
        if bare < control:
            return f"not significantly better than another task's context (p = {self.p:.2f})"
        return f"the gain is not significant (p = {self.p:.2f})"


def decided(gains: Sequence[ContextGain]) -> tuple[ContextGain, ...]:
    """The gains with p-values corrected for the number of kinds, and the number of tasks that each needs.

    Kinds with too few tasks for a significant outcome are not tested and do not count in the correction.
    """
    tried = sum(gain.compared >= FEWEST for gain in gains)
    needed = FEWEST
    while tried / 2**needed > LEVEL:
        needed += 1
    tested = [gain for gain in gains if gain.compared >= needed]
    p_values = dict(zip((gain.kind for gain in tested), holm([gain.tests for gain in tested]), strict=True))
    return tuple(replace(gain, needed=needed, p=p_values.get(gain.kind)) for gain in gains)


@dataclass(frozen=True, slots=True)
class ContextGainReport:
    """Accuracy without a context, and the gain from each kind."""

    bare: Estimate
    gains: tuple[ContextGain, ...]

    @property
    def decision(self) -> str:
        """Whether to train, in one sentence."""
        go = [f"{g.kind} ({g.gain.value:+.2f})" for g in self.gains if not g.against]
        if go:
            return f"Go: the model answers significantly better with {', '.join(go)}."
        if self.gains and all(gain.p is None for gain in self.gains):
            return f"Cannot decide: it needs {self.gains[0].needed} tasks that have the same kind of context."
        return "No go: the model answers significantly better with no kind of context."

    @property
    def caveat(self) -> str:
        """A warning where most answers are copies of the context; else empty."""
        kinds = [gain.kind for gain in self.gains if gain.copied is not None and gain.copied > 0.5]
        text = f"Most answers with {' or '.join(kinds)} are copies: the gain shows only that the model reads."
        return text if kinds else ""


def failed_attempts(group: RolloutGroup) -> list[Context]:
    """The feedback on each failed attempt of a group."""
    return [Context("feedback", feedback=messages[-1].content) for _, messages in failures(group, SOLVED)]


def _by(rule: SolutionOrFeedback | Demonstration | Document | UserReply) -> Callable[[RolloutGroup], list[Context]]:
    """The distinct contexts of a rule for the answers of a group."""

    def contexts(group: RolloutGroup) -> list[Context]:
        scored = [place for place, r in enumerate(group.rollouts) if r.stage == ANSWER and r.outcome is not None]
        found = [rule.context(group, place) for place in scored]
        return list(dict.fromkeys(context for context in found if isinstance(context, Context)))

    return contexts


KINDS: Mapping[str, Callable[[RolloutGroup], list[Context]]] = {
    "feedback": failed_attempts,
    "solution": _by(SolutionOrFeedback(feedback=False)),
    "demonstration": _by(Demonstration()),
    "document": _by(Document()),
    "reply": _by(UserReply()),
}


def measure_context_gain(config: RunConfig, callback: Callback) -> ContextGainReport:
    """Accuracy without and with each kind of context that environment or data have, before any training.

    Attempts are sampled as in training, and their contexts are those of training; answers are sampled and scored as in
    evaluation. With `config.out`, all answers are kept there, and the report as context_gain.json. Raises as opening a
    run does, and `EnvError` when most answers could not be scored.
    """
    refuse_servers(config, "eval --teacher")
    session, run = open_session(config, callback), None
    if config.out:
        run = session.new_run(Path(config.out), resolved(config))
    with run or nullcontext():
        bench = _Bench(session, callback, run)
        if not (first := session.measured_tasks):
            why = "without a reward nothing shows whether a context helps"
            raise DataError("answers to these tasks get no reward", got=config.env.name, why=why)
        tasks = usable_tasks(first, session.bad_rows(first), callback)
        questions = [_Prompt(task, session.renderer.prompt(task.messages)) for task in tasks]
        attempts = bench.answers("attempt", questions, config.rollouts_per_task, attempts=True)
        groups = [RolloutGroup(task, tuple(attempts[task.id])) for task in tasks]
        bare = bench.answers("bare", questions, config.evaluation.answers)
        gains = []
        for kind, contexts in KINDS.items():
            own = {group.task.id: some for group in groups if (some := contexts(group))}
            if own:
                gains.append(bench.gain(kind, [task for task in tasks if task.id in own], own, bare))
            else:
                callback(Note(f"{kind}: no task has any"))
        found = accuracy([RolloutGroup(task, tuple(bare[task.id])) for task in tasks])
        report = ContextGainReport(found.estimate, decided(gains))
        if run:
            run.append(EvalRecord(0, 0, 0.0, "train", found.estimate, found.tasks, found.solved))
            write_atomic(run.path / MEASURED, to_json(report, indent=2) + "\n")
        return report


class _Prompt(NamedTuple):
    """What one answer to a task reads: the question alone, or with a context, which may have been cut to fit."""

    task: Task
    ids: TokenIds
    context: Context | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class _Bench:
    """Samples and scores answers, and records them."""

    session: Session
    callback: Callback
    run: RunDir | None

    def answers(
        self, name: str, prompts: Sequence[_Prompt], rollouts: int = 1, *, attempts: bool = False
    ) -> dict[str, list[Rollout]]:
        """So many answers to each prompt, by task: sampled and scored as in evaluation, or `attempts` as in training.
        Raises `EnvError` when the environment fails on most."""
        session, found = self.session, dict[str, list[Rollout]]()
        size = max(1, SLICE // rollouts)
        for start in range(0, len(prompts), size):
            self.callback(Phase(f"measuring: {name}", start, len(prompts)))
            part = prompts[start : start + size]
            groups = session_groups(
                session,
                [prompt.task for prompt in part],
                evaluates=not attempts,
                rollouts=rollouts,
                label=f"context-gain-{name}-{start}",
                prompts=[prompt.ids for prompt in part],
            )
            records = []
            for group, prompt in zip(groups, part, strict=True):
                found.setdefault(group.task.id, []).extend(group.rollouts)
                for rollout in group.rollouts:
                    known = replace(rollout, stage=PrivilegedRollouts.name) if prompt.context else rollout
                    entry = CreditedRollout(known, context=prompt.context, drop=rollout.drop)
                    records.append(rollout_record(0, entry, {}, session.renderer.tokenizer))
            if self.run:
                self.run.append(*records)
            check_environment(records)
        return found

    def gain(
        self,
        kind: str,
        tasks: Sequence[Task],
        own: Mapping[str, Sequence[Context]],
        bare: Mapping[str, Sequence[Rollout]],
    ) -> ContextGain:
        """The gain from the tasks' own contexts of this kind, and from those of other tasks."""
        prompts = self._prompts(kind, tasks, own)
        answers = self.answers(kind, prompts)
        # Another task's solution can be taken from its demonstration where no attempt solved it.
        known = self.session.tasks[:CHECKED_ROWS] if kind == "solution" else ()
        texts = {task.id: task.demonstration for task in known}
        spare = {name: [Context("solution", solution=text)] for name, text in texts.items() if text.strip()}
        fitting = [task for task in tasks if task.id in answers]
        others = other_contexts(fitting, {**spare, **own}, self.session.config.seed)
        shuffled = self.answers(SHUFFLED + kind, self._prompts(SHUFFLED + kind, fitting, others))
        cut, left_out = sum(prompt.cut for prompt in prompts), len(tasks) - len(answers)
        if cut or left_out:
            self.callback(Note(f"{kind}: {cut} contexts were cut to fit, {left_out} tasks left out"))
        gain, more = paired(answers, bare, list(answers))
        over_control, more_than_control = paired(answers, shuffled, list(shuffled))
        every = [rollout for name in answers for rollout in answers[name]]
        return ContextGain(
            kind=kind,
            tasks=len(answers),
            bare=_mean([_mean(list(map(solved, bare[name]))) for name in answers]),
            with_context=_mean([_mean(list(map(solved, answers[name]))) for name in answers]),
            gain=gain,
            shuffled=paired(shuffled, bare, list(shuffled))[0] if shuffled else None,
            copied=copied([(rollout, prompt.context) for rollout, prompt in zip(every, prompts, strict=True)]),
            cut=cut,
            left_out=left_out,
            over_control=over_control if shuffled else None,
            more=more,
            more_than_control=more_than_control,
        )

    def _prompts(self, kind: str, tasks: Sequence[Task], contexts: Mapping[str, Sequence[Context]]) -> list[_Prompt]:
        """One prompt for each answer of an evaluation, a task's contexts in turn; none where there is no room."""
        config, renderer, found = self.session.config, self.session.renderer, list[_Prompt]()
        room = min(config.sampling.max_new_tokens, renderer.context_length // 2)
        for task in tasks:
            for context in islice(cycle(contexts.get(task.id, ())), config.evaluation.answers):
                made = renderer.teacher_prompt(task.messages, context, room)
                if not isinstance(made, DropReason):
                    found.append(_Prompt(task, made[0], replace(context, kind=kind), made[2]))
        return found


def other_contexts(
    tasks: Sequence[Task], contexts: Mapping[str, Sequence[Context]], seed: int
) -> dict[str, Sequence[Context]]:
    """For each task the contexts of another task that differ from its own; no entry where there is none."""
    order = list(contexts)
    random.Random(f"other contexts {seed}").shuffle(order)
    found = {}
    for name in (task.id for task in tasks):
        place = order.index(name)
        donors = (*order[place + 1 :], *order[:place])
        other = next((donor for donor in donors if not set(contexts[donor]) & set(contexts[name])), None)
        if other is not None:
            found[name] = contexts[other]
    return found


def paired(
    one: Mapping[str, Sequence[Rollout]], other: Mapping[str, Sequence[Rollout]], names: Sequence[str]
) -> tuple[Estimate, tuple[int, ...]]:
    """The mean difference in accuracy over tasks, and for each task how many more answers of `one` are right.

    The same number of answers is compared, the first ones: otherwise differences would not be symmetric without an
    effect.
    """
    pairs = [(one[name], other[name], min(len(one[name]), len(other[name]))) for name in names]
    more = [sum(map(solved, first[:count])) - sum(map(solved, second[:count])) for first, second, count in pairs]
    return paired_difference([d / count for d, (_, _, count) in zip(more, pairs, strict=True)]), tuple(more)


def copied(shown: Sequence[tuple[Rollout, Context | None]]) -> float | None:
    """The share of answers that repeat the solution or demonstration in their context; None where there is none."""
    pairs = [(rollout, text) for rollout, c in shown if c and (text := c.solution or c.demonstration)]
    return _mean([same_text(rollout.completion.text, text) for rollout, text in pairs]) if pairs else None


def same_text(one: str, other: str) -> bool:
    """Whether two answers hold the same program, or the same words without one, up to white space."""
    answers = map(without_thinking, (one, other))
    first, second = ("".join((extract_code(text) or text).split()) for text in answers)
    return first == second


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
