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
import pickle
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from selfdistill.data.row import Row, load_rows, short
from selfdistill.envs.syntax import CodeFault, is_name, spec_fault
from selfdistill.errors import DataError
from selfdistill.files import BadJson, decode_json, is_whole, numbered_lines
from selfdistill.types import Message, Task

INSTRUCTION = "Answer with one fenced block that holds the whole program:\n```python\n...\n```"
STDIN_INSTRUCTION = "Write a Python program that reads standard input and prints its answer to standard output."
CHECKED_ROWS = 50_000  # in a longer file the code of a row is looked at when the row is drawn
_TYPING = "from typing import *"  # signatures in starter code use its names without importing them
# What LiveCodeBench's own scorer puts before every answer (lcb_runner/evaluation/testing_util.py).
_LIVECODEBENCH_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
LIVECODEBENCH_HEADER = "\n".join([
    *(f"from {name} import *" for name in _LIVECODEBENCH_STARS),
    *(f"import {name}" for name in _LIVECODEBENCH_STARS if name not in ("builtins", "typing")),
    "sys.setrecursionlimit(50000)",
])  # fmt: skip
_MAX_INFLATED_BYTES = 1 << 30
_PACKED = re.compile(r"[A-Za-z0-9+/=\s]+")
_DEFINES_CHECK = re.compile(r"\bdef\s+check\b|\bcheck\s*=|\bimport\b.*\bcheck\b")


def load_tasks(path: str | Path, *, modules: Sequence[str] = ()) -> list[Task]:
    """All tasks of a JSONL file, in order. Raises DataError for the first row that cannot be used, for an id that
    occurs twice and for a file without rows.

    The code in rows is compiled in files of up to `CHECKED_ROWS` rows; of longer ones a run looks at every row that it
    draws. `modules` are packages that the sandbox offers besides the standard library.
    """
    path = Path(path)
    lines = numbered_lines(path)
    return load_rows(path, lines, partial(row_to_task, modules=modules, compiled=len(lines) <= CHECKED_ROWS))


def row_to_task(
    fields: Mapping[str, Any],
    path: str | Path = "row",
    line: int = 1,
    *,
    modules: Sequence[str] = (),
    compiled: bool = True,
) -> Task:
    """One row as a task. Raises DataError naming `path`, `line` and the field; for code that does not compile, or
    imports what is not there, where `compiled` asks for it."""
    shape = _shape_of(fields, path, line)
    row = Row(Path(path), line, shape, fields)
    task = _CONVERTERS[shape](row)
    if not task.spec["public"] and not task.spec["private"]:
        field = " or ".join(_REQUIRED[shape][1])
        what = f"{path}:{line}: {shape} row: field {field!r}: task {short(task.id)} has no tests"
        raise DataError(what, why="every answer would count as correct", do="add a test, or leave the row out")
    fault = spec_fault(task.spec, tuple(modules)) if compiled else None
    if fault is not None:
        row.fail(_code_field(row, fault), fault.expected, fault.got, why=fault.why, do=fault.do)
    return task


def _code_field(row: Row, fault: CodeFault) -> str:
    """The field that a piece of a task's code came from."""
    if row.shape == "HumanEval":
        return {"prelude": "prompt", "public": "test"}.get(fault.part, fault.part)
    if fault.part == "public":
        return f"test_list[{fault.index}]"
    return "test_setup_code" if row.text("test_setup_code", default="").strip() else "test_imports"


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
        "prelude": LIVECODEBENCH_HEADER,
        "time_limit": row.number("time_limit"),
    }
    question = row.messages("question_content")
    return _task(row.id("question_id", "id"), question, spec, starter=starter)


def _livecodebench_function(row: Row) -> str:
    metadata = row.fields.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = decode_json(metadata)
        except BadJson as error:
            row.fail("metadata", "JSON", f"{error.what}: {error.got}")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        row.fail("metadata", "an object with func_name", short(metadata))
    return _function_name(row, "metadata.func_name", name)


def _function_name(row: Row, field: str, name: str) -> str:
    if not is_name(name):
        why = "it is called by this name: every answer would fail"
        row.fail(field, "the name of a function, one identifier that is no keyword", short(name), why=why)
    return name


def _livecodebench_tests(row: Row, name: str) -> list[dict[str, Any]]:
    """A list, its JSON text, or (private tests) that JSON pickled, deflated and written in base64."""
    value = row.fields.get(name)
    if isinstance(value, str):
        text = value
        try:
            value = decode_json(text) if text.strip() else []
        except BadJson as error:
            value = _unpack(row, name, text) if _PACKED.fullmatch(text) else _not_json(row, name, error)
    tests = [] if value is None else value
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        row.fail(name, "a list of objects {input, output, testtype}, or its JSON", short(value))
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
    except (zlib.error, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError, MemoryError, OverflowError) as error:  # fmt: skip
        row.fail(name, "JSON, or base64 of deflated, pickled JSON text", f"{type(error).__name__}: {error}")
    if not isinstance(text, str) or not is_whole(text):
        row.fail(name, "JSON, or base64 of deflated, pickled JSON text", short(text))
    try:
        return decode_json(text)
    except BadJson as error:
        _not_json(row, name, error)


def _not_json(row: Row, field: str, error: BadJson) -> NoReturn:
    row.fail(field, "JSON", f"{error.what}: {error.got}" + (f" (at {error.field})" if error.field else ""), do=error.do)


def _decode_call(row: Row, field: str, test: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are one JSON value a line, so that text may hold spaces."""
    texts = _decode_text(row, field, test)
    try:
        arguments = [decode_json(line) for line in texts["input"].split("\n") if line.strip()]
        return {"input": arguments, "output": decode_json(texts["output"])}
    except BadJson as error:
        got = f"{short(texts)}: {error.what}, {error.got}"
        row.fail(field, "one JSON value a line in input and one in output", got)


def _decode_text(row: Row, field: str, test: Any) -> dict[str, Any]:
    texts = {name: test.get(name) if isinstance(test, dict) else None for name in ("input", "output")}
    if not all(isinstance(text, str) for text in texts.values()):
        row.fail(field, "an object with the texts input and output", short(test))
    return texts


def _from_mbpp(row: Row) -> Task:
    tests = row.items("test_list")
    for index, test in enumerate(tests):
        if not isinstance(test, str) or not test.strip():
            row.fail(f"test_list[{index}]", "an assert statement", short(test))
    imports = row.items("test_imports")
    if not all(isinstance(line, str) for line in imports):
        row.fail("test_imports", "a list of import statements", short(imports))
    setup = "\n".join([*imports, row.text("test_setup_code", default="")]).strip()
    question = row.messages("text", "prompt")
    if tests:
        question = _with_last(question, f"{question[-1].content}\nYour code must pass this test:\n{tests[0]}")
    spec = {"kind": "assert", "public": tests, "private": [], "setup": setup, "time_limit": row.number("time_limit")}
    return _task(row.id("task_id", "id"), question, spec, solution=row.text("code", default=""))


def _from_humaneval(row: Row) -> Task:
    question, test = row.messages("prompt"), row.text("test")
    prompt, entry = question[-1].content, _function_name(row, "entry_point", row.text("entry_point"))
    if test.strip() and not _DEFINES_CHECK.search(test):
        row.fail("test", "code that defines check(candidate)", short(test), why="it is what is called")
    spec = {
        "kind": "assert",
        "public": [f"{test}\n\ncheck({entry})"] if test.strip() else [],
        "private": [],
        "fn_name": entry,
        "prelude": _valid_prelude(row, prompt),
        "time_limit": row.number("time_limit"),
    }
    solution = row.text("canonical_solution", default="")
    statement = f"Complete this program. Repeat everything that it needs.\n```python\n{prompt.rstrip()}\n```"
    question = _with_last(question, statement)
    return _task(row.id("task_id", "id"), question, spec, solution=prompt + solution if solution else "")


def _valid_prelude(row: Row, prompt: str) -> str:
    """The prompt's imports and helpers, for answers that repeat the function alone; a body is added if it has none."""
    # A prompt may use names of `typing` that it does not import. Its lines keep their numbers where that is possible.
    begun = (f"{_TYPING}; {prompt}", f"{_TYPING}\n{prompt}", prompt)
    for source in (text + body for text in begun for body in ("", "\n    pass\n")):
        try:
            compile(source, "prompt", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return source
    return row.fail("prompt", "the beginning of a Python program that ends with a function's head", short(prompt))


def _from_simple(row: Row) -> Task:
    name, starter = row.text("fn_name", default=""), row.text("starter_code", default="")
    if name:
        _function_name(row, "fn_name", name)
    spec = {
        "kind": "functional" if name else "stdin",
        "public": [_simple_test(row, f"tests[{i}]", test, name) for i, test in enumerate(row.items("tests"))],
        "private": [
            _simple_test(row, f"private_tests[{i}]", test, name) for i, test in enumerate(row.items("private_tests"))
        ],
        "fn_name": name,
        "prelude": _TYPING if starter.strip() else "",
        "time_limit": row.number("time_limit"),
    }
    solution = row.text("solution", default="")
    return _task(row.id("id"), row.messages("prompt"), spec, starter=starter, solution=solution)


def _simple_test(row: Row, field: str, test: Any, fn_name: str) -> dict[str, Any]:
    if not fn_name:
        return _decode_text(row, field, test)
    if not isinstance(test, dict) or not isinstance(test.get("input"), list) or "output" not in test:
        row.fail(
            field, "an object with input (the list of arguments) and output", short(test),
            do=f"for {fn_name}(1, 'a') write the input as [1, \"a\"]",
        )  # fmt: skip
    return {"input": test["input"], "output": test["output"]}


def _task(
    task_id: str, question: Sequence[Message], spec: Mapping[str, Any], *, starter: str = "", solution: str = ""
) -> Task:
    """The task, with what the answer should look like appended to the last turn of the question."""
    parts = [question[-1].content.strip()]
    if starter.strip():
        parts.append(f"Start from this code and keep its names and arguments:\n```python\n{starter.rstrip()}\n```")
    elif spec["kind"] == "stdin":
        parts.append(STDIN_INSTRUCTION)
    elif spec["kind"] == "functional":
        parts.append(f"Write a Python function named `{spec['fn_name']}`.")
    messages = _with_last(question, "\n\n".join([*parts, INSTRUCTION]))
    demonstration = f"```python\n{solution.strip()}\n```" if solution.strip() else ""
    kept = {key: value for key, value in spec.items() if value not in ("", None)}
    return Task(task_id, messages, kept, demonstration)


def _with_last(question: Sequence[Message], content: str) -> tuple[Message, ...]:
    """The conversation with another text in its last turn."""
    return (*question[:-1], Message(question[-1].role, content))


_CONVERTERS: dict[str, Callable[[Row], Task]] = {
    "LiveCodeBench": _from_livecodebench,
    "MBPP": _from_mbpp,
    "HumanEval": _from_humaneval,
    "simple": _from_simple,
}
