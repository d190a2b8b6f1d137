"""The benchmarks of evidence: their sums by hand, what is not done again, and that every command is there."""

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import arms, credit_picture, feedback_kinds, feedback_prompts, logged, mbpp, skills
from benchmarks.live_user import PREFERENCES
from selfdistill.runs.stats import Estimate
from selfdistill.types import Completion, Outcome, Rollout, RolloutGroup, Task

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evidence.sh"


def stage(chemistry: list[float], tools: list[float], kept: list[float]) -> dict[str, dict[str, list[float]]]:
    sets = {"chemistry": chemistry, "tools": tools, "gsm8k": kept, "mbpp": kept}
    return {name: {f"{name} {n}": [value] for n, value in enumerate(values)} for name, values in sets.items()}


def test_the_sums_of_a_matrix() -> None:
    start = stage([0, 0, 0, 1], [0, 0], [1, 1])
    first = stage([1, 1, 0, 1], [0, 1], [1, 1])
    second = stage([1, 0, 0, 1], [1, 1], [1, 0])
    seeds: list[skills.Matrix] = [{"start": start, "chemistry": first, "tools": second}]
    assert skills.plasticity(seeds).value == pytest.approx((2 / 4 + 1 / 2) / 2)  # chemistry .25 → .75, tools .5 → 1
    assert skills.stability(seeds).value == pytest.approx(-1 / 4)  # chemistry .75 → .5
    assert skills.kept(seeds).value == pytest.approx(-1 / 2)
    text = skills.report({"sft": seeds})
    assert "| sft | 1 | +.50 [" in text
    assert "| sft | tools | .50 [" in text


def test_an_average_has_the_interval_of_its_parts() -> None:
    found = skills.averaged([Estimate(0.2, 4, -0.1, 0.6), Estimate(0.4, 4, 0.0, 0.7)])
    assert (found.value, found.n) == (pytest.approx(0.3), 8)
    assert (found.low, found.high) == (pytest.approx(0.3 - 0.25), pytest.approx(0.3 + 0.25))


def test_seeds_of_a_task_are_one_unit() -> None:
    before, after = {"a": [0.0], "b": [1.0]}, [{"a": [1.0], "b": [1.0]}, {"a": [0.0], "b": [1.0]}]
    found = arms.change(after, [before, before])
    assert (found.value, found.n) == (0.25, 2)
    assert arms.pooled(after) == {"a": [1.0, 0.0], "b": [1.0, 1.0]}
    assert arms.shown(Estimate(-0.25, 2, -1.0, 0.05), sign=True) == "−.25 [−1.00, +.05]"


def test_only_a_conversation_of_one_turn_is_right_at_once() -> None:
    rows: Any = [SimpleNamespace(task="a", reward=1.0, turns=turns) for turns in ((), (1,), (1, 2))]
    assert arms.right(rows) == {"a": [1.0, 1.0, 1.0]}
    assert arms.right(rows, first_turn=True) == {"a": [1.0, 1.0, 0.0]}


def test_a_finished_run_is_read_and_a_begun_one_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    finished = SimpleNamespace(summary=SimpleNamespace(steps=4))
    monkeypatch.setattr(arms.sd, "read_run", lambda path: finished)
    monkeypatch.setattr(arms.sd, "train", lambda **settings: calls.append(settings))
    path = tmp_path / "run"
    arms.train_to(path, 4, {"seed": 1})
    path.mkdir()
    (path / "config.json").touch()
    assert arms.train_to(path, 4, {"seed": 1}) is finished
    arms.train_to(path, 8, {"seed": 1})
    assert [(call.get("resume"), call.get("seed"), call["steps"]) for call in calls] == [
        (None, 1, 4),
        (path, None, 8),
    ]


def test_mbpp_trains_on_no_solution_and_measures_other_tasks(tmp_path: Path) -> None:
    rows = [
        {"task_id": n, "text": "f", "test_list": ["assert f"], "code": "x"} for n in (5, 11, 12, 510, 600, 601, 974)
    ]
    data = arms.write_rows(tmp_path / "mbpp.jsonl", rows)
    chosen = argparse.Namespace(tiny=False, data=data, out=tmp_path, held_out=2)
    train, held_out = map(arms.read_rows, mbpp.data_files(chosen))
    assert [row["task_id"] for row in train] == [601, 974]
    assert not any("code" in row for row in train)
    assert len(held_out) == 2
    assert {row["task_id"] for row in held_out} < {11, 12, 510}


def test_the_table_of_mbpp_pairs_methods_and_stages() -> None:
    def row(completions: int, *right: float) -> dict[str, Any]:
        return {"completions": completions, "seconds": 1.0, "right": {str(n): [value] for n, value in enumerate(right)}}

    found = {"sdpo": [[row(0, 0, 0), row(8, 1, 1)]], "grpo": [[row(0, 0, 0), row(8, 1, 0)]]}
    text = mbpp.report(argparse.Namespace(turns=1), found, [])
    assert "| sdpo | 1 | 8 | 1 | 1.00 [" in text
    assert "sdpo − grpo at the end, held-out accuracy: +.50 [" in text


def test_a_log_has_both_kinds_of_next_turn_and_ends_with_the_user() -> None:
    rows = logged.conversations(60, seed=0)
    said = [row["messages"][-1]["content"] for row in rows]
    complaints = {text for wish in logged.WISHES for text in PREFERENCES[wish].replies}
    assert 15 < sum(text in complaints for text in said) < 45
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"] for row in rows)
    assert rows == logged.conversations(60, seed=0) != logged.conversations(60, seed=1)
    liked = logged.USER.score(Task("a", (), {"wish": "lower-case"}), Completion("a", "all of it"))
    assert liked.reward == 1.0
    assert liked.reply not in complaints


def test_a_share_is_clustered_by_the_tasks_of_each_seed() -> None:
    seeds = [[("a", 1.0, 0.0), ("a", 1.0, 1.0)], [("a", 0.0, 0.0)]]
    found = feedback_kinds.shares(seeds, 1)
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert feedback_kinds.shares([[]], 1) is None


def test_prompts_are_compared_on_the_first_failed_attempt_at_each_task() -> None:
    def attempt(uid: str, reward: float, feedback: str = "wrong") -> Rollout:
        return Rollout(Task(uid[0], ()), (), Completion(uid, ""), Outcome(reward, feedback))

    groups = [
        RolloutGroup(Task(name, ()), tuple(own))
        for name, own in (
            ("a", [attempt("a0", 1.0), attempt("a1", 0.0), attempt("a2", 0.0)]),
            ("b", [attempt("b0", 1.0), attempt("b1", 0.0, "")]),
        )
    ]
    assert [one.completion.uid for one in feedback_prompts.failures(groups)] == ["a1"]
    rest: Any = {"cut": [[1, 0], [0, 0]], "repeats": [[0, 0], [0, 0]], "tokens": [[4, 6], [5, 5]]}
    found = {feedback_prompts.BARE: {"right": [[0, 0], [1, 0]], **rest}, "other": {"right": [[1, 1], [1, 0]], **rest}}
    text = feedback_prompts.report(found)
    assert "| no context | .25 [" in text
    assert "| other | .75 [" in text
    assert "| +.50 [" in text
    assert text.count("| 0.25 | 0.00 | 5 |") == 2


def test_blame_is_that_of_the_tokens_of_plus_one() -> None:
    texts = ["range(1, n", " +", " ", "1", "))"]
    assert credit_picture.blamed(texts, [-2.0, -1.0, 0.0, -0.5, 3.0]) == (-1.5, 1)
    assert credit_picture.right("```python\nreturn list(range(1, n))\n```")
    assert not credit_picture.right("```python\nreturn list(range(1, n + 1))\n```")


def test_the_script_is_bash_and_names_commands_that_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    refused = subprocess.run([str(SCRIPT), "--model", "nowhere"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--model and --data should be folders, got 'nowhere'" in refused.stderr
    modules = re.findall(r"^experiment \w+ (benchmarks\.\w+)", SCRIPT.read_text("utf-8"), re.MULTILINE)
    assert len(modules) >= 6
    for name in set(modules):
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(name).main()
        assert ended.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_results_are_json_and_a_table(tmp_path: Path) -> None:
    arms.save(tmp_path, "results", {"a": 1}, arms.table(["x", "y"], [["1", "2"]]))
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}
    assert (tmp_path / "results.md").read_text() == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"
