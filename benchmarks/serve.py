"""How fast the server answers requests that come together, against the same requests one by one, over HTTP.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --model DIR --dtype bfloat16
    OMP_NUM_THREADS=1 python benchmarks/serve.py --tiny                  the embedded model, few tokens: that it runs

Server and clients are one process, so its processor seconds are those of everything; on one thread of an idle machine
they are those of the clock. Greedy answers of a fixed number of tokens to different questions; both ways must say the
same, up to ties that float noise decides. A part is written to --out as soon as it is measured, and what is there is
not measured again.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from selfdistill.envs.verbs.env import plain_tasks
from selfdistill.live.engine import Engine
from selfdistill.live.journal import Journal
from selfdistill.live.server import Server
from selfdistill.live.service import Service
from selfdistill.live.weights import Weights

WAYS = {"one by one": 1, "together": None}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sapling", help="directory or name of the model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/serve.jsonl"), help="file of the results")
    parser.add_argument("--tiny", action="store_true", help="four requests of four tokens to the embedded model")
    return parser.parse_args()


@contextmanager
def served(model: str, dtype: str) -> Iterator[int]:
    """The port of a server with this model, whose answers end with their limit alone."""
    with tempfile.TemporaryDirectory() as directory, Journal.serve(Path(directory, "journal.db")) as journal:
        weights = Weights(journal, dtype=dtype)
        version, policy = weights.start(model)
        policy.end_ids = frozenset()
        engine = Engine(policy, kept_tokens=0)  # each prompt is read, though it was before
        service = Service(policy, engine, journal, version, name="model", weights=weights)
        config = uvicorn.Config(Server(service).app(), port=0, lifespan="off", log_level="error")
        bound, server = config.bind_socket(), uvicorn.Server(config)
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(10)
        engine.close()
        engine.join()


def answer(port: int, question: str, tokens: int) -> str:
    """The text of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    found = json.loads(connection.getresponse().read())
    connection.close()
    assert found["usage"]["completion_tokens"] == tokens
    return str(found["choices"][0]["message"]["content"])


def measure(port: int, questions: list[str], tokens: int, clients: int | None) -> dict[str, Any]:
    """Seconds and texts of all answers, from so many clients at a time."""
    clock, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients or len(questions)) as pool:
        texts = list(pool.map(lambda question: answer(port, question, tokens), questions))
    return {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - processor, "texts": texts}


def main() -> None:
    given = arguments()
    if given.tiny:
        given.requests, given.tokens, given.out = 4, 4, Path(tempfile.mkdtemp(), "serve.jsonl")
    what = {name: getattr(given, name) for name in ("model", "dtype", "requests", "tokens")}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = [each for each in map(json.loads, lines) if each["what"] == what]
    questions = [str(task.messages[-1].content) for task in plain_tasks(given.requests, seed=0)]
    wanted = [(way, repeat) for repeat in range(given.repeats) for way in WAYS]
    left = [each for each in wanted if each not in [(entry["way"], entry["repeat"]) for entry in done]]
    if left:
        with served(given.model, given.dtype) as port:
            answer(port, "Warm up, please.", 2)
            for way, repeat in left:
                found = {"what": what, "way": way, "repeat": repeat}
                found |= measure(port, questions, given.tokens, WAYS[way])
                with given.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                done.append(found)
    best = {way: min((each for each in done if each["way"] == way), key=lambda each: each["cpu"]) for way in WAYS}
    for way, each in best.items():
        rate = given.requests * given.tokens / each["cpu"]
        sys.stdout.write(f"{way:11} {each['seconds']:7.1f} s, {each['cpu']:7.1f} CPU s, {rate:6.1f} tokens a CPU s\n")
    alone, together = best.values()
    same = sum(one == other for one, other in zip(alone["texts"], together["texts"], strict=True))
    ratio, clock = alone["cpu"] / together["cpu"], alone["seconds"] / together["seconds"]
    sys.stdout.write(f"{ratio:.1f} times (clock: {clock:.1f}); {same} of {given.requests} texts are the same\n")


if __name__ == "__main__":
    main()
