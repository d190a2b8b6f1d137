"""A directory with a run, an older one, a search and a journal, for the tests of `selfdistill view`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from live_parts import ask, served, user
from selfdistill.live.exchange import Feedback
from selfdistill.runs import EvalRecord, GuardRecord, RolloutRecord, RunDir, StepRecord, Summary
from selfdistill.runs.records import Accuracies, Finding, TurnRecord
from selfdistill.runs.solving import SolveResult, write_result
from selfdistill.runs.stats import share
from selfdistill.runs.store import CONFIG

SAPLING = Path(__file__).parents[2] / "src" / "selfdistill" / "sapling" / "weights" / "sapling" / "tokenizer.json"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>\u202eabc\u202c מבחן \x1b[31m</pre>'
TEXTS = ("def", " f", "(n", "):", "\n", "    return", " n", " - 1", "<|end|>")
RATIOS = (0.0, 0.01, -0.2, 0.9, 0.0, -0.8, 0.3, -3.5, 0.02)
PLAIN, TOLD = (3, 976, 556, 397, 983, 1, 4), (3, 976, 556, 397, 983, 995, 986, 974, 900, 975, 987, 998, 1, 4)


def row(step: int, group: int, number: int, **changes: Any) -> RolloutRecord:
    """A rollout of the verbs: the first of each group is solved, and the solution of the others."""
    solved, texts = number == 0, changes.pop("texts", TEXTS)
    right, wrong = "def f(n):\n    return n - 1", f"def f(n):\n    return n - {number}"
    given: dict[str, Any] = {
        "step": step, "uid": f"{step}-{group}-{number}", "task": f"task-{group}", "prompt": "Write f(n).",
        "completion": right if solved else wrong, "stop": "end", "reward": float(solved), "token_texts": texts,
        "feedback": "" if solved else f"Expected 1, got {number}.", "context_kind": "none" if solved else "solution",
        "context": {} if solved else {"solution": right}, "drop": "only_success" if solved else None,
        "distil": 0.0 if solved else 1.0, "token_ids": tuple(range(len(texts))), "log_ratio_at": "step_start",
        "logprobs": (-0.5,) * len(texts), "entropy": () if solved else tuple(n / 2 for n in range(len(texts))),
        "log_ratio": () if solved else tuple(u * number for u in RATIOS),
        "prompt_ids": PLAIN, "teacher_prompt_ids": () if solved else TOLD, "details": {"tests": 3},
    }  # fmt: skip
    return RolloutRecord(**{**given, **changes})


def make_run(path: Path, steps: int = 3, *, finished: bool = True, **settings: Any) -> Path:
    """A run of some steps with two groups of four; the last group of step 2 holds hostile text and a conversation."""
    config = {"settings": {"model": "sapling", "method": {"name": "sdpo"}, "env": {"name": "verbs"}, "seed": 0,
                           "steps": 3, **settings}}  # fmt: skip
    with RunDir.create(path, config) as run:
        for split, before in (("train", 10), ("forgetting", 90)):
            run.append(EvalRecord(0, 0, 0.0, split, share(before, 100), tasks=16, solved=2))  # type: ignore[arg-type]
        for step in range(1, steps + 1):
            add_step(run, step)
        if finished:
            for split, after in (("train", 80), ("forgetting", 70)):
                run.append(EvalRecord(steps, steps * 8, 9.0, split, share(after, 100), tasks=16))  # type: ignore[arg-type]
            run.append(GuardRecord(2, "warn", (Finding("length", "length", 9.0, 4.0, "answers grew"),), since=1))
            run.finish(
                Summary("sdpo", "sapling", "verbs", 0, steps, steps * 8, steps * 72, 9.0, Accuracies(), Accuracies())
            )
    tokenizer = path / "checkpoints" / "step-000002"
    tokenizer.mkdir(parents=True)
    shutil.copy(SAPLING, tokenizer)
    return path


def add_step(run: RunDir, step: int) -> None:
    """The records of one step."""
    rows = [row(step, group, number) for group in range(2) for number in range(4)]
    if step == 2:
        turn = TurnRecord(PLAIN, "first", 4, "end", fresh=True, observation=(("user", "No."),))
        rows[5] = row(2, 1, 1, completion=HOSTILE, texts=(HOSTILE, *TEXTS[1:]), feedback=HOSTILE, task=HOSTILE)
        rows[6] = row(2, 1, 2, turns=(turn, TurnRecord((4, 5), "second", 5, "end", teacher_read=(4, 6, 5))))
    extra, dropped = {"entropy": 1 / step, "divergence": 0.1}, {"only_success": 2}
    run.append(
        *rows,
        StepRecord(step, step * 8, step * 72, step * 3.0, 0.25, 0.25, 0.1, 1.0, 1e-5, 0.4, 9.0, samples=6,
                   dropped=dropped, extra=extra, contexts={"solution": 6}),
    )  # fmt: skip


def make_old(path: Path) -> Path:
    """A run as earlier versions wrote it: other names, no texts of tokens, no prompts."""
    path.mkdir()
    settings = {"model": "sapling", "method": "sdpo", "world": "verbs", "seed": 1, "steps": 1}
    (path / CONFIG).write_text(json.dumps({"settings": settings}))
    rollout = {"step": 1, "uid": "1-0-0", "task": "t", "prompt": "Write f(n).", "completion": "n - 1", "stop": "end",
               "reward": 0.0, "token_ids": [1, 2], "logprobs": [-1.0, -2.0], "evidence": [0.5, -1.5],
               "drop": "flat_group", "event": "rollout"}  # fmt: skip
    step = {"step": 1, "generations": 1, "tokens": 2, "wall_s": 1.0, "reward": 0.0, "accuracy": 0.0, "loss": 0.1,
            "grad_norm": 1.0, "lr": 1e-5, "evidence": 1.0, "dropped": {"flat_group": 1}, "event": "step"}  # fmt: skip
    (path / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n")
    (path / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    return path


def make_search(path: Path) -> Path:
    """A search of two tasks, one solved at its second attempt."""
    settings = {"model": "sapling", "method": {"name": "sdpo"}, "env": {"name": "verbs"}, "solve": {"budget": 4}}
    path.mkdir()
    (path / CONFIG).write_text(json.dumps({"settings": settings}))
    for number, at in enumerate((2, None)):
        task = path / f"00{number}-task-{number}"
        with RunDir.create(task, {"settings": settings}) as run:
            run.append(
                *(row(1, number, place, completion="same" if place > 1 else f"try {place}") for place in range(4))
            )
        result = SolveResult(f"task-{number}", "best-of-k", "sapling", "verbs", 0, 4, "attempts", 4, 1, 36, 2.0)
        changes = {"solved_at": at, "right": 1, "solution": "try 1"} if at else {}
        write_result(task, SolveResult(**{**{n: getattr(result, n) for n in result.__slots__}, **changes}))
    return path


def make_journal(path: Path) -> Path:
    """Two conversations, one with feedback and a reply."""
    with served(path) as journal:
        first = ask(journal, user("Why is the sky blue?"), answer="It scatters blue light.")
        journal.add_feedback(Feedback(first.receipt, text="Shorter, please."))
        ask(journal, user(HOSTILE), answer=HOSTILE, headers={"x-session-id": "c-hostile"})
    return path


def make_site(path: Path) -> Path:
    """One of each."""
    make_run(path / "new")
    make_old(path / "old")
    make_search(path / "search")
    make_journal(path / "journal.db")
    return path
