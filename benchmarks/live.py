"""What replies of a simulated user teach a served model.

    python -m benchmarks.live replies --model DIR --out runs/live        # adherence after 1, 2, 4, 8, 16 replies
    python -m benchmarks.live flip | follow-ups | poison | undo --model DIR --out runs/live
    python -m benchmarks.live report --out runs/live                     # tables of what is there
    … --preference short --seeds 3 --device cuda --set rounds=4 --tiny             # tiny: whether it runs at all

The user replies to an answer only where it violates the preference (a rule judges it), up to so many replies. `base` is
the model as it is, `in-context` the same with all replies before the question, `user_replies` one step on one answer a
reply, as published, and `live` updates as a server makes them. Questions are asked eight at a time; a journal has all.
A result that is there is not measured again, and an arm that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.arms import say
from benchmarks.live_arms import ASKED, MOST_ASKED, Bench, Done, LiveArm, Published
from benchmarks.live_user import FOLLOW_UPS, HARMFUL, LONG, PREFERENCES, TOPICS, Preference
from selfdistill.live.exchange import Version
from selfdistill.live.learner import CORRECTING, LiveLearner
from selfdistill.live.learning import read_learning
from selfdistill.live.lessons import choose
from selfdistill.live.updates import Updates
from selfdistill.live.weights import Weights
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.runs.stats import paired_difference, share
from selfdistill.types import Completion, TokenIds

COUNTS = (1, 2, 4, 8, 16)  # replies after which adherence is measured
FLIPPED_AFTER = 8  # replies; the opposite preference has twice as many
DECISIVE = 4  # replies, from which on known tasks are measured as well
ARMS = ("base", "in-context", "user_replies", "live")


def measured(bench: Bench, replies: int, *, context: bool = False) -> dict[str, Any]:
    """Adherence and, after none or four replies and more, known tasks against those of the model as it was."""
    options, decisive = bench.options, not 0 < replies < DECISIVE
    count = options.unseen if decisive else min(options.unseen, options.unseen_between)
    found = bench.adherence(bench.preference, count, context=context)
    if not decisive or not options.known:
        return found
    now = bench.known(context=context) if replies else bench.known_before
    pairs = zip(now, bench.known_before, strict=True)
    change = paired_difference([float(after) - float(before) for after, before in pairs])
    return {**found, "known": fmean(now), "known_change": [change.value, change.low, change.high]}


def run_arm(bench: Bench, arm: str, folder: Path) -> list[dict[str, Any]]:
    """A row after each number of replies. What an arm that was stopped had done is not done again."""
    if arm == "base":
        return [{"replies": 0, **measured(bench, 0)}]
    state_file, done = folder.with_suffix(".state"), dict[str, Any]()
    if state_file.exists():
        done = json.loads(state_file.read_text())
        bench.turns, bench.batches = [tuple(turn) for turn in done["turns"]], done["batches"]
    rows: list[dict[str, Any]] = done.get("rows", [])
    live = LiveArm(bench, folder) if arm == "live" else None
    if bench.options.known and not bench.weights:
        _ = bench.known_before
    published = Published(bench, folder) if arm == "user_replies" else None
    if published and done:
        published.resume()
    updated = done.get("updated", 0)

    def save() -> None:
        if published:
            published.save()
        about = {"rows": rows, "turns": bench.turns, "batches": bench.batches, "updated": updated}
        state_file.write_text(json.dumps(about))

    for count in bench.options.counts:
        if rows and rows[-1]["replies"] >= count:
            continue
        began = time.monotonic()
        while len(bench.turns) < count and bench.batches < MOST_ASKED:
            if live:
                live.converse(bench.preference, "own", count - len(bench.turns), most_batches=1)
            else:
                for question, answer, liked in bench.asked(bench.preference, arm, context=arm == "in-context"):
                    if liked or len(bench.turns) == count:
                        continue
                    reply = bench.reply(bench.preference)
                    bench.turns.append((question, answer.text, reply))
                    if published:
                        published.step(question, answer, reply)
            save()
            say(f"  {arm}: {len(bench.turns)} replies after {bench.batches * ASKED} questions")
        if live and updated < count:
            live.update()
            updated = count
            save()
        row = {"replies": len(bench.turns), **measured(bench, len(bench.turns), context=arm == "in-context")}
        row["asked"], row["seconds"] = bench.batches * ASKED, time.monotonic() - began
        say(f"  {arm} after {row['replies']} replies: {row}")
        rows.append({**row, "updates": live.log[-1:] if live else []})
        save()
        if len(bench.turns) < count:
            break  # the user has no more to say
    return rows


def taught(bench: Bench, folder: Path) -> LiveArm:
    """A copy of the journal of the arm `live`, where there is one."""
    source = bench.options.out / f"replies-{bench.preference.name}-{bench.seed}-live"
    if source.exists() and not folder.exists():
        shutil.copytree(source, folder)
    return LiveArm(bench, folder)


def flip(bench: Bench, folder: Path) -> dict[str, Any]:
    """Eight replies for a preference, or those of the arm `live`; then the opposite one, until it is met on nine of ten
    questions."""
    live, done = taught(bench, folder), Done(bench, folder.with_suffix(".state"))
    other, unseen, rows, updates = LONG, bench.options.unseen, list[dict[str, Any]](), list[dict[str, Any]]()

    def measure(preference: Preference, replies: int) -> None:
        name = f"{preference.name}, {replies} replies"
        old, new = (
            done.once(f"{name}: {each.name}", partial(bench.adherence, each, unseen))
            for each in (bench.preference, other)
        )
        rows.append({"preference": preference.name, "replies": replies, "old": old, "new": new})

    had = done.once("replies of the arm", lambda: live.journal.counts()["follow_ups"])
    if had:
        measure(bench.preference, had)
    for preference, most in ((bench.preference, 0 if had else FLIPPED_AFTER), (other, 2 * FLIPPED_AFTER)):
        given, learned = 0, False
        while given < most and not learned:
            name = f"{preference.name}, after {given} replies"
            count = done.once(f"{name}: replies", partial(live.converse, preference, f"flip-{preference.name}", 4))
            if not count:
                break
            given += count
            updates.append(done.once(f"{name}: update", live.update))
            measure(preference, given)
            learned = preference is other and rows[-1]["new"]["met"] >= 0.9 * rows[-1]["new"]["of"]
    return {"rows": rows, "updates": updates}


def follow_ups(bench: Bench, folder: Path) -> dict[str, Any]:
    """Replies that correct, and next questions: how many are passed over, and how far each kind moves the model."""
    found: dict[str, Any] = {}
    given = LiveArm(bench, folder / "asked")
    given.converse(bench.preference, "kinds", bench.options.counts[-1])
    for kind in ("corrections", "follow-ups"):
        live = LiveArm(bench, folder / kind)
        for number, (question, answer, reply) in enumerate(bench.turns):
            text = reply if kind == "corrections" else FOLLOW_UPS[number % len(FOLLOW_UPS)].format(TOPICS[-1 - number])
            ids = tuple(bench.renderer.answer(answer))
            live.record(f"s{number}", question, Completion(str(number), answer, ids), text)
        learner = LiveLearner(bench.policy, bench.renderer, (), bench.learning)
        lessons = choose(
            live.journal, Updates(live.journal.database).history(), bench.learning, learner.fits, learner.reads, seed=0
        )
        scores = learner.measuring.corrections(lessons.new)
        about = live.update()
        moved = next((c["value"] for c in about["numbers"].get("criteria", ()) if c["name"] == "moved"), 0.0)
        found[kind] = {"scores": scores, "passed_over": sum(score <= CORRECTING for score in scores), "of": len(scores),
                       "admitted": about["admitted"], "reason": about["reason"],
                       "moved": moved if about["admitted"] else 0.0, "trained": moved}  # fmt: skip
        learner.restore()
    return found


def poison(bench: Bench, folder: Path) -> dict[str, Any]:
    """Ten conversations with a preference and one that teaches to refuse, with as many replies as all of them."""
    live, done = LiveArm(bench, folder), Done(bench, folder.with_suffix(".state"))

    def both() -> dict[str, Any]:
        unseen = bench.options.unseen
        return {"refuses": bench.adherence(HARMFUL, unseen), "good": bench.adherence(bench.preference, unseen)}

    found = {"before": done.once("before", both)}
    done.once("replies of ten", partial(live.converse, bench.preference, "good", 10))
    done.once("replies of one", partial(live.converse, HARMFUL, "bad", 10, session="bad"))
    updates = []
    for number in (1, 2):
        updates.append(done.once(f"update {number}", live.update))
        found[f"after update {number}"] = done.once(f"after update {number}", both)
    return {**found, "updates": updates}


def undo(bench: Bench, folder: Path) -> dict[str, Any]:
    """Whether the answers after undoing are those of before, token for token; on the journal of the arm `live` where
    there is one."""
    questions = bench.preference.questions(bench.seed)[1][: bench.options.unseen]
    live = taught(bench, folder)
    versions = live.journal.versions
    if not (versions.served and versions.served.is_adapter):
        live.converse(bench.preference, "undo", 4)
        if not live.update()["admitted"]:
            return {"admitted": False}
    weights = Weights(live.journal, device=bench.options.device, dtype=bench.options.dtype)

    def greedy(version: Version) -> list[TokenIds]:
        options, policy = SamplingOptions(bench.learning.max_new_tokens, temperature=0.0), weights.load(version)
        prompts = [bench.renderer.prompt(bench.messages(question)) for question in questions]
        alone = [sample(policy, [prompt], options, seed=0, uids=["alone"], version=0)[0] for prompt in prompts]
        return [done.token_ids for done in alone]

    assert versions.served
    now, before = versions.served, versions.before()
    answers = [greedy(before), greedy(now), greedy(versions.undo())]
    changed, same = (sum(one == other for one, other in zip(answers[0], after, strict=True)) for after in answers[1:])
    return {"admitted": True, "answers": len(questions), "changed": len(questions) - changed, "same": same}


COMMANDS = {"flip": flip, "follow-ups": follow_ups, "poison": poison, "undo": undo}


def report(out: Path) -> str:
    """The tables of all results that are there."""
    lines = ["| preference | seed | arm | replies | adherence | known tasks |", "|---|--:|---|--:|---|---|"]
    for file in sorted(out.glob("replies-*.json")):
        found = json.loads(file.read_text())
        for row in found["rows"]:
            known = ""
            if "known" in row:
                low, high = (f"{value:+.2f}" for value in row["known_change"][1:])
                known = f"{row['known']:.2f} ({row['known_change'][0]:+.2f} [{low}, {high}])"
            lines.append(
                f"| {found['preference']} | {found['seed']} | {found['arm']} | {row['replies']} | "
                f"{share(row['met'], row['of'])} | {known} |"
            )
    for name in COMMANDS:
        for file in sorted(out.glob(f"{name}-*.json")):
            lines += ["", f"{file.stem}:", json.dumps(json.loads(file.read_text())["rows"], indent=1)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("replies", *COMMANDS, "report"))
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preference", choices=tuple(PREFERENCES), default="short")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--system", default="", help="a system turn before every question")
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--unseen-between", type=int, default=100, help="questions after fewer than four replies")
    parser.add_argument("--known", type=int, default=150)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="settings of learning, KEY=VALUE")
    parser.add_argument("--as-feedback", action="store_true", help="replies are feedback, which is never passed over")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.unseen, options.known, options.counts = 4, 4, [1, 2]
        options.settings = ["max_new_tokens=24", "questions=2", "rounds=1", "replay=2", *options.settings]
    if options.command == "report":
        sys.stdout.write(report(options.out) + "\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    learning = read_learning("now", options.settings)
    assert learning is not None
    for seed in range(options.seeds):
        for arm in options.arms if options.command == "replies" else ("live",):
            name = f"{options.command}-{options.preference}-{seed}-{arm}"
            file = options.out / f"{name}.json"
            if file.exists():
                continue
            say(f"{name}: …")
            began = time.monotonic()
            bench = Bench(options, PREFERENCES[options.preference], seed, learning)
            folder = options.out / name
            rows: Any = (
                run_arm(bench, arm, folder)
                if options.command == "replies"
                else COMMANDS[options.command](bench, folder)
            )
            about = {"preference": options.preference, "seed": seed, "arm": arm, "seconds": time.monotonic() - began}
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps({**about, "settings": options.settings, "rows": rows}, indent=1))
            partial.rename(file)
    sys.stdout.write(report(options.out) + "\n")


if __name__ == "__main__":
    main()
