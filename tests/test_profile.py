"""How many functions of the package one default SDPO step calls, and in how many files. As a script it lists them.

python tests/test_profile.py           one step
python tests/test_profile.py train     a whole run of one step, with its evaluations
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import selfdistill
from selfdistill.config import load_config
from selfdistill.training import loop

ROOT = Path(selfdistill.__file__).parent
FUNCTIONS, FILES = 160, 34


def profiled(call: Callable[[], Any]) -> tuple[Any, dict[str, list[str]]]:
    """The result of a call, and the functions of the package that it called in any new thread or this one, by file.
    Comprehensions and lambdas do not count."""
    seen: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)) and "<" not in code.co_name:
            seen.add((str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname))

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        result = call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    files = sorted({file for file, _ in seen})
    return result, {file: sorted(name for own, name in seen if own == file) for file in files}


def profile_of_step(out: Path) -> Mapping[str, list[str]]:
    """One default step: `method=sdpo model=sapling env=verbs`."""
    real, found = loop.one_step, dict[str, list[str]]()

    def step(*arguments: Any) -> Any:
        result, functions = profiled(lambda: real(*arguments))
        found.update(functions)
        return result

    loop.one_step = step
    size = ["tasks_per_step=4", "evaluation.tasks=2", "guards.preflight=off"]  # changes no function of the step
    settings = ["method=sdpo", "model=sapling", "env=verbs", "steps=1", f"out={out}"]
    loop.train(load_config(None, [*settings, *size]))
    return found


def profile_of_run(out: Path) -> Mapping[str, list[str]]:
    """The run around it: its set-up, evaluations, records and checkpoint too."""
    config = load_config(None, ["method=sdpo", "model=sapling", "env=verbs", "steps=1", f"out={out}"])
    return profiled(lambda: loop.train(config))[1]


def test_a_default_step_calls_few_functions_in_few_files(tmp_path) -> None:
    """In a process of its own: what earlier tests have cached would not be counted."""
    done = subprocess.run([sys.executable, __file__, "json", str(tmp_path / "run")], capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert sum(map(len, found.values())) <= FUNCTIONS, found
    assert len(found) <= FILES, found


def main(kind: str = "step", out: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(out or f"{folder}/run")
        found = profile_of_run(path) if kind == "train" else profile_of_step(path)
    if kind == "json":
        print(json.dumps(found))  # noqa: T201 (this is its result)
        return
    print(sum(map(len, found.values())), "functions in", len(found), "files")  # noqa: T201
    for file, names in found.items():
        print(file, len(names), ", ".join(names))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
