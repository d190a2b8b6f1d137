"""Small runs with known numbers, for the tests of views."""

from pathlib import Path

from selfdistill.runs import EvalRecord, EvalSplit, Run, RunDir, StepRecord, read_run
from selfdistill.runs.stats import share

BATCH = 128


def make_run(
    path: Path, method: str, train: list[int], forgetting: list[int], seed: int = 0, **settings: object
) -> Run:
    """A run with an evaluation of 100 answers after each step: `train[i]` and `forgetting[i]` of them were right."""
    config = {"settings": {"method": {"name": method}, "env": {"name": "verbs"}, "seed": seed, **settings}}
    with RunDir.create(path, config) as run:
        for step, (new, known) in enumerate(zip(train, forgetting, strict=True)):
            if step:
                run.append(StepRecord(step, step * BATCH, step * 900, step * 30.0, 0.5, 0.5, 0.1, 1.0, 5e-4))
            for split, right in (("train", new), ("held_out", 100), ("forgetting", known)):
                run.append(_evaluation(step, split, right))  # type: ignore[arg-type]
    return read_run(path)


def _evaluation(step: int, split: EvalSplit, right: int) -> EvalRecord:
    return EvalRecord(step, step * BATCH, step * 30.0, split, share(right, 100), tasks=16, solved=round(right * 0.16))
