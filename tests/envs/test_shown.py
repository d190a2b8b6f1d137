"""What feedback shows: no folder of this machine, and the same text whenever the same program is scored."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

import selfdistill
from sandbox_parts import needs_isolation
from selfdistill.data.rows import row_to_task
from selfdistill.envs.code import CodeEnvironment, CodeOptions
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.wire import Opaque, decode, encode
from selfdistill.envs.shown import show_text, show_value
from selfdistill.types import Completion

LIBRARY = os.path.dirname(os.__file__)
OURS = [LIBRARY, sys.prefix, sys.base_prefix, str(Path(selfdistill.__file__).parent), str(Path.home())]
# What no feedback may hold: every folder above what a program can meet, but for those of every Linux.
ABOVE = {above for folder in OURS for above in (Path(folder), *Path(folder).parents) if len(above.parts) > 2}
HIDDEN = {str(Path.home()), *map(str, ABOVE)} - {"/", "/usr/lib", "/usr/local", "/usr/local/lib"}


@pytest.fixture(scope="module")
def envs():
    """Two workers of different histories: addresses and folders differ."""
    with Sandbox(1) as one, Sandbox(1) as other:
        yield [CodeEnvironment(CodeOptions(time_limit_s=5), sandbox=box) for box in (one, other)]


def feedback(envs, code: str, kind: str = "functional") -> str:
    rows = {
        "functional": {"prompt": "p", "fn_name": "f", "tests": [{"input": [], "output": "?"}]},
        "stdin": {"prompt": "p", "tests": [{"input": "", "output": "?"}]},
        "assert": {"text": "p", "test_list": ["assert f() == '?'"]},
        "statements": {"text": "p", "test_list": ["q = '?'\nassert f() == q"]},
        "equation": {"text": "p", "test_list": ["assert f() == str('?')[:1]"]},
    }
    end = "\nprint(f())" if kind == "stdin" else ""
    answer = Completion("u", f"```python\nimport os, sys\n{code}{end}\n```")
    texts = {env.score(row_to_task(rows[kind]), answer).feedback for env in envs for _ in range(2)}
    assert len(texts) == 1, texts
    (text,) = texts
    assert text
    assert not [folder for folder in HIDDEN if folder in text]
    assert "selfdistill-" not in text
    return text


KINDS = ("functional", "stdin", "assert", "equation", "statements")


@needs_isolation
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [
    "yield", "return object()", "return [{'a': (object(), f)}]", "raise ValueError(object())", "return f.__code__",
    "raise KeyError(os)", "return sys.modules['json']", "return os.getcwd()", "return os.__file__", "return sys.path",
    "return open('nothing')", "return open(os.getcwd() + '/nothing')", "return open(os.__file__ + 'x')",
    "return sys.executable", "return [id(f), hex(id([])), hash(object())]", "raise KeyError(id(f))",
    "return __import__('traceback').format_stack()", "assert False, os.getcwd()",
    "return [os.path.dirname(os.__file__)] * 20", "return 'x' * 230 + os.__file__", "return os.path.realpath('a')",
    "return ' '.join(map(str, __import__('pathlib').Path(os.__file__).parents))", "return sys.orig_argv",
    "return {'a': [{'b', 'c', 'd', 'e'}, {10, 9, 8}]}", "return os.__file__.encode()",
    "raise OSError(2, 'x' * 440 + os.__file__)", "return super", "raise StopIteration(os.getcwd(), object())",
    "return [__import__('threading').Lock(), iter([]), (lambda: 0)]", "return sys.modules['selfdistill']",
    "return str(vars(sys.modules['selfdistill.envs.sandbox.wire']))[:3000]", "return '\\ud800' + os.getcwd()",
    "import nothing.at.all", "return 'file://' + os.__file__", "class A: pass\n    return {A(): [A(), A]}",
])  # fmt: skip
def test_the_same_text_twice_and_no_folder_of_this_machine(envs, kind, body):
    feedback(envs, f"def f():\n    {body}", kind)


@needs_isolation
def test_what_is_compared_is_what_was_printed():
    task = row_to_task({"prompt": "p", "tests": [{"input": "", "output": f"{LIBRARY} at 0x7f00000000"}]})
    answer = Completion("u", "```python\nimport os\nprint(os.path.dirname(os.__file__), 'at 0x7f00000000')\n```")
    assert CodeEnvironment().score(task, answer).reward == 1.0


@pytest.mark.parametrize(("text", "shown"), [
    (f"<module 'json' from '{LIBRARY}/json/__init__.py'>", "<module 'json' from '/python/json/__init__.py'>"),
    (f"{tempfile.gettempdir()}/selfdistill-ab_c/work/tmpx1/a.txt", "/work/a.txt"),
    (f"'{tempfile.gettempdir()}/selfdistill-ab_c/work/tmpx1'", "'/work'"),
    ("<A object at 0x7f12ab>", "<A object at 0x…>"),
    ("1/2 a/b http://x.y/z /etc/passwd /a/b", "1/2 a/b http://x.y/z /etc/passwd /a/b"),
    ("0xff #0x7f at home", "0xff #0x7f at home"),
    ("x" + str(Path(selfdistill.__file__).parent)[:-1] + "…", "x/…/selfdistil…"), (str(Path.home())[:-1] + "…", "/…"),
    ("half \ud800", "half \\ud800"),
])  # fmt: skip
def test_texts(text, shown):
    assert show_text(text) == shown


def test_numbers_in_the_process_s_memory_are_addresses():
    memory = (range(0x7F0000000000, 0x7F0000001000),)
    text = (
        f"{0x7F0000000010} 0x7f0000000010 {0x7F0000000010 // 16} {0x7F0000002000} 1{0x7F0000000010} {0x7F0000000010}.5"
    )
    assert show_text(text, memory) == text.replace(
        f"{0x7F0000000010} 0x7f0000000010 {0x7F0000000010 // 16} ", "<address> " * 3, 1
    )
    assert show_value([0x7F0000000010, 5], memory) == "[<address>, 5]"
    assert show_text(text) == text


@pytest.mark.parametrize("value", [
    None, True, 12, -1.5, "a'b", b"x", [], (), {}, [1, (2,), (3, 4)], {"a": {1: None}}, "ü\n", 1j, [[[]]], {1}, set(),
    frozenset([1]),
])  # fmt: skip
def test_values_are_shown_as_python_shows_them(value):
    assert show_value(value) == show_value(decode(encode(value))) == repr(value)


def test_values_of_any_size_are_shown_in_order_and_cut():
    assert show_value({10, 9, 8, "b", "a", None}) == "{8, 9, 10, 'a', 'b', None}"
    assert show_value({Opaque("<A at 0x7f22>"), Opaque("<A at 0x7f11>")}) == "{<A at 0x…>, <A at 0x…>}"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert show_value(deep) == "[" * 100 + "…" + "]" * 100
    assert show_value([0] * 10**6) == "[" + "0, " * 83 + "…"
    assert show_value("x" * 10**6) == "'" + "x" * 249 + "…"
    assert show_value(10**5000).startswith("<an integer of about 50")
