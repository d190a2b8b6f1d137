"""Reading a JSONL file of programming tasks, whichever of four shapes its rows have.

    shape          a row is one if it has
    LiveCodeBench  question_content, public_test_cases and/or private_test_cases (starter_code, metadata.func_name)
    MBPP           text or prompt, test_list (code, test_setup_code, test_imports)
    HumanEval      prompt, test, entry_point (canonical_solution)
    simple         prompt, tests [{input, output}] (id, fn_name, starter_code, private_tests, solution, time_limit)

Everything is checked before anything is returned: the first thing wrong is named with its file, line and field.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from selfdistill.errors import DataError
from selfdistill.types import Message, Task

INSTRUCTION = "Answer with one fenced block that holds the whole program:\n```python\n...\n```"
STDIN_INSTRUCTION = "Write a Python program that reads standard input and prints its answer to standard output."
_TYPING = "from typing import *"  # signatures in starter code use its names without importing them
_MAX_INFLATED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """A row with its place, so that every complaint can name both."""

    path: Path
    line: int
    shape: str
    fields: Mapping[str, Any]

    def fail(self, field: str, expected: str, got: object = None, *, do: str = "") -> NoReturn:
        """Raise DataError about one field."""
        place = f"{self.path}:{self.line}: {self.shape} row"
        raise DataError(f"{place}: field {field!r}: expected {expected}", got=got, do=do)

    def text(self, *names: str, default: str | None = None) -> str:
        """The first of the fields that is there; it must be text."""
        name = next((name for name in names if self.fields.get(name) is not None), None)
        if name is None:
            return default if default is not None else self.fail(names[0], "text", "nothing")
        value = self.fields[name]
        return value if isinstance(value, str) else self.fail(name, "text", _short(value))

    def number(self, name: str) -> float | None:
        """A positive number, or None when the field is missing."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self.fail(name, "a number above 0 (seconds)", _short(value))
        return float(value)

    def items(self, name: str) -> list[Any]:
        """A list, empty when the field is missing."""
        value = self.fields.get(name)
        if value is None:
            return []
        return list(value) if isinstance(value, list) else self.fail(name, "a list", _short(value))

    def id(self, *names: str) -> str:
        """The row's own id, or its line number."""
        value = next((self.fields[name] for name in names if self.fields.get(name) is not None), f"line-{self.line}")
        return str(value) if isinstance(value, (str, int)) else self.fail(names[0], "text or an integer", _short(value))


def load_tasks(path: str | Path) -> list[Task]:
    """All tasks of a JSONL file, in order. Raises DataError for the first row that cannot be used, for an id that
    occurs twice and for a file without rows."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text file", got=error) from None
    tasks = [row_to_task(_parse(path, number, line), path, number) for number, line in _numbered(lines)]
    if not tasks:
        raise DataError(f"{path} has no rows", do="give one JSON object a line")
    seen: dict[str, int] = {}
    for task, (number, _) in zip(tasks, _numbered(lines), strict=True):
        if task.id in seen:
            raise DataError(f"{path}:{number}: the id {task.id!r} was used in line {seen[task.id]} already")
        seen[task.id] = number
    return tasks


def row_to_task(fields: Mapping[str, Any], path: str | Path = "row", line: int = 1) -> Task:
    """One row as a task. Raises DataError naming `path`, `line` and the field."""
    shape = _shape_of(fields, path, line)
    task = _CONVERTERS[shape](Row(Path(path), line, shape, fields))
    if not task.spec["public"] and not task.spec["private"]:
        raise DataError(f"{path}:{line}: task {task.id!r} has no tests", why="every answer would count as correct")
    return task


def _numbered(lines: list[str]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not JSON", got=error, do="give one JSON object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: expected a JSON object", got=_short(row))
    return row


# Each inner tuple lists spellings of which one is enough.
_REQUIRED: dict[str, tuple[tuple[str, ...], ...]] = {
    "LiveCodeBench": (("question_content",), ("public_test_cases", "private_test_cases")),
    "MBPP": (("text", "prompt"), ("test_list",)),
    "HumanEval": (("prompt",), ("test",), ("entry_point",)),
    "simple": (("prompt",), ("tests",)),
}


def _missing(shape: str, fields: Mapping[str, Any]) -> list[str]:
    return [" or ".join(names) for names in _REQUIRED[shape] if not any(name in fields for name in names)]


def _shape_of(fields: Mapping[str, Any], path: str | Path, line: int) -> str:
    complete = [shape for shape in _REQUIRED if not _missing(shape, fields)]
    if complete:
        return complete[0]
    nearest = min(_REQUIRED, key=lambda shape: (len(_missing(shape, fields)), -len(_REQUIRED[shape])))
    raise DataError(
        f"{path}:{line}: the row has no shape that is known",
        got=f"fields {', '.join(sorted(fields)) or '(none)'}",
        why=f"nearest is {nearest}, which lacks {', '.join(_missing(nearest, fields))}",
        do='add those fields, or write {"id": ..., "prompt": ..., "tests": [{"input": ..., "output": ...}]}',
    )


def _from_livecodebench(row: Row) -> Task:
    public, private = (_livecodebench_tests(row, name) for name in ("public_test_cases", "private_test_cases"))
    kinds = {str(test.get("testtype", "stdin")) for test in public + private}
    if kinds - {"functional", "stdin"} or len(kinds) > 1:
        row.fail("testtype", "'functional' or 'stdin', the same in all tests", sorted(kinds))
    starter, kind = row.text("starter_code", default=""), kinds.pop() if kinds else "stdin"
    functional = kind == "functional"
    decode = _decode_call if functional else _decode_text
    spec = {
        "kind": kind,
        "public": [decode(row, f"public_test_cases[{i}]", test) for i, test in enumerate(public)],
        "private": [decode(row, f"private_test_cases[{i}]", test) for i, test in enumerate(private)],
        "fn_name": _livecodebench_function(row) if functional else "",
        "prelude": _TYPING if functional else "",
        "time_limit": row.number("time_limit"),
    }
    return _task(row, row.id("question_id", "id"), row.text("question_content"), spec, starter=starter)


def _livecodebench_function(row: Row) -> str:
    metadata = row.fields.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            row.fail("metadata", "JSON", _short(metadata))
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        row.fail("metadata", "an object with func_name", _short(metadata))
    return name


def _livecodebench_tests(row: Row, name: str) -> list[dict[str, Any]]:
    """A list, its JSON text, or (private tests) that JSON pickled, deflated and written in base64."""
    value = row.fields.get(name)
    if isinstance(value, str):
        text = value
        try:
            value = json.loads(text) if text.strip() else []
        except ValueError:
            value = _unpack(row, name, text)
    tests = [] if value is None else value
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        row.fail(name, "a list of objects {input, output, testtype}, or its JSON", _short(value))
    return tests


class _TextOnlyUnpickler(pickle.Unpickler):
    """Plain values need no names from modules; refusing all names leaves nothing that could run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}; only text is allowed")


def _unpack(row: Row, name: str, value: str) -> Any:
    try:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(base64.b64decode(value, validate=True), _MAX_INFLATED_BYTES)
        text = _TextOnlyUnpickler(io.BytesIO(packed)).load()
        return json.loads(text)
    except (zlib.error, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        row.fail(name, "JSON, or base64 of deflated, pickled JSON text", f"{type(error).__name__}: {error}")


def _decode_call(row: Row, field: str, test: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are one JSON value a line, so that text may hold spaces."""
    texts = _decode_text(row, field, test)
    try:
        arguments = [json.loads(line) for line in texts["input"].split("\n") if line.strip()]
        return {"input": arguments, "output": json.loads(texts["output"])}
    except ValueError:
        row.fail(field, "one JSON value a line in input and one in output", _short(texts))


def _decode_text(row: Row, field: str, test: Any) -> dict[str, Any]:
    texts = {name: test.get(name) if isinstance(test, dict) else None for name in ("input", "output")}
    if not all(isinstance(text, str) for text in texts.values()):
        row.fail(field, "an object with the texts input and output", _short(test))
    return texts


def _from_mbpp(row: Row) -> Task:
    tests = row.items("test_list")
    for index, test in enumerate(tests):
        if not isinstance(test, str):
            row.fail(f"test_list[{index}]", "an assert statement", _short(test))
    imports = row.items("test_imports")
    if not all(isinstance(line, str) for line in imports):
        row.fail("test_imports", "a list of import statements", _short(imports))
    setup = "\n".join([*imports, row.text("test_setup_code", default="")]).strip()
    statement = row.text("text", "prompt")
    if tests:
        statement += f"\nYour code must pass this test:\n{tests[0]}"
    spec = {"kind": "assert", "public": tests, "private": [], "setup": setup, "time_limit": row.number("time_limit")}
    return _task(row, row.id("task_id", "id"), statement, spec, solution=row.text("code", default=""))


def _from_humaneval(row: Row) -> Task:
    prompt, entry = row.text("prompt"), row.text("entry_point")
    if not entry.isidentifier():
        row.fail("entry_point", "the name of a function", _short(entry))
    spec = {
        "kind": "assert",
        "public": [f"{row.text('test')}\n\ncheck({entry})"] if row.text("test").strip() else [],
        "private": [],
        "fn_name": entry,
        "prelude": _valid_prelude(row, prompt),
        "time_limit": row.number("time_limit"),
    }
    solution = row.text("canonical_solution", default="")
    statement = f"Complete this program. Repeat everything that it needs.\n```python\n{prompt.rstrip()}\n```"
    return _task(row, row.id("task_id", "id"), statement, spec, solution=prompt + solution if solution else "")


def _valid_prelude(row: Row, prompt: str) -> str:
    """The prompt's imports and helpers, for answers that repeat the function alone; a body is added if it has none."""
    for source in (prompt, prompt + "\n    pass\n"):
        try:
            compile(source, "prompt", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        return source
    return row.fail("prompt", "the beginning of a Python program that ends with a function's head", _short(prompt))


def _from_simple(row: Row) -> Task:
    name = row.text("fn_name", default="")
    spec = {
        "kind": "functional" if name else "stdin",
        "public": [_simple_test(row, f"tests[{i}]", test, name) for i, test in enumerate(row.items("tests"))],
        "private": [
            _simple_test(row, f"private_tests[{i}]", test, name) for i, test in enumerate(row.items("private_tests"))
        ],
        "fn_name": name,
        "time_limit": row.number("time_limit"),
    }
    starter, solution = row.text("starter_code", default=""), row.text("solution", default="")
    return _task(row, row.id("id"), row.text("prompt"), spec, starter=starter, solution=solution)


def _simple_test(row: Row, field: str, test: Any, fn_name: str) -> dict[str, Any]:
    if not fn_name:
        return _decode_text(row, field, test)
    if not isinstance(test, dict) or not isinstance(test.get("input"), list) or "output" not in test:
        row.fail(
            field, "an object with input (the list of arguments) and output", _short(test),
            do=f"for {fn_name}(1, 'a') write the input as [1, \"a\"]",
        )  # fmt: skip
    return {"input": test["input"], "output": test["output"]}


def _task(
    row: Row, task_id: str, statement: str, spec: Mapping[str, Any], *, starter: str = "", solution: str = ""
) -> Task:
    if not statement.strip():
        row.fail(_REQUIRED[row.shape][0][0], "a statement", "blank text")
    parts = [statement.strip()]
    if starter.strip():
        parts.append(f"Start from this code and keep its names and arguments:\n```python\n{starter.rstrip()}\n```")
    elif spec["kind"] == "stdin":
        parts.append(STDIN_INSTRUCTION)
    elif spec["kind"] == "functional":
        parts.append(f"Write a Python function named `{spec['fn_name']}`.")
    content = "\n\n".join([*parts, INSTRUCTION])
    demonstration = f"```python\n{solution.strip()}\n```" if solution.strip() else ""
    kept = {key: value for key, value in spec.items() if value not in ("", None)}
    return Task(task_id, (Message("user", content),), kept, demonstration)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


_CONVERTERS: dict[str, Callable[[Row], Task]] = {
    "LiveCodeBench": _from_livecodebench,
    "MBPP": _from_mbpp,
    "HumanEval": _from_humaneval,
    "simple": _from_simple,
}
