"""Conversations of a log: what `user_replies` learns from answers that it did not sample, and what it leaves alone.

    python -m benchmarks.logged --model DIR --out runs/logged

Another assistant has answered 500 questions of simulated users (`live_user.py`), each of whom wants one thing: short
answers, lower case, or a question at the end. A user whose wish is not met says so next, any other one asks something
else. The log is read by the importer of chat logs (`method.logged=true`). Beside it the online form: as many answers of
the model itself to the same questions, and the replies of the same users to them. Measured before and after: how many
of 60 answers to unseen questions each kind of user likes; known tasks with exact answers, paired; and how far the two
kinds of next turn move the answers of the log, in the mean |log q − log p| of a token. Guards only warn.

A run that was killed goes on, a finished one is not repeated. `--tiny` runs all of it on a small random model. With a
model of 0.5 B and --dtype bfloat16 the arm of the log takes half an hour of one core; the online arm also samples.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import arms
from benchmarks.against_trl.work import SIZES, write_model
from benchmarks.live_user import FOLLOW_UPS, PREFERENCES, TOPICS, known_tasks
from selfdistill.runs.stats import Estimate, mean
from selfdistill.types import Completion, Outcome, Task

WISHES = ("short", "lower-case", "question")
NEXT = ("complaints", "next questions")  # what a user writes behind an answer
SENTENCES = (
    "{} is easier to understand with an example.", "It has several parts, and each of them has a purpose.",
    "Many people first meet it at school or at work.", "Its history is longer than one would expect.",
    "There are good books about it, and better films.", "Experts still argue about some of the details.",
    "In practice a simple picture is enough.", "What matters most is how the parts work together.",
)  # fmt: skip


class User:
    """The environment of the online form, and of what is measured: a simulated user reads an answer and replies."""

    name = "user"

    def score(self, task: Task, completion: Completion) -> Outcome:
        """Reward 1 for an answer that the user likes; the reply is a complaint, or the next question."""
        liked = PREFERENCES[task["wish"]].likes(completion)
        return Outcome(float(liked), reply=reply(task["wish"], liked, completion.text))


USER = User()


def reply(wish: str, liked: bool, seed: str) -> str:
    """What the user writes next."""
    rng = random.Random(seed)
    return rng.choice(FOLLOW_UPS).format(rng.choice(TOPICS)) if liked else rng.choice(PREFERENCES[wish].replies)


def other_answer(question: str, rng: random.Random) -> str:
    """An answer of another assistant, which meets each wish half of the time."""
    subject = question.rstrip("?.").split(" ", 2)[-1].capitalize()
    count = len(SENTENCES) if rng.random() < 0.5 else 1
    text = " ".join([SENTENCES[0].format(subject), *rng.sample(SENTENCES[1:], len(SENTENCES) - 1)][:count])
    if rng.random() < 0.5:
        text += " What would you like to know about it?"
    return text.lower() if rng.random() < 0.5 else text


def conversations(count: int, seed: int) -> list[dict[str, Any]]:
    """Users with a wish, their questions, and a log: what another assistant answered, and what they wrote next."""
    rng = random.Random(f"log {seed}")
    questions = PREFERENCES["short"].questions(0)[0]
    found = []
    for number in range(count):
        wish, question = WISHES[number % len(WISHES)], rng.choice(questions)
        answer = other_answer(question, rng)
        liked = PREFERENCES[wish].met(answer)
        turns = [("user", question), ("assistant", answer), ("user", reply(wish, liked, f"{seed} {number}"))]
        messages = [{"role": role, "content": text} for role, text in turns]
        found.append({"id": str(number), "wish": wish, "prompt": question, "messages": messages})
    return found


def shared(chosen: argparse.Namespace) -> dict[str, Any]:
    """Settings of training and of what is measured."""
    own = {"device": chosen.device, "dtype": chosen.dtype, "sampling": {"max_new_tokens": chosen.new_tokens}}
    return own | arms.pairs(chosen.set)


def write_data(chosen: argparse.Namespace, seed: int) -> None:
    """The log, the questions of its users, unseen questions, and known tasks."""
    rows, folder = conversations(chosen.conversations, seed), chosen.out / f"data-seed{seed}"
    arms.write_rows(folder / "log.jsonl", [{"id": row["id"], "messages": row["messages"]} for row in rows])
    arms.write_rows(folder / "online.jsonl", [{key: row[key] for key in ("id", "wish", "prompt")} for row in rows])
    unseen = PREFERENCES["short"].questions(0)[1][: chosen.unseen]
    asked = [{"id": f"{wish} {n}", "wish": wish, "prompt": text} for wish in WISHES for n, text in enumerate(unseen)]
    arms.write_rows(chosen.out / "unseen.jsonl", asked)
    known = [{"prompt": question, "answer": answer} for question, answer in known_tasks(chosen.known)]
    arms.write_rows(chosen.out / "known.jsonl", known)


def measured(chosen: argparse.Namespace, out: Path, model: str | Path) -> dict[str, arms.Scores]:
    """Which answers to unseen questions each user likes, and which known tasks are solved."""
    env, greedy = f"{Path(__file__).resolve()}:USER", {"temperature": 0.0}
    asked = {"env": env, "data": chosen.out / "unseen.jsonl", "tasks": 10_000, "temperature": 1.0}
    found = arms.right(arms.measured(model, out / "unseen", asked | shared(chosen)))
    by_wish = {wish: {task: own for task, own in found.items() if task.startswith(f"{wish} ")} for wish in WISHES}
    known = {"env": {"name": "text", "compare": "number"}, "data": chosen.out / "known.jsonl", "tasks": chosen.known}
    return {**by_wish, "known": arms.right(arms.measured(model, out / "known", known | greedy | shared(chosen)))}


def run_arm(
    chosen: argparse.Namespace, arm: str, seed: int
) -> tuple[dict[str, arms.Scores], dict[str, list[float]], str]:
    """What a model is after it has learned from the log or online; by kind of next turn how far answers moved; and the
    first warning of the guards."""
    folder, path, log = chosen.out / f"data-seed{seed}", chosen.out / f"{arm}-seed{seed}", arm == "log"
    settings: dict[str, Any] = {
        "model": chosen.model, "method": {"name": "user_replies", "logged": log}, "seed": seed,
        "data": folder / ("log.jsonl" if log else "online.jsonl"), "tasks_per_step": chosen.tasks,
        "env": "chats" if log else f"{Path(__file__).resolve()}:USER", "lora": chosen.lora or None,
        "optimiser": {"lr": chosen.lr, "warmup_steps": 1}, "guards": {"action": "warn", "preflight": "off"},
        "evaluation": {"every": 0, "tasks": chosen.watched if log else 2}, "checkpoint_every": 5, **shared(chosen),
    }  # fmt: skip
    run = arms.train_to(path, -(-chosen.conversations // chosen.tasks), settings)
    complaints = {text for wish in WISHES for text in PREFERENCES[wish].replies}
    moved: dict[str, list[float]] = {kind: [] for kind in NEXT}
    for one in run.rollouts():
        if one.log_ratio:
            kind = "complaints" if one.context.get("reply", "") in complaints else "next questions"
            moved[kind].append(fmean(map(abs, one.log_ratio)))
    warned = next((f"{found.findings[0].signal} at {found.step}" for found in run.guards if found.findings), "–")
    return measured(chosen, chosen.out / f"{arm}-seed{seed}-measured", run.model_dir), moved, warned


def report(base: Mapping[str, arms.Scores], found: Mapping[str, Sequence[Any]]) -> str:
    """What each user likes, the change of the known tasks, how far next turns of both kinds moved the answers, and
    warnings of the guards."""
    names = [*WISHES, "known"]
    rows = [["before", "", *(arms.shown(arms.accuracy(base[name])) for name in names), "", "", ""]]
    for arm, seeds in found.items():
        cells = [arms.shown(arms.accuracy(arms.pooled([scores[wish] for scores, *_ in seeds]))) for wish in WISHES]
        change: Estimate = arms.change([scores["known"] for scores, *_ in seeds], [base["known"]] * len(seeds))
        moved = {kind: [value for _, own, _ in seeds for value in own[kind]] for kind in NEXT}
        shown = [arms.shown(mean(values)) if values else "–" for values in moved.values()]
        warned = ", ".join(found for *_, found in seeds)
        rows.append([arm, str(len(seeds)), *cells, arms.shown(change, sign=True), *shown, warned])
    head = ["arm", "seeds", *WISHES, "known tasks (change)", "moved by complaints, nats", "by next questions"]
    return arms.table([*head, "first warning"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, and writes the table after every arm."""
    parser = arms.parser(__doc__, "logged")
    parser.set_defaults(lr=2e-5)  # a model of 0.5 B learns nothing at 5e-6, and is destroyed at 1e-4
    parser.add_argument("--arms", nargs="+", choices=("log", "online"), default=["log", "online"])
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=20, help="conversations of a step")
    parser.add_argument("--unseen", type=int, default=60, help="unseen questions of each kind of user")
    parser.add_argument("--known", type=int, default=150)
    parser.add_argument("--watched", type=int, default=84, help="known questions that guards watch (log)")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.conversations, chosen.tasks, chosen.new_tokens = 8, 4, 4
        chosen.unseen, chosen.known, chosen.watched = 2, 2, 2
    elif not chosen.model:
        parser.error("--model is needed (or --tiny)")
    write_data(chosen, 0)
    base = measured(chosen, chosen.out / "before", chosen.model)
    found: dict[str, list[Any]] = {}
    for seed in range(chosen.seeds):
        write_data(chosen, seed)
        for arm in chosen.arms:
            found.setdefault(arm, []).append(run_arm(chosen, arm, seed))
            arms.save(chosen.out, "results", {"before": base, "arms": found}, report(base, found))


if __name__ == "__main__":
    main()
