"""The run directory: the contract between training and everything that looks at it."""

from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import (
    Callback,
    EvalEnd,
    Event,
    Interrupted,
    Note,
    Phase,
    RunEnd,
    RunStart,
    StepEnd,
    named,
    no_callback,
)
from selfdistill.runs.reader import Run, check_records, read_run
from selfdistill.runs.records import (
    Accuracies,
    EvalRecord,
    EvalSplit,
    ResumedRecord,
    RolloutRecord,
    StepRecord,
    Summary,
)
from selfdistill.runs.stats import Estimate, clustered_share, mean, share, wilson_interval
from selfdistill.runs.store import RunDir, allowed_changes, fresh_path, saved_config

__all__ = [
    "Accuracies",
    "Callback",
    "Estimate",
    "EvalEnd",
    "EvalRecord",
    "EvalSplit",
    "Event",
    "Interrupted",
    "Note",
    "Phase",
    "ResumedRecord",
    "RolloutRecord",
    "Run",
    "RunDir",
    "RunEnd",
    "RunStart",
    "StepEnd",
    "StepRecord",
    "Summary",
    "allowed_changes",
    "check_records",
    "clustered_share",
    "describe_environment",
    "fresh_path",
    "mean",
    "named",
    "no_callback",
    "read_run",
    "saved_config",
    "share",
    "wilson_interval",
]
