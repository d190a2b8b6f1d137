"""Inside the scored process: run the code on its inputs and report each result. Everything here is within its reach.

The channel is a pipe on a random descriptor; a line counts only if it starts with a nonce drawn for this run. That
stops printing, stray writes and early exits from passing for results. A program that searches the interpreter for the
nonce can still forge them. Expected values never enter this process, so with calls and standard input forging gains
nothing; where a test is statements of Python, it can claim a pass, just as an object whose `__eq__` always agrees can.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import errno
import gc
import io
import mmap
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from json import dumps
from types import MethodDescriptorType, ModuleType, WrapperDescriptorType
from typing import Any

from selfdistill.envs.sandbox.wire import TooLargeError, encode, short_repr, write_all

ANSWER_FILE, PRELUDE_FILE, SETUP_FILE, TEST_FILE = "answer.py", "prelude.py", "setup.py", "test.py"
_FRAMES = 3
# Their line is that of the function around them, and newer Pythons have no such frames.
_INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_MESSAGE_CHARACTERS = 500
_RESERVE_BYTES = 4 << 20
_BUILTINS = dict(vars(builtins))  # for tests: a program may rebind those of the module

Report = Callable[[Mapping[str, Any]], None]
Namespace = dict[str, Any]


def make_report(descriptor: int, nonce: bytes, output_bytes: int) -> Report:
    """A function that sends one result; the nonce lives in its closure, not in any frame."""
    exit_now = os._exit

    def report(result: Mapping[str, Any]) -> None:
        body = dumps(result).encode()
        if len(body) > output_bytes:
            body = dumps(_raised(f"OutputLimitExceeded: the value takes more than {output_bytes} bytes")).encode()
        try:
            write_all(descriptor, b"\n" + nonce + body + b"\n")
        except OSError:  # the program closed the channel: nothing it does can count any more
            exit_now(1)

    return report


def prepare() -> mmap.mmap:
    """Put into `sys` what `python answer.py` finds there, instead of what the worker was started with.

    Returns memory that is let go when the program's runs out, so that there is room to report it.
    """
    reserve = mmap.mmap(-1, _RESERVE_BYTES)
    sys.argv, sys.orig_argv = [ANSWER_FILE], ["python", ANSWER_FILE]
    sys.path.insert(0, os.getcwd())
    sys.stdin = sys.__stdin__ = _stream(0, "<stdin>", "surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "<stdout>", "surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "<stderr>", "backslashreplace")  # type: ignore[misc]
    return reserve


def run_inputs(job: Mapping[str, Any], report: Report, reserve: mmap.mmap) -> None:
    """Run the code, then meet each input, reporting as many results as there are inputs unless loading fails."""
    sys.setrecursionlimit(job["recursion_limit"])
    if job["mode"] == "stdin":
        report(_guard(lambda: _run_as_main(job), reserve, job))
        return
    namespace = _new_module("answer")
    loaded = _guard(lambda: _load(job, namespace), reserve, job)
    if loaded["ending"] != "done":
        report({**loaded, "loading": True})
        return
    run_one = _run_call if job["mode"] == "call" else _run_assertion
    for item in job["inputs"]:
        report(_guard(lambda item=item: run_one(job, namespace, item), reserve, job))  # type: ignore[misc]


def _guard(run: Callable[[], Mapping[str, Any]], reserve: mmap.mmap, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result of `run`, whatever it raises."""
    try:
        result = run()
        for stream in (sys.stdout, sys.__stdout__):
            with contextlib.suppress(ValueError, AttributeError):  # the program closed or replaced it
                stream.flush()  # type: ignore[union-attr]
        return result
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the program's too
        if isinstance(error, MemoryError):
            reserve.close()
        return _failure(error, job)


def _load(job: Mapping[str, Any], namespace: Namespace) -> Mapping[str, Any]:
    for source, name in ((job["prelude"], PRELUDE_FILE), (job["code"], ANSWER_FILE), (job["setup"], SETUP_FILE)):
        if source:
            _execute(source, name, namespace)
    return {"ending": "done"}


def _execute(source: str, name: str, namespace: Namespace) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def _new_module(name: str) -> Namespace:
    """A registered module's namespace: dataclasses, pickle and typing look classes up by their module's name."""
    module = ModuleType(name)
    sys.modules[name] = module
    module.__dict__.update(__file__=ANSWER_FILE, __builtins__=builtins)
    return module.__dict__


def _run_call(job: Mapping[str, Any], namespace: Namespace, arguments: list[Any]) -> Mapping[str, Any]:
    name, function, solution = job["entry"], namespace.get(job["entry"]), namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        function = getattr(solution(), name)
    if not callable(function):
        return _raised(f"NameError: no function named {name!r} is defined")
    return _done(function(*arguments), job)


def _run_assertion(job: Mapping[str, Any], namespace: Namespace, test: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Statements are run; of an expression the value is sent, with its truth where the test needs that. Neither is
    compared with anything here."""
    namespace["__builtins__"] = _BUILTINS
    if isinstance(test, str):
        return _run_statements(job, namespace, test)
    value = eval(compile(f"({test['value']}\n)", TEST_FILE, "eval", dont_inherit=True), namespace)
    return _done([value, _truth(value)] if test["truth"] else value, job)


def _truth(value: object) -> bool | None:
    """Whether a value is true; None where a method written in Python, such as the program's own, would decide."""
    methods = (getattr(type(value), name, None) for name in ("__bool__", "__len__"))
    builtin = (type(None), WrapperDescriptorType, MethodDescriptorType)
    return bool(value) if all(isinstance(method, builtin) for method in methods) else None


def _run_statements(job: Mapping[str, Any], namespace: Namespace, source: str) -> Mapping[str, Any]:
    match ast.parse(source, TEST_FILE).body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]), msg=None)]:
            return _run_equation(left, right, source, namespace)
    try:
        _execute(source, TEST_FILE, namespace)
    except AssertionError as error:
        last = deque(traceback.walk_tb(error.__traceback__), maxlen=1)
        if not last or last[0][0].f_code.co_filename != TEST_FILE:
            raise
        message = f"\n{_message(error)}" if error.args else ""
        return {"ending": "failed", "note": _test_statement(error, source) + message}
    except BaseException as error:  # noqa: BLE001 - feedback shows the statement of the test, whatever was raised
        return {**_failure(error, job), "note": _test_statement(error, source)}
    return {"ending": "done"}


def _run_equation(left: ast.expr, right: ast.expr, source: str, namespace: Namespace) -> Mapping[str, Any]:
    """`assert left == right`, each side evaluated once, so that feedback can show the value on the left."""
    got, wanted = [eval(compile(ast.Expression(side), TEST_FILE, "eval"), namespace) for side in (left, right)]
    if got == wanted:
        return {"ending": "done"}
    return {"ending": "failed", "note": f"{source.strip()}\n{ast.unparse(left)} gave {short_repr(got)}"}


def _run_as_main(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """As `python answer.py` would: exit calls end it, threads are waited for, exit handlers run, files are closed."""
    in_threads: list[BaseException] = []

    def keep(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            in_threads.append(args.exc_value)

    threading.excepthook = keep
    if 8 * len(job["code"]) < job["output_bytes"]:  # it counts among the program's files
        with contextlib.suppress(OSError, ValueError), open(ANSWER_FILE, "x", encoding="utf-8") as own:
            own.write(job["code"])  # for programs that read their own text
    namespace = _new_module("__main__")
    with contextlib.suppress(SystemExit):
        _load(job, namespace)
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads, and ends those of executors first
    if in_threads:
        return _failure(in_threads[0], job)
    atexit._run_exitfuncs()
    namespace.clear()  # as the interpreter does at its end: files left open are written out
    gc.collect()
    return {"ending": "done"}


def _stream(descriptor: int, name: str, errors: str) -> io.TextIOWrapper:
    mode = "w" if descriptor else "r"
    buffer = open(descriptor, mode + "b", closefd=False)  # noqa: SIM115 - open as long as the process
    buffer.raw.name = name  # type: ignore[attr-defined]
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, newline="\n", line_buffering=descriptor == 2)
    stream.mode = mode  # type: ignore[misc]
    return stream


def _done(value: object, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"ending": "done", "value": encode(value, job["value_parts"])}
    except TooLargeError as error:
        return _raised(f"OutputLimitExceeded: the value has {error}")


def _raised(error: str) -> dict[str, Any]:
    return {"ending": "raised", "error": error}


def _failure(error: BaseException, job: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        headline = f"OutputLimitExceeded: more than {job['output_bytes']} bytes were written"
    else:
        headline = f"{type(error).__name__}: {_message(error)}".removesuffix(": ")
    return _raised("\n".join([headline, *_answer_frames(error)]))


def _message(error: BaseException) -> str:
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # noqa: BLE001 - a program's __str__ may do anything
        text = "(its message could not be read)"
    text = str(text)
    return text if len(text) <= _MESSAGE_CHARACTERS else text[:_MESSAGE_CHARACTERS] + "…"


def _answer_frames(error: BaseException) -> list[str]:
    frames = deque(
        (
            f"Line {line} in {frame.f_code.co_name}"
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == ANSWER_FILE and frame.f_code.co_name not in _INLINE
        ),
        maxlen=_FRAMES,
    )
    if isinstance(error, SyntaxError) and error.filename == ANSWER_FILE:
        frames.append(f"Line {error.lineno} in <module>")
    return list(frames)


def _test_statement(error: BaseException, source: str) -> str:
    """The innermost statement of the test on the way to the exception."""
    trace = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in trace if frame.f_code.co_filename == TEST_FILE]
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Assert, ast.Expr, ast.Assign))
        and lines
        and node.lineno <= lines[-1] <= (node.end_lineno or 0)
    ]
    return ast.unparse(around[-1]) if around else ""
