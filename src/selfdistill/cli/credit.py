"""`selfdistill credit`: the teacher–student log-ratio of every token of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from selfdistill.cli.arguments import optional
from selfdistill.errors import ConfigError, DataError
from selfdistill.files import is_whole, read_text
from selfdistill.options import BEYOND
from selfdistill.prompts.context import FIELDS
from selfdistill.runs.credit import AnswerCredit
from selfdistill.types import Context
from selfdistill.view.credit import FULL, PART, has_own, has_recorded, numbers, shown, strength, write_credit_page
from selfdistill.view.progress import RunDisplay

RED, GREEN, WHITE = (214, 64, 58), (46, 158, 79), (255, 255, 255)
NAMED = 3  # tokens that are named below the answer


def _text_option(meaning: str) -> object:
    return optional(f"{meaning} Text, or @FILE.")


def credit(
    question: Annotated[str | None, _text_option("Prompt of the answer. (default: an example)")] = None,
    answer: Annotated[str | None, _text_option("Answer whose tokens are scored. (default: the example's)")] = None,
    feedback: Annotated[
        str | None, _text_option("Feedback in the teacher's context. (default: Don't include n.)")
    ] = None,
    solution: Annotated[str | None, _text_option("Correct solution in the teacher's context.")] = None,
    demonstration: Annotated[str | None, _text_option("Demonstration in the teacher's context.")] = None,
    document: Annotated[str | None, _text_option("Document in the teacher's context.")] = None,
    reply: Annotated[str | None, _text_option("User's reply to an earlier attempt, in the teacher's context.")] = None,
    instruction: Annotated[str | None, _text_option("System message of the teacher.")] = None,
    correct: Annotated[
        str | None,
        _text_option("A corrected answer, to test whether the model sees the mistake (the teacher does not)."),
    ] = None,
    model: Annotated[
        str | None,
        optional(
            "The model that reads. (default: the sapling where it knows the words, else SmolLM2-135M-Instruct "
            "where the hub's cache holds it; of a run its newest checkpoint)"
        ),
    ] = None,
    run: Annotated[
        Path | None,
        optional("Run directory with the rollout --uid, in place of --question and --answer."),
    ] = None,
    uid: Annotated[str | None, optional("Rollout of the run, such as 3-0-1.")] = None,
    advantage: Annotated[
        float | None,
        optional("Advantage to show beside it, as GRPO gives it to every token. (default: the rollout's)"),
    ] = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Print a table of every token.")] = False,
    html: Annotated[Path | None, optional("Write a self-contained HTML page.")] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="Alternatives shown for each token.")] = 4,
) -> None:
    """Show the credit of every token: the log-ratio of the model with a context (teacher) and without it (student).

    Without a text it shows an example: an answer that counts to n, and the feedback "Don't include n.".
    """
    sections = dict(zip(FIELDS, (instruction, document, demonstration, solution, feedback, reply), strict=True))
    known = {name: _text(value) for name, value in sections.items() if value is not None}
    context = Context("+".join(known), **known) if known else None
    if advantage is not None and not abs(advantage) < BEYOND:
        raise ConfigError("--advantage should be a number", got=advantage, do="give for example --advantage -1")
    from selfdistill.analysis.credit_source import EXAMPLE, Texts, credit_of_rollout, credit_of_texts

    with RunDisplay("credit", Console(stderr=True)) as callback:
        if run is not None or uid is not None:
            if run is None or uid is None:
                raise ConfigError("a rollout is named by its run and its uid", do="give --run DIR --uid 3-0-1")
            if question is not None or answer is not None:
                raise ConfigError("a rollout has its own question and answer", do="leave --question and --answer out")
            found = credit_of_rollout(
                run, uid, callback, model=model, context=context, correct=_text(correct), advantage=advantage, top=top
            )
        else:
            if (question is None) != (answer is None):
                missing = "question" if question is None else "answer"
                raise ConfigError(f"there is no {missing}", do=f"give --{missing} too, or neither for the example")
            texts = EXAMPLE
            if question is not None:
                texts = Texts(_text(question), _text(answer), Context("none"))
            texts = Texts(texts.question, texts.answer, context or texts.context, _text(correct) or texts.correct)
            found = credit_of_texts(texts, callback, model=model, advantage=advantage, top=top)
    print_credit(found, Console(), table=numbers)
    if html:
        typer.echo(f"page: {write_credit_page(found, html)}")


def _text(value: str | None) -> str:
    """The text itself, or that of the file it names after an @, without the line ends behind it. Raises `DataError`."""
    value = value or ""
    if not is_whole(value):
        raise DataError("a text is no UTF-8", got=ascii(value)[:200], do="give it in UTF-8, or as @FILE")
    if not value.startswith("@"):
        return value
    return read_text(value[1:], what="the text", do="check the name after the @").rstrip("\r\n")


def print_credit(found: AnswerCredit, console: Console, *, table: bool) -> None:
    """The answer in colours, a legend, the extreme tokens and the conclusion."""
    console.print(Text(f"{found.model} reads the answer with and without the context", style="dim"))
    for name, text in found.sections.items():
        console.print(Text.assemble((f"{name}: ", "bold"), text))
    console.print()
    console.print(Text.assemble(*((_visible(token.text), _style(token.log_ratio)) for token in found.tokens)))
    console.print()
    if found.advantage is not None:
        title = f"GRPO: every token gets A = {found.advantage:+.2f}"
        uniform = _style(found.advantage * FULL)
        console.print(Text.assemble((title, "bold"), "\n", *((_visible(t.text), uniform) for t in found.tokens), "\n"))
    console.print(_legend())
    console.print(_named(found))
    console.print(Text(found.conclusion, style="bold"))
    if found.error_visibility:
        console.print(Text(found.error_visibility.rule, style="dim"))
    if table:
        console.print(_table(found))


def _visible(text: str) -> str:
    return (text or PART).replace("\n", "↵\n")


def _style(log_ratio: float) -> Style:
    """Black on a tint of red or green; no colour for a small log-ratio."""
    share = strength(log_ratio)
    if not share:
        return Style()
    colour = RED if log_ratio < 0 else GREEN
    tint = [round(light + (full - light) * (0.15 + 0.85 * share)) for light, full in zip(WHITE, colour, strict=True)]
    return Style.parse(f"black on #{tint[0]:02x}{tint[1]:02x}{tint[2]:02x}")


def _legend() -> Text:
    steps = [-FULL, -FULL / 2, FULL / 2, FULL]
    scale = [(f" {value:+g} ", _style(value)) for value in steps]
    return Text.assemble(
        *scale[:2], " less likely for the teacher   ", *scale[2:], " more likely   ", ("(u in nats)", "dim")
    )


def _named(found: AnswerCredit) -> Text:
    """The tokens with the lowest and the highest log-ratio, for a terminal without colours."""
    ordered = sorted(found.tokens, key=lambda token: token.log_ratio)
    sides = (("lowest", ordered[:NAMED], -1), ("highest", ordered[::-1][:NAMED], 1))
    lines = []
    for name, tokens, sign in sides:
        few = [
            f"{shown(t.text)} {t.log_ratio:+.2f}" for t in tokens if t.log_ratio * sign > 0 and strength(t.log_ratio)
        ]
        lines.append(f"{name}: {', '.join(few) or 'nothing'}")
    return Text("\n".join(lines))


def _table(found: AnswerCredit) -> Table:
    own, recorded = has_own(found), has_recorded(found)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("token", no_wrap=True)
    for head in ["log p", "log q", "u", *["own"] * own, *["recorded"] * recorded]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("likeliest, % student → teacher", overflow="fold")
    for token in found.tokens:
        table.add_row(*(Text(cell) for cell in numbers(token, own, recorded)))
    return table
