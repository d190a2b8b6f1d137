"""A judge against an environment that verifies: how often both decide alike about the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.envs.base import SOLVED, Pair, Scored, ScoringEnvironment, score_all
from selfdistill.errors import DataError
from selfdistill.runs import Estimate
from selfdistill.runs.events import Callback, Phase, no_callback
from selfdistill.runs.stats import bootstrap, clustered_share
from selfdistill.types import Outcome

SLICE = 32  # answers between two signs of progress


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Two decisions about each answer, right (a reward of at least 0.5) or wrong; every estimate with its 95 % interval
    over tasks.

    equal: the share of equal decisions. kappa: Cohen's, (equal − chance) / (1 − chance), where chance is the share of
    equal decisions of two that pass as many and know nothing; 0 where either decides alike about all. false_passes: of
    wrong answers the share that the judge passes; false_failures: of right ones the share that it fails; None: there
    are none. `dropped` counts answers without a decision by the one who made none and the reason; they are left out.
    """

    equal: Estimate
    kappa: Estimate
    false_passes: Estimate | None
    false_failures: Estimate | None
    dropped: Mapping[str, int]

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
        rows = {
            "equal decisions": self.equal,
            "Cohen's kappa": self.kappa,
            "false passes": self.false_passes,
            "false failures": self.false_failures,
        }
        about = {"false passes": " wrong answers", "false failures": " right answers"}
        lines = [
            f"  {name:<16}{found or '–'}" + (f" of {found.n}{about[name]}" if found and name in about else "")
            for name, found in rows.items()
        ]
        return "\n".join([f"{self.equal.n} answers compared; left out: {left_out or 'none'}", *lines])


def judge_agreement(
    env: ScoringEnvironment, judge: ScoringEnvironment, pairs: Sequence[Pair], callback: Callback = no_callback
) -> tuple[JudgeAgreement, list[tuple[Scored, Scored]]]:
    """Scores the same answers by `env`, whose decision counts as right, and by `judge`; the agreement, and the two
    outcomes of each answer. Raises `DataError` where no answer has both, and what the two raise."""
    scored: list[tuple[Scored, Scored]] = []
    for start in range(0, len(pairs), SLICE):
        callback(Phase("scoring and judging answers", start, len(pairs)))
        part = pairs[start : start + SLICE]
        scored += zip(score_all(env, part), score_all(judge, part), strict=True)
    return agreement_of([task.id for task, _ in pairs], scored), scored


def agreement_of(tasks: Sequence[str], scored: Sequence[tuple[Scored, Scored]]) -> JudgeAgreement:
    """The agreement of pairs of outcomes, the environment's first, about answers to these tasks. Raises `DataError`."""
    by_task, dropped = dict[str, list[tuple[bool, bool]]](), Counter[str]()
    for task, both in zip(tasks, scored, strict=True):
        faults = [f"{who} {one.drop}" for who, one in zip(("environment", "judge"), both, strict=True)
                  if not isinstance(one, Outcome)]  # fmt: skip
        dropped.update(faults)
        if not faults:
            right, passed = (isinstance(one, Outcome) and one.reward >= SOLVED for one in both)
            by_task.setdefault(task, []).append((right, passed))
    if not by_task:
        got = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "no answers"
        raise DataError("no answer has the decisions of both the judge and the environment", got=got)
    rows = [
        [float(sum(values)) for values in zip(*((r == p, r, p, 1) for r, p in own), strict=True)]
        for own in by_task.values()
    ]
    return JudgeAgreement(
        clustered_share([(equal, int(count)) for equal, _, _, count in rows]),
        bootstrap(rows, _kappa),
        _share_passed(by_task, right=False),
        _share_passed({task: [(r, not p) for r, p in own] for task, own in by_task.items()}, right=True),
        dict(dropped),
    )


def _kappa(means: Sequence[float]) -> float:
    equal, right, passed = (value / means[3] for value in means[:3])
    chance = right * passed + (1 - right) * (1 - passed)
    return (equal - chance) / (1 - chance) if chance < 1 and 0 < right < 1 and 0 < passed < 1 else 0.0


def _share_passed(by_task: Mapping[str, Sequence[tuple[bool, bool]]], *, right: bool) -> Estimate | None:
    """The share that passed of the answers that are right, or that are wrong."""
    groups = [[passed for r, passed in own if r == right] for own in by_task.values()]
    counted = [(sum(own), len(own)) for own in groups if own]
    return clustered_share(counted) if counted else None
