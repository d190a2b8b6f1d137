"""Conversations from logs: three shapes, what each filter leaves out, and runs that learn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import selfdistill as sd
from selfdistill.cli import app
from selfdistill.envs.chats import ChatsEnvironment
from selfdistill.errors import ConfigError, DataError
from selfdistill.runs import read_run
from selfdistill.types import Message
from tiny_models import tiny_policy_dir

NOTE = "write a short note that i am late"
FORMAL, SUM = "rewrite this formally", "what is 27*4?"  # one reply about the answer, one about something else
ANSWERS = ("hey, running late!", "Dear all, I shall be late.")


def turns(*texts: str | None, shape: str = "openai", system: str = "") -> list[dict[str, Any]]:
    """A conversation of alternating turns."""
    role, content = ("from", "value") if shape == "sharegpt" else ("role", "content")
    names = ("human", "gpt") if shape == "sharegpt" else ("user", "assistant")
    start = [{role: "system", content: system}] if system else []
    return [*start, *({role: names[n % 2], content: text} for n, text in enumerate(texts))]


CHAT = (NOTE, ANSWERS[0], FORMAL, ANSWERS[1], SUM, "108")


def file_of(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns(*CHAT, system="Be brief.")},
        {"conversation": turns(*CHAT, system="Be brief."), "language": "English", "toxic": False},
        {"conversations": turns(*CHAT, shape="sharegpt", system="Be brief."), "language": None},
    ],
)
def test_every_answer_that_the_user_followed_up_is_a_task_whatever_the_shape(row: dict[str, Any]) -> None:
    first, second = tasks = sd.load_chats([row])
    history = (Message("system", "Be brief."), Message("user", NOTE))
    assert (first.messages, first.logged_answer, first.user_reply) == (history, ANSWERS[0], FORMAL)
    assert second.messages == (*history, Message("assistant", ANSWERS[0]), Message("user", FORMAL))
    assert (second.logged_answer, second.user_reply) == (ANSWERS[1], SUM)
    assert tasks.left_out == {"no_next_turn": 1}
    assert [task.id for task in tasks] == ["row-1-2", "row-1-4"]
    assert first.spec == {name: value for name, value in row.items() if not name.startswith(("conv", "mess"))}


def test_every_source_of_rows_gives_the_same_tasks(tmp_path: Path) -> None:
    rows = [{"id": f"chat {n}", "conversation": turns(*CHAT), "language": "English"} for n in range(2)]
    listed = tmp_path / "chats.json"
    listed.write_text(json.dumps(rows))
    wanted = sd.load_chats(rows)
    assert [task.id for task in wanted] == ["chat 0-1", "chat 0-3", "chat 1-1", "chat 1-3"]
    for source in (file_of(tmp_path / "c.jsonl", *rows), listed, iter(rows), {"train": rows}):
        assert sd.load_chats(source) == wanted
    assert sd.load_chats(rows, limit=1) == wanted[:2]
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "chats.parquet")
    assert sd.load_chats(tmp_path / "chats.parquet") == wanted


@pytest.mark.parametrize(
    ("conversation", "left_out", "kept"),
    [
        (turns("q", "a"), {"no_next_turn": 1}, 0),
        (turns("q"), {"no_next_turn": 1}, 0),
        ([], {"empty": 1}, 0),
        (turns("q", " ", "r", "b", "s"), {"empty": 2}, 0),  # the history of the second answer holds an empty turn
        (turns("q", "a", "r", "b", None), {"empty": 1}, 1),
        (turns("q", "a", "r")[1:], {"roles": 1}, 0),
        ([*turns("q", "a", "r"), *turns("s", "b", "t")], {"roles": 1}, 1),  # two user turns in a row
        ([*turns("q", "a"), {"role": "tool", "content": "12"}], {"roles": 1}, 0),
        ([*turns("q"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], {"no_next_turn": 1}, 0),
        ([*turns("q", "a"), *turns("r", system="Be brief.")], {"roles": 1}, 0),
    ],
)
def test_what_cannot_be_a_task_is_left_out_and_counted(
    conversation: list[Any], left_out: dict[str, int], kept: int
) -> None:
    tasks = sd.load_chats([{"messages": turns("Hi", "Hello", "Bye")}, {"messages": conversation}])
    assert (tasks.left_out, len(tasks)) == (left_out, 1 + kept)


def test_languages_and_lengths_are_filters_that_are_counted() -> None:
    mixed = turns("hi", "hello", "und auf deutsch?", "hallo", "thanks a lot")
    for turn, language in zip(mixed, ("English", "English", "German", "German", "English"), strict=True):
        turn["language"] = language
    rows = [{"conversation": mixed, "language": "English"}, {"messages": turns(*CHAT), "language": "english"}]
    tasks = sd.load_chats(rows, languages="English")
    assert [task.user_reply for task in tasks] == ["thanks a lot", FORMAL, SUM], "a turn's own language comes first"
    assert tasks.left_out == {"language": 1, "no_next_turn": 1}
    assert tasks.summary == (
        "3 answers with the user's next turn; left out: 1 (no next turn of the user), 1 (another language)"
    )
    tasks = sd.load_chats(rows, languages=["German", "french"], max_characters=len("hi" + "hello" + "und auf deutsch?"))
    assert ([task.user_reply for task in tasks], tasks.left_out["language"]) == (["und auf deutsch?"], 3)
    tasks = sd.load_chats(rows, min_reply_characters=len(SUM) + 1)
    assert [task.user_reply for task in tasks] == ["und auf deutsch?", FORMAL]
    assert tasks.left_out["length"] == 2
    with pytest.raises(DataError, match=r"(?s)no conversation can be used.*0 answers.*4 \(another language\).*loosen"):
        sd.load_chats(rows, languages="Dutch")
    with pytest.raises(ConfigError, match="min_reply_characters"):
        sd.load_chats(rows, min_reply_characters=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": turns("q", "a", "r")}, r"c.jsonl:2: the row is no conversation.*columns turns.*messages"),
        ({"messages": "q"}, r"c.jsonl:2: conversation row: field 'messages': expected a list"),
        ({"messages": ["q"]}, r"c.jsonl:2.*'messages\[0\]': expected a turn \{role, content\} or \{from, value\}"),
        ({"messages": [{"role": "asker", "content": "q"}]}, r":2.*'messages\[0\].role': expected one of.*'asker'"),
        ({"messages": [{"role": "user", "content": 3}]}, r":2.*'messages\[0\].content': expected text.*3"),
        ({"conversations": [{"from": "human", "value": {}}]}, r":2.*'conversations\[0\].value': expected text"),
        ({"messages": turns("q", "a", "r"), "language": 3}, r":2.*field 'language': expected text.*3"),
        ({"messages": turns("q", "a", "r"), "id": "one"}, r":2.*the id 'one-1' was used in .*:1 already"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = file_of(tmp_path / "c.jsonl", {"id": "one", "messages": turns(*CHAT)}, row)
    with pytest.raises(DataError, match=f"(?s){message}"):
        sd.load_chats(file)


LOG = [{"messages": turns(f"{NOTE} ({n})", ANSWERS[0], reply)} for n, reply in enumerate((FORMAL, SUM))]
SMALL = ["steps=1", "tasks_per_step=2", "sampling.max_new_tokens=8", "checkpoint_every=0", "device=cpu"]


def ran(tmp_path: Path, *command: str) -> tuple[Any, Path]:
    log = file_of(tmp_path / "log.jsonl", *LOG, {"messages": turns("q", "a")})
    out, model = tmp_path / "run", str(tiny_policy_dir(tmp_path / "model"))
    result = CliRunner().invoke(app, ["train", "--data", log, "--model", model, "--out", str(out), *command, *SMALL])
    return result, out


def test_a_log_is_learned_from_by_its_file_alone(tmp_path: Path) -> None:
    result, out = ran(tmp_path, "--method", "user_replies", "method.logged=true")
    assert result.exit_code == 0, result.output
    assert "left out: 1 (no next turn of the user)" in " ".join(result.output.split())
    run = read_run(out)
    rollouts = sorted(run.rollouts(), key=lambda rollout: rollout.task)
    assert [(rollout.stage, rollout.completion) for rollout in rollouts] == [("logged", ANSWERS[0])] * 2
    assert [rollout.context["reply"] for rollout in rollouts if rollout.context] == [FORMAL, SUM]
    assert (run.steps[0].samples, run.steps[0].completions_sampled, run.steps[0].grad_norm > 0) == (2, 0, True)


def test_known_questions_are_measured_beside_a_log(tmp_path: Path) -> None:
    asked = file_of(tmp_path / "asked.jsonl", {"prompt": "What is 1 + 1?", "answer": "2"}, LOG[0])
    options = ("method.logged=true", "evaluation.tasks=3")
    result, out = ran(tmp_path, "--method", "user_replies", "--eval-data", asked, *options)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "1 of 2 tasks of held_out are not measured: no reward" in output
    assert "get no reward: accuracy is measured on held_out and forgetting" in output
    assert [(one.step, one.split, one.accuracy.n) for one in read_run(out).evals] == [
        *((0, "held_out", 1), (0, "forgetting", 3)),
        *((1, "held_out", 1), (1, "forgetting", 3)),
    ]
    table = CliRunner().invoke(app, ["compare", str(out)]).output
    assert "no evaluation of training tasks" in " ".join(table.split())
    log, model = file_of(tmp_path / "log.jsonl", *LOG), str(tiny_policy_dir(tmp_path / "other"))
    result = CliRunner().invoke(app, ["eval", "--teacher", "--env", "chats", "--data", log, "--model", model])
    assert (result.exit_code, "get no reward" in result.output) == (2, True), result.output
    with pytest.raises(ConfigError, match="nothing to measure"):
        sd.evaluate(model, env="chats", data=log, split="train", progress=False)


def test_a_question_beside_a_log_is_right_if_it_holds_the_answer() -> None:
    env, question = ChatsEnvironment(), sd.Task("a", (sd.Message("user", "?"),), {"answer": "Paris"})
    turn = replace(question, user_reply="Shorter!")
    assert [env.has_reward(task) for task in (question, turn, replace(question, spec={}))] == [True, False, False]
    assert [env.score(question, sd.Completion("", text)).reward for text in ("It is paris.", "Parisian")] == [1, 0]
    assert env.score(turn, sd.Completion("", "Paris")) == sd.Outcome(0.0, reply="Shorter!")


def test_answers_are_sampled_anew_and_a_bad_option_is_refused(tmp_path: Path) -> None:
    result, out = ran(tmp_path, "--method", "user_replies")
    assert result.exit_code == 0, result.output
    assert (read_run(out).steps[0].samples, read_run(out).steps[0].completions_sampled) == (2, 2)
    result, _ = ran(tmp_path, "--method", "opcd", "method.context.text=Be brief.", "--env", "chats", "env.langauges=x")
    assert (result.exit_code, "did you mean 'languages'" in result.output) == (2, True)


def test_an_instruction_is_internalised_on_the_histories_of_a_log(tmp_path: Path) -> None:
    small = {"steps": 1, "tasks_per_step": 2, "sampling": {"max_new_tokens": 8}, "device": "cpu"}
    run = sd.train(
        tiny_policy_dir(tmp_path / "model"),
        method="opcd",
        data=LOG,
        out=tmp_path / "run",
        progress=False,
        **{"method.context.text": "Be brief."},
        **small,
    )
    assert (run.steps[0].samples, run.steps[0].completions_sampled) == (2, 2)


def test_rows_of_a_log_are_checked(tmp_path: Path) -> None:
    log = file_of(tmp_path / "log.jsonl", *LOG, {"messages": [3]})
    result = CliRunner().invoke(app, ["check", "--data", log, "--env", "chats"])
    assert result.exit_code == 1, result.output
    assert "2 answers with the user's next turn" in result.output
    assert "log.jsonl:3" in result.output
