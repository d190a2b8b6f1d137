"""In which words should a teacher read feedback on a program? The context gain of each prompt on MBPP.

    python -m benchmarks.feedback_prompts --model DIR --data mbpp.jsonl --out runs/feedback-prompts

Two attempts at each of the first tasks of 601–974, at temperature 1; the first failed one of each task, with the
feedback of the environment, is what every prompt writes. Measured on those tasks: how often an answer is right without
a context and under each prompt, paired by task; how many answers are cut at the limit; how many repeat the attempt.
What is there is not measured again. With a model of 0.5 B and --dtype bfloat16 about two minutes a prompt on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import arms
from benchmarks.against_trl.work import SIZES, write_model
from benchmarks.credit_picture import PROMPTS as WORDINGS
from benchmarks.mbpp import TINY_ROWS, trained_rows
from selfdistill.analysis.context_gain import same_text
from selfdistill.config import load_config
from selfdistill.prompts.context import Templates
from selfdistill.runs.events import no_callback
from selfdistill.training.samples import session_groups, solved
from selfdistill.training.session import Session, open_session
from selfdistill.types import Context, DropReason, Rollout, RolloutGroup, StopReason, TokenIds

BARE = "no context"
LAST = "{context}\n\nAnswer this question, without the mistake above: {question}"
PROMPTS: Mapping[str, tuple[str, bool]] = {  # last message, and whether the attempt is in it
    "published": (WORDINGS["published"].message, False),
    "published, and the attempt": (WORDINGS["published"].message, True),
    "correct the attempt": (WORDINGS["correction"].message, True),
    "question behind the feedback": (LAST, False),
    "question behind feedback and attempt": (LAST, True),
}


def opened(chosen: argparse.Namespace) -> Session:
    """The model, and the tasks without their solutions."""
    rows = TINY_ROWS if chosen.tiny else arms.read_rows(chosen.data)
    data = arms.write_rows(chosen.out / "train.jsonl", trained_rows(rows)[: chosen.tasks])
    own = {"model": chosen.model, "env": "code", "data": str(data), "device": chosen.device, "dtype": chosen.dtype}
    sampling = {"sampling.max_new_tokens": chosen.new_tokens, "evaluation.temperature": 1.0}
    return open_session(load_config(None, [*{**own, **sampling, **arms.pairs(chosen.set)}.items()]), no_callback)


def failures(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    """The first failed attempt of each task that has feedback."""
    every = [
        [one for one in group.rollouts if one.outcome and one.outcome.feedback and not solved(one)] for group in groups
    ]
    return [own[0] for own in every if own]


def prompts_of(session: Session, failed: Sequence[Rollout], name: str) -> list[TokenIds]:
    """What is read before an answer to each task."""
    if name == BARE:
        return [session.renderer.prompt(one.task.messages) for one in failed]
    message, attempt = PROMPTS[name]
    renderer, found = replace(session.renderer, templates=Templates(message=message)), list[TokenIds]()
    for one in failed:
        assert one.outcome is not None
        shown = one.completion.text if attempt else ""
        context = Context("feedback", feedback=one.outcome.feedback, attempt=shown)
        made = renderer.teacher_prompt(one.task.messages, context, session.config.sampling.max_new_tokens)
        found.append(renderer.prompt(one.task.messages) if isinstance(made, DropReason) else made[0])
    return found


def read(session: Session, failed: Sequence[Rollout], name: str, answers: int) -> dict[str, list[Any]]:
    """The answers under one prompt: by task which are right, were cut, or repeat the attempt."""
    groups = session_groups(
        session, [one.task for one in failed], rollouts=answers, label=f"teacher-{name}", evaluates=True,
        prompts=prompts_of(session, failed, name),
    )  # fmt: skip
    found: dict[str, list[Any]] = {"right": [], "cut": [], "repeats": [], "tokens": []}
    for attempt, group in zip(failed, groups, strict=True):
        done = [one.completion for one in group.rollouts]
        found["right"].append([float(solved(one)) for one in group.rollouts])
        found["cut"].append([one.stop is StopReason.LENGTH for one in done])
        found["repeats"].append([same_text(one.text, attempt.completion.text) for one in done])
        found["tokens"].append([len(one.token_ids) for one in done])
    return found


def report(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """A row for each prompt; gains are over the answers without a context, paired by task."""
    rows = []
    scores = {name: {str(n): own for n, own in enumerate(one["right"])} for name, one in found.items()}
    for name, one in found.items():
        right = arms.shown(arms.accuracy(scores[name]))
        gain = "" if name == BARE else arms.shown(arms.change([scores[name]], [scores[BARE]]), sign=True)
        means = [fmean(value for own in one[key] for value in own) for key in ("cut", "repeats", "tokens")]
        rows.append([name, right, gain, f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:.0f}"])
    return arms.table(["the teacher reads", "right", "gain", "cut", "repeats the attempt", "tokens"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the prompts that are missing, and writes the table after each."""
    parser = arms.parser(__doc__, "feedback-prompts", trains=False)
    parser.add_argument("--data", type=Path, help="MBPP as JSONL; left out with --tiny")
    parser.add_argument("--tasks", type=int, default=64, help="tasks that are attempted")
    parser.add_argument("--answers", type=int, default=2, help="answers to each under each prompt")
    parser.add_argument("--prompts", nargs="+", choices=tuple(PROMPTS), default=list(PROMPTS))
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.tasks, chosen.new_tokens = 3, 8
    elif not chosen.model or not chosen.data:
        parser.error("--model and --data are needed (or --tiny)")
    file = chosen.out / "results.json"
    found: dict[str, Any] = arms.read_json(file) if file.exists() else {}
    session = opened(chosen)
    arms.say("sampling attempts")
    failed = failures(session_groups(session, session.tasks, rollouts=2, label="attempt"))
    for name in (BARE, *chosen.prompts):
        if name not in found:
            arms.say(f"{name}: {len(failed)} failed attempts")
            found[name] = read(session, failed, name, chosen.answers)
            arms.save(chosen.out, "results", found, report(found))


if __name__ == "__main__":
    main()
