"""One case in one fresh process: peaks do not mix, and each library has its own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.against_trl.meter import RESULT

ROOT = Path(__file__).parents[2]
TRL_VERSION = "1.16.0"
SETUP = (  # the pins give both sides the same torch and transformers
    "python -m venv trl-venv && trl-venv/bin/pip install -c requirements/pins.txt torch transformers "
    f"trl=={TRL_VERSION} accelerate datasets peft pydantic typer rich matplotlib"
)
PROBE = "import importlib.metadata as m, trl.experimental.sdpo; print('VERSION', m.version('trl'))"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that was not measured, and why; it stands in the table in place of a number."""

    why: str


Result = dict[str, Any]


def trl_refusal(python: str | None) -> str:
    """Why TRL cannot be measured with this interpreter; empty when it can."""
    if not python:
        return f"no --trl-python given. To make one: {SETUP}"
    if not Path(python).exists():
        return f"{python} does not exist. To make it: {SETUP}"
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, env=environment(), check=False)
    found = next((line.split()[1] for line in done.stdout.splitlines() if line.startswith("VERSION")), None)
    if found is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{python} cannot import trl.experimental.sdpo ({last}). To make one that can: {SETUP}"
    if found != TRL_VERSION:
        return f"{python} has TRL {found}; this comparison calls the inside of {TRL_VERSION}. To make it: {SETUP}"
    return ""


def environment(sources: Path = ROOT) -> dict[str, str]:
    """The workers' environment: the library's sources first, nothing from the network, no warnings of experiments."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }
    paths = filter(None, (str(sources / "src"), str(ROOT), os.environ.get("PYTHONPATH")))
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def run_case(
    python: str, module: str, case: Mapping[str, Any], limit_s: float, sources: Path = ROOT
) -> Result | Skipped:
    """What the worker `module` measured of `case` with this library of `sources`, or why there is nothing."""
    python = str(Path(python).absolute()) if os.sep in python else python  # the worker runs in a folder of its own
    command = [python, "-m", f"benchmarks.against_trl.{module}"]
    with tempfile.TemporaryDirectory(prefix="against-trl-") as folder:
        try:
            done = subprocess.run(
                command, input=json.dumps(case), capture_output=True, text=True, cwd=folder, env=environment(sources),
                timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Skipped(f"not done in {limit_s:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if lines:
        result: Result = json.loads(lines[-1].removeprefix(RESULT))
        return result
    return Skipped(failure(done.returncode, done.stderr))


def failure(code: int, errors: str) -> str:
    """Why a worker gave nothing, in a few words."""
    if code == -9 or "MemoryError" in errors or "not enough memory" in errors or "OutOfMemoryError" in errors:
        return "does not fit: out of memory"
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return f"failed ({code}): {last[:160]}"


def memory_refusal(needed: float, available: float) -> str:
    """Why a case is not even begun: the machine would swap or kill something else. Empty when it fits."""
    if needed <= 0.9 * available:
        return ""
    return f"does not fit: needs about {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB"


def available_bytes() -> int:
    """Memory that a new process may have: of the accelerator if there is one, else of the machine."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo")
    if lines.exists():
        line = next(line for line in lines.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
