"""Pre-flight: does the teacher, which reads the context, answer better than the student, before anything is learned?

The evaluations before the first step measure both on the same tasks, so it costs nothing more. What the student learns
is the teacher's distribution: where its answers are no better, a run at best learns nothing, and at worst unlearns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from selfdistill.errors import TrainingError
from selfdistill.runs import PreflightRecord
from selfdistill.runs.stats import SignFlipTest, paired_difference
from selfdistill.training.samples import solved
from selfdistill.types import RolloutGroup

FEWEST = 6  # tasks that the student fails: a gain on every one of them is chance once in 2⁶ = 64 times
LEVEL = 0.05  # of a false "go"
DOUBT = 0.25  # a p-value above which nothing speaks for a gain
LARGE = 0.25  # a gain; while it is not excluded, there are too few tasks to refuse


def preflight(bare: Sequence[RolloutGroup], teacher: Sequence[RolloutGroup]) -> PreflightRecord | None:
    """The gain from the context, on the tasks that both answered; None where there are none."""
    shares = [_shares(groups) for groups in (bare, teacher)]
    names = [name for name in shares[0] if name in shares[1]]
    if not names:
        return None
    own, read = ([side[name] for name in names] for side in shares)
    differences = [b - a for a, b in zip(own, read, strict=True)]
    gain, p = paired_difference(differences), SignFlipTest(tuple(round(60 * one) for one in differences)).p
    failed = sum(share < 1 for share in own)
    decision: Literal["go", "undecided", "refuse"] = "undecided"
    if not any(own) and not any(read):
        reason = "no answer is solved, with the context or without: nothing shows whether it helps"
    elif failed < FEWEST:
        reason = f"it needs {FEWEST} tasks that the model fails without the context, and there are {failed}"
    elif p <= LEVEL:
        decision, reason = "go", "the answers with the context are significantly better"
    elif p > DOUBT and gain.high < LARGE:
        decision, reason = "refuse", "the answers with the context are no better"
    else:
        reason = "the gain is not significant: more tasks (evaluation.tasks) would decide"
    return PreflightRecord(len(names), fmean(own), fmean(read), gain, p, decision, reason)


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
