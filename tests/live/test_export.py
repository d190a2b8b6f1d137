"""Exported rows are tasks to train on."""

import json
import sqlite3
from pathlib import Path

import selfdistill as sd
from live_parts import ask, assistant, served, system, user
from selfdistill.live.exchange import Feedback
from selfdistill.live.export import TrainingRows
from selfdistill.types import Message


def test_rows_are_read_by_load_chats(tmp_path: Path):
    tool = {"role": "tool", "tool_call_id": "x", "content": "2 files"}
    with served(tmp_path / "journal.db") as journal:
        first = ask(
            journal, system("Be brief."), user("Look."), {"role": "assistant", "content": ""}, tool, answer="Two."
        )
        turns = system("Be brief."), user("Look."), tool, assistant("Two."), user("Which ones?")
        second = ask(journal, *turns, answer="These.", headers={"x-session-id": first.conversation})
        journal.add_feedback(Feedback(second.receipt, text="Name them.", rating=0.25, solution="a and b"))
        rated, solved = ask(journal, user("One"), answer="1"), ask(journal, user("Two"), answer="2")
        journal.add_feedback(Feedback(rated.receipt, rating=1))
        journal.add_feedback(Feedback(solved.receipt, solution="II"))
        ask(journal, user("Three"), answer="3")
        rows = TrainingRows(journal)
        out = tmp_path / "rows.jsonl"
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert rows.left_out == {"a rating alone": 1, "nothing came back": 1}
        assert [row["id"] for row in TrainingRows(journal, [solved.conversation])] == [solved.receipt]
    tasks = sd.load_chats(out)
    assert [(task.logged_answer, task.user_reply, task.demonstration) for task in tasks] == [
        ("Two.", "Which ones?", ""),
        ("These.", "Name them.", "a and b"),
        ("2", "", "II"),
    ]
    assert tasks[0].messages == (Message("system", "Be brief."), Message("user", "Look."), Message("user", "2 files"))
    assert (tasks[1]["rating"], tasks[1]["reply_from"], tasks[1]["version"]) == (0.25, "text", 1)


def test_the_queries_of_the_docs_answer(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    queries = text.split("```sql\n")[1].split("```")[0].split(";")[:-1]
    with served(tmp_path / "journal.db") as journal:
        rated = ask(journal, user("One"), answer="1")
        ask(journal, user("One"), assistant("1"), user("No."))
        journal.add_feedback(Feedback(rated.receipt, rating=0.5))
    plain = sqlite3.connect(tmp_path / "journal.db")
    assert [len(plain.execute(query).fetchall()) for query in queries] == [2, 3, 1, 0, 1]
    plain.close()
