"""Which part of an answer is the program."""

import time

import pytest

from selfdistill.envs.scoring import extract_code, fenced_blocks


def test_the_longest_block_tagged_python_wins_and_without_one_the_longest():
    answer = "Try\n```\nx = 1\n```\nor better\n```Python3\nx = 1\ny = 2\n```\nor\n```text\nlonger than both\n```\n"
    assert [code for _, code in fenced_blocks(answer)] == ["x = 1", "x = 1\ny = 2", "longer than both"]
    assert [tag for tag, _ in fenced_blocks(answer)] == ["", "python3", "text"]
    assert extract_code(answer) == "x = 1\ny = 2"
    assert extract_code(answer.replace("Python3", "")) == "longer than both"
    for tag in ("py", "python", "PYTHON", " python", "{.python .numberLines}", 'python title="a.py"', "python:a.py"):
        assert extract_code(f"```{tag}\nx\n```\n```\nlonger\n```") == "x", tag
    for tag in ("pycon", "python-repl", "pytb", "text", "c++", "json"):
        assert extract_code(f"```{tag}\nx\n```\n```\nlonger\n```") == "longer", tag


@pytest.mark.parametrize("program", [
    "def f(x):\n    return x", "async def f(x): pass", "class f:\n    pass", "f = lambda x: x", "f: object = print",
    "f=g", "import re\n\n@wraps\ndef  f (x): pass", "class Solution:\n    def g(self): pass\n\n    def f(self): pass",
    "class Solution(object):\n\tasync def f(self): pass",
])  # fmt: skip
def test_the_last_block_that_defines_what_the_task_names(program):
    other = "# a longer program that uses f\ndef ff(x):\n    def f(): pass\n    return f(x) == 3\n\nf == 3\nprint(f(3))"
    answer = f"```python\n# draft\n{program}\n```\n```\n{program}\n```\n```python\n{other}\n```"
    assert extract_code(answer, "f") == program
    assert extract_code(answer, "nowhere") == extract_code(answer) == other


def test_of_equal_blocks_the_first():
    assert extract_code("```\na\n```\n```\nb\n```") == "a"


def test_without_a_closed_block_there_is_none():
    assert extract_code("") is None
    assert extract_code("x = 1") is None
    assert extract_code("```python\nx = 1") is None
    assert extract_code("```python\n\n```") is None
    assert extract_code("Use ```x = 1``` here") is None


def test_a_block_cut_off_does_not_hide_a_whole_one():
    assert extract_code("```\na = 1\n```\nlonger:\n```python\na = 1\nb = 2\nc =") == "a = 1"


def test_a_fence_may_close_at_the_end_of_a_line():
    assert extract_code("```python\nx = 1\ny = 2```") == "x = 1\ny = 2"


def test_longer_fences_hold_shorter_ones():
    assert extract_code("````python\ns = '''\n```\n'''\n````") == "s = '''\n```\n'''"


def test_the_indentation_of_a_fence_is_not_the_program_s():
    assert extract_code("1. so:\n   ```python\n   if x:\n       y\n   ```") == "if x:\n    y"


def test_line_numbers_survive_blank_lines():
    assert extract_code("```python\n\nx = 1\n\ny = 2\n```") == "\nx = 1\n\ny = 2"


def test_windows_line_ends():
    assert extract_code("```python\r\nx = 1\r\n```\r\n") == "x = 1"
    answer = "```python\r\ndef f():\r\n    return 1\r\n```\r\nText\r\n```text\r\nmuch, much longer than it\r\n```\r\n"
    assert extract_code(answer, "f") == extract_code(answer) == "def f():\n    return 1"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\r"])
def test_only_a_line_feed_ends_a_line(mark):
    program = f"s = 'a{mark}b{mark}'\nt = '{mark}```'"
    assert extract_code(f"```python\n{program}\n```") == program


@pytest.mark.parametrize("indent", ["    ", "\t", "  \t", " " * 9])
def test_a_fence_indented_by_four_columns_is_no_fence(indent):
    program = f'def f():\n    """Doubles.\n\n{indent}```\n{indent}f(1)\n{indent}```python\n{indent}```\n    """'
    assert extract_code(f"```python\n{program}\n```") == program
    assert extract_code(f"{indent}```python\n{indent}x\n{indent}```") is None


def test_code_in_backticks_at_the_end_of_a_line_closes_nothing():
    program = 'def f():\n    # as in ```f(1)```\n    return "`"'
    assert extract_code(f"```python\n{program}\n```") == program
    assert extract_code(f"```python\n{program}```") == program


@pytest.mark.parametrize("part", [
    "`", "```", "```\n", "```python\n", "```\nx\n", "``` a", " ", "\t", "\n", "    ```\n", "```\ndef f(\n```\n", "x",
    "``", "class Solution\n", " \n", "f : ", "def ", "async ", "_", "-", "x```\n", "\r", "` ",
])  # fmt: skip
@pytest.mark.parametrize("start", ["", "```python\n", "```\nf"])
def test_extraction_takes_time_linear_in_the_length(part, start):
    began = time.monotonic()
    text = start + part * (100_000 // len(part))
    extract_code(text, "f")
    extract_code(f"{text}\n```", "f")
    assert time.monotonic() - began < 10  # what is not linear takes hours
