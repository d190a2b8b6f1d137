"""Names that earlier versions used: records of their runs are read under today's names, what users type is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SETTINGS: Mapping[str, str] = {"world": "env", "rehearsal": "replay"}
"""Settings of a run, at the top of their tree."""

WORDS: Mapping[str, str] = {
    "--world": "--env",
    "--way": "--arm",
    "--go-on": "--exhaust-budget",
    "--generations": "--completions",
    "worlds": "envs",
}
"""Words of the command line."""

_RECORDS: Mapping[str, str] = {
    "world": "env",
    "generations": "completions_sampled",
    "evidence": "log_ratio",
    "evidence_at": "log_ratio_at",
    "holdout_accuracy": "held_out_accuracy",
    "retained_accuracy": "forgetting_accuracy",
    "holdout": "held_out",
    "retained": "forgetting",
    "lone_success": "only_success",
    "flat_group": "zero_advantage",
    "world_raised": "env_raised",
    "world_timeout": "env_timeout",
    "judging_failed": "scoring_failed",
}
"""Fields of records, splits and reasons of a drop."""


def has_old_names(text: str) -> bool:
    """Whether a record, or a summary, may be of an earlier version: a look that costs no parsing."""
    return any(f'"{name}"' in text for name in _RECORDS)


def renamed_record(text: str) -> dict[str, Any]:
    """A JSON object with the fields and values of an earlier version under today's names."""
    record = _renamed(json.loads(text))
    for name in ("dropped", "before", "after"):
        if name in record:
            record[name] = _renamed(record[name])
    for name in ("split", "drop"):
        if name in record:
            record[name] = _RECORDS.get(record[name], record[name])
    return record


def renamed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run of an earlier version, to be shown and compared; such a run is not resumed."""
    return {SETTINGS.get(name, name): value for name, value in settings.items()}


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_RECORDS.get(name, name): value for name, value in fields.items()}
