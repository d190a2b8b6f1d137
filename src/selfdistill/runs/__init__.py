"""The run directory: the contract between training and everything that looks at it."""

from selfdistill.runs.events import Callback, EvalEnd, Event, Guard, Note, Phase, RunEnd, RunStart, StepEnd, no_callback
from selfdistill.runs.reader import Run, read_run
from selfdistill.runs.records import (
    Accuracies,
    EvalRecord,
    EvalSplit,
    Finding,
    GuardRecord,
    PreflightRecord,
    RolloutRecord,
    StepRecord,
    Summary,
)
from selfdistill.runs.stats import Estimate
from selfdistill.runs.store import RunDir, fresh_path, saved_config

__all__ = [
    "Accuracies",
    "Callback",
    "Estimate",
    "EvalEnd",
    "EvalRecord",
    "EvalSplit",
    "Event",
    "Finding",
    "Guard",
    "GuardRecord",
    "Note",
    "Phase",
    "PreflightRecord",
    "RolloutRecord",
    "Run",
    "RunDir",
    "RunEnd",
    "RunStart",
    "StepEnd",
    "StepRecord",
    "Summary",
    "fresh_path",
    "no_callback",
    "read_run",
    "saved_config",
]
