"""The run directory: the contract between training and everything that looks at it."""

from selfdistill.runs.environment import describe_environment
from selfdistill.runs.progress import Interrupted, Quiet, Relay, Reporter, RunInfo, deliver
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
    "Estimate",
    "EvalRecord",
    "EvalSplit",
    "Interrupted",
    "Quiet",
    "Relay",
    "Reporter",
    "ResumedRecord",
    "RolloutRecord",
    "Run",
    "RunDir",
    "RunInfo",
    "StepRecord",
    "Summary",
    "allowed_changes",
    "check_records",
    "clustered_share",
    "deliver",
    "describe_environment",
    "fresh_path",
    "mean",
    "read_run",
    "saved_config",
    "share",
    "wilson_interval",
]
