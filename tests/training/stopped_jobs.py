"""Jobs for processes of their own that are stopped: what they leave behind tells what they recorder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.runs.events import Callback, Phase
from selfdistill.training.stopping import StopSign


def last_round(path: Path, settings: Mapping[str, Any], callback: Callback) -> None:
    """Begins, waits for a stop, and is done all the same: it was in its last round. A second stop would end it."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    stop = StopSign(callback)
    with stop.watched():
        callback(Phase("in the last round"))
        for _ in range(200):
            time.sleep(0.05)
            if stop.asked:
                time.sleep(0.5)
                break
    (path / "asked" if stop.asked else path / "unasked").touch()
