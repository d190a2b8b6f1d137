"""Agents that people use, end to end against the server: HTTP, protocol, tools, journal. Only what the model writes is
planned, for no model that runs here can be relied on to call a tool.

`make agents` installs them, and lets them reach nothing but the server. An agent is asked to make a file; the first
answer calls its shell, the next one reads what came back. The journal then holds both, and the result of the call as
the reply to the first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from selfdistill.live.batch import Generation, Piece
from selfdistill.live.exchange import Exchange
from selfdistill.live.journal import Journal
from selfdistill.live.server import Server
from selfdistill.live.service import Service
from selfdistill.live.written import Written
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from tiny_models import tiny_policy_dir

FOLDER = Path(os.environ.get("AGENTS", Path(__file__).parents[2] / ".agents"))
TASK = "Make a file made.txt that holds the word journal and the product of 6 and 7."
COMMAND, RESULT = "echo journal-$((6*7)) > made.txt; cat made.txt", "journal-42"
LIMIT_S = 180


class PlannedEngine:
    """Writes planned answers, as `Engine` samples them: a function of the prompt's text says what."""

    def __init__(self, policy: Policy, plan: Callable[[str], str]) -> None:
        self.policy, self.plan, self.sampled, self.load, self.joins = policy, plan, 0, (0, 0), True

    def serve(self, policy: Policy) -> None:
        """The one policy stays."""

    def submit(self, *generations: Generation) -> None:
        threading.Thread(target=lambda: [self._write(generation) for generation in generations]).start()

    def _write(self, generation: Generation) -> None:
        tokenizer = self.policy.tokenizer
        prompt = str(tokenizer.decode(list(generation.prompt)))
        generation.written = Written(tokenizer, generation.stop)
        ids = [*tokenizer.encode(self.plan(prompt), add_special_tokens=False), tokenizer.eos_token_id]
        for place, token in enumerate(ids):
            last = place == len(ids) - 1
            text = generation.written.add(token, last=last)
            generation.deliver(Piece(text, token, -0.25, ended="end" if last else ""))
        self.sampled += len(ids)


@dataclass(frozen=True)
class Agent:
    """How an agent is started in a directory, and what the model writes for it."""

    name: str
    program: Path
    command: Callable[[Path, str], list[str]]
    plan: Callable[[str], str]
    setup: Callable[[Path, str], None] = lambda *_: None
    variables: Mapping[str, str] = field(default_factory=dict)


def called(**arguments: Any) -> str:
    return f"I run it.\n<tool_call>\n{json.dumps({'name': 'bash', 'arguments': arguments})}\n</tool_call>"


def mini(prompt: str) -> str:
    if RESULT in prompt:
        return called(command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
    return called(command=COMMAND)


def opencode(prompt: str) -> str:
    if "title generator" in prompt:
        return "Making a file"
    return "The file is made." if RESULT in prompt else called(command=COMMAND, description="Makes the file")


def opencode_settings(directory: Path, url: str) -> None:
    model = {"name": "planned", "tool_call": True, "limit": {"context": 100_000, "output": 4_000}}
    options = {"baseURL": url, "apiKey": "none"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "local", "options": options, "models": {"planned": model}}
    settings = {
        "provider": {"local": provider}, "model": "local/planned", "small_model": "local/planned",
        "autoupdate": False, "share": "disabled", "permission": {"bash": "allow", "edit": "allow"},
    }  # fmt: skip
    (directory / "opencode.json").write_text(json.dumps(settings))


def start_mini(program: Path, url: str) -> list[str]:
    api = f"model.model_kwargs.api_base={url}"
    words = ["-m", "openai/planned", "-y", "--exit-immediately", "-t", TASK, "-c", "mini.yaml", "-c", api]
    return [str(program), *words]


def start_opencode(program: Path, _: str) -> list[str]:
    return [str(program), "run", "--model", "local/planned", TASK]


AGENTS = (
    Agent(
        "mini", FOLDER / "mini/bin/mini", start_mini, mini,
        variables={"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"},
    ),
    Agent(
        "opencode", FOLDER / "node_modules/.bin/opencode", start_opencode, opencode, opencode_settings,
        {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    ),
)  # fmt: skip


@contextmanager
def served(directory: Path, plan: Callable[[str], str]) -> Iterator[tuple[str, Journal]]:
    """The address of a server whose model writes what is planned, and its journal."""
    policy = load_policy(str(tiny_policy_dir(directory)), device="cpu", trained=False)
    policy.context_length = 1_000_000
    with Journal.serve(directory / "journal.db") as journal:
        version = journal.versions.publish("planned")
        engine: Any = PlannedEngine(policy, plan)
        app = Server(Service(policy, engine, journal, version, name="planned")).app()
        config = uvicorn.Config(app, port=0, lifespan="off", log_level="error")
        bound, server = config.bind_socket(), uvicorn.Server(config)
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1", journal
        server.should_exit = True
        thread.join(10)


def check(agent: Agent) -> str:
    """Runs an agent, and says what its journal holds. Raises `AssertionError` where that is not a round trip."""
    with tempfile.TemporaryDirectory() as name:
        place, home = Path(name, "work"), Path(name, "home")
        place.mkdir()
        home.mkdir()
        with served(Path(name), agent.plan) as (url, journal):
            agent.setup(place, url)
            nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
            variables = {
                "PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", **nowhere,
                "no_proxy": "127.0.0.1,localhost", "OPENAI_API_KEY": "none", **agent.variables,
            }  # fmt: skip
            done = subprocess.run(
                agent.command(agent.program, url), cwd=place, env=variables, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=LIMIT_S,
            )  # fmt: skip
            said = f"{agent.name} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            assert done.returncode == 0, said
            made = place / "made.txt"
            assert made.is_file(), f"{agent.name} made no file\n{said}"
            assert RESULT in made.read_text()
            return summary(agent, list(journal.exchanges()))


def summary(agent: Agent, exchanges: list[Exchange]) -> str:
    main = [each for each in exchanges if each.kind == "main"]
    assert main, "nothing of the conversation was recorded"
    assert len({each.conversation for each in main}) == 1, "its turns are one conversation"
    trips = [each for each in main if each.follow_up and any(m.role == "tool" for m in each.follow_up.messages)]
    first = next(each for each in main if each.reply.get("tool_calls"))
    assert trips, "no result of a tool came back"
    assert trips[0].follow_up
    assert trips[0].follow_up.receipt == first.receipt, "the result is the reply to the call"
    assert RESULT in trips[0].follow_up.messages[-1].content
    rules = sorted({each.rule for each in exchanges if each.kind == "side"})
    side = f", side calls: {len(exchanges) - len(main)} ({', '.join(rules)})" if rules else ""
    known = f"known by {main[-1].found_by}"
    return f"{len(main)} exchanges in one conversation, {known}; {len(trips)} of a tool's results came back{side}"


def main() -> int:
    wanted = [agent for agent in AGENTS if not sys.argv[1:] or agent.name in sys.argv[1:]]
    failed = 0
    for agent in wanted:
        if not agent.program.exists() and not shutil.which(str(agent.program)):
            sys.stdout.write(f"{agent.name}: skipped, it is not installed ({agent.program})\n")
            continue
        try:
            sys.stdout.write(f"{agent.name}: {check(agent)}\n")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed += 1
            sys.stdout.write(f"{agent.name}: FAILED: {error}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
