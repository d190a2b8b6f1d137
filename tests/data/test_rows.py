"""Rows of the four shapes, and the errors for rows that are none."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from selfdistill.data.load import load_tasks
from selfdistill.data.rows import row_to_task
from selfdistill.errors import DataError

SIMPLE = {"id": "add", "prompt": "Add.", "fn_name": "f", "tests": [{"input": [1, 2], "output": 3}]}
LCB = {
    "question_id": "q1",
    "question_content": "Join the words.",
    "starter_code": "class Solution:\n    def join(self, words: List[str], by: str) -> str:\n",
    "public_test_cases": json.dumps(
        [{"input": '["a b", "c"]\n" - "', "output": '"a b - c"', "testtype": "functional"}]
    ),
    "private_test_cases": json.dumps([{"input": '[]\n""', "output": '""', "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "join"}),
}
MBPP = {"task_id": 7, "text": "Square it.", "code": "def g(x):\r\n  return x * x", "test_list": ["assert g(2) == 4"]}


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_simple_rows():
    task = row_to_task(
        {**SIMPLE, "solution": "def f(a, b): return a + b", "time_limit": 2, "private_tests": SIMPLE["tests"]}
    )
    assert task.id == "add"
    assert task.spec == {
        "kind": "functional", "fn_name": "f", "time_limit": 2.0,
        "public": [{"input": [1, 2], "output": 3}], "private": [{"input": [1, 2], "output": 3}],
    }  # fmt: skip
    assert task.demonstration == "```python\ndef f(a, b): return a + b\n```"
    (message,) = task.messages
    assert message.content.startswith("Add.\n\nWrite a Python function named `f`.")
    assert "one fenced block" in message.content


def test_simple_rows_without_a_function_are_whole_programs():
    task = row_to_task({"prompt": "Add.", "tests": [{"input": "1 2", "output": "3"}]}, line=4)
    assert (task.id, task.spec["kind"]) == ("line-4", "stdin")
    assert "standard input" in task.messages[0].content


def test_livecodebench_functional():
    task = row_to_task(LCB)
    assert task.spec["public"] == [{"input": [["a b", "c"], " - "], "output": "a b - c"}]
    assert task.spec["private"] == [{"input": [[], ""], "output": ""}]
    assert (task.id, task.spec["kind"], task.spec["fn_name"]) == ("q1", "functional", "join")
    assert "def join(self, words" in task.messages[0].content


def test_livecodebench_packed_private_tests_and_lists():
    tests = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    row = {
        "question_content": "Add one.",
        "public_test_cases": tests,
        "private_test_cases": packed(json.dumps(tests * 3)),
    }
    task = row_to_task(row)
    assert task.spec["kind"] == "stdin"
    assert [len(task.spec[split]) for split in ("public", "private")] == [1, 3]


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(DataError, match=r"private_test_cases.*\n.*only text is allowed"):
        row_to_task({**LCB, "private_test_cases": packed(Bomb())})
    assert not (tmp_path / "made").exists()
    with pytest.raises(DataError, match="private_test_cases"):
        row_to_task({**LCB, "private_test_cases": packed([1])})
    with pytest.raises(DataError, match="private_test_cases"):
        row_to_task({**LCB, "private_test_cases": "not base64!"})


def test_mbpp():
    task = row_to_task({**MBPP, "test_imports": ["import math"], "test_setup_code": "y = 1"})
    assert task.spec == {"kind": "assert", "public": ["assert g(2) == 4"], "private": [], "setup": "import math\ny = 1"}
    assert task.id == "7"
    assert "assert g(2) == 4" in task.messages[0].content
    assert "return x * x" in task.demonstration
    assert "x * x" not in task.messages[0].content
    assert (
        row_to_task({**{k: v for k, v in MBPP.items() if k != "text"}, "prompt": "P"})
        .messages[0]
        .content.startswith("P")
    )


def test_humaneval():
    row = {"task_id": "H/0", "prompt": "import math\n\ndef f(x):\n    '''Root.'''\n", "entry_point": "f",
           "canonical_solution": "    return math.sqrt(x)\n",
           "test": "def check(c):\n    assert c(4) == 2\n"}  # fmt: skip
    task = row_to_task(row)
    assert task.spec["public"] == ["def check(c):\n    assert c(4) == 2\n\n\ncheck(f)"]
    assert task.spec["prelude"] == "from typing import *; " + row["prompt"]
    assert task.demonstration.endswith("    return math.sqrt(x)\n```")
    assert "def f(x):" in task.messages[0].content
    bare = row_to_task({**row, "prompt": "def f(x):\n    # root\n"})
    compile(bare.spec["prelude"], "prelude", "exec")


@pytest.mark.parametrize(("row", "message"), [
    ({**SIMPLE, "tests": [{"input": 1, "output": 2}]}, r"tests\[0\].*list of arguments"),
    ({**SIMPLE, "tests": "x"}, "'tests'.*a list"),
    ({**SIMPLE, "tests": [{"input": [1]}]}, r"tests\[0\]"),
    ({**SIMPLE, "fn_name": "", "tests": [{"input": [1], "output": 2}]}, r"tests\[0\].*texts"),
    ({**SIMPLE, "time_limit": -1}, "time_limit.*above 0"),
    ({**SIMPLE, "time_limit": "6"}, "time_limit.*above 0"),
    ({**SIMPLE, "prompt": "  "}, "prompt.*statement"),
    ({**SIMPLE, "prompt": 3}, "prompt.*text"),
    ({**SIMPLE, "id": [1]}, "'id'"),
    ({**SIMPLE, "tests": []}, "task 'add' has no tests"),
    ({**MBPP, "test_list": []}, "task '7' has no tests"),
    ({**MBPP, "test_list": [3]}, r"test_list\[0\].*assert"),
    ({**MBPP, "test_list": ["assert g(2) == 4", " "]}, r"test_list\[1\].*assert"),
    ({**LCB, "metadata": "{}"}, "metadata.*func_name"),
    ({**LCB, "metadata": "{"}, "metadata.*JSON"),
    ({**LCB, "public_test_cases": [{"input": "a b", "output": "1", "testtype": "functional"}]}, r"_cases\[0\].*a line"),
    ({**LCB, "public_test_cases": [{"input": "1", "output": "1", "testtype": "stdin"}]}, "testtype.*the same"),
    ({**LCB, "public_test_cases": [1]}, "public_test_cases.*a list of objects"),
    ({"prompt": "p", "test": "t"}, "nearest is HumanEval, which lacks entry_point"),
    ({"question_content": "p"}, "nearest is LiveCodeBench, which lacks public_test_cases or private_test_cases"),
    ({"question": "p"}, "no shape that is known"),
])  # fmt: skip
def test_malformed_rows_are_named(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", {**SIMPLE, "id": "fine"}, "", row)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        load_tasks(path)
    assert f"{path}:3: " in str(caught.value)


def test_files_that_hold_no_tasks(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*none.jsonl: No such file"):
        load_tasks(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        load_tasks(write(tmp_path / "empty.jsonl", "", "  "))
    with pytest.raises(DataError, match=r"bad.jsonl:2: not JSON"):
        load_tasks(write(tmp_path / "bad.jsonl", SIMPLE, "{"))
    with pytest.raises(DataError, match=r"list.jsonl:1: expected a JSON object"):
        load_tasks(write(tmp_path / "list.jsonl", [1]))


def test_an_id_used_twice_names_both_lines(tmp_path):
    with pytest.raises(DataError, match=r":3: field 'id': the id 'add' was used in .*:1"):
        load_tasks(write(tmp_path / "twice.jsonl", SIMPLE, {**SIMPLE, "id": "b"}, SIMPLE))


def test_rows_keep_their_order_and_separators_within_text(tmp_path):
    row = json.dumps({**SIMPLE, "prompt": "a\u2028b"}, ensure_ascii=False)
    tasks = load_tasks(write(tmp_path / "rows.jsonl", row, {**SIMPLE, "id": 2}, {**MBPP, "task_id": 1}))
    assert [task.id for task in tasks] == ["add", "2", "1"]
    assert "a\u2028b" in tasks[0].messages[0].content


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Think."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Add."},
]
HUMANEVAL = {
    "task_id": "H/0",
    "prompt": "def f(x):\n    '''Root.'''\n",
    "entry_point": "f",
    "test": "def check(c):\n    assert c(4) == 2\n",
}


@pytest.mark.parametrize(
    ("row", "field"),
    [(SIMPLE, "prompt"), (LCB, "question_content"), (MBPP, "text"), (HUMANEVAL, "prompt")],
    ids=["simple", "LiveCodeBench", "MBPP", "HumanEval"],
)
def test_a_prompt_of_messages_reads_like_its_text_in_the_last_turn(row, field):
    plain = row_to_task(row)
    turns = [*TURNS[:3], {"role": "user", "content": row[field]}]
    task = row_to_task({**row, field: turns})
    assert [message.role for message in task.messages] == ["system", "user", "assistant", "user"]
    assert task.messages[-1] == plain.messages[0]
    assert [message.content for message in task.messages[:3]] == ["Be brief.", "Think.", "Yes?"]
    assert (task.spec, task.demonstration) == (plain.spec, plain.demonstration)


@pytest.mark.parametrize(("row", "message"), [
    ({**SIMPLE, "fn_name": "a.b"}, "'fn_name'.*one identifier.*'a.b'"),
    ({**SIMPLE, "fn_name": "class"}, "'fn_name'.*no keyword.*'class'"),
    ({**SIMPLE, "fn_name": "f x"}, "'fn_name'"),
    ({**LCB, "metadata": '{"func_name": "1x"}'}, "'metadata.func_name'"),
    ({**LCB, "metadata": '{"func_name": NaN}'}, "'metadata'.*not a number that JSON has"),
    ({**HUMANEVAL, "entry_point": "lambda"}, "'entry_point'"),
    ({**HUMANEVAL, "test": "assert f(4) == 2"}, r"'test'.*check\(candidate\)"),
    ({**HUMANEVAL, "test": "def check(c):\nassert c(4)"}, "'test'.*compiles.*line 2"),
    ({**HUMANEVAL, "test": "import numpy as np\ndef check(c): pass"}, "'test'.*standard library.*line 1.*numpy.*leave"),
    ({**HUMANEVAL, "test": "def check(c):\n  from scipy.stats import mode"}, r"line 2: the module scipy\.stats"),
    ({**HUMANEVAL, "prompt": "import torch\ndef f(x):\n"}, "'prompt'.*torch"),
    ({**HUMANEVAL, "prompt": "def f(x\0):\n"}, "'prompt'.*beginning of a Python program"),
    ({**MBPP, "test_list": ["assert g(2) == 4", "assert g(2 == 4"]}, r"'test_list\[1\]'.*compiles.*never closed"),
    ({**MBPP, "test_list": ["return 1"]}, r"'test_list\[0\]'.*outside function"),
    ({**MBPP, "test_list": ["assert g('\0')"]}, r"'test_list\[0\]'.*null"),
    ({**MBPP, "test_setup_code": "x ="}, "'test_setup_code'.*compiles"),
    ({**MBPP, "test_imports": ["import pandas"]}, "'test_imports'.*pandas"),
    ({**SIMPLE, "time_limit": 1e9}, "time_limit.*at most 3600"),
    ({**SIMPLE, "id": True}, "'id'.*text or an integer"),
    ({**SIMPLE, "id": " "}, "'id'.*text or an integer"),
    ({**SIMPLE, "prompt": []}, "'prompt'.*list of messages"),
    ({**SIMPLE, "prompt": TURNS[:3]}, r"'prompt\[2\].role'.*ends with a user turn.*'assistant'.*why.*not continued"),
    ({**SIMPLE, "prompt": TURNS[:1]}, r"'prompt\[0\].role'.*ends with a user turn"),
    ({**SIMPLE, "prompt": [{"role": "developer", "content": "a"}]}, r"'prompt\[0\].role'.*'developer'.*\"system\""),
    ({**SIMPLE, "prompt": [{"role": "tool", "content": "a"}, TURNS[3]]}, r"'prompt\[0\].role'.*'tool'"),
    ({**SIMPLE, "prompt": [{"role": ["user"], "content": "a"}]}, r"'prompt\[0\].role'"),
    ({**SIMPLE, "prompt": [{"role": "user", "content": " "}]}, r"'prompt\[0\].content'.*blank"),
    ({**SIMPLE, "prompt": [{"role": "user", "content": None}]}, r"'prompt\[0\].content'.*None"),
    ({**SIMPLE, "prompt": [{**TURNS[3], "content": [{"type": "image_url"}]}]}, r"'prompt\[0\].content\[0\]'.*media"),
    ({**SIMPLE, "prompt": [{**TURNS[2], "tool_calls": [{}]}, TURNS[3]]}, r"'prompt\[0\].tool_calls'"),
])  # fmt: skip
def test_rows_that_no_answer_could_satisfy_are_refused_with_their_field(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", {**SIMPLE, "id": "fine"}, row)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        load_tasks(path)
    assert f"{path}:2: " in str(caught.value)


def test_what_a_test_may_import():
    """The standard library, and whatever a `try` replaces."""
    body = "def check(c):\n    assert c(4) == 2\n"
    tried = "try:\n    import numpy\nexcept (ImportError, OSError):\n    numpy = None\n"
    for imports in ("import collections.abc, math\n", "from __future__ import annotations\n", tried):
        row_to_task({**HUMANEVAL, "test": imports + body})
    with pytest.raises(DataError, match=r"numpy\.linalg"):
        row_to_task({**HUMANEVAL, "test": "import numpy.linalg\n" + body})
    with pytest.raises(DataError, match=r"numpy\.linalg"):
        row_to_task({**HUMANEVAL, "test": "try:\n    import numpy.linalg\nexcept ValueError:\n    pass\n" + body})


def test_parts_of_text_are_joined_and_what_names_the_speaker_is_passed_over():
    parts = [{"type": "text", "text": "Add "}, {"type": "text", "text": "both."}]
    task = row_to_task({**SIMPLE, "prompt": [{"role": "user", "content": parts, "name": "Ann", "tool_calls": None}]})
    assert task.messages[0].content.startswith("Add both.\n\n")


def test_long_files_are_read_without_compiling_their_tests(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", MBPP, {**MBPP, "task_id": 8, "test_list": ["assert g("]})
    monkeypatch.setattr("selfdistill.data.lines.CHECKED_ROWS", 1)
    assert [task.id for task in load_tasks(path)] == ["7", "8"]
    monkeypatch.setattr("selfdistill.data.lines.CHECKED_ROWS", 2)
    with pytest.raises(DataError, match=r":2: MBPP row: field 'test_list\[0\]'"):
        load_tasks(path)


def test_json_within_json_is_held_to_the_same_rules():
    half = '[{"input": "\\"\\\\ud83d\\"", "output": "1", "testtype": "functional"}]'
    with pytest.raises(DataError, match=r"private_test_cases\[0\][\s\S]*surrogate"):
        row_to_task({**LCB, "private_test_cases": packed(half)})
    with pytest.raises(DataError, match=r"private_test_cases[\s\S]*surrogate pair"):
        row_to_task({**LCB, "private_test_cases": '[{"input": "\\ud83d", "output": "1", "testtype": "functional"}]'})
