"""`selfdistill credit`: the teacher–student log-ratio of every token of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfdistill.cli.arguments import flag, optional, text_option
from selfdistill.errors import ConfigError
from selfdistill.options import BEYOND
from selfdistill.prompts.context import FIELDS
from selfdistill.runs.credit import AnswerCredit, sections_of
from selfdistill.types import Context
from selfdistill.view.credit import FULL, extremes, table_of, tint, visible, write_credit_page
from selfdistill.view.progress import RunDisplay


def credit(
    question: Annotated[str | None, text_option("Prompt of the answer. (default: an example)")] = None,
    answer: Annotated[str | None, text_option("Answer whose tokens are scored. (default: the example's)")] = None,
    feedback: Annotated[
        str | None, text_option("Feedback in the teacher's context. (default: Don't include n.)")
    ] = None,
    solution: Annotated[str | None, text_option("Correct solution in the teacher's context.")] = None,
    attempt: Annotated[str | None, text_option("The attempt itself, in the teacher's context.")] = None,
    demonstration: Annotated[str | None, text_option("Demonstration in the teacher's context.")] = None,
    document: Annotated[str | None, text_option("Document in the teacher's context.")] = None,
    reply: Annotated[str | None, text_option("User's reply to an earlier attempt, in the teacher's context.")] = None,
    instruction: Annotated[str | None, text_option("System message of the teacher.")] = None,
    correct: Annotated[
        str | None,
        text_option("A corrected answer, to test whether the model sees the mistake (the teacher does not)."),
    ] = None,
    model: Annotated[
        str | None,
        optional(
            "The model that reads. (default: the sapling where it knows the words, else SmolLM2-135M-Instruct "
            "where the hub's cache holds it; of a run its newest checkpoint)"
        ),
    ] = None,
    run: Annotated[
        Path | None, optional("Run directory with the rollout --uid, in place of --question and --answer.")
    ] = None,
    uid: Annotated[str | None, optional("Rollout of the run, such as 3-0-1.")] = None,
    conversation: Annotated[
        Path | None,
        optional(
            "JSON file of messages, in place of --question and --answer. Without a context each turn of the "
            "assistant's is read with the messages that followed it."
        ),
    ] = None,
    advantage: Annotated[
        float | None,
        optional("Advantage to show beside it, as GRPO gives it to every token. (default: the rollout's)"),
    ] = None,
    numbers: Annotated[bool, flag("--numbers", "Print a table of every token.")] = False,
    html: Annotated[Path | None, optional("Write a self-contained HTML page.")] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="Alternatives shown for each token.")] = 4,
) -> None:
    """Show the credit of every token: the log-ratio of the model with a context (teacher) and without it (student).

    Without a text it shows an example: an answer that counts to n, and the feedback "Don't include n.".
    """
    given = (instruction, document, demonstration, solution, attempt, feedback, reply)
    sections = dict(zip(FIELDS, given, strict=True))
    known = {name: text for name, text in sections.items() if text is not None}
    context = Context("+".join(known), **known) if known else None
    if advantage is not None and not abs(advantage) < BEYOND:
        raise ConfigError("--advantage should be a number", got=advantage, do="give for example --advantage -1")
    of_rollout, own = run is not None or uid is not None, {"question": question, "answer": answer}
    missing = [f"--{name}" for name, text in own.items() if text is None]
    if of_rollout and (run is None or uid is None):
        raise ConfigError("a rollout is named by its run and its uid", do="give --run DIR --uid 3-0-1")
    if of_rollout and len(missing) < len(own):
        raise ConfigError("a rollout has its own question and answer", do="leave --question and --answer out")
    if conversation is not None and (of_rollout or len(missing) < len(own) or correct is not None):
        do = "leave --run, --uid, --question, --answer and --correct out"
        raise ConfigError("a conversation has its own questions and answers", do=do)
    if not of_rollout and len(missing) == 1:
        raise ConfigError(f"there is no {missing[0][2:]}", do=f"give {missing[0]} too, or neither for the example")
    from selfdistill.analysis.conversation_credit import read_messages
    from selfdistill.analysis.credit_source import (
        EXAMPLE,
        Texts,
        credit_of_conversation,
        credit_of_rollout,
        credit_of_texts,
    )

    with RunDisplay("credit", Console(stderr=True)) as callback:
        if run is not None and uid is not None:
            found = credit_of_rollout(
                run, uid, callback, model=model, context=context, correct=correct or "", advantage=advantage, top=top
            )
        elif conversation is not None:
            found = credit_of_conversation(
                read_messages(conversation), callback, context=context, model=model, advantage=advantage, top=top
            )
        else:
            texts = EXAMPLE if question is None or answer is None else Texts(question, answer, Context("none"))
            texts = Texts(texts.question, texts.answer, context or texts.context, correct or texts.correct)
            found = credit_of_texts(texts, callback, model=model, advantage=advantage, top=top)
    print_credit(found, Console(), table=numbers)
    if html:
        typer.echo(f"page: {write_credit_page(found, html)}")


def print_credit(found: AnswerCredit, console: Console, *, table: bool) -> None:
    """The answer in colours, a legend, the extreme tokens and the conclusion."""
    what = "conversation" if found.turns else "answer"
    console.print(Text(f"{found.model} reads the {what} with and without the context", style="dim"))
    for name, text in found.sections.items():
        console.print(Text.assemble((f"{name}: ", "bold"), text))
    console.print("", _coloured(found, [token.log_ratio for token in found.tokens]), "", sep="\n")
    if found.advantage is not None:
        uniform = [found.advantage * FULL] * len(found.tokens)
        console.print(Text(f"GRPO: every token gets A = {found.advantage:+.2f}", style="bold"))
        console.print(_coloured(found, uniform), "", sep="\n")
    scale = [(f" {value:+g} ", tint(value)) for value in (-FULL, -FULL / 2, FULL / 2, FULL)]
    words = (" less likely for the teacher   ", " more likely   ", ("(u in nats)", "dim"))
    console.print(Text.assemble(*scale[:2], words[0], *scale[2:], *words[1:]))
    for line in extremes((token.text, token.log_ratio) for token in found.tokens):
        console.print(Text(line))
    console.print(Text(found.conclusion, style="bold"))
    if found.error_visibility:
        console.print(Text(found.error_visibility.rule, style="dim"))
    if table:
        console.print(_table(found))


def _coloured(found: AnswerCredit, log_ratios: list[float]) -> Text:
    """The tokens in the colours of their log-ratios; of a conversation dimmed what was read before each turn."""
    text = Text()
    for number, (turn, places) in enumerate(found.parts):
        if turn is not None:
            text.append("\n" * bool(number))
            if turn.fresh:
                text.append("a new segment: the template writes the history anew\n", "dim italic")
            for message in turn.read:
                text.append(f"{message.role}: {message.content}\n", "dim")
            for name, section in (sections_of(turn.context) if turn.context else {}).items():
                text.append(f"the teacher of turn {number + 1} reads {name}: ", "bold").append(f"{section}\n")
        for place in places:
            text.append(visible(found.tokens[place].text), tint(log_ratios[place]))
    return text


def _table(found: AnswerCredit) -> Table:
    header, rows = table_of(found)
    table = Table(box=box.SIMPLE_HEAD)
    for head in header[:-1]:
        table.add_column(head, justify="left" if head == header[0] else "right", no_wrap=True)
    table.add_column(header[-1], overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
