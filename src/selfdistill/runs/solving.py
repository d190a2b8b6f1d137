"""The result of the search for one task: `result.json` of its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfdistill.runs.records import Json, to_json
from selfdistill.runs.store import read_json_file, write_atomic

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class SolveResult(Json):
    """Attempts and rounds are counted from 1; None: not within the budget.

    An attempt is right when it earns a reward of 1 by the tests that training may see, and by the private ones too.
    `solved_at` is the first right one, `passed_at` the first that passed what training may see, `right` and `passed`
    count both kinds. `contexts_cut` and `prompts_cut` count prompts of the teacher and of attempts in which a text had
    to be shortened, `left_out` the feedback that found no room in them. `redrawn` counts
    completions that were sampled and not submitted, since they repeat a failed attempt (`strategy.unique`).
    """

    task: str
    strategy: str
    model: str
    env: str
    seed: int
    budget: int
    unit: str
    attempts: int
    rounds: int
    tokens: int
    wall_s: float
    right: int = 0
    passed: int = 0
    solved_at: int | None = None
    solved_round: int | None = None
    passed_at: int | None = None
    solution: str = ""
    contexts_cut: int = 0
    prompts_cut: int = 0
    left_out: int = 0
    redrawn: int = 0

    @property
    def solved(self) -> bool:
        """Whether there was a right attempt."""
        return self.solved_at is not None


def write_result(path: Path, result: SolveResult) -> None:
    """Writes `result.json` atomically. Raises `RunError`."""
    write_atomic(path / RESULT, to_json(result, indent=2) + "\n")


def read_result(path: Path) -> SolveResult | None:
    """The result in a run directory; None while there is none. Raises `RunError` when it cannot be read."""
    found: SolveResult | None = read_json_file(SolveResult, path / RESULT, "a result", "remove it, and resume")
    return found
