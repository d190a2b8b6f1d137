"""Pre-flight: does the teacher, which reads the context, answer better than the student, before anything is learned?

The evaluations before the first step measure both on the same tasks, so it costs nothing more; or an `eval --teacher`
of the same settings has measured it. What the student learns is the teacher's distribution: where its answers are no
better, a run at best learns nothing, and at worst unlearns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from selfdistill.config import RunConfig, completed, resolved
from selfdistill.errors import ConfigError, TrainingError
from selfdistill.methods import Method
from selfdistill.prompts.context import Demonstration, Document, SolutionOrFeedback, UserReply
from selfdistill.runs import Estimate, PreflightRecord
from selfdistill.runs.stats import SignFlipTest, paired_difference
from selfdistill.runs.store import changed_settings, read_json_file, saved_config
from selfdistill.training.samples import solved
from selfdistill.types import RolloutGroup

FEWEST = 6  # tasks that the student fails: a gain on every one of them is chance once in 2⁶ = 64 times
LEVEL = 0.05  # of a false "go"
DOUBT = 0.25  # a p-value above which nothing speaks for a gain
LARGE = 0.25  # a gain; while it is not excluded, there are too few tasks to refuse
MEASURED = "context_gain.json"  # of `eval --teacher`
# What decides which answers a context improves.
SAME = ("model", "method", "env", "data", "data_name", "data_split", "columns", "seed", "thinking", "chat_template")
RULES = {Demonstration: "demonstration", Document: "document", UserReply: "reply"}


Decision: TypeAlias = Literal["go", "undecided", "refuse"]


@dataclass(frozen=True, slots=True)
class KindGain:
    """The gain from one kind of context, as `eval --teacher` writes it."""

    kind: str
    tasks: int
    bare: float
    with_context: float
    gain: Estimate
    p: float | None = None


@dataclass(frozen=True, slots=True)
class GainReport:
    """The result of `eval --teacher`."""

    gains: tuple[KindGain, ...]


def preflight(bare: Sequence[RolloutGroup], teacher: Sequence[RolloutGroup]) -> PreflightRecord | None:
    """The gain from the context, on the tasks that both answered; None where there are none."""
    shares = [_shares(groups) for groups in (bare, teacher)]
    names = [name for name in shares[0] if name in shares[1]]
    if not names:
        return None
    own, read = ([side[name] for name in names] for side in shares)
    differences = [b - a for a, b in zip(own, read, strict=True)]
    gain, p = paired_difference(differences), SignFlipTest(tuple(round(60 * one) for one in differences)).p
    failed, unknown = sum(share < 1 for share in own), ""
    if not any(own) and not any(read):
        unknown = "no answer is solved, with the context or without: nothing shows whether it helps"
    elif failed < FEWEST:
        unknown = f"it needs {FEWEST} tasks that the model fails without the context, and there are {failed}"
    decision, reason = _decided(gain, p)
    if unknown:
        decision, reason = "undecided", unknown
    return PreflightRecord(len(names), fmean(own), fmean(read), gain, p, decision, reason)


def _decided(gain: Estimate, p: float) -> tuple[Decision, str]:
    if p <= LEVEL:
        return "go", "the answers with the context are significantly better"
    if p > DOUBT and gain.high < LARGE:
        return "refuse", "the answers with the context are no better"
    return "undecided", "the gain is not significant: more tasks (evaluation.tasks) would decide"


def recorded_preflight(config: RunConfig) -> PreflightRecord | None:
    """The gain that the evaluation named by `guards.preflight` measured, of the best kind of context that the method
    reads; None where no evaluation is named. Raises `ConfigError` for one of other settings, or older than the model or
    the data, and `RunError` for a directory without one."""
    if config.guards.preflight in ("on", "off") or config.guards.action == "off":
        return None
    path, method = Path(config.guards.preflight), config.make_method()
    got, do = f"guards.preflight = {path}", "measure it with these settings: selfdistill eval --teacher --out DIR"
    if not path.is_dir():
        raise ConfigError("guards.preflight is on, off, or the directory of an evaluation", got=got, do=do)
    saved, own = (_compared(completed(one, type(method))) for one in (saved_config(path)["settings"], resolved(config)))
    if changes := changed_settings(saved, own):
        why = "; ".join(f"{key} is {value!r} here"[:120] for key, value in changes.items())
        raise ConfigError("the evaluation measured another context, or another model", got=got, why=why, do=do)
    report = read_json_file(GainReport, path / MEASURED, "the context gain", "measure it again")
    if report is None:
        raise ConfigError(f"this evaluation has no {MEASURED}", got=got, why="it measured no context", do=do)
    named = [Path(name) for name in (config.model, config.data) if isinstance(name, str) and name]
    files = [file for one in named for file in (one, *one.glob("*")) if file.is_file()]
    if newer := [file for file in files if file.stat().st_mtime > (path / MEASURED).stat().st_mtime]:
        why = f"{newer[0]} was written since"
        raise ConfigError("the evaluation is older than the model or the data", got=got, why=why, do=do)
    kinds = _kinds(method)
    found = [
        PreflightRecord(one.tasks, one.bare, one.with_context, one.gain, one.p, *_decided(one.gain, one.p))
        for one in report.gains
        if one.kind in kinds and one.p is not None
    ]
    if not found:
        measured = ", ".join(one.kind for one in report.gains if one.p is not None) or "no kind: it had too few tasks"
        why = f"the method reads {', '.join(sorted(kinds)) or 'none of its kinds'}; it decided on {measured}"
        raise ConfigError("the evaluation decides nothing about this method", got=got, why=why, do=do)
    return min(found, key=lambda one: one.p)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which an evaluation and a run must agree."""
    limit = settings["sampling"]["max_new_tokens"]
    return {**{key: settings[key] for key in SAME}, "context": settings["context"], "sampling.max_new_tokens": limit}


def _kinds(method: Method) -> set[str]:
    """The kinds of context that a method reads: by its rule, else by its own words."""
    rule = getattr(method, "context", None)
    if isinstance(rule, SolutionOrFeedback):
        return {"solution", "feedback"} if rule.feedback else {"solution"}
    if rule is None:
        return {kind for kind in ("solution", "feedback", *RULES.values()) if kind in method.reads}
    return {kind for own, kind in RULES.items() if isinstance(rule, own)}


def _shares(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """The share of solved answers to each task."""
    by_task: defaultdict[str, list[bool]] = defaultdict(list)
    for group in groups:
        by_task[group.task.id] += [solved(rollout) for rollout in group.rollouts]
    return {name: fmean(own) for name, own in by_task.items() if own}


def refusal(found: PreflightRecord, path: Path) -> TrainingError:
    """The error of a run whose context does not help."""
    gain = found.gain
    return TrainingError(
        "the context does not improve the answers: there is nothing to distil",
        got=f"accuracy {found.with_context:.2f} with the context, {found.bare:.2f} without, on {found.tasks} tasks "
        f"(gain {gain.value:+.2f}, 95 % {gain.low:+.2f} to {gain.high:+.2f})",
        why="the student would be moved towards answers that are no better than its own",
        do="change the wording (context.templates.*), give demonstrations, or take another model, and see "
        "`selfdistill eval --teacher`; to train all the same: "
        f"selfdistill train --resume {path} guards.preflight=off",
    )
