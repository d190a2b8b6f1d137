"""Files as users write them: byte order marks, line ends, and what is no text or no JSON."""

import gzip
import json
from pathlib import Path

import pytest

from selfdistill.config import load_config
from selfdistill.data.load import load_tasks, question_rows
from selfdistill.errors import ConfigError, DataError
from selfdistill.files import MAX_DEPTH, decode_json, json_object, numbered_lines, read_text

ROW = {"id": "a", "prompt": "Double.", "fn_name": "f", "tests": [{"input": [1], "output": 2}]}
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("read", [load_tasks, question_rows])
def test_a_byte_order_mark_and_the_line_ends_of_other_systems_are_read(tmp_path: Path, read) -> None:
    rows = [json.dumps({**ROW, "id": name, "prompt": "a\u2028b\x85c"}, ensure_ascii=False) for name in "ab"]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(BOM + "\r\n".join(rows).encode() + b"\r\n\r\n")
    tasks = read(file)
    assert [task.id for task in tasks] == ["a", "b"]
    assert all(task.messages[0].content.startswith("a\u2028b\x85c") for task in tasks)


def test_settings_are_read_behind_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(BOM + b"steps = 3\r\n[optimiser]\r\nlr = 1e-3\r\n")
    config = load_config(file)
    assert (config.steps, config.optimiser.lr) == (3, 1e-3)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 2000, "a = " + "9" * 5000, "a =", "\\"], ids=["deep", "digits", "cut", "word"]
)
def test_what_is_no_toml_is_a_setting_to_correct(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"not TOML[\s\S]*run.toml"):
        load_config(tmp_path / "run.toml")
    with pytest.raises(ConfigError):
        load_config(None, [f"steps={text}"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"{}"), "compressed by gzip"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b'{}\n\n{"a": "\xe9"}\n', ":3: the byte 0xe9"),
        (b"", "has no rows"),
        (b" \n\r\n", "has no rows"),
        (BOM, "has no rows"),
    ],
    ids=["gzip", "utf-16", "latin-1", "empty", "blank", "bom"],
)
def test_files_without_lines_of_text(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=f"rows.jsonl.*{says}"):
        numbered_lines(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("name", "says"), [("", "Is a directory"), ("none", "No such file"), ("a\0b", "null")])
def test_names_that_are_no_files(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"the note cannot be read\n.*{says}.*\n.*look"):
        read_text(f"{tmp_path}/{name}", what="the note", do="look again", kind=ConfigError)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (r'"\ud83d"', r"field 'tests\[0\].output': half of a surrogate pair\n  got  '\\ud83d'"),
        (r'{"\udc00": 1}', r"field 'tests\[0\].output.\\\\udc00': half of a surrogate pair"),
        ("[1, NaN]", r"field 'tests\[0\].output\[1\]': not a number that JSON has\n  got  nan"),
        ("-Infinity", "not a number that JSON has\n  got  -inf"),
        ("1e999", "not a number that JSON has\n  got  inf"),
        ("9" * 400 + ".0", "not a number that JSON has\n  got  inf"),
        ("9" * 5000, "a number is too long"),
        ('{"a": 1, "b": 2, "a": 3}', "field 'a': a key occurs twice"),
        (nested(MAX_DEPTH + 1), "nested too deeply"),
        (nested(100_000), "nested too deeply"),
        ("[1,]", "not JSON\n  got  .*column"),
        ("'a'", "not JSON"),
    ],
    ids=range(12),
)
def test_values_that_nothing_can_use_are_named(value: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        json_object(f'{{"tests": [{{"output": {value}}}]}}', "rows.jsonl:7")
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert len(str(caught.value)) < 1000


def test_values_that_only_look_like_those_are_read() -> None:
    for value in ("\U0001f600", "NaN", "-Infinity", "1e999", "9" * 4000, 10**400, [[]] * 300, {"a": [{"a": 1}]}):
        assert decode_json(json.dumps(value)) == value
    assert len(decode_json(nested(MAX_DEPTH))) == 1
