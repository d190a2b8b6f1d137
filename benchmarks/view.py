"""How fast `selfdistill view` is: its answers on a run of 200,000 rows (1.4 GB), which it makes, and an answer of 8,192
tokens in Chromium (needs playwright). By the clock, and in processor time of the program or of the page.

python -m benchmarks.view [--rows 200000] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from selfdistill.runs.records import RolloutRecord, StepRecord, to_json
from selfdistill.view.site.answers import Answers
from selfdistill.view.site.app import serve
from selfdistill.view.site.index import NAME
from selfdistill.view.site.library import Library

PER_STEP, TOKENS, KINDS = 1024, 115, 64
LONG = 8192  # tokens of one answer
WALK = """([hash, selector]) => new Promise(done => {
  const start = performance.now();
  const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
  const seen = new MutationObserver(() => {
    if (document.querySelector(selector)) { seen.disconnect(); painted(); }
  });
  seen.observe(document.body, { subtree: true, childList: true, attributes: true });
  location.hash = hash;
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "selfdistill-long-run")
    given = parser.parse_args()
    run = given.out / "run"
    if not run.exists():
        make_run(run, given.rows)
    (run / NAME).unlink(missing_ok=True)
    size, before = (run / "rollouts.jsonl").stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = str(given.rows // PER_STEP // 2 + 1)
    print(f"{given.rows:,} rows, {size / 1e9:.2f} GB")  # noqa: T201
    answers = Answers(Library([given.out]))
    measure("table of runs", lambda: answers("runs", {}))
    measure("a run, without an index", lambda: answers("run", {"id": "run"}))
    rows = {"id": "run", "steps": step}
    measure("a step, once the index is made", lambda: answers("rows", rows))
    answers = Answers(Library([given.out]))
    measure("a run, with a kept index", lambda: answers("run", {"id": "run"}))
    measure(f"the {PER_STEP:,} rows of a step", lambda: answers("rows", rows))
    for number in range(3):
        query = {"id": "run", "step": step, "uid": f"{step}-{40 * number + 3}-5"}
        measure("a rollout", lambda query=query: answers("rollout", query))  # type: ignore[misc]
    measure("text search in all rows", lambda: answers("rows", {"id": "run", "steps": "", "q": "not there"}))
    for name in ("all rows, sorted, the first time", "all rows, sorted and filtered"):
        measure(name, lambda: answers("rows", {"id": "run", "order": "sort=-against&outcome=solved"}))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{'memory above the start':34}{(after - before) / 1024:8.0f} MB")  # noqa: T201
    in_a_browser(given.out / "long")


def measure(name: str, act: Callable[[], Any]) -> None:
    start, used = time.perf_counter(), time.process_time()
    act()
    wall, used = (1000 * (now - then) for now, then in ((time.perf_counter(), start), (time.process_time(), used)))
    print(f"{name:34}{wall:8.0f} ms, processor {used:6.0f} ms")  # noqa: T201


def in_a_browser(folder: Path) -> None:
    """An answer of 8,192 tokens: from the click until it is painted, in other colours, and at its end."""
    from playwright.sync_api import sync_playwright

    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"settings": {"model": "m", "method": "sdpo", "env": "code"}}))
        line = '{"step":1,"uid":"1-0-0","task":"t"' + next(_bodies(random.Random(0), LONG, 1))
        (folder / "rollouts.jsonl").write_text(line)
        (folder / "metrics.jsonl").write_text("")
    ready = Queue[str]()
    Thread(target=serve, args=(Answers(Library([folder])), 0, ready.put), daemon=True).start()
    url, place = ready.get(), "#/run/long/step/1/rollout/1-0-0"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def used() -> float:
            found = session.send("Performance.getMetrics")["metrics"]
            return 1000 * float(next(one["value"] for one in found if one["name"] == "TaskDuration"))

        page.goto(f"{url}#/run/long")
        for turn in range(4):  # the first one compiles the script
            for name, hash_, selector in (
                (f"{LONG:,} tokens: asked for and drawn", place, ".tokens .t"),
                (f"{LONG:,} tokens: other colours", f"{place}?color=p", ".tokens .rare"),
                ("away", "#/run/long", ".plots"),
            ):
                before, wall = used(), page.evaluate(WALK, [hash_, selector])
                if turn and name != "away":
                    print(f"{name:34}{wall:8.0f} ms, processor {used() - before:6.0f} ms")  # noqa: T201
                page.wait_for_timeout(500)
        browser.close()


def make_run(path: Path, rows: int) -> None:
    """A run whose rollouts are made of a few, under names of their own."""
    path.mkdir(parents=True)
    settings = {"model": "sapling", "method": {"name": "sdpo"}, "env": {"name": "code"}, "seed": 0}
    (path / "config.json").write_text(json.dumps({"settings": settings | {"steps": rows // PER_STEP}}))
    bodies = list(_bodies(random.Random(0)))
    with (path / "rollouts.jsonl").open("w") as rollouts, (path / "metrics.jsonl").open("w") as metrics:
        for number in range(rows):
            step, place = number // PER_STEP + 1, number % PER_STEP
            head = {"step": step, "uid": f"{step}-{place // 8}-{place % 8}", "task": f"task-{place // 8}"}
            rollouts.write(json.dumps(head, separators=(",", ":"))[:-1] + bodies[number % KINDS])
            if place == PER_STEP - 1:
                done = number + 1
                record = StepRecord(
                    step, done, done * TOKENS, 30.0 * step, done / rows, done / rows, 0.1, 1.0, 1e-5, 0.3
                )
                metrics.write(to_json(record) + "\n")


def _bodies(rng: random.Random, tokens: int = TOKENS, kinds: int = KINDS) -> Iterator[str]:
    """Lines behind their first three fields."""
    words = ("def", " f", "(", "x", "):", "\n", "    return", " x", " + 1")
    for number in range(kinds):
        texts = tuple(rng.choices(words, k=tokens))
        numbers = tuple(rng.gauss(0, 0.5) for _ in texts)
        row = RolloutRecord(
            0, "", "", "Write f.", "".join(texts), "end", reward=float(number % 2), feedback="Wrong answer.",
            context_kind="feedback", context={"feedback": "Wrong answer."}, distil=1.0, log_ratio=numbers,
            token_ids=tuple(rng.randrange(150_000) for _ in texts), logprobs=tuple(-abs(u) for u in numbers),
            log_ratio_at="step_start", prompt_ids=tuple(range(40)), teacher_prompt_ids=tuple(range(60)),
            token_texts=texts,
        )  # fmt: skip
        yield to_json(row).partition('"task":""')[2] + "\n"


if __name__ == "__main__":
    main()
