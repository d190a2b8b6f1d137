"""Tasks that a model knows before it is trained on something else."""

from __future__ import annotations

from selfdistill.data.load import question_rows
from selfdistill.envs.known import fact_tasks
from selfdistill.types import Task


def known_tasks(file: str = "") -> list[Task]:
    """The questions of a JSONL file, each row {prompt, answer}, or short facts and sums. Raises `DataError`."""
    return list(question_rows(file)) if file else fact_tasks()
