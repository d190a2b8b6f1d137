"""Kills `selfdistill serve` under load, again and again, and compares what its clients got with what is there.

python -m tests.live.kill_serve [KILLS]         in a directory of its own; 100 unless given

Clients ask, whole and as streams, give feedback, and change the served version. What one of them had whole was
acknowledged: an answer with its receipt, `[DONE]` of a stream, the count of feedback.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import torch

from selfdistill.cli import main as run_command
from selfdistill.live import server, weights  # noqa: F401
from selfdistill.live.journal import Journal
from selfdistill.models.adapter import LoraOptions
from selfdistill.models.load import load_policy

MODEL, CLIENTS, MOST, LONGEST_LIFE_S = "sapling-small", 4, 24, 120.0
Acknowledged = list[tuple[str, Any]]


def publish_adapter(directory: Path) -> None:
    """A journal with a second version, an adapter of the model."""
    policy = load_policy(MODEL, device="cpu", lora=LoraOptions(rank=4))
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.01)
    policy.model.save_pretrained(str(directory / "adapter"))  # type: ignore[operator]
    with Journal.serve(directory / "journal.db") as journal:
        journal.versions.publish(MODEL)
        journal.versions.publish(MODEL, str(directory / "adapter"), parent=1)


class Client:
    """Asks until the server is gone. What it had whole goes to `acknowledged`."""

    def __init__(self, port: int, number: int, acknowledged: Acknowledged) -> None:
        self._port, self._draw, self._acknowledged = port, random.Random(number + time.time_ns()), acknowledged
        self.wrong: list[str] = []
        self._run = self._change if number == 0 else self._ask
        self.thread = threading.Thread(target=self._until_gone)
        self.thread.start()

    def _until_gone(self) -> None:
        while True:
            try:
                self._run()
            except (OSError, http.client.HTTPException, ValueError):  # cut off
                return

    def _post(self, path: str, **body: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", f"/v1/{path}", json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _ask(self) -> None:
        streams = self._draw.random() < 0.5
        question = {"role": "user", "content": f"Say {self._draw.randrange(1000)}."}
        status, body = self._post(
            "chat/completions", messages=[question], max_tokens=self._draw.randint(1, 24), stream=streams
        )
        if status != 200:
            self.wrong.append(f"{status}: {body[:200]!r}")
            return
        if streams:
            lines = [line for line in body.decode().split("\n\n") if line.startswith("data: {")]
            if "data: [DONE]" not in body.decode():
                return
            receipt = json.loads(lines[-1].removeprefix("data: "))["selfdistill"]["receipt"]
        else:
            receipt = json.loads(body)["selfdistill"]["receipt"]
        self._acknowledged.append(("exchange", receipt))
        status, _ = self._post("feedback", receipt=receipt, text=receipt)
        if status == 200:
            self._acknowledged.append(("feedback", receipt))

    def _change(self) -> None:
        path, body = self._draw.choice(
            [("pin", {"version": 1}), ("pin", {"version": 2}), ("pin", {"version": None}), ("undo", {"versions": 1})]
        )
        status, answer = self._post(f"selfdistill/{path}", **body)
        if status not in (200, 409):
            self.wrong.append(f"{path}: {status}: {answer[:200]!r}")
        if status == 200:
            self._acknowledged.append(("served", json.loads(answer)["served"]))
        time.sleep(self._draw.uniform(0, 0.2))


def kill(directory: Path, acknowledged: Acknowledged) -> tuple[int, float]:
    """Starts a server, kills it under load, and returns the version that it served first, and how long it started."""
    began = time.monotonic()
    process, out = serve(directory / "journal.db")
    try:
        lines = list[str]()
        while not lines or not lines[-1].startswith("serving"):
            line = out.readline()
            assert line, f"the server did not start: {lines}"
            lines.append(line)
        started, words = time.monotonic() - began, lines[-1].split()
        port, version = int(words[3].rstrip(",").split(":")[2].split("/")[0]), int(words[-1])
        clients = [Client(port, number, acknowledged) for number in range(CLIENTS)]
        enough, late = len(acknowledged) + random.randrange(MOST), time.monotonic() + LONGEST_LIFE_S
        while len(acknowledged) < enough and time.monotonic() < late:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for client in clients:
        client.thread.join()
        assert not client.wrong, client.wrong
    return version, started


def serve(journal: Path) -> tuple[int, IO[str]]:
    """A process of `selfdistill serve`, and what it prints; with what is imported here, for torch takes seconds."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, os.fdopen(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.argv = ["selfdistill", "serve", "--model", MODEL, "--port", "0", "--device", "cpu", "--journal", str(journal)]
    run_command()
    os._exit(0)


def compare(directory: Path, acknowledged: Acknowledged) -> tuple[int, int]:
    """How many exchanges there are, and which version is served. Raises `AssertionError` for anything lost."""
    with Journal.serve(directory / "journal.db") as journal:  # checks every page
        found = {exchange.receipt: exchange for exchange in journal.exchanges()}
        for kind, what in acknowledged:
            assert kind == "served" or what in found, f"an acknowledged exchange is lost: {what}"
            if kind == "feedback":
                assert ("text", what) in journal.feedback(found[what].seq), f"acknowledged feedback is lost: {what}"
        for exchange in found.values():
            assert len(exchange.sampled_ids) == len(exchange.logprobs) > 0
            assert exchange.version in (1, 2)
        states = [version.state for version in journal.versions.all]
        assert states.count("served") == 1
        assert journal.versions.served
        return len(found), journal.versions.served.id


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as name:
        directory, acknowledged, starts, served = Path(name), Acknowledged(), list[float](), 2
        publish_adapter(directory)
        for number in range(kills):
            version, started = kill(directory, acknowledged)
            assert version == served, f"version {served} was served before, {version} after the start"
            found, served = compare(directory, acknowledged)
            starts.append(started)
            counts = Counter(kind for kind, _ in acknowledged)
            sys.stdout.write(
                f"{number + 1} kills: {counts['exchange']} exchanges and {counts['feedback']} times feedback "
                f"acknowledged, {found} recorded; {counts['served']} changes of version; version {served} is served; "
                f"starts {sum(starts) / len(starts):.1f} s\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
