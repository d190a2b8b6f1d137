"""`selfdistill check`: what is wrong with a file of tasks, before a run; and the rewards of given answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from selfdistill.cli.arguments import (
    ConfigFile,
    Data,
    EnvName,
    Overrides,
    Seed,
    as_overrides,
    optional,
    refuse,
    text_option,
)
from selfdistill.errors import ConfigError, DataError
from selfdistill.runs import Callback, Event, Note, Phase

if TYPE_CHECKING:
    from selfdistill.analysis.check import Answer, CheckReport, TaskRows
    from selfdistill.config import RunConfig
    from selfdistill.envs.base import ScoringEnvironment
    from selfdistill.envs.judge import Judge

PROBLEMS, UNUSABLE = 1, 2  # exit codes
JUDGE = "judge."
SHOWN = 3  # replies that move an answer most, and least
PLAIN_S = 2.0  # seconds between two lines where there is no terminal


def check(
    overrides: Overrides = None,
    data: Data = None,
    answers: Annotated[
        Path | None,
        optional(
            'Score the answers of this JSONL file, {"id": …, "answer": …} a line, or of a run directory: one JSON line '
            "each on standard output, in order, with id, reward, feedback and failure."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        text_option(
            "Rubric of a judge that scores --answers too: how often it and the environment agree. Its settings: "
            "judge.model=NAME judge.url=URL; by default it is the model of --model."
        ),
    ] = None,
    config: ConfigFile = None,
    model: Annotated[
        str | None,
        optional(
            "Measure the prompts with the tokenizer of this model, and of a log what its replies move. (default: they "
            "are not measured)"
        ),
    ] = None,
    env: EnvName = None,
    seed: Seed = None,
) -> None:
    """Check a file of tasks before a run: rows, reference solutions, tests, duplicates, lengths of prompts.

    Every row is looked at. Its reference solution is scored by all of its tests, an empty answer and a program that
    does nothing by those that training uses. Of a log of conversations (--env chats) it counts what the filters leave
    out. Exit code 0: nothing to correct; 1: problems, all of them listed (with --answers: some answers have no reward);
    2: no row can be used.
    """
    from selfdistill.analysis.check import check_rows, every_row, read_answers
    from selfdistill.config import RunConfig, load_config
    from selfdistill.envs.chats import ChatsEnvironment
    from selfdistill.envs.turns import single_turn
    from selfdistill.training.session import open_renderer

    flags = {"model": model, "env": env, "data": data, "seed": seed}
    own = [text for text in overrides or () if text.startswith(JUDGE)]
    settings = load_config(config, [*as_overrides(flags), *(text for text in overrides or () if text not in own)])
    if answers is None or judge is None:
        what = "a judge is compared on answers" if answers is None else "these are settings of a judge"
        do = "give --answers FILE or DIR" if answers is None else "give its rubric: --judge TEXT"
        refuse([*["--judge"] * (judge is not None), *own], what, do=do)
    given = read_answers(answers) if answers is not None else None
    environment = single_turn(settings.make_env(), "check")
    with _progress() as progress:
        if not isinstance(settings.data, str):
            got = ", ".join(one.source for one in settings.data)
            raise ConfigError("check looks at one data set", got=got, do="check one after the other")
        rows = every_row(environment, settings.data, settings.row_options(settings.data_split))
        if given is not None and judge is not None:
            well = _compare(environment, _judge(judge, own), settings, rows, given, progress)
        elif given is not None:
            well = _score(environment, rows, given, progress)
        else:
            measured = model is not None or settings.model != RunConfig().model
            renderer = open_renderer(settings, progress) if measured else None
            longest = settings.context.max_prompt_tokens
            report = check_rows(environment, rows, progress, renderer=renderer, max_prompt_tokens=longest)
            well, log = not report.problems, isinstance(environment, ChatsEnvironment)
            left_out = rows.left_out if log else None
            signal = _signal(settings, rows, progress) if log and measured and report.usable else ""
    if given is None:
        _print(report, settings.data or f"the environment {settings.env.name}", left_out, signal)
    if not well:
        raise typer.Exit(UNUSABLE if next(rows.tasks, None) is None else PROBLEMS)


def _judge(rubric: str, settings: Sequence[str]) -> Judge:
    """The judge of `--judge`, the policy unless its settings name another. Raises `ConfigError`."""
    from selfdistill.config import parse_override
    from selfdistill.envs.judge import POLICY, Judge

    own = dict(map(parse_override, settings))
    return Judge(rubric, **{"model": POLICY, **{key.removeprefix(JUDGE): value for key, value in own.items()}})


def _compare(
    env: ScoringEnvironment,
    judge: Judge,
    settings: RunConfig,
    rows: TaskRows,
    answers: Sequence[Answer],
    progress: Callback,
) -> bool:
    """Prints a line of JSON for each answer, and the agreement on standard error; returns whether every answer was
    scored and judged."""
    from selfdistill.analysis.check import answered
    from selfdistill.analysis.judge_agreement import judge_agreement
    from selfdistill.envs.base import Fault
    from selfdistill.envs.judge import COSTS
    from selfdistill.training.policy_replies import PolicyReplies
    from selfdistill.training.session import open_policy, open_renderer

    pairs = answered(rows, answers)
    if judge.policy_weights:
        policy = open_policy(settings, progress, trained=False)
        judge.use_policy(PolicyReplies(policy, open_renderer(settings, progress), settings.seed))
    found, scored = judge_agreement(env, judge, pairs, progress)
    for (task, _), both in zip(pairs, scored, strict=True):
        by_env, by_judge = ({} if isinstance(one, Fault) else asdict(one) for one in both)
        shown = {"id": task.id, "reward": by_env.get("reward"), "judge": by_judge.get("reward")}
        typer.echo(json.dumps({**shown, "feedback": by_judge.get("feedback", "")}))
    for who, faults in zip(("environment", "judge"), zip(*scored, strict=True), strict=True):
        first = next((one.text for one in faults if isinstance(one, Fault)), "")
        progress(Note(f"the first answer without a decision of the {who}: {first}" if first else ""))
    calls, read, written = (judge.spent[name] for name in COSTS)
    progress(Note(f"{found}\ncost of the judge: {calls:,} calls, {read:,} tokens read, {written:,} written"))
    if unknown := len(answers) - len(pairs):
        progress(Note(f"{unknown} answers are to no row that can be used"))
    return not found.dropped and not unknown


def _signal(settings: RunConfig, rows: TaskRows, progress: Callback) -> str:
    """For how many replies of a log the log-ratio moves, and where it moves most and least."""
    from selfdistill.analysis.reply_signal import CONTROLS, reply_signal
    from selfdistill.training.session import open_policy, open_renderer

    renderer, policy = open_renderer(settings, progress), open_policy(settings, progress, trained=False)
    measured = list(islice(rows.tasks, settings.evaluation.tasks))
    found = reply_signal(policy, renderer, measured, callback=progress)
    if not found.own:
        return f"replies: not measured; it takes replies to {CONTROLS + 1} different questions that fit the model"
    text = f"of {len(found.own):,} answers {found.moved} are moved by their reply more than by {CONTROLS} others"
    lines = [f"replies: {text} (by chance {found.by_chance:.2f})"]
    for name, ranked in (("most", found.ranked[:SHOWN]), ("least", found.ranked[::-1][:SHOWN])):
        lines += [f"  {name}, {margin:+.3f} nats: {' '.join(task.user_reply.split())[:80]}" for margin, task in ranked]
    return "\n".join(lines)


def _score(env: ScoringEnvironment, rows: TaskRows, answers: Sequence[Answer], progress: Callback) -> bool:
    """Prints a line of JSON for each answer; returns whether every row can be used and every answer has a reward."""
    from selfdistill.analysis.check import score_answers

    missing = broken = 0
    for _, found in rows:
        if isinstance(found, DataError):
            broken += 1
            progress(Note(text=str(found)))
    for score in score_answers(env, rows, answers, progress):
        line = score._asdict()
        fault = line.pop("fault")
        typer.echo(json.dumps(line))
        if score.reward is None:
            missing += 1
            progress(Note(text=fault))
    progress(Note(text=f"{len(answers) - missing:,} of {len(answers):,} answers scored"))
    return not broken and not missing


def _print(report: CheckReport, name: str, left_out: Mapping[str, int] | None, signal: str) -> None:
    """The report: counts, an example of feedback, and everything that was found; of a log what was left out."""
    lines = [f"{name}: {report.usable:,} of {report.rows:,} rows can be used"]
    passed = f"{report.passed:,} of {report.references:,} pass all tests of their row"
    if left_out is None:
        lines += [f"reference solutions: {passed if report.references else 'none'}"]
    else:
        from selfdistill.data.chats import summary

        lines = [f"{name}: {summary(report.usable, left_out)}", *filter(None, [signal])]
    if report.longest is None:
        lines += ["prompts: not measured; name a model with --model"]
    else:
        lines += [f"prompts: the longest has {report.longest:,} tokens; a run takes up to {report.limit:,}"]
    for example in report.examples:
        lines += [f"feedback on a wrong answer to {example.task!r}:"]
        text = f"{example.answer or '(an empty answer)'}\n→ {example.feedback or '(no feedback)'}"
        lines += [f"  {line}" for line in text.split("\n")]
    for title, texts in (("problems", report.problems), ("notes", report.notes)):
        lines += [f"{title}: {len(texts) or 'none'}"]
        lines += [f"  {line}" for text in texts for line in text.split("\n")]
    typer.echo("\n".join(lines))


@contextmanager
def _progress() -> Iterator[Callback]:
    """A callback that shows progress on standard error: a line that changes on a terminal, else one every few
    seconds."""
    console, printed = Console(stderr=True), time.monotonic()

    def show(event: Event) -> None:
        nonlocal printed
        text = event.text if isinstance(event, Note) else ""
        if isinstance(event, Phase):
            phase = f"{event.name} {event.done:,}/{event.total:,}" if event.total else event.name
            if status is not None:
                status.update(phase)
            elif time.monotonic() - printed >= PLAIN_S:
                printed, text = time.monotonic(), phase
        if text:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    with console.status("reading the rows") if console.is_terminal else nullcontext() as status:
        yield show
