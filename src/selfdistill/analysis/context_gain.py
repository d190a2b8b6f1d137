"""Before any training: is the model better when it is told more, and because of what it is told?

A model learns here from what it says itself once it reads a context. Where that is no better than what it says
anyway, there is nothing to learn; where another task's context does as well, it is not the context that helps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from selfdistill.analysis.control_contexts import SHUFFLED
from selfdistill.config import RunConfig, resolved
from selfdistill.data.tasks import usable_tasks
from selfdistill.envs.scoring import extract_code
from selfdistill.prompts.context import Demonstration, Document, SolutionOrFeedback, UserReply, without_thinking
from selfdistill.prompts.stages import PrivilegedRollouts, failures
from selfdistill.runs import Estimate, EvalRecord, RolloutRecord, RunDir
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.runs.records import to_json
from selfdistill.runs.stats import SignFlipTest, holm, paired_difference
from selfdistill.runs.store import write_atomic
from selfdistill.training.recording import check_environment, rollout_record
from selfdistill.training.rollouts import SOLVED, accuracy, roll_out, solved
from selfdistill.training.samples import CreditedRollout
from selfdistill.training.session import Session, open_session
from selfdistill.types import ANSWER, Context, DropReason, Rollout, RolloutGroup, Task, TokenIds

UPLIFT = "context_gain.json"
# Of `eval --teacher`, where nothing else is set. One greedy answer a task shows large gains only: with 24 tasks, 20 %
# right without a context and 50 % with it, one answer shows the gain about half of the time, four nearly always.
ANSWERS = {"evaluation": {"rollouts": 4, "temperature": 1.0}}
FEWEST = 6  # tasks, at least: a gain on every one of them is chance once in 2⁶ = 64 times
LEVEL = 0.05  # of a false "go" for any kind, where no kind has an effect
MOSTLY = 0.5  # of the answers
SLICE = 64  # answers between two signs of progress
RULE = (
    "Rule: go where answers with the context are better than without any and better than with another task's, both by "
    f"an exact sign-flip test over tasks, one-sided, p ≤ {LEVEL:g} after Holm's correction for the kinds tried."
)


@dataclass(frozen=True, slots=True)
class ContextGain:
    """How much better the model is with one kind of context.

    `bare` and `told` are accuracies on the same tasks, those that have such a context; `gain` their difference,
    `shuffled` that between another task's context and none, `over_control` that between the task's own context and
    another task's (both None: there is no other), each with a paired interval over tasks. `copied` is the share of
    answers that repeat the solution they were shown (None: none was). `cut` contexts had to be shortened, `left_out`
    tasks had no room for theirs.

    `more` has for each task how many more answers were right than without context, `more_than_control` the same against
    another task's context. `p` is the larger of the p-values of both, corrected for the kinds tried (None: not tested);
    `needed` is the number of tasks below which no outcome could be significant.
    """

    kind: str
    tasks: int
    bare: float
    told: float
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
        """Against no context, and against another task's."""
        return SignFlipTest(self.more), SignFlipTest(self.more_than_control)

    @property
    def compared(self) -> int:
        """Tasks on which both tests can be made."""
        return min(len(self.more), len(self.more_than_control))

    @property
    def against(self) -> str:
        """Why not to teach with it; empty: nothing speaks against it."""
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
    """The same gains with their p-values, corrected for the number of kinds, and the number of tasks that each needs.

    Kinds with too few tasks for any outcome to be significant are not tested, and cost the others nothing.
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
    """What each kind of context is worth to a model, and how well it answers without any."""

    bare: Estimate
    gains: tuple[ContextGain, ...]

    @property
    def decision(self) -> str:
        """Whether to train, in one sentence."""
        go = [f"{g.kind} ({g.gain.value:+.2f})" for g in self.gains if not g.against]
        if go:
            return f"Go: the model is better when it is told more, with {', '.join(go)}."
        if self.gains and all(gain.p is None for gain in self.gains):
            return f"Cannot decide: it needs {self.gains[0].needed} tasks that have the same kind of context."
        return "No go: no kind of context at hand makes the model significantly better."

    @property
    def caveat(self) -> str:
        """What a gain by copying does not say; empty where most answers were the model's own."""
        kinds = [gain.kind for gain in self.gains if gain.copied is not None and gain.copied > MOSTLY]
        if not kinds:
            return ""
        return (
            f"Most answers told by {' or '.join(kinds)} are copies: that gain says that the model reads, and no more."
        )


def failed_attempts(group: RolloutGroup) -> list[Context]:
    """What the environment said of each failed attempt of the model's own."""
    told = [rollout.outcome for _, rollout in failures(group, SOLVED)]
    return [Context("feedback", feedback=outcome.feedback) for outcome in told if outcome is not None]


def _by(rule: SolutionOrFeedback | Demonstration | Document | UserReply) -> Callable[[RolloutGroup], list[Context]]:
    """What a rule finds for the answers of a group, each text once."""

    def contexts(group: RolloutGroup) -> list[Context]:
        found = [rule.context(group, place) for place, _ in group.at(ANSWER)]
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

    Attempts are sampled as in training and teach what they teach there; every answer that counts is sampled and scored
    as in evaluation. With `config.out` all answers are kept there, and the result as context_gain.json. Raises what
    opening a run raises, and `EnvError` when most answers could not be scored.
    """
    asking = open_session(config, callback)
    run = _opened(asking)
    with run or nullcontext():
        return _measured(_Bench(asking, callback, run))


def _measured(bench: _Bench) -> ContextGainReport:
    asking, config = bench.asking, bench.asking.config
    tasks = usable_tasks(asking.tasks[: config.evaluation.tasks], asking.env, bench.callback)
    groups = bench.attempts(tasks)
    questions = [(task, asking.renderer.prompt(task.messages), None) for task in tasks]
    bare = bench.ask("bare", questions, config.evaluation.answers)
    gains = []
    for kind, contexts in KINDS.items():
        told = {group.task.id: some for group in groups if (some := contexts(group))}
        if told:
            gains.append(bench.gain(kind, [task for task in tasks if task.id in told], told, bare))
        else:
            bench.callback(Note(f"{kind}: no task has any"))
    found = accuracy([RolloutGroup(task, tuple(bare[task.id])) for task in tasks])
    context_gain = ContextGainReport(found.estimate, decided(gains))
    if bench.run:
        bench.run.append(EvalRecord(0, 0, 0.0, "train", found.estimate, found.tasks, found.solved))
        write_atomic(bench.run.path / UPLIFT, to_json(context_gain, indent=2) + "\n")
    return context_gain


def _opened(asking: Session) -> RunDir | None:
    config = asking.config
    if not config.out:
        return None
    environment = describe_environment(device=str(asking.policy.device), isolation=asking.isolation)
    return RunDir.create(Path(config.out), {"settings": resolved(config), **environment})


@dataclass(frozen=True, slots=True)
class _Bench:
    """Asks, scores and keeps records."""

    asking: Session
    callback: Callback
    run: RunDir | None

    def attempts(self, tasks: Sequence[Task]) -> list[RolloutGroup]:
        """Groups of answers, sampled and scored as in training."""
        asking, config = self.asking, self.asking.config
        groups: list[RolloutGroup] = []
        size = max(1, SLICE // config.rollouts_per_task)
        for start in range(0, len(tasks), size):
            self.callback(Phase("attempts to be told about", start, len(tasks)))
            made = roll_out(
                asking.policy, asking.env, asking.renderer, tasks[start : start + size], config.sampling,
                rollouts=config.rollouts_per_task, seed=config.seed, label=f"context-gain-attempt-{start}",
            )  # fmt: skip
            self._keep(made, itertools.repeat(None))
            groups += made
        return groups

    def ask(
        self, name: str, asked: Sequence[tuple[Task, TokenIds, Context | None]], rollouts: int = 1
    ) -> dict[str, list[Rollout]]:
        """Answers by task, so many to each of these prompts, sampled and scored as in evaluation."""
        asking, config = self.asking, self.asking.config
        options = replace(config.sampling, temperature=config.evaluation.temperature)
        found: dict[str, list[Rollout]] = {}
        size = max(1, SLICE // rollouts)
        for start in range(0, len(asked), size):
            self.callback(Phase(f"measuring: {name}", start, len(asked)))
            part = asked[start : start + size]
            made = roll_out(
                asking.policy, asking.evaluation_env, asking.renderer, [task for task, _, _ in part], options,
                rollouts=rollouts, seed=config.seed, label=f"context-gain-{name}-{start}",
                prompts=[prompt for _, prompt, _ in part],
            )  # fmt: skip
            told = [context for _, _, context in part for _ in range(rollouts)]
            self._keep(made, told)
            for group in made:
                found.setdefault(group.task.id, []).extend(group.rollouts)
        return found

    def gain(
        self,
        kind: str,
        tasks: Sequence[Task],
        told: Mapping[str, Sequence[Context]],
        bare: Mapping[str, Sequence[Rollout]],
    ) -> ContextGain:
        """What this kind is worth, and what it is worth from another task."""
        seed = self.asking.config.seed
        prompts = {task.id: self._prompts(task, told[task.id]) for task in tasks}
        fitting = [task for task in tasks if prompts[task.id]]
        answers = self._told(kind, fitting, prompts)
        spare = {} if kind != "solution" else _demonstrations(self.asking.tasks)
        others = other_contexts(fitting, {**spare, **told}, seed)
        student_reads_context = {task.id: self._prompts(task, others[task.id]) for task in fitting if task.id in others}
        shuffled = self._told(
            f"{SHUFFLED}{kind}", [task for task in fitting if student_reads_context.get(task.id)], student_reads_context
        )
        names = [task.id for task in fitting]
        shown = [
            (rollout, context)
            for name in names
            for rollout, (_, context, _) in zip(answers[name], prompts[name], strict=True)
        ]
        cut = sum(was_cut for entries in prompts.values() for _, _, was_cut in entries)
        if cut or len(fitting) < len(tasks):
            self.callback(Note(f"{kind}: {cut} contexts were cut to fit, {len(tasks) - len(fitting)} tasks left out"))
        gain, more = paired(answers, bare, names)
        controlled = list(shuffled)
        over_control, more_than_control = paired(answers, shuffled, controlled)
        return ContextGain(
            kind=kind,
            tasks=len(fitting),
            bare=_mean([_rate(bare[name]) for name in names]),
            told=_mean([_rate(answers[name]) for name in names]),
            gain=gain,
            shuffled=paired(shuffled, bare, controlled)[0] if shuffled else None,
            copied=copied(shown),
            cut=cut,
            left_out=len(tasks) - len(fitting),
            over_control=over_control if shuffled else None,
            more=more,
            more_than_control=more_than_control,
        )

    def _told(
        self, name: str, tasks: Sequence[Task], prompts: Mapping[str, Sequence[tuple[TokenIds, Context, bool]]]
    ) -> dict[str, list[Rollout]]:
        """One answer to each prompt."""
        asked = [(task, ids, replace(context, kind=name)) for task in tasks for ids, context, _ in prompts[task.id]]
        return self.ask(name, asked)

    def _prompts(self, task: Task, contexts: Sequence[Context]) -> list[tuple[TokenIds, Context, bool]]:
        """One prompt for each answer of an evaluation, the contexts in turn; none when there is no room."""
        config, renderer = self.asking.config, self.asking.renderer
        room = min(config.sampling.max_new_tokens, renderer.context_length // 2)
        chosen = [contexts[number % len(contexts)] for number in range(config.evaluation.answers)]
        read = [(renderer.teacher_prompt(task.messages, context, room), context) for context in chosen]
        return [(found[0], context, found[2]) for found, context in read if not isinstance(found, DropReason)]

    def _keep(self, groups: Sequence[RolloutGroup], told: Iterable[Context | None]) -> None:
        """Writes the answers down where records are kept, and stops when the environment fails on most."""
        records: list[RolloutRecord] = []
        for rollout, context in zip((rollout for group in groups for rollout in group.rollouts), told, strict=False):
            known = replace(rollout, stage=PrivilegedRollouts.name) if context else rollout
            records.append(
                rollout_record(
                    0, CreditedRollout(known, context=context, drop=rollout.drop), {}, self.asking.renderer.tokenizer
                )
            )
        if self.run:
            self.run.append(*records)
        check_environment(records)


def _demonstrations(tasks: Sequence[Task]) -> dict[str, list[Context]]:
    """Solutions of tasks that nobody has solved yet: what another task's solution can be taken from."""
    return {task.id: [Context("solution", solution=task.demonstration)] for task in tasks if task.demonstration.strip()}


def other_contexts(
    tasks: Sequence[Task], told: Mapping[str, Sequence[Context]], seed: int
) -> dict[str, Sequence[Context]]:
    """For each task the contexts of another one, that say something else; no entry where no other does."""
    order = list(told)
    random.Random(f"other contexts {seed}").shuffle(order)
    found = {}
    for name in (task.id for task in tasks):
        place = order.index(name)
        donors = (*order[place + 1 :], *order[:place])
        other = next((donor for donor in donors if not set(told[donor]) & set(told[name])), None)
        if other is not None:
            found[name] = told[other]
    return found


def paired(
    one: Mapping[str, Sequence[Rollout]], other: Mapping[str, Sequence[Rollout]], names: Sequence[str]
) -> tuple[Estimate, tuple[int, ...]]:
    """The mean over tasks of the difference in accuracy, and of each task how many more answers of `one` are right.

    As many answers of each are compared, the first ones: with unequal numbers a difference would not be as likely as
    its negative where there is no effect.
    """
    pairs = [(one[name], other[name], min(len(one[name]), len(other[name]))) for name in names]
    more = [sum(map(solved, first[:count])) - sum(map(solved, second[:count])) for first, second, count in pairs]
    return paired_difference([d / count for d, (_, _, count) in zip(more, pairs, strict=True)]), tuple(more)


def copied(shown: Sequence[tuple[Rollout, Context]]) -> float | None:
    """The share of answers that repeat the solution or demonstration that they were shown; None where none was."""
    pairs = [(r, c.solution or c.demonstration) for r, c in shown if c.solution or c.demonstration]
    return _mean([same_text(rollout.completion.text, text) for rollout, text in pairs]) if pairs else None


def same_text(one: str, other: str) -> bool:
    """Whether two answers hold the same program, or the same words where there is none, up to white space."""
    answers = map(without_thinking, (one, other))
    first, second = ("".join((extract_code(text) or text).split()) for text in answers)
    return first == second


def _rate(rollouts: Sequence[Rollout]) -> float:
    return _mean([solved(rollout) for rollout in rollouts])


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
