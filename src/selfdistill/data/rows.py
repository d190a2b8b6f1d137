"""Rows of programming tasks, in one of four shapes.

    shape          a row is one if it has
    LiveCodeBench  question_content, public_test_cases and/or private_test_cases (starter_code, metadata.func_name)
    MBPP           text or prompt, test_list (code, test_setup_code, test_imports)
    HumanEval      prompt, test, entry_point (canonical_solution)
    simple         prompt, tests [{input, output}] (id, fn_name, starter_code, private_tests, solution, time_limit)

The first thing wrong with a row is named with its file, line and field.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from typing import Any, NoReturn, TypeAlias

from selfdistill.data.row import Row, short
from selfdistill.errors import DataError
from selfdistill.files import BadJson, decode_json, is_whole
from selfdistill.types import Message, Task

INSTRUCTION = "Answer with one fenced block that holds the whole program:\n```python\n...\n```"
STDIN_INSTRUCTION = "Write a Python program that reads standard input and prints its answer to standard output."
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
_PACKED = re.compile(r"[A-Za-z0-9+/=][A-Za-z0-9+/=\s]*")
_DEFINES_CHECK = re.compile(r"\bdef\s+check\b|\bcheck\s*=|\bimport\b.*\bcheck\b")


def row_to_task(fields: Mapping[str, Any], path: str = "row", line: int = 1, *, compiled: bool = True) -> Task:
    """One row as a task. Raises `DataError` naming `path`, `line` and the field; with `compiled` also for code that
    does not compile, or imports what is not there."""
    shape, missing = lacking(fields)
    if missing:
        got = f"fields {', '.join(sorted(fields)) or '(none)'}"
        why = f"nearest is {shape}, which lacks {', '.join(missing)}"
        do = "add those fields; or name an environment that scores rows of your own: env=…, --env my_env.py:reward"
        if {"messages", "conversation", "conversations"} & fields.keys():
            do = f"for a log of conversations: --env chats; else {do}"
        raise DataError(f"{path}:{line}: the row has no shape that is known", got=got, why=why, do=do)
    required, convert = _SHAPES[shape]
    task = convert(Row(path, line, shape, fields, compiled))
    if not task.spec["public"] and not task.spec["private"]:
        what = f"{path}:{line}: {shape} row: field {required[1]!r}: task {short(task.id)} has no tests"
        raise DataError(what, why="every answer would count as correct", do="add a test, or leave the row out")
    return task


def is_code(fields: Mapping[str, Any]) -> bool:
    """Whether a row has one of the shapes."""
    return not lacking(fields)[1] and isinstance(fields.get("tests", []), list)


def lacking(fields: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The shape that is nearest to a row's, and the fields that the row lacks for it."""
    missing = {
        shape: [names for names in required if fields.keys().isdisjoint(names.split(" or "))]
        for shape, (required, _) in _SHAPES.items()
    }
    shape = min(_SHAPES, key=lambda shape: (len(missing[shape]), -len(_SHAPES[shape][0]) if missing[shape] else 0))
    return shape, missing[shape]


def _from_livecodebench(row: Row) -> Task:
    splits = {name: _livecodebench_tests(row, name) for name in ("public_test_cases", "private_test_cases")}
    kinds = {str(test.get("testtype", "stdin")) for tests in splits.values() for test in tests} or {"stdin"}
    if kinds not in ({"functional"}, {"stdin"}):
        row.fail("testtype", "'functional' or 'stdin', the same in all tests", sorted(kinds))
    kind = kinds.pop()
    name = _function_name(row) if kind == "functional" else ""
    decode = _call_test if kind == "functional" else _text_test
    public, private = (_decoded(row, field, tests, decode) for field, tests in splits.items())
    return _task(
        row, ("question_id", "id"), row.messages("question_content"), kind, public=public, private=private,
        fn_name=name, prelude=LIVECODEBENCH_HEADER, starter=row.text("starter_code"),
    )  # fmt: skip


def _function_name(row: Row) -> str:
    metadata = row.fields.get("metadata")
    if isinstance(metadata, str):
        metadata = _from_json(row, "metadata", metadata)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("func_name"), str):
        row.fail("metadata", "an object with func_name", short(metadata))
    return _check_name(row, "metadata.func_name", metadata["func_name"])


def _check_name(row: Row, field: str, name: str) -> str:
    if name.isidentifier() and not iskeyword(name):
        return name
    why = "it is called by this name: every answer would fail"
    row.fail(field, "the name of a function, one identifier that is no keyword", short(name), why=why)


def _livecodebench_tests(row: Row, name: str) -> list[dict[str, Any]]:
    """A list, its JSON text, or (private tests) that JSON pickled, deflated and written in base64."""
    value = row.fields.get(name)
    if isinstance(value, str):
        value = _unpacked(row, name, value) if _PACKED.fullmatch(value) else value
        value = _from_json(row, name, value) if value.strip() else None
    tests = [] if value is None else value
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        row.fail(name, "a list of objects {input, output, testtype}, or its JSON", short(tests))
    return tests


class _TextOnlyUnpickler(pickle.Unpickler):
    """Plain values need no names from modules; refusing all names leaves nothing that could run."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}; only text is allowed")


def _unpacked(row: Row, name: str, value: str) -> str:
    expected = "JSON, or base64 of deflated, pickled JSON text"
    try:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(base64.b64decode(value, validate=True), _MAX_INFLATED_BYTES)
        text = _TextOnlyUnpickler(io.BytesIO(packed)).load()
    except (zlib.error, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError, MemoryError, OverflowError) as error:  # fmt: skip
        row.fail(name, expected, f"{type(error).__name__}: {error}")
    return text if isinstance(text, str) and is_whole(text) else row.fail(name, expected, short(text))


def _from_json(row: Row, field: str, text: str) -> Any:
    try:
        return decode_json(text)
    except BadJson as error:
        place = f" (at {error.field})" if error.field else ""
        row.fail(field, "JSON", f"{error.what}: {error.got}{place}", do=error.do)


Decode: TypeAlias = Callable[[Row, str, Any], dict[str, Any]]


def _decoded(row: Row, field: str, tests: Sequence[Any], decode: Decode) -> list[dict[str, Any]]:
    return [decode(row, f"{field}[{place}]", test) for place, test in enumerate(tests)]


def _call_test(row: Row, field: str, test: Any) -> dict[str, Any]:
    """Arguments are one JSON value a line, so that text may hold spaces."""
    texts = _text_test(row, field, test)
    try:
        arguments = [decode_json(line) for line in texts["input"].split("\n") if line.strip()]
        return {"input": arguments, "output": decode_json(texts["output"])}
    except BadJson as error:
        got = f"{short(texts)}: {error.what}, {error.got}"
        row.fail(field, "one JSON value a line in input and one in output", got)


def _text_test(row: Row, field: str, test: Any) -> dict[str, Any]:
    texts = {name: test.get(name) if isinstance(test, dict) else None for name in ("input", "output")}
    if not all(isinstance(text, str) for text in texts.values()):
        row.fail(field, "an object with the texts input and output", short(test))
    return texts


def _from_mbpp(row: Row) -> Task:
    tests, imports = row.items("test_list"), row.items("test_imports")
    for index, test in enumerate(tests):
        if not isinstance(test, str) or not test.strip():
            row.fail(f"test_list[{index}]", "an assert statement", short(test))
        row.code(f"test_list[{index}]", test)
    if not all(isinstance(line, str) for line in imports):
        row.fail("test_imports", "a list of import statements", short(imports))
    setup = "\n".join([*imports, row.text("test_setup_code")]).strip()
    row.code("test_setup_code" if row.text("test_setup_code").strip() else "test_imports", setup)
    question = row.messages("text", "prompt")
    if tests:
        question = _with_last(question, f"{question[-1].content}\nYour code must pass this test:\n{tests[0]}")
    return _task(row, ("task_id", "id"), question, "assert", public=tests, setup=setup, solution=row.text("code"))


def _from_humaneval(row: Row) -> Task:
    question, test = row.messages("prompt"), row.text("test")
    prompt, entry = question[-1].content, _check_name(row, "entry_point", row.text("entry_point"))
    if test.strip() and not _DEFINES_CHECK.search(test):
        row.fail("test", "code that defines check(candidate)", short(test), why="it is what is called")
    solution = row.text("canonical_solution")
    statement = f"Complete this program. Repeat everything that it needs.\n```python\n{prompt.rstrip()}\n```"
    return _task(
        row, ("task_id", "id"), _with_last(question, statement), "assert", fn_name=entry,
        public=[row.code("test", f"{test}\n\ncheck({entry})")] if test.strip() else [],
        prelude=row.code("prompt", _valid_prelude(row, prompt)), solution=prompt + solution if solution else "",
    )  # fmt: skip


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
    name, starter = row.text("fn_name"), row.text("starter_code")
    name = name and _check_name(row, "fn_name", name)
    decode = _argument_test if name else _text_test
    public, private = (_decoded(row, field, row.items(field), decode) for field in ("tests", "private_tests"))
    return _task(
        row, ("id",), row.messages("prompt"), "functional" if name else "stdin", public=public, private=private,
        fn_name=name, prelude=_TYPING if starter.strip() else "", starter=starter, solution=row.text("solution"),
    )  # fmt: skip


def _argument_test(row: Row, field: str, test: Any) -> dict[str, Any]:
    if not isinstance(test, dict) or not isinstance(test.get("input"), list) or "output" not in test:
        do = f"for {row.text('fn_name')}(1, 'a') write the input as [1, \"a\"]"
        row.fail(field, "an object with input (the list of arguments) and output", short(test), do=do)
    return {"input": test["input"], "output": test["output"]}


def _task(
    row: Row, ids: Sequence[str], question: Sequence[Message], kind: str, *, starter: str = "", solution: str = "",
    **code: Any,
) -> Task:  # fmt: skip
    """The task, with the form of the answer appended to the last turn of the question."""
    parts = [question[-1].content.strip()]
    if starter.strip():
        parts.append(f"Start from this code and keep its names and arguments:\n```python\n{starter.rstrip()}\n```")
    elif kind == "stdin":
        parts.append(STDIN_INSTRUCTION)
    elif kind == "functional":
        parts.append(f"Write a Python function named `{code['fn_name']}`.")
    messages = _with_last(question, "\n\n".join([*parts, INSTRUCTION]))
    whole = {"kind": kind, "private": [], **code, "time_limit": row.time_limit()}
    spec = {key: value for key, value in whole.items() if value not in ("", None)}
    demonstration = f"```python\n{solution.strip()}\n```" if solution.strip() else ""
    return Task(row.id(*ids), messages, spec, demonstration)


def _with_last(question: Sequence[Message], content: str) -> tuple[Message, ...]:
    """The conversation with another text in its last turn."""
    return (*question[:-1], Message(question[-1].role, content))


# For each shape the fields that it needs, and how it is read.
_SHAPES: Mapping[str, tuple[tuple[str, ...], Callable[[Row], Task]]] = {
    "LiveCodeBench": (("question_content", "public_test_cases or private_test_cases"), _from_livecodebench),
    "MBPP": (("text or prompt", "test_list"), _from_mbpp),
    "HumanEval": (("prompt", "test", "entry_point"), _from_humaneval),
    "simple": (("prompt", "tests"), _from_simple),
}
