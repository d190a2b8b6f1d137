"""Names that earlier versions used: records of their runs are read under today's names, settings are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SETTINGS: Mapping[str, str] = {"world": "env", "rehearsal": "replay"}
"""Settings of a run, at the top of their tree."""

_FIELDS: Mapping[str, str] = {
    "world": "env",
    "generations": "completions_sampled",
    "evidence": "log_ratio",
    "evidence_at": "log_ratio_at",
    "holdout_accuracy": "held_out_accuracy",
    "retained_accuracy": "forgetting_accuracy",
}
_VALUES: Mapping[str, Mapping[str, str]] = {"split": {"holdout": "held_out", "retained": "forgetting"}}
_DROPS: Mapping[str, str] = {
    "lone_success": "only_success",
    "flat_group": "zero_advantage",
    "world_raised": "env_raised",
    "world_timeout": "env_timeout",
    "judging_failed": "scoring_failed",
}
_SIGNS = ('"generations":', '"evidence":', '"world":', '"split":"holdout"', '"split":"retained"', '"judging_failed"')


def has_old_names(text: str) -> bool:
    """Whether a record, or a summary, was written by an earlier version: a look that costs no parsing."""
    return any(sign in text for sign in _SIGNS)


def renamed_record(text: str) -> dict[str, Any]:
    """A JSON object with the fields and values of an earlier version under today's names."""
    record: dict[str, Any] = _renamed(json.loads(text))
    for name, values in _VALUES.items():
        if name in record:
            record[name] = values.get(record[name], record[name])
    if record.get("drop") is not None:
        record["drop"] = _DROPS.get(record["drop"], record["drop"])
    if "dropped" in record:
        record["dropped"] = {_DROPS.get(reason, reason): count for reason, count in record["dropped"].items()}
    return {name: _renamed(value) if name in ("before", "after") else value for name, value in record.items()}


def renamed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run of an earlier version, to be shown and compared; such a run is not resumed."""
    return {SETTINGS.get(name, name): value for name, value in settings.items()}


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_FIELDS.get(name, name): value for name, value in fields.items()}
