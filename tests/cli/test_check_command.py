"""`selfdistill check` as it is typed, and every other command on data that cannot be used."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app

ADD = {"id": "add", "prompt": "Add.", "fn_name": "add", "tests": [{"input": [1, 2], "output": 3}]}
RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
runner = CliRunner()


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_file_that_is_well(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines({**ADD, "solution": "def add(a, b): return a + b"}))
    result = runner.invoke(app, ["check", "--data", str(tmp_path / "rows.jsonl"), "--model", "sapling"])
    assert result.exit_code == 0, result.output
    assert "rows.jsonl: 1 of 1 rows can be used\nreference solutions: 1 of 1 pass all tests" in result.stdout
    assert "prompts: the longest has " in result.stdout
    assert "  Wrong answer.\n" not in result.stderr
    assert "→ Wrong answer." in result.stdout
    assert "problems: none" in result.stdout


def test_problems_are_exit_code_1_and_no_usable_row_is_2(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(ADD, {**ADD, "id": "x", "fn_name": "a.b"}, {"prompt": "?"}))
    result = runner.invoke(app, ["check", "--data", str(file)])
    assert result.exit_code == 1
    assert f"  {file}:2: simple row: field 'fn_name'" in result.stdout
    assert f"  {file}:3: the row has no shape that is known" in result.stdout
    file.write_bytes(lines({**ADD, "fn_name": "a.b"}))
    assert runner.invoke(app, ["check", "--data", str(file)]).exit_code == 2


def test_scores_are_one_line_of_json_for_each_answer_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(ADD, {"prompt": "?"}))
    answers = [{"id": "add", "answer": RIGHT}, {"id": "none", "answer": RIGHT}, {"id": "add", "answer": "a\u2028b"}]
    (tmp_path / "answers.jsonl").write_bytes(lines(*answers))
    command = ["check", "--data", str(tmp_path / "rows.jsonl"), "--answers", str(tmp_path / "answers.jsonl")]
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    scores = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    assert scores[0] == {"id": "add", "reward": 1.0, "feedback": "", "failure": "none"}
    assert [(score["id"], score["reward"], score["failure"]) for score in scores[1:]] == [
        ("none", None, "unknown_id"), ("add", 0.0, "missing"),
    ]  # fmt: skip
    assert "rows.jsonl:2: the row has no shape" in result.stderr
    assert "no row that can be used has the id 'none'" in result.stderr
    (tmp_path / "rows.jsonl").write_bytes(lines(ADD))
    (tmp_path / "answers.jsonl").write_bytes(lines(answers[2]))
    assert runner.invoke(app, command).exit_code == 0, "a wrong answer is a result, not a problem"


def test_an_own_function_with_tasks_of_its_own_is_checked(tmp_path: Path) -> None:
    env = Path(__file__).parents[2] / "examples" / "my_env.py"
    (tmp_path / "answers.jsonl").write_bytes(lines({"id": "11", "answer": "22"}))
    result = runner.invoke(app, ["check", "--env", f"{env}:env", "--answers", str(tmp_path / "answers.jsonl")])
    assert (result.exit_code, json.loads(result.stdout)["reward"]) == (0, 1.0)
    result = runner.invoke(app, ["check", "--env", f"{env}:env"])
    assert result.exit_code == 0
    assert "32 of 32 rows can be used" in result.stdout


class Grader(BaseHTTPRequestHandler):
    """A judge for which every answer with a z is right."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][1]["content"]
        graded = json.dumps({"score": float("z" in asked.partition("<answer to grade")[2]), "feedback": "Why?"})
        reply = json.dumps({"choices": [{"message": {"content": graded}}], "usage": {"prompt_tokens": 7}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_is_compared_with_the_environment_on_given_answers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    env = Path(__file__).parents[2] / "examples" / "my_env.py"
    answers = [{"id": "11", "answer": text} for text in ("22", "22 z", "z", "c")]
    (tmp_path / "answers.jsonl").write_bytes(lines(*answers))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grader)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    own = [f"judge.url=http://127.0.0.1:{server.server_port}/v1", "judge.model=grader"]
    command = ["check", "--env", f"{env}:env", "--answers", str(tmp_path / "answers.jsonl"), "--judge", "Right."]
    result = runner.invoke(app, [*command, *own])
    server.shutdown()
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    rewards = [score["reward"] for score in found]
    assert found[0] == {"id": "11", "reward": 1.0, "judge": 0.0, "feedback": "Why?"}
    assert [score["judge"] for score in found] == [0.0, 1.0, 1.0, 0.0]
    assert f"equal decisions {sum(a == b for a, b in zip(rewards, (0, 1, 1, 0), strict=True)) / 4:.3f}" in result.stderr
    assert "cost of the judge: 4 calls, 28 tokens read, 0 written" in result.stderr
    for arguments, message in (
        (["check", "--env", f"{env}:env", "--judge", "Right."], "a judge is compared on answers"),
        ([*command[:-2], "judge.model=policy"], "these are settings of a judge"),
        ([*command, "judge.modl=x"], "did you mean 'model'"),
        ([*command, own[0]], "does not read url"),
        ([*command, "judge.url=http://127.0.0.1:9/v1", own[1], "judge.tries=1"], "no answer has the decisions of both"),
    ):
        result = runner.invoke(app, arguments, env={"COLUMNS": "200"})
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_of_a_log_it_counts_what_is_left_out(tmp_path: Path) -> None:
    texts = ["write a note", "hey!", "rewrite this formally", "Dear all.", "what is 27*4?"]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    (tmp_path / "log.jsonl").write_bytes(lines({"messages": turns}, {"messages": turns[:2]}))
    command = ["check", "--data", str(tmp_path / "log.jsonl")]
    result = runner.invoke(app, [*command, "--env", "chats", "env.min_reply_characters=15"])
    assert result.exit_code == 0, result.output
    counts = "1 answers with the user's next turn; left out: 1 (no next turn of the user), 1 (too short or too long)"
    assert f"log.jsonl: {counts}" in result.stdout
    assert "feedback on" not in result.stdout
    assert "for a log of conversations: --env chats" in runner.invoke(app, command).stdout


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    slow = [{**ADD, "id": str(n), "prompt": f"{n}", "solution": "while True: pass"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_bytes(lines(*slow))
    command = [sys.executable, "-m", "selfdistill", "check", "--data", str(tmp_path / "rows.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        tasks = Path(f"/proc/{process.pid}/task")
        while not any(file.read_text() for file in tasks.glob("*/children")):  # the sandbox has not started yet
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped." in err
    assert "Traceback" not in err
    assert out == ""


BAD = {
    "missing": (None, "No such file"),
    "folder": (..., "Is a directory"),
    "gzip": (gzip.compress(lines(ADD)), "compressed by gzip"),
    "utf-16": ("{}".encode("utf-16"), "UTF-16"),
    "latin-1": (lines(ADD) + '{"id": "é"}'.encode("latin-1"), "rows.jsonl:2: the byte 0xe9"),
    "empty": (b"", "has no rows"),
    "blank": (b"\n \n", "has no rows"),
    "cut": (lines(ADD)[:-9], "rows.jsonl:1: not JSON"),
    "array": (b"[\n" + lines(ADD) + b"]\n", "rows.jsonl:1: not JSON"),
    "list": (b"[1]\n", "rows.jsonl:1: expected a JSON object"),
    "nan": (b'{"prompt": NaN}', "rows.jsonl:1: field 'prompt': not a number"),
    "digits": (b'{"prompt": ' + b"9" * 5000 + b"}", "rows.jsonl:1: a number is too long"),
    "deep": (b'{"prompt": ' + b"[" * 9000, "rows.jsonl:1: nested too deeply"),
    "twice": (b'{"prompt": "a", "prompt": "b"}', "rows.jsonl:1: field 'prompt': a key occurs twice"),
    "half": (b'{"prompt": "\\ud83d"}', "rows.jsonl:1: field 'prompt': half of a surrogate pair"),
    "half-id": (lines({**ADD, "id": "\udc00"}), "rows.jsonl:1: field 'id': half of a surrogate pair"),
    "half-test": (lines({**ADD, "tests": [{"input": ["\ud83d"], "output": 1}]}), "field 'tests[0].input[0]': half"),
    "shape": (lines({"question": "?"}), "rows.jsonl:1: the row has no shape"),
    "name": (lines({**ADD, "fn_name": "not"}), "rows.jsonl:1: simple row: field 'fn_name'"),
    "same": (lines(ADD, ADD), "rows.jsonl:2: field 'id': the id 'add' was used in "),
    "ends": (lines({**ADD, "prompt": [{"role": "assistant", "content": "a"}]}), "field 'prompt[0].role'"),
    "syntax": (lines({"text": "a", "test_list": ["assert f("]}), "field 'test_list[0]'"),
    "numpy": (lines({"text": "a", "test_list": ["import numpy"]}), "the module numpy"),
    "limit": (lines({**ADD, "time_limit": 1e300}), "field 'time_limit'"),
}


def made(file: Path, content: object) -> Path:
    """The file with this content; a folder for `...`, and nothing for None."""
    if content is ...:
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("kind", BAD)
def test_no_command_begins_with_data_that_cannot_be_used(kind: str, tmp_path: Path, monkeypatch) -> None:
    content, says = BAD[kind]
    monkeypatch.chdir(tmp_path)
    file = made(tmp_path / "rows.jsonl", content)
    for command in (
        ["train", "--data", str(file)],
        ["eval", "--data", str(file), "--out", "out"],
        ["eval", "--teacher", "--data", str(file), "--out", "out"],
        ["solve", "--task", str(file)],
        ["compare", "--arm", "best-of-k", "--task", str(file)],
        ["check", "--data", str(file)],
    ):
        result = runner.invoke(app, command)
        some = command[0] == "check" and kind in ("array", "same")  # of these one row can be used
        assert result.exit_code == (1 if some else 2), command
        assert says in result.output, command
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert sorted(path.name for path in tmp_path.iterdir()) == (["rows.jsonl"] if content is not None else [])


@pytest.mark.parametrize("kind", ["missing", "folder", "gzip", "latin-1"])
def test_texts_templates_settings_and_prompts_of_files_are_refused_alike(
    kind: str, tmp_path: Path, monkeypatch
) -> None:
    content, says = BAD[kind]
    monkeypatch.chdir(tmp_path)
    file = made(tmp_path / "rows.jsonl", content)
    for command in (
        ["credit", "--question", f"@{file}", "--answer", "a", "--feedback", "b"],
        ["credit", "--question", "a", "--answer", "b", "--feedback", f"@{file}"],
        ["train", "--config", str(file)],
        ["train", f"chat_template={file}"],
        ["check", "--env", "verbs", "--answers", str(file)],
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, command
        run_expected = kind == "folder" and "--answers" in command  # answers may be those of a run directory
        assert ("this is not a run directory" if run_expected else says) in result.output, command
        assert not (tmp_path / "runs").exists()


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    for option in ("--question", "--answer", "--feedback", "--solution", "--correct"):
        given = {"--question": "a", "--answer": "b", "--feedback": "c", option: "\udcff"}
        result = runner.invoke(app, ["credit", *(word for pair in given.items() for word in pair)])
        assert result.exit_code == 2, option
        assert "no UTF-8" in result.output, option


def test_prompts_to_rehearse_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.jsonl").write_bytes(lines({"prompt": "a"}, {"prompt": [{"role": "user", "content": ""}]}))
    result = runner.invoke(app, ["train", "replay.prompts=old.jsonl"])
    assert result.exit_code == 2
    assert "old.jsonl:2: question row: field 'prompt[0].content'" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]
