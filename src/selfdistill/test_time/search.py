"""The search for a solution of one task: rounds of attempts, what the environment says of them, and what is learned."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfdistill.envs.base import score_all
from selfdistill.prompts.stages import Prompted
from selfdistill.randomness import seed_global
from selfdistill.runs import Accuracies, RolloutRecord, RunDir, StepRecord, Summary, check_records, read_run
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import Callback, Interrupted, Note, Phase, RunEnd, RunStart, StepEnd
from selfdistill.runs.solving import SolveResult, write_result
from selfdistill.runs.store import CHECKPOINTS, CONFIG
from selfdistill.test_time.config import SolveConfig, solve_settings
from selfdistill.test_time.strategies import Attempt, Prompt, SolveState
from selfdistill.test_time.strategies.base import PASSED, prompts_of
from selfdistill.training.loop import Timer, learn, record_round
from selfdistill.training.recording import check_environment
from selfdistill.training.rollouts import roll_out
from selfdistill.training.session import Session, Totals, saved_totals
from selfdistill.training.stopping import StopSign
from selfdistill.types import Outcome, RolloutGroup, Task

WINDOW = 16  # attempts, at least, on more than half of which an environment must fail before a search stops
MAY_CHANGE = ("checkpoint_every", "micro_batch_tokens", "solve.keep")


@dataclass
class Search:
    """The search for a solution of one task. `said` holds what is worth saying only once."""

    config: SolveConfig
    asking: Session
    task: Task
    run: RunDir
    callback: Callback
    stop: StopSign
    totals: Totals
    attempts: list[Attempt] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    @classmethod
    def opened(
        cls,
        config: SolveConfig,
        asking: Session,
        task: Task,
        path: Path,
        callback: Callback,
        stop: StopSign,
        *,
        rounds: int | None = None,
    ) -> Search:
        """A new search, or one that goes on where it was; without learning, `rounds` may say after which round."""
        settings = solve_settings(config)
        if (path / CONFIG).exists():
            totals = _restored(asking, path, rounds, callback)
            check_records(path, totals.step, measured=False)
            run = RunDir.resume(path, totals.step, settings, MAY_CHANGE)
        else:
            totals, run = Totals(), RunDir.create(path, _about(asking, settings), expected_bytes=_bytes(asking))
        search = cls(config, asking, task, run, callback, stop, totals)
        search._remember(list(read_run(path).rollouts()))
        callback(search._info())
        return search

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.run.close()

    @property
    def over(self) -> bool:
        """Whether a right attempt was found, or the budget is used."""
        limits = self.config.limits
        if not limits.exhaust_budget and any(attempt.right for attempt in self.attempts):
            return True
        used = {"attempts": len(self.attempts), "tokens": self.totals.tokens, "seconds": self.totals.wall_s}
        return used[limits.unit] >= limits.budget

    def take(
        self, group: RolloutGroup, prompts: Sequence[Prompt], right: Mapping[str, bool], spent: float
    ) -> list[RolloutRecord]:
        """What the environment says of a round of attempts, and what is learned from it; `spent` seconds on it so
        far."""
        now = time.monotonic()
        began, timer = now - self.totals.wall_s - spent, Timer(since=now - spent)
        found = any(right.get(r.completion.uid) for r in group.rollouts) and not self.config.limits.exhaust_budget
        if self.asking.learner is not None and not found:
            record, rollouts = learn(self.asking, [group], self.totals, self.callback, began, timer)
        else:
            record, rollouts = record_round(self.asking, [group], self.totals, began, timer)
        lost = {"prompts_cut": sum(p.cut for p in prompts), "left_out": sum(p.left_out for p in prompts)}
        record = replace(record, extra={**record.extra, **lost})
        rollouts = [replace(rollout, right=right.get(rollout.uid)) for rollout in rollouts]
        self.run.append(*rollouts, record)
        self.totals.step = record.step
        self._remember(rollouts)
        self.callback(StepEnd(record))
        self._comment(record, rollouts, found)
        every = self.config.run.checkpoint_every
        if every and self.totals.step % every == 0 and not self.over:
            self.save()
        return rollouts

    def prompts(self) -> list[Prompt]:
        """What the next round of attempts reads."""
        self.callback(Phase("sampling and scoring", len(self.attempts), self._goal()))
        run, strategy, limits = self.config.run, self.config.strategy, self.config.limits
        left = limits.budget - len(self.attempts) if limits.unit == "attempts" else strategy.batch
        seed_global(run.seed, "prompts", self.task.id, self.totals.step)
        state = SolveState(self.task, self.asking.renderer, run.sampling.max_new_tokens, run.seed, tuple(self.attempts))
        found = prompts_of(strategy, state, min(strategy.batch, left))
        if any(prompt.left_out for prompt in found) and all(p.messages == self.task.messages for p in found):
            self._say(_no_room(len(self.asking.renderer.prompt(self.task.messages)), state), once="no room")
        return found

    def _remember(self, rollouts: Sequence[RolloutRecord]) -> None:
        """The attempts of the records, which are whole rounds in order."""
        places: dict[int, int] = {}
        for rollout in rollouts:
            place = places.get(rollout.step, 0)
            places[rollout.step] = place + 1
            self.attempts.append(
                Attempt(
                    round=rollout.step - 1,
                    place=place,
                    text=rollout.completion,
                    feedback=rollout.feedback,
                    passed=rollout.right is not None,
                    right=bool(rollout.right),
                    judged=rollout.reward is not None,
                )
            )

    def _comment(self, record: StepRecord, rollouts: Sequence[RolloutRecord], found: bool) -> None:
        """What whoever watches should know: attempts that only seem right, rounds that say nothing."""
        wrong = sum(rollout.right is False for rollout in rollouts)
        if wrong:
            self._say(f"{wrong} of round {record.step} passed the tests that training sees, but not the private ones")
        failed = [rollout for rollout in rollouts if rollout.reward is not None and rollout.reward < PASSED]
        no_signal_steps = bool(failed) and not any(rollout.feedback.strip() for rollout in failed)
        nothing = self.asking.learner is not None and record.informative == 0
        if found or not self.config.strategy.idle or not (nothing or no_signal_steps):
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in record.dropped.items())
        why = (
            "no failed attempt was told anything"
            if no_signal_steps
            else f"round {record.step} taught nothing ({reasons})"
        )
        self._say(f"{why}: {self.config.strategy.idle}", once="idle")

    def _say(self, text: str, once: str = "") -> None:
        if once not in self.said:
            self.callback(Note(text))
        self.said |= {once} - {""}

    def save(self, *, final: bool = False) -> None:
        """What was learned. Without learning there is nothing but the records, which are there already."""
        if self.asking.learner is None:
            return
        self.callback(Phase("saving"))
        self.asking.save(self.run.checkpoints, self.totals.step, vars(self.totals), final=final)

    def finish(self) -> None:
        """Writes the result; then the weights are kept or thrown away."""
        result = self._result()
        if self.config.keep:
            self.save(final=True)
        run, totals = self.config.run, self.totals
        summary = Summary(
            method=result.strategy,
            model=run.model,
            env=self.asking.env.name,
            seed=run.seed,
            steps=totals.step,
            completions_sampled=totals.completions_sampled,
            tokens=totals.tokens,
            wall_s=totals.wall_s,
            before=Accuracies(),
            after=Accuracies(),
        )
        self.run.finish(summary)
        write_result(self.run.path, result)
        if not self.config.keep:
            shutil.rmtree(self.run.path / CHECKPOINTS, ignore_errors=True)
        self._say(_verdict(result))
        self.callback(RunEnd(summary))

    def _result(self) -> SolveResult:
        config, totals, attempts = self.config, self.totals, self.attempts
        lost = [record.extra for record in read_run(self.run.path).steps]
        solved_at = next((number for number, attempt in enumerate(attempts, start=1) if attempt.right), None)
        first = attempts[solved_at - 1] if solved_at else None
        return SolveResult(
            task=self.task.id,
            strategy=config.strategy.name,
            model=config.run.model,
            env=self.asking.env.name,
            seed=config.run.seed,
            budget=config.limits.budget,
            unit=config.limits.unit,
            attempts=len(attempts),
            rounds=totals.step,
            tokens=totals.tokens,
            wall_s=totals.wall_s,
            right=sum(attempt.right for attempt in attempts),
            passed=sum(attempt.passed for attempt in attempts),
            solved_at=solved_at,
            solved_round=first.round + 1 if first else None,
            passed_at=next((number for number, attempt in enumerate(attempts, start=1) if attempt.passed), None),
            solution=first.text if first else "",
            contexts_cut=int(sum(extra.get("contexts_cut", 0) for extra in lost)),
            prompts_cut=int(sum(extra.get("prompts_cut", 0) for extra in lost)),
            left_out=int(sum(extra.get("left_out", 0) for extra in lost)),
        )

    def _goal(self) -> int:
        return self.config.limits.budget if self.config.limits.unit == "attempts" else 0

    def _info(self) -> RunStart:
        config = self.config
        return RunStart(
            path=self.run.path,
            method=config.strategy.name,
            model=config.run.model,
            env=self.asking.env.name,
            device=str(self.asking.policy.device),
            steps=config.rounds,
            completions_sampled=self._goal(),
            first_step=self.totals.step,
        )


def until_done(searches: Sequence[Search]) -> None:
    """Round after round, of all searches together: one model makes the attempts at all tasks at once. Searches that
    learn have weights of their own and come one at a time.

    An environment that fails now and then costs the attempts that it fails on; one that fails on most of the last
    attempts stops all. Raises `EnvError`, and `Interrupted` after Ctrl-C, when the round is saved.
    """
    assert len(searches) <= 1 or searches[0].asking.learner is None
    active, recent = _unfinished(searches), list[RolloutRecord]()
    while active:
        made = _round(active)
        recent = [*recent, *made][-max(WINDOW, len(made)) :]
        check_environment(recent, least=0 if _without_signal(active) else WINDOW)
        active = _unfinished(active)
        if active and active[0].stop.asked:
            for search in active:
                search.save()
            raise Interrupted(active[0].run.path.parent, active[0].totals.step, "solve")


def _unfinished(searches: Sequence[Search]) -> list[Search]:
    """Those that are to go on; the others write their results."""
    for search in searches:
        if search.over:
            search.finish()
    return [search for search in searches if not search.over]


def _without_signal(searches: Sequence[Search]) -> bool:
    """Whether the searches are over without an advantage on any attempt: there is nothing more to wait for."""
    return all(search.over and not any(attempt.judged for attempt in search.attempts) for search in searches)


def _round(searches: Sequence[Search]) -> list[RolloutRecord]:
    """The next batch of attempts of each, as they are on record. Its time is shared out evenly."""
    began, asking, run = time.monotonic(), searches[0].asking, searches[0].config.run
    prompts = {search.task.id: search.prompts() for search in searches}
    groups = roll_out(
        asking.policy,
        asking.env,
        asking.renderer,
        [search.task for search in searches],
        run.sampling,
        rollouts=0,  # as many as there are prompts
        seed=run.seed,
        label=[f"{search.totals.step + 1}-{search.task.id}" for search in searches],
        version=searches[0].totals.step if asking.learner is not None else 0,
        stages=(Prompted({task: [prompt.messages for prompt in own] for task, own in prompts.items()}),),
    )
    right = _verified(asking, groups)
    spent = (time.monotonic() - began) / len(searches)
    made: list[RolloutRecord] = []
    for search, group in zip(searches, groups, strict=True):
        made += search.take(_as_verified(group, right), prompts[search.task.id], right, spent)
    return made


def _verified(asking: Session, groups: Sequence[RolloutGroup]) -> dict[str, bool]:
    """Of the attempts that passed, by uid, whether they are right by tests that training does not show."""
    passed = [r for group in groups for r in group.rollouts if r.outcome is not None and r.outcome.reward >= PASSED]
    score = asking.evaluation_env
    if score is asking.env or not passed:
        return {rollout.completion.uid: True for rollout in passed}
    pairs = [(rollout.task, rollout.completion) for rollout in passed]
    verdicts = score_all(score, pairs, seed=asking.config.seed)
    return {
        rollout.completion.uid: isinstance(credited, Outcome) and credited.reward >= PASSED
        for rollout, credited in zip(passed, verdicts, strict=True)
    }


def _as_verified(group: RolloutGroup, right: Mapping[str, bool]) -> RolloutGroup:
    """The group, without a reward for what passes the tests that training sees and is not right: learned from as if it
    were a solution, it would be all that is attempted from then on."""
    return replace(
        group,
        rollouts=tuple(
            replace(rollout, outcome=replace(rollout.outcome, reward=0.0))
            if rollout.outcome is not None and right.get(rollout.completion.uid) is False
            else rollout
            for rollout in group.rollouts
        ),
    )


def rounds_made(paths: Sequence[Path]) -> int:
    """The whole rounds that all of some searches have made. After a kill some may have one more; it is made again, for
    what a batch of the sampler holds decides the last bits of its numbers."""
    return min((len(read_run(path).steps) if (path / CONFIG).exists() else 0 for path in paths), default=0)


def _restored(asking: Session, path: Path, rounds: int | None, callback: Callback) -> Totals:
    """What was used up to where a search can go on: the last checkpoint, or without learning this whole round."""
    if asking.learner is not None:
        return saved_totals(asking.restore(path / CHECKPOINTS, callback))
    steps = read_run(path).steps[:rounds]
    if not steps:
        return Totals()
    last = steps[-1]
    return Totals(step=last.step, completions_sampled=last.completions_sampled, tokens=last.tokens, wall_s=last.wall_s)


def _about(asking: Session, settings: Mapping[str, Any]) -> dict[str, Any]:
    environment = describe_environment(device=str(asking.policy.device), isolation=asking.isolation)
    return {"settings": settings, **environment}


def _bytes(asking: Session) -> int:
    """Room for three checkpoints side by side: weights, two moments of the optimiser and a shadow each."""
    trained = sum(value.numel() for value in asking.policy.trainable().values())
    return 3 * 16 * trained if asking.learner is not None else 0


def _no_room(question: int, state: SolveState) -> str:
    """Why a round of attempts reads no feedback, though there is some."""
    length = state.renderer.context_length
    return (
        f"no feedback fits a prompt: the question has {question:,} tokens, the model reads {length:,}, an answer may "
        f"have {state.answer:,}; attempts read the question alone (lower sampling.max_new_tokens, raise "
        "strategy.window, or take a model that reads more)"
    )


def _verdict(result: SolveResult) -> str:
    """One sentence about how it ended."""
    if result.solved_at is None:
        seen = f"; {result.passed} passed the tests that training sees" if result.passed else ""
        return f"not solved: {result.attempts:,} attempts, {result.tokens:,} tokens{seen}"
    if result.solved_round == 1:
        return f"solved by attempt {result.solved_at}, in the first round: before anything was told or learned"
    return f"solved by attempt {result.solved_at:,}, in round {result.solved_round:,}"
