"""Guards: the records of a run → ok, warn, hold the teacher, or stop and restore. Pure functions; none reads the loss.

A number of a step counts when it is beyond its limit in `patience` steps in a row. Signals of one family share a cause:

    answers         length, truncated, repeated            of what is sampled
    distribution    entropy                                of the student
    teacher         token, style, log_ratio, refresh_shock of what the teacher pushes
    outcome         accuracy, failed                       of the rollouts' rewards
    context         leaked, copied                         of private words
    optimiser       skipped                                of updates
    probe           train, held_out, forgetting            of evaluations ("forgetting": a fall that only warns)
    held_out        kept                                   of right answers, read again between evaluations

A run is stopped by signals of two families, or by a probe that fell below its interval. What differs from the warm-up
(length, entropy, teacher) counts only where the answers did not get better meanwhile: a change that solves more tasks
is learning. A fall of the held-out set, which may measure what the run does not train, is a warning alone while the
run's own tasks improve and its rollouts do not fall, until it is beyond `max_forgetting`; a fall of the forgetting set
is a warning alone, unless that set is the chosen probe, or nothing else is measured.

Between evaluations a few answers that were right at the last one are read again. The accuracy of that evaluation times
the share of those that are about as likely as they were bounds the accuracy from below. Where this bound falls too far
accuracy is measured at once, and the measurement decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, median

from selfdistill.errors import ConfigError
from selfdistill.runs import EvalRecord, Finding, GuardRecord, StepRecord
from selfdistill.runs.guards import GuardOptions
from selfdistill.runs.records import EvalSplit, GuardAction
from selfdistill.runs.stats import Estimate, wilson_interval

LEVELS: tuple[GuardAction, ...] = ("ok", "warn", "hold", "stop")
LOST = 0.1  # nats a token: an answer that lost more may not be given again
FARTHEST = 4  # steps from one reading to the next
CERTAIN = 4.0  # standard errors between two means, of which one is the best of many
FALL = 0.25  # of an accuracy, at least: a smaller fall is not yet a collapse
FEWER = 5  # times: a log-ratio or a share of the teacher's push that has grown so much has another cause
MOST_OF_PUSH = 0.5  # a teacher that puts more of its push on one token, or on style, does not teach the content
HARD = ("truncated", "repeated")  # beside these, groups that all fail are no sign of a hard task
HOLD_STEPS = 10  # after a move of the teacher that was too large
WARN_ONLY = ("token", "style", "copied", "forgetting", "skipped")
Reads = Callable[[StepRecord], float | None]


def decide(
    steps: Sequence[StepRecord], evals: Sequence[EvalRecord], options: GuardOptions, *, moves: bool = False
) -> GuardRecord:
    """The decision after the last of these steps, of a run's first to its last; `moves`: the teacher can be held."""
    if options.action == "off" or not steps:
        return GuardRecord(steps[-1].step if steps else 0, "ok")
    behaviour = [*_absolute(steps, options), *_relative(steps, options), *_outcome(steps, options)]
    if not any(one.signal in HARD for one in behaviour):
        behaviour = [one for one in behaviour if one.signal != "failed"]
    probes, since = _probes(steps, evals, options)
    findings = (*behaviour, *probes)
    level: GuardAction = "ok"
    if findings:
        level = "hold" if moves and any(one.signal not in WARN_ONLY for one in behaviour) else "warn"
    families = {one.family for one in findings} - {"forgetting"}
    if len(families) > 1 or "probe" in families:
        level = "stop"
    if level == "stop" and options.action != "stop":
        level = "hold" if moves else "warn"
    level = min(level, options.action, key=LEVELS.index)
    if behaviour:
        since = max(0, min(since, steps[-1].step - options.patience))
    return GuardRecord(steps[-1].step, level, findings, since if findings else 0)


def _absolute(steps: Sequence[StepRecord], options: GuardOptions) -> Iterator[Finding]:
    """Signals with a limit of their own; from the first steps on."""
    recent = steps[-options.patience :]
    if len(recent) < options.patience:
        return
    warm = steps[: options.warmup]

    def beyond(name: str, family: str, reads: Reads, limit: float, reason: str) -> Iterator[Finding]:
        values = [value for step in recent if (value := reads(step)) is not None]
        if len(values) == len(recent) and min(values) > limit:
            yield Finding(name, family, values[-1], limit, reason)

    repeated = min(1 - 1e-9, options.repeated + (_median(warm, _signal("repeated")) if len(steps) > len(warm) else 0.0))
    yield from beyond(
        "truncated", "answers", lambda s: s.truncated, options.truncated,
        "the token limit cuts these answers off, and they count as failures: raise sampling.max_new_tokens",
    )  # fmt: skip
    yield from beyond("repeated", "answers", _signal("repeated"), repeated, "answers repeat themselves")
    yield from beyond(
        "leaked", "context", lambda s: _surely(s, "leaked"), options.leaked + steps[0].signals.get("leaked", 0.0),
        "answers hold words of the context that only the teacher reads",
    )  # fmt: skip
    yield from beyond(
        "copied", "context", lambda s: _surely(s, "copied"), 0.5 + steps[0].signals.get("copied", 0.0),
        "unsolved answers hold passages of the demonstration or document",
    )  # fmt: skip
    if len(steps) >= len(warm) + len(recent):  # time to learn what the first answers lack
        yield from beyond(
            "failed", "outcome", _signal("failed"), 1.0 - 1e-9,
            "in every group all answers fail: there is no success to learn from",
        )  # fmt: skip
    yield from beyond(
        "skipped", "optimiser", lambda s: s.extra.get("skipped", 0) / max(1, s.extra.get("updates", 0)), 1.0 - 1e-9,
        "no update was made: loss or gradients are not finite",
    )  # fmt: skip
    shocks = [step for step in steps[-HOLD_STEPS:] if "refresh_shock" in step.extra]
    if shocks:
        divergence = max(shocks[-1].extra.get("divergence", 0.0), 1e-3)
        shock, limit = shocks[-1].extra["refresh_shock"], options.refresh_shock * divergence
        if shock > limit:
            reason = "a move changes the teacher by much of what the student is to learn from it: lower teacher.rate"
            yield Finding("refresh_shock", "teacher", shock, limit, reason)


def _relative(steps: Sequence[StepRecord], options: GuardOptions) -> Iterator[Finding]:
    """Signals whose limit is that of the warm-up, while the answers do not get better."""
    warm, recent = steps[: options.warmup], steps[-options.patience :]
    if len(steps) < len(warm) + len(recent) or len(recent) < options.patience or _learned(steps, options):
        return

    def beyond(
        name: str, family: str, reads: Reads, bounds: Callable[[float], tuple[float, float]], reason: str
    ) -> Iterator[Finding]:
        before = [value for step in warm if (value := reads(step)) is not None]
        values = [value for step in recent if (value := reads(step)) is not None]
        if not before or len(values) < len(recent):
            return
        low, high = bounds(median(before))
        if max(values) < low or min(values) > high:
            side, limit = ("fell below", low) if max(values) < low else ("rose above", high)
            yield Finding(name, family, values[-1], limit, f"{reason} {side} the limit that the warm-up sets")

    shortest, longest = options.shortest, options.longest
    yield from beyond(
        "length", "answers", _signal("length"), lambda base: (shortest * base, longest * base),
        "the median length of answers",
    )  # fmt: skip
    yield from beyond(
        "entropy", "distribution", lambda s: s.extra.get("entropy") if s.extra.get("updates") else None,
        lambda base: (options.least_entropy * base, max(options.most_entropy * base, 0.5)),
        "the entropy of the student",
    )  # fmt: skip
    yield from beyond(
        "log_ratio", "teacher", _extreme, lambda base: (-1.0, max(1.0, FEWER * base)),
        "the log-ratio of teacher and student, at its quantiles .01 and .99,",
    )  # fmt: skip
    for name, what in (("token", "one token's share"), ("style", "the share of style")):
        yield from beyond(
            name, "teacher", _signal(name), lambda base: (-1.0, max(MOST_OF_PUSH, 2 * base)),
            f"{what} in the teacher's push",
        )  # fmt: skip


def _outcome(steps: Sequence[StepRecord], options: GuardOptions) -> Iterator[Finding]:
    """The accuracy of the last steps' rollouts, surely below the best of as many steps before."""
    size = options.patience
    if options.outcome == "off" or any("solved_passed_over" in step.extra for step in steps):
        return  # tasks grow harder
    windows = [_accuracy(steps[end - size : end]) for end in range(len(steps), size - 1, -size)]
    if len(windows) < 2 or None in windows:
        return
    (now, error), *before = (window for window in windows if window is not None)
    best, its_error = max(before, key=lambda found: found[0] - found[1])
    limit = min(best - CERTAIN * sqrt(error**2 + its_error**2), (1 - FALL) * best)
    if now < limit:
        reason = f"the accuracy of the rollouts fell from {best:.2f}, more than chance explains"
        yield Finding("accuracy", "outcome", now, limit, reason)


def _learned(steps: Sequence[StepRecord], options: GuardOptions) -> bool:
    """Whether the last rollouts are surely better than those of the warm-up, and did not fall since."""
    start, now = _accuracy(steps[: options.warmup]), _accuracy(steps[-options.patience :])
    better = start is not None and now is not None and now[0] > start[0] + 2 * sqrt(start[1] ** 2 + now[1] ** 2)
    return better and not any(_outcome(steps, options))


def _probes(
    steps: Sequence[StepRecord], evals: Sequence[EvalRecord], options: GuardOptions
) -> tuple[list[Finding], int]:
    """Evaluations whose interval lies below that of the best one before; and the last step at which all were well."""
    found, since = list[Finding](), steps[-1].step
    own = [record for record in evals if record.split == "train"]
    improves = len(own) > 1 and own[-1].accuracy.value > own[0].accuracy.value
    improves = improves and not _fell(own) and not any(_outcome(steps, options))
    for split in ("train", "held_out", "forgetting"):
        records = [record for record in evals if record.split == split]
        if options.probe not in ("auto", split) or not _fell(records):
            continue
        best = max(records[:-1], key=lambda record: record.accuracy.low)
        now, limit = records[-1].accuracy.value, best.accuracy.low
        tolerated = improves and best.accuracy.value - now <= options.max_forgetting * best.accuracy.value
        warns = tolerated or (split == "forgetting" and split != probe_split(evals, options))
        family = "forgetting" if warns else "probe"
        reason = f"accuracy on {split} fell from {best.accuracy.value:.2f} at step {best.step}, below its interval"
        if family == "forgetting":
            reason += ": replay limits it"
        found.append(Finding(split, family, now, limit, reason))
        if family != "forgetting":
            well = [
                record.step for place, record in enumerate(records) if not place or not _low(record, records[:place])
            ]
            if split == probe_split(evals, options):
                evaluated = {record.step for record in records}
                bounds = {step.step: _bound(step, records) for step in steps if step.step not in evaluated}
                well += [step for step, bound in bounds.items() if bound and bound[0] >= bound[1]]
            since = min(since, max(well))
    own = [record for record in evals if record.split == probe_split(evals, options)]
    found += _kept(steps[-1], own) if own and own[-1].step < steps[-1].step else []
    return found, since


def _fell(records: Sequence[EvalRecord]) -> bool:
    """Whether the last of these is below the interval of the best before, and by more than a quarter of it."""
    if len(records) < 2:
        return False
    *before, last = records
    return last.accuracy.high < _best(before).low and _low(last, before)


def _low(record: EvalRecord, before: Sequence[EvalRecord]) -> bool:
    """Whether an accuracy is lower than the best before by more than a quarter of it."""
    return record.accuracy.value < (1 - FALL) * _best(before).value


def _best(records: Sequence[EvalRecord]) -> Estimate:
    return max((record.accuracy for record in records), key=lambda found: found.low)


def probe_split(evals: Sequence[EvalRecord], options: GuardOptions) -> EvalSplit:
    """The tasks whose right answers are read again: the chosen probe, else held-out ones where there are any, else
    those of the training set; where no answer to these gets a reward, the forgetting set."""
    if options.probe != "auto":
        return options.probe
    measured, order = {record.split for record in evals}, ("held_out", "train", "forgetting")
    return next((split for split in order if split in measured), "train")


def reading_due(steps: Sequence[StepRecord], evals: Sequence[EvalRecord], options: GuardOptions, step: int) -> bool:
    """Whether right answers are to be read again after a step, the one behind `steps`: after the first one behind an
    evaluation, then before they lose another quarter of `LOST` at their speed so far."""
    since = max((record.step for record in evals if record.split == probe_split(evals, options)), default=step)
    read = [one for one in steps if one.step > since and "lost" in one.signals]
    if not read:
        return step > since
    speed = read[-1].signals["lost"] / (read[-1].step - since)
    return step - read[-1].step >= next((gap for gap in range(FARTHEST, 1, -1) if gap * speed <= LOST / 4), 1)


def evaluation_due(steps: Sequence[StepRecord], evals: Sequence[EvalRecord], options: GuardOptions) -> bool:
    """Whether accuracy is to be measured at once. After each such measurement that found no fall the next one waits
    twice as long."""
    own = [record for record in evals if record.split == probe_split(evals, options)]
    found = [(before.accuracy.value, now.accuracy.value) for before, now in pairwise(own) if "early" in now.extra]
    in_vain = sum(now > (1 - FALL / 2) * before for before, now in found)
    return any(_kept(steps[-1], own)) and steps[-1].step - own[-1].step >= 2**in_vain


def _kept(step: StepRecord, evals: Sequence[EvalRecord]) -> Iterator[Finding]:
    """The lower bound of accuracy after a step, where it is too low because answers were lost."""
    bound, kept = _bound(step, evals), step.signals.get("kept", 1.0)
    if bound and kept <= 1 - FALL / 2 and bound[0] < bound[1]:
        last = [record for record in evals if record.step < step.step][-1]
        reason = f"{kept:.0%} of the answers on {last.split} that were right at step {last.step} are still as likely"
        yield Finding("kept", "held_out", *bound, reason)


def _bound(step: StepRecord, evals: Sequence[EvalRecord]) -> tuple[float, float] | None:
    """The lower bound of accuracy after a step, by the evaluations before it, and its limit; None where no answers were
    read."""
    before = [record for record in evals if record.step < step.step]
    if "kept" not in step.signals or not before:
        return None
    return step.signals["kept"] * before[-1].accuracy.value, (1 - FALL) * _best(before).value


def needed_tasks(fall: float = 0.5) -> int:
    """The least number of tasks on which a fall from all solved to this share is beyond the interval."""
    count = 1
    while wilson_interval(round(fall * count), count)[1] >= wilson_interval(count, count)[0]:
        count += 1
    return count


def check_probe(options: GuardOptions, tasks: dict[str, int], every: int) -> None:
    """Raises `ConfigError` where the chosen probe cannot decide: it is empty, too small, or never measured."""
    if options.probe == "auto" or options.action == "off":
        return
    count, needed = tasks.get(options.probe, 0), needed_tasks()
    what = f"the {options.probe} tasks cannot decide whether a run collapses"
    got = f"guards.probe = {options.probe!r}, {count or 'no'} tasks"
    if count < needed:
        why = f"a fall from all solved to half of them is beyond the interval from {needed} tasks on"
        more = "evaluation.tasks, or give more of them (eval_data)" if count else "eval_data, or guards.probe=auto"
        raise ConfigError(what, got=got, why=why, do=f"at least {needed} tasks are needed: see {more}")
    if not every:
        do = "set evaluation.every, or guards.probe=auto"
        raise ConfigError(what, got="evaluation.every = 0", why="it is measured before and after the run only", do=do)


def _signal(name: str) -> Reads:
    return lambda step: step.signals.get(name)


def _extreme(step: StepRecord) -> float | None:
    low, high = (step.signals.get(name) for name in ("u_low", "u_high"))
    return None if low is None or high is None else max(abs(low), abs(high))


def _surely(step: StepRecord, name: str) -> float | None:
    """The lower end of the interval of a share of the step's answers."""
    value, count = step.signals.get(name), step.signals.get("answers", 0.0)
    return None if value is None else wilson_interval(value * count, count)[0]


def _median(steps: Sequence[StepRecord], reads: Reads) -> float:
    values = [value for step in steps if (value := reads(step)) is not None]
    return median(values) if values else 0.0


def _accuracy(steps: Sequence[StepRecord]) -> tuple[float, float] | None:
    """Mean accuracy of some steps, and its standard error; None where rewards are missing."""
    if not steps or not all("accuracy_error" in step.signals for step in steps):
        return None
    errors = [step.signals["accuracy_error"] for step in steps]
    return fmean(step.accuracy for step in steps), sqrt(sum(error**2 for error in errors)) / len(steps)
