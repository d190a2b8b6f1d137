"""The search for a solution of one task: rounds of attempts, sampled, scored and learned from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from selfdistill.envs.base import score_all
from selfdistill.envs.turns import single_turn
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import sample
from selfdistill.plugins import seed_global, their_code
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import Prompted
from selfdistill.runs import Accuracies, RolloutRecord, RunDir, StepRecord, Summary, read_run
from selfdistill.runs.events import Callback, Interrupted, Note, Phase, RunEnd, StepEnd
from selfdistill.runs.reader import check_records
from selfdistill.runs.solving import SolveResult, write_result
from selfdistill.runs.store import CHECKPOINTS, CONFIG, allowed_changes
from selfdistill.test_time.config import SolveConfig, completed_settings, solve_settings
from selfdistill.test_time.strategies.base import PASSED, Attempt, Prompt, SolveState, prompts_of
from selfdistill.training.conversations import Sampler
from selfdistill.training.recording import check_environment
from selfdistill.training.samples import session_groups
from selfdistill.training.session import Session, Totals, saved_totals
from selfdistill.training.steps import Timer, learn, record_round
from selfdistill.training.stopping import StopSign
from selfdistill.types import Completion, Outcome, Rollout, RolloutGroup, Task, TokenIds

REDRAWS = (1, 2, 4, 8, 16, 32)  # draws at a time in place of a repeated failure
WINDOW = 16  # attempts, at least, on more than half of which an environment must fail before a search stops
MAY_CHANGE = ("solve.keep", "checkpoint_every", "micro_batch_tokens", "activation_checkpointing", "offload")
COUNTS = ("contexts_cut", "prompts_cut", "left_out", "redrawn")  # of a result, summed over steps


def found_changes(config: SolveConfig, path: Path) -> dict[str, Any]:
    """The settings in which a search that resumes in `path` differs. Raises `RunError` for those that may not."""
    return allowed_changes(path, solve_settings(config), MAY_CHANGE, partial(completed_settings, config))


@dataclass
class Search:
    """The search for a solution of one task. `noted` holds the topics of notes that are given once."""

    config: SolveConfig
    session: Session
    task: Task
    run: RunDir
    callback: Callback
    stop: StopSign
    totals: Totals
    attempts: list[Attempt] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)

    @classmethod
    def opened(
        cls,
        config: SolveConfig,
        session: Session,
        task: Task,
        path: Path,
        callback: Callback,
        stop: StopSign,
        *,
        rounds: int | None = None,
    ) -> Search:
        """A new search, or one resumed from its last checkpoint or, without a learner, after `rounds` rounds."""
        settings = solve_settings(config)
        if (path / CONFIG).exists():
            totals = _restored(session, path, rounds, callback)
            check_records(path, totals.step, measured=False)
            run = RunDir.resume(path, totals.step, found_changes(config, path))
        else:
            totals, run = Totals(), session.new_run(path, settings)
        search = cls(config, session, task, run, callback, stop, totals)
        search._add(list(read_run(path).rollouts()))
        callback(config.run_start(path, session.env.name, str(session.policy.device), totals.step))
        return search

    @property
    def over(self) -> bool:
        """Whether the task is solved, or the budget used."""
        limits = self.config.limits
        if not limits.exhaust_budget and any(attempt.solved for attempt in self.attempts):
            return True
        used = {"attempts": len(self.attempts), "tokens": self.totals.tokens, "seconds": self.totals.wall_s}
        return used[limits.unit] >= limits.budget

    @property
    def state(self) -> SolveState:
        """The input of the strategy before the next round."""
        run = self.config.run
        return SolveState(self.task, self.session.renderer, run.sampling.max_new_tokens, run.seed, tuple(self.attempts))

    def prompts(self) -> list[Prompt]:
        """The prompts of the next round."""
        made, allowed = len(self.attempts), self.config.attempts
        self.callback(Phase("sampling and scoring", made, allowed))
        strategy, renderer, state = self.config.strategy, self.session.renderer, self.state
        seed_global(state.seed, "prompts", self.task.id, self.totals.step)
        prompts = prompts_of(strategy, state, min(strategy.batch, allowed - made) if allowed else strategy.batch)
        if any(prompt.left_out for prompt in prompts) and all(p.messages == self.task.messages for p in prompts):
            self._note(
                f"no feedback fits a prompt: the question has {len(renderer.prompt(self.task.messages)):,} tokens, the "
                f"model reads {renderer.context_length:,}, an answer may have {state.answer:,}; attempts read the "
                "question alone (lower sampling.max_new_tokens, raise strategy.window, take a model that reads more)",
                once="no room",
            )
        return prompts

    def learn_round(
        self,
        group: RolloutGroup,
        prompts: Sequence[Prompt],
        solved: Mapping[str, bool],
        spent: float,
        unused: Sequence[Completion],
    ) -> list[RolloutRecord]:
        """Learns from a round of attempts and records it; sampling and scoring took `spent` seconds. `unused` are
        completions that were not submitted."""
        now = time.monotonic()
        began, timer = now - self.totals.wall_s - spent, Timer(since=now - spent)
        found = any(solved.get(r.completion.uid) for r in group.rollouts) and not self.config.limits.exhaust_budget
        self.totals.tokens += sum(len(done.token_ids) for done in unused)
        with their_code(self.config.strategy, "its `learns_from`"):
            learns = self.session.learner is not None and not found and self.config.strategy.learns_from(self.state)
        if learns:
            record, rollouts = learn(self.session, [group], self.totals, self.callback, began, timer)
        else:
            record, rollouts = record_round(self.session, [group], self.totals, began, timer)
        shortened = {"prompts_cut": sum(p.cut for p in prompts), "left_out": sum(p.left_out for p in prompts)}
        record = replace(record, extra={**record.extra, **shortened, "redrawn": len(unused)})
        rollouts = [replace(rollout, right=solved.get(rollout.uid)) for rollout in rollouts]
        self.run.append(*rollouts, record)
        self.totals.step = record.step
        self._add(rollouts)
        self.callback(StepEnd(record))
        self._note_round(record, rollouts, learns)
        every = self.config.run.checkpoint_every
        if every and self.totals.step % every == 0 and not self.over:
            self.save()
        return rollouts

    def _add(self, rollouts: Sequence[RolloutRecord]) -> None:
        """Adds the attempts of some records: whole rounds, in order."""
        for step, made in groupby(rollouts, key=lambda rollout: rollout.step):
            self.attempts += [
                Attempt(
                    round=step - 1,
                    place=place,
                    text=rollout.completion,
                    feedback=rollout.feedback,
                    passed_public=rollout.right is not None,
                    solved=bool(rollout.right),
                    scored=rollout.reward is not None,
                )
                for place, rollout in enumerate(made)
            ]

    def _note_round(self, record: StepRecord, rollouts: Sequence[RolloutRecord], learns: bool) -> None:
        """Notes attempts that passed the public tests alone, and a round from which nothing is learned."""
        wrong = sum(rollout.right is False for rollout in rollouts)
        if wrong:
            self._note(f"{wrong} of round {record.step} passed the tests that training sees, but not the private ones")
        failed = [rollout for rollout in rollouts if rollout.reward is not None and rollout.reward < PASSED]
        why = ""
        if failed and not any(rollout.feedback.strip() for rollout in failed):
            why = "no failed attempt has feedback"
        elif learns and record.informative == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in record.dropped.items())
            why = f"round {record.step} produced no training samples ({reasons})"
        if why and self.config.strategy.idle and not any(rollout.right for rollout in rollouts):
            self._note(f"{why}: {self.config.strategy.idle}", once="idle")

    def _note(self, text: str, once: str = "") -> None:
        if once not in self.noted:
            self.callback(Note(text))
        self.noted |= {once} - {""}

    def save(self, *, final: bool = False) -> None:
        """Writes a checkpoint; nothing without a learner, whose records are all that a search needs."""
        if self.session.learner is not None:
            self.callback(Phase("saving"))
            self.session.save(self.run.checkpoints, self.totals.step, vars(self.totals), final=final)

    def finish(self) -> None:
        """Writes the result, and keeps or removes the checkpoints."""
        config, totals, attempts = self.config, self.totals, self.attempts
        steps = read_run(self.run.path).steps
        solved = [number for number, attempt in enumerate(attempts, start=1) if attempt.solved]
        passed = [number for number, attempt in enumerate(attempts, start=1) if attempt.passed_public]
        first = attempts[solved[0] - 1] if solved else None
        common: dict[str, Any] = {"model": config.run.model, "env": self.session.env.name, "seed": config.run.seed}
        common |= {"tokens": totals.tokens, "wall_s": totals.wall_s}
        counts: dict[str, Any] = {name: int(sum(step.extra.get(name, 0) for step in steps)) for name in COUNTS}
        result = SolveResult(
            task=self.task.id,
            strategy=config.name,
            budget=config.limits.budget,
            unit=config.limits.unit,
            attempts=len(attempts),
            rounds=totals.step,
            right=len(solved),
            passed=len(passed),
            solved_at=min(solved, default=None),
            solved_round=first.round + 1 if first else None,
            passed_at=min(passed, default=None),
            solution=first.text if first else "",
            **counts,
            **common,
        )
        if config.keep:
            self.save(final=True)
        summary = Summary(
            method=result.strategy,
            steps=totals.step,
            completions_sampled=totals.completions_sampled,
            before=Accuracies(),
            after=Accuracies(),
            **common,
        )
        self.run.finish(summary)
        write_result(self.run.path, result)
        if not config.keep:
            shutil.rmtree(self.run.path / CHECKPOINTS, ignore_errors=True)
        self._note(_ending(result))
        self.callback(RunEnd(summary))


def until_done(searches: Sequence[Search]) -> None:
    """Makes rounds of all searches together, one batch of the sampler each, until all are over. Searches that learn
    have weights of their own and come one at a time.

    An environment that fails now and then costs the attempts that it fails on; one that fails on most of the last
    attempts stops all. Raises `EnvError`, and `Interrupted` after Ctrl-C, when the round is saved.
    """
    assert len(searches) <= 1 or searches[0].session.learner is None
    active, recent = _unfinished(searches), list[RolloutRecord]()
    while active:
        made = _round(active)
        recent = [*recent, *made][-max(WINDOW, len(made)) :]
        nothing_scored = all(search.over and not any(a.scored for a in search.attempts) for search in active)
        check_environment(recent, least=0 if nothing_scored else WINDOW)
        active = _unfinished(active)
        if active and active[0].stop.requested:
            for search in active:
                search.save()
            raise Interrupted(active[0].run.path.parent, active[0].totals.step, "solve")


def _unfinished(searches: Sequence[Search]) -> list[Search]:
    """Finishes the searches that are over; returns the others."""
    for search in searches:
        if search.over:
            search.finish()
    return [search for search in searches if not search.over]


def _round(searches: Sequence[Search]) -> list[RolloutRecord]:
    """The records of one round of each search. The time of the round is divided evenly."""
    began, session = time.monotonic(), searches[0].session
    prompts = {search.task.id: search.prompts() for search in searches}
    labels = [f"{search.totals.step + 1}-{search.task.id}" for search in searches]
    unused: dict[str, list[Completion]] = {label: [] for label in labels}
    failed = {
        label: {past.text for past in search.attempts if past.scored and not past.solved}
        for label, search in zip(labels, searches, strict=True)
    }
    unique: dict[str, Any] = (
        {"sampler": _unlike(failed, unused, session.renderer)} if searches[0].config.strategy.unique else {}
    )
    groups = session_groups(
        session,
        [search.task for search in searches],
        rollouts=0,  # as many as there are prompts
        label=labels,
        version=searches[0].totals.step if session.learner is not None else 0,
        stages=(Prompted({task: [prompt.messages for prompt in own] for task, own in prompts.items()}),),
        **unique,
    )
    private = _private_rewards(session, groups)
    solved = {uid: reward >= PASSED for uid, reward in private.items()}
    spent = (time.monotonic() - began) / len(searches)
    made: list[RolloutRecord] = []
    for search, group, label in zip(searches, groups, labels, strict=True):
        group = _without_false_reward(group, private)
        made += search.learn_round(group, prompts[search.task.id], solved, spent, unused[label])
    return made


def _unlike(failed: Mapping[str, set[str]], unused: Mapping[str, list[Completion]], renderer: Renderer) -> Sampler:
    """The sampler, whose completions are none of the `failed` texts of their group and differ from each other, as far
    as 63 more draws find such ones. Those that were drawn and not returned go to `unused`. Both are by label."""

    def draw(policy: Policy, prompts: Sequence[TokenIds], *, uids: Sequence[str], **options: Any) -> list[Completion]:
        found, groups = sample(policy, prompts, uids=uids, **options), [uid.rpartition("-")[0] for uid in uids]

        def repeats(place: int) -> bool:
            text, before = renderer.opened(prompts[place]) + found[place].text, len(failed[groups[place]])
            failed[groups[place]].add(text)
            return len(failed[groups[place]]) == before

        left = [place for place in range(len(found)) if repeats(place)]
        for count in REDRAWS:
            names = [(place, f"{uids[place]}~{number}") for place in left for number in range(count, 2 * count)]
            again = [prompts[place] for place, _ in names]
            drawn = sample(policy, again, uids=[name for _, name in names], **options) if names else []
            for (place, _), done in zip(names, drawn, strict=True):
                unused[groups[place]].append(found[place] if place in left else done)
                if place in left:
                    found[place] = replace(done, uid=uids[place])
                    left = [other for other in left if other != place or repeats(place)]
        return found

    return draw


def _private_rewards(session: Session, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """By uid, of the attempts that passed the public tests: the reward by the private tests; 0 where these failed to
    score it."""
    passed = [r for group in groups for r in group.rollouts if r.outcome is not None and r.outcome.reward >= PASSED]
    env = single_turn(session.evaluation_env, "solve")
    if env is session.env or not passed:
        return {rollout.completion.uid: PASSED for rollout in passed}
    outcomes = score_all(env, [(r.task, r.completion) for r in passed], seed=session.config.seed)
    return {
        rollout.completion.uid: outcome.reward if isinstance(outcome, Outcome) else 0.0
        for rollout, outcome in zip(passed, outcomes, strict=True)
    }


def _without_false_reward(group: RolloutGroup, private: Mapping[str, float]) -> RolloutGroup:
    """The group with a reward of at most 0 for attempts that pass the public tests alone: rewarded, they would be
    repeated. Where the private tests give a wrong answer less than 0, so much: 0 would be above other wrong ones."""

    def corrected(rollout: Rollout) -> Rollout:
        reward = private.get(rollout.completion.uid, PASSED)
        if rollout.outcome is None or reward >= PASSED:
            return rollout
        return replace(rollout, outcome=replace(rollout.outcome, reward=min(0.0, reward)))

    return replace(group, rollouts=tuple(map(corrected, group.rollouts)))


def rounds_made(paths: Sequence[Path]) -> int:
    """The rounds that all of some searches have made. After a kill some may have one more; it is made again, since the
    contents of a batch decide the last bits of its numbers."""
    return min((len(read_run(path).steps) if (path / CONFIG).exists() else 0 for path in paths), default=0)


def _restored(session: Session, path: Path, rounds: int | None, callback: Callback) -> Totals:
    """The totals of the last checkpoint, which is loaded, or without a learner those after `rounds` rounds."""
    if session.learner is not None:
        return saved_totals(session.restore(path / CHECKPOINTS, callback))
    steps = read_run(path).steps[:rounds]
    last = steps[-1] if steps else Totals()
    return Totals(last.step, last.completions_sampled, last.tokens, last.wall_s)


def _ending(result: SolveResult) -> str:
    if result.solved_at is None:
        public = f"; {result.passed} passed the tests that training sees" if result.passed else ""
        return f"not solved: {result.attempts:,} attempts, {result.tokens:,} tokens{public}"
    if result.solved_round == 1:
        return f"solved by attempt {result.solved_at}, in the first round: before any feedback was read or learned from"
    return f"solved by attempt {result.solved_at:,}, in round {result.solved_round:,}"
