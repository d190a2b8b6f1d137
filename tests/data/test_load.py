"""`load_data`: every source of rows, the column map, and the errors for data that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import selfdistill as sd
from selfdistill import plugins
from selfdistill.data import sources
from selfdistill.errors import ConfigError, DataError
from selfdistill.types import Message, Task

SHARED = Path(__file__).parents[3] / "shared" / "data"
SUMS = [{"question": "1 + 1?", "solution": "It is #### 2", "level": 1}, {"question": "2 + 2?", "solution": "#### 4"}]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


def final(row: dict[str, Any]) -> str:
    return row["solution"].split("####")[-1].strip()


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_columns_are_mapped_by_name_and_by_function_and_all_are_kept() -> None:
    first, second = sd.load_data(SUMS, prompt="question", answer=final, demonstration="solution")
    assert first.messages == (Message("user", "1 + 1?"),)
    assert (first["answer"], first["solution"], first["level"]) == ("2", "It is #### 2", 1)
    assert (first.id, second.id, second.demonstration) == ("row-1", "row-2", "#### 4")


def test_the_same_rows_from_every_source_are_the_same_tasks(tmp_path: Path) -> None:
    listed = tmp_path / "sums.json"
    listed.write_text(json.dumps(SUMS, indent=2))
    files = (lines(tmp_path / "sums.jsonl", *SUMS), str(listed))
    for source in (*files, SUMS, tuple(SUMS), iter(SUMS), {"train": SUMS, "test": []}):
        tasks = sd.load_data(source, prompt="question", answer=final)
        assert [(task.messages[0].content, task["answer"]) for task in tasks] == [("1 + 1?", "2"), ("2 + 2?", "4")]
        assert [task.id[-1] for task in tasks] == ["1", "2"]


def test_a_prompt_of_messages_an_id_and_keys_within_columns() -> None:
    """The rows of verl: the answer lies within a column, and is found without being named."""
    row = {"prompt": TURNS, "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 7}}
    (task,) = sd.load_data([row])
    assert ([turn.role for turn in task.messages], task["answer"]) == (["system", "user"], "2")
    (task,) = sd.load_data([row], id="extra_info.index", level="extra_info")
    assert (task.id, task["level"], task["answer"]) == ("7", {"index": 7}, "2")


def test_tasks_pass_through_and_rows_of_programming_tasks_are_recognised() -> None:
    own = Task("own", (Message("user", "?"),), {"answer": 1})
    assert sd.load_data([own]) == [own]
    for messages in ("?", [Message("user", "?")], ()):
        with pytest.raises(DataError, match="messages of the task 'own' are no conversation"):
            sd.load_data([replace(own, messages=messages)])  # type: ignore[arg-type]
    code = {"task_id": 7, "prompt": "Square it.", "test_list": ["assert g(2) == 4"]}
    assert sd.load_data([code])[0].spec["kind"] == "assert"
    (plain,) = sd.load_data([code], answer="test_list")
    assert (plain["answer"], plain.messages[0].content) == (["assert g(2) == 4"], "Square it.")


def test_numbers_arrays_and_dates_become_json() -> None:
    row = {
        "prompt": "?",
        "half": np.float32(0.5),
        "whole": np.int64(3),
        "yes": np.bool_(True),
        "grid": np.array([[1, 2], [3, 4]]),
        "mixed": [np.array(["a", None], dtype=object), (1, 2)],
        "day": date(2026, 1, 2),
        "moment": np.datetime64("2026-01-02T03:04:05", "ns"),
        "price": Decimal("2.50"),
    }
    (task,) = sd.load_data([row])
    assert json.loads(json.dumps(task.spec)) == task.spec
    assert (task["half"], task["whole"], task["yes"], task["grid"]) == (0.5, 3, True, [[1, 2], [3, 4]])
    assert (task["mixed"], task["day"], task["price"]) == ([["a", None], [1, 2]], "2026-01-02", "2.50")
    assert task["moment"].startswith("2026-01-02T03:04:05")


class Picture:
    def __repr__(self) -> str:
        return "<picture>"


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"qestion": "?"}, {"prompt": "question"}, "no column 'question'.*columns qestion.*did you mean 'qestion'"),
        ({"text": "?", "a": 1}, {}, r"no column 'prompt'.*columns text, a.*prompt=\"…\", or columns.prompt=…"),
        ({"prompt": "?"}, {"answer": "meta.gold"}, "no column 'meta.gold'"),
        ({"prompt": "?", "meta": {}}, {"answer": "meta.gold"}, "no column 'meta.gold'"),
        ({"prompt": "?"}, {"answer": final}, r"function of the column 'answer' fails.*KeyError: 'solution'.*test_load"),
        ({"prompt": "?"}, {"answer": lambda row: {1}}, "column 'answer'.*type set"),
        ({"prompt": "?", "raw": b"\x89PNG"}, {}, r"column 'raw'.*JSON can hold.*bytes.*raw=None"),
        ({"prompt": "?", "image": Picture()}, {}, "column 'image'.*type Picture: <picture>"),
        ({"prompt": "?", "image": {"bytes": b"\x00"}}, {}, "column 'image'.*bytes"),
        ({"prompt": "?", "score": float("nan")}, {}, "column 'score'.*not a number that JSON has"),
        ({"prompt": "?", "deep": [{"a": "\ud83d"}]}, {}, r"column 'deep'.*surrogate.*at \[0\].a"),
        ({"prompt": "?", 3: "x"}, {}, "expected a row, a mapping by column"),
        ("What is 2 + 2?", {}, "expected a row.*What is 2"),
        ({"prompt": None}, {}, "field 'prompt'"),
        ({"prompt": 12}, {}, "field 'prompt': expected a statement, as text or as a list of messages.*12"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            {},
            r"field 'prompt\[0\].content\[0\]'.*media",
        ),
        ({"prompt": "?", "n": 4}, {"demonstration": "n"}, "field 'demonstration': expected text.*4"),
        ({"prompt": "?", "n": [4]}, {"id": "n"}, "field 'id': expected text or an integer"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_number(row: Any, columns: dict[str, Any], message: str) -> None:
    fine = {"prompt": "?", "question": "?", "solution": "#### 1", "meta": {"gold": 1}, "n": ""}
    place = "row:2" if columns.get("demonstration") or columns.get("id") else "row:1"
    rows = [{**fine, "n": "a"}, row] if place == "row:2" else [row]
    with pytest.raises(DataError, match=f"(?s)^{place}: .*{message}"):
        sd.load_data(rows, **columns)


def test_a_column_that_is_left_out_may_hold_anything(tmp_path: Path) -> None:
    (task,) = sd.load_data([{"prompt": "?", "image": Picture(), "n": 1}], image=None)
    assert dict(task.spec) == {"prompt": "?", "n": 1}
    (task,) = sd.load_data(lines(tmp_path / "a.jsonl", {"prompt": "?", "document": ["x"]}), document=None)
    assert (task.document, dict(task.spec)) == ("", {"prompt": "?"})


def test_ids_that_occur_twice_name_both_rows() -> None:
    with pytest.raises(DataError, match="row:2: field 'id': the id 'a' was used in row:1 already"):
        sd.load_data([{"prompt": "?", "id": "a"}] * 2)


def test_a_generator_is_read_once_and_an_endless_one_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, str]]:
        for number in count():
            read.append(number)
            yield {"prompt": f"{number}?"}

    assert len(sd.load_data(endless(), limit=3)) == 3
    assert read == [0, 1, 2]
    monkeypatch.setattr(sources, "MAX_ROWS", 50)
    with pytest.raises(DataError, match=r"(?s)row: more than 50 rows, of an unknown number.*limit=n"):
        sd.load_data(endless())
    assert len(sd.load_data([{"prompt": "?"}] * 60)) == 60, "a list knows its length"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "no rows"),
        (7, {}, "data should be a path, a hub name or rows.*7"),
        (b"rows", {}, "data should be a path"),
        ("rows", {}, r"cannot be read.*No such file"),
        ("none/rows.jsonl", {}, r"cannot be read.*No such file"),
        ({"train": SUMS}, {"split": "trian"}, "no such split.*trian.*did you mean 'train'"),
        (SUMS, {"limit": 0}, "limit should be the number of rows"),
    ],
)
def test_sources_that_hold_no_rows(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        sd.load_data(source, **options)


def test_a_json_file_that_is_no_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"prompt": "?"},\n  {"prompt" "?"}\n]')
    with pytest.raises(DataError, match=r"(?s)rows.json: not JSON.*line 3, column"):
        sd.load_data(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match=r"(?s)rows.json:1: expected a row"):
        sd.load_data(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"rows.json: no rows"):
        sd.load_data(path)
    assert len(sd.load_data(lines(path, {"prompt": "?"}))) == 1, "lines are read in a .json file too"


class FakeDatasets:
    """Stands for the package `datasets`, which is an extra."""

    exceptions = SimpleNamespace(DatasetsError=RuntimeError)

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def load_dataset(self, path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        self.loaded.append((path, name, split))
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return SUMS


def test_a_hub_name_is_loaded_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets()
    monkeypatch.setattr(plugins, "import_module", lambda name: fake)
    tasks = sd.load_data("openai/gsm8k", name="main", prompt="question", answer=final)
    assert [task.id for task in tasks] == ["gsm8k:train-1", "gsm8k:train-2"]
    assert fake.loaded == [("openai/gsm8k", "main", "train")]
    with pytest.raises(DataError, match=r"(?s)cannot be loaded.*openai/gsm8k, name '', split 'tset'.*one of \['train'"):
        sd.load_data("openai/gsm8k", split="tset")


def test_a_file_of_the_name_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    lines(tmp_path / "openai" / "gsm8k", {"prompt": "mine?"})
    assert sd.load_data("openai/gsm8k")[0].messages[0].content == "mine?"


@pytest.mark.parametrize(("source", "package"), [("openai/gsm8k", "datasets"), ("rows.parquet", "pyarrow")])
def test_a_missing_extra_is_named(source: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(plugins, "import_module", missing)
    with pytest.raises(ConfigError, match=rf"(?s){source} needs the package {package}.*install 'selfdistill.datasets"):
        sd.load_data(source)


def test_parquet_files_and_data_sets_hold_the_same_tasks(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra selfdistill[datasets] is not installed")
    data = datasets.Dataset.from_list([{**row, "tags": ["a"], "level": 1} for row in SUMS])
    path = tmp_path / "sums.parquet"
    data.to_parquet(path)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    data.to_json(tmp_path / "folder" / "train.jsonl")
    splits = datasets.DatasetDict({"train": data})
    for source in (data, splits, path, str(tmp_path / "saved"), tmp_path / "folder", data.to_iterable_dataset()):
        tasks = sd.load_data(source, prompt="question", answer=final)
        assert [(task["answer"], task["tags"], task["level"]) for task in tasks] == [("2", ["a"], 1), ("4", ["a"], 1)]
    pictures = data.add_column("image", ["none.png"] * 2).cast_column("image", datasets.Image())
    assert "image" not in sd.load_data(pictures, prompt="question", image=None)[0].spec, "nor decoded"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"(?s)cannot be read.*sums.parquet"):
        sd.load_data(path)
    with pytest.raises(DataError, match=r"(?s)cannot be read.*none.parquet"):
        sd.load_data(tmp_path / "none.parquet")


def real(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return path


def test_real_rows_of_gsm8k() -> None:
    def number(row: dict[str, Any]) -> str:
        return row["answer"].split("####")[-1].strip().replace(",", "")

    tasks = sd.load_data(real("gsm8k/train_1000.jsonl"), prompt="question", answer=number, demonstration="answer")
    assert (len(tasks), tasks[0]["answer"], tasks[1]["answer"]) == (1000, "72", "10")
    assert all(task["answer"].lstrip("-").replace(".", "").isdigit() for task in tasks)


def test_real_rows_of_the_other_data_sets() -> None:
    questions = sd.load_data(real("sciknoweval/physics_test.jsonl"), answer="answer", id="idx")
    assert {task["answer"] for task in questions} == set("ABCD")
    assert all(task["system"].strip() for task in questions)
    programs = sd.load_data(real("mbpp/mbpp.jsonl"))
    assert (len(programs), programs[0].spec["kind"]) == (974, "assert")
    tools = sd.load_data(real("tooluse/test.jsonl"))
    assert len(tools) == 68
