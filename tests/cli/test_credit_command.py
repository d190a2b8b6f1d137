import io
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.cli.credit import print_credit
from selfdistill.runs.credit import Alternative, AnswerCredit, ErrorVisibility, TokenCredit, TurnBegin
from selfdistill.types import Context, Message
from selfdistill.view.credit import credit_page

runner = CliRunner()
VERB = "Write f(xs) to gukar the list."
WRONG = "```python\ndef f(xs):\n    xs = xs[::-1]\n    return xs\n```"
RIGHT = WRONG.replace("xs[::-1]", "sorted(xs)")


def found(advantage: float | None = None) -> AnswerCredit:
    others = (Alternative("))", 0.04, 0.9),)
    tokens = (
        TokenCredit(" n", -0.1, -0.1, others),
        TokenCredit(" +", -0.25, -3.25, others),
        TokenCredit("\n", -2.0, -0.5, others),
    )
    context = Context("feedback", feedback="Don't include [n].")
    error_visibility = ErrorVisibility(True, 3.0, (0.5,) * 19)
    return AnswerCredit("some-model", (Message("user", "q"),), context, tokens, False, error_visibility, advantage)


def printed(credit: AnswerCredit, *, table: bool = False, colours: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=colours, color_system="truecolor" if colours else None)
    print_credit(credit, console, table=table)
    return output.getvalue()


def test_words_say_what_colours_say():
    text = printed(found())
    assert "feedback: Don't include [n]." in text
    assert " n +↵\n" in text
    assert "lowest: ·+ -3.00" in text
    assert "highest: ↵ +1.50" in text
    assert "The model sees what the context is about; the blame falls on ' +'" in text
    assert "GRPO" not in text
    assert "\x1b" not in text


def test_colours_are_red_below_and_green_above():
    coloured = printed(found(advantage=-1.0), colours=True)
    lines = coloured.splitlines()
    answer = next(line for line in lines if "↵" in line)
    before, plus, _ = answer.partition(" +")
    red = before.rpartition("48;2;")[2].split("m")[0].split(";")
    assert plus
    assert int(red[0]) > int(red[1]) + 50
    assert before.startswith(" n"), "no colour where nothing changes"
    assert "GRPO: every token gets A = -1.00" in coloured


def test_a_conversation_shows_what_was_read_before_each_turn():
    read = (Message("user", "why [n]?"),)
    turns = (
        TurnBegin(0, (Message("user", "q"),), Context("reply", reply="why [n]?")),
        TurnBegin(2, read, fresh=True),
    )
    conversation = replace(found(advantage=-1.0), context=Context("hindsight"), turns=turns)
    text = printed(conversation)
    second = "a new segment: the template writes the history anew\nuser: why [n]?\n↵\n"
    assert f"user: q\nthe teacher of turn 1 reads reply: why [n]?\n n +\n{second}" in text
    page = credit_page(conversation)
    assert page.count('class="answer"') == 2 + 1
    assert "The teacher of turn 1 reads reply:" in page
    assert page.index("The teacher of turn 1") < page.index("A new segment") < page.index('aria-label="Turn 2')


def test_the_table_has_a_row_for_each_token():
    text = printed(found(), table=True)
    row = next(line for line in text.splitlines() if line.strip().startswith("·+ "))
    assert row.split() == ["·+", "-0.25", "-3.25", "-3.00", "))", "4.0", "→", "90.0"]


def test_a_mistake_is_found_and_its_page_written(tmp_path: Path):
    answer, page = tmp_path / "answer.txt", tmp_path / "page.html"
    answer.write_text(WRONG + "\n")
    result = runner.invoke(
        app,
        ["credit", "--question", VERB, "--answer", f"@{answer}", "--correct", RIGHT,
         "--document", "To gukar a list means to sort the items.", "--html", str(page), "--advantage", "-1"],
        env={"COLUMNS": "120"},
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "sapling reads the answer" in result.stdout
    assert "lowest: ····xs = xs[::-1]↵" in result.stdout
    assert "The model sees what the context is about" in result.stdout
    assert "sorted(xs)" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answer", "x"], "there is no question"),
        (["--question", "x"], "there is no answer"),
        (["--question", VERB, "--answer", "", "--reply", "No."], "the answer is empty"),
        (["--question", VERB, "--answer", "x"], "there is no context"),
        (["--question", VERB, "--answer", "x", "--feedback", ""], "there is no context"),
        (["--run", "nowhere/a", "--uid", "1", "--feedback", ""], "there is no context"),
        (["--run", "runs/a"], "named by its run and its uid"),
        (["--uid", "3-0-1"], "named by its run and its uid"),
        (["--run", "a", "--uid", "1", "--answer", "x"], "has its own question and answer"),
        (["--run", "nowhere/a", "--uid", "1"], "there is no such run"),
        (["--conversation", "talk.json", "--answer", "x"], "a conversation has its own questions and answers"),
        (["--conversation", "nowhere.json"], "the conversation cannot be read"),
        (["--answer", "@nowhere.txt", "--question", "x", "--reply", "y"], "the text cannot be read"),
        (["--model", "no such model"], "there is no such model"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str):
    result = runner.invoke(app, ["credit", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr


def test_every_option_is_explained():
    parameters = typer.main.get_command(app).commands["credit"].params  # type: ignore[attr-defined]
    assert not [p.name for p in parameters if not p.help]
