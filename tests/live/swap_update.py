"""A server that learns in a child process of its own, seen by a client: latency beside an update, the swap, undo; then
the child, and the server, are killed at every line of progress of an update, and what is served and waits is compared.

python -m tests.live.swap_update                                   # a toy model, minutes
python -m tests.live.swap_update --model DIR --no-kills --beside 12          # latency of another model
"""

import argparse
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from selfdistill.live.journal import Journal
from selfdistill.live.lessons import waiting
from selfdistill.live.updates import Updates
from tests.toy_user import COMPLAINT, QUESTIONS, toy_user_dir

TOY = [
    "lessons=2",
    "rounds=4",
    "completions=4",
    "lr=5e-3",
    "max_new_tokens=6",
    "max_prompt_tokens=128",
    "harm=1",
    "kl_cap=3",
]
ASKED = ("What is a mutex?", "Explain DNA to me.", "What is inflation?", "Why does gravity matter?")
SHORTER = "Too long. One short sentence is enough, and no code."


class Served:
    """A server process, and what it prints."""

    def __init__(self, model: str, journal: Path, settings: list[str], tokens: int) -> None:
        command = [
            sys.executable, "-m", "selfdistill", "serve", "--model", model, "--journal", str(journal),
            "--port", "0", "--learn", "now", "--device", "cpu", *settings,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.tokens = queue.Queue[str](), tokens
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self.wait_for(" at http").partition(" at ")[2].partition("/v1")[0]

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)

    def wait_for(self, text: str, count: int = 1, seconds: float = 3000) -> str:
        """The count-th line with a text, or with one that says that an update has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            line = self.lines.get(timeout=seconds)
            count -= text in line
            if not count or (text == "update " and " accepted" in line):
                return line
        raise AssertionError(f"no line says {text}")

    def call(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body or path.endswith("learn") else None
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def ask(self, question: str) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        messages = [{"role": "user", "content": question}]
        found = self.call("chat/completions", messages=messages, temperature=0, max_tokens=self.tokens)
        return found, time.monotonic() - began

    def state(self) -> tuple[str, str]:
        (*_, last) = self.call("selfdistill/updates")["updates"]
        return last["state"], last["reason"]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def text_of(found: dict[str, Any]) -> str:
    return str(found["choices"][0]["message"]["content"])


def seen(served: Served, questions: tuple[str, ...], words: str, lessons: int, most: int) -> None:
    """Latency without an update and beside one, of so many requests; the swap; and the answers after undoing."""
    first = [served.ask(question) for question in questions]
    for found, _ in first[:lessons]:
        served.call("feedback", receipt=found["selfdistill"]["receipt"], text=words)
    alone = [served.ask(question)[1] for question in questions * 2]
    served.call("selfdistill/learn")
    served.wait_for("update ")
    beside, asked = list[float](), 0
    while served.state()[0] in ("queued", "training") and asked < most:
        beside.append(served.ask(questions[asked % len(questions)])[1])
        asked += 1
    state, reason = served.state()
    usual, slower = statistics.median(alone), statistics.median(beside)
    say(f"update {state}: {reason}")
    say(f"median latency {usual:.2f} s of {len(alone)} alone, {slower:.2f} s of {len(beside)} beside the update: "
        f"{slower / usual:.2f} times")  # fmt: skip
    if state == "accepted":
        now = [text_of(served.ask(question)[0]) for question in questions]
        served.call("selfdistill/undo", versions=1)
        again = [text_of(served.ask(question)[0]) for question in questions]
        before = [text_of(found) for found, _ in first]
        changed = sum(a != b for a, b in zip(now, before, strict=True))
        same = sum(map(str.__eq__, again, before))
        say(f"the swap changed {changed} of {len(now)} answers; after undoing {same} are as before")


def kills(model: str, folder: Path, settings: list[str]) -> None:
    """Kills child or server at every line of progress, until an update gets through."""
    for victim in ("child", "server"):
        journal, point, state = folder / f"{victim}.db", 1, ""
        served = Served(model, journal, settings, 6)
        for found, _ in [served.ask(question) for question in QUESTIONS][:2]:
            served.call("feedback", receipt=found["selfdistill"]["receipt"], text=COMPLAINT)
        before = text_of(served.ask(QUESTIONS[3])[0])
        while state != "accepted":
            served.call("selfdistill/learn")
            served.wait_for("update ", point)
            with Journal.open(journal) as opened:
                (*_, row) = Updates(opened.database).all
            if row.state == "training" and row.process:  # it may have ended meanwhile
                number = int(row.process.split()[0]) if victim == "child" else served.process.pid
                os.kill(number, signal.SIGKILL)
                if victim == "server":
                    served.process.wait(60)
                    served = Served(model, journal, settings, 6)
            while (state := served.state()[0]) in ("queued", "training"):
                time.sleep(0.2)
            with Journal.open(journal) as opened:
                left, versions = len(waiting(opened, Updates(opened.database).history())), opened.versions.served
            answer = text_of(served.ask(QUESTIONS[3])[0])
            same = "as before" if answer == before else "another"
            say(f"{victim} killed at line {point}: update {state}, {left} lessons wait, version "
                f"{versions and versions.id}, the answer is {same}")  # fmt: skip
            assert (state, left) in (("failed", 2), ("accepted", 0)), served.state()
            assert (answer == before) == (state == "failed")
            point += 1
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer whose latency is measured")
    parser.add_argument("--beside", type=int, default=10_000, help="requests beside the update, at most")
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("settings", nargs="*", help="of learning")
    options = parser.parse_args()
    model, folder = options.model or str(toy_user_dir()), Path(tempfile.mkdtemp())
    settings = options.settings or ([] if options.model else TOY)
    served = Served(model, folder / "journal.db", settings, options.tokens)
    seen(served, ASKED if options.model else QUESTIONS, SHORTER if options.model else COMPLAINT, 2, options.beside)
    served.process.send_signal(signal.SIGINT)
    say(f"the server ended with {served.process.wait(60)}")
    if not options.no_kills:
        kills(model, folder, settings)


if __name__ == "__main__":
    main()
