"""Tasksets of `verifiers`, run by its own agents: needs the extra, which is not part of the test environment (570 MB).

pip install 'selfdistill[verifiers]' uv && pytest tests/envs/test_verifiers.py
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.envs.agents import AgentState
from selfdistill.envs.base import Fault
from selfdistill.errors import ConfigError, DataError
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, Task

vf = pytest.importorskip("verifiers.v1", reason="the extra `verifiers` is not installed")
if not shutil.which("uv"):
    pytest.skip("verifiers starts agents by uv, which is not installed", allow_module_level=True)
EXAMPLES = Path(__file__).parent / "data" / "verifiers"


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    """The example tasksets as packages, also for the processes of tools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
        yield


class Parrot(vf.Task[vf.TaskData]):
    @vf.reward(weight=2.0)
    async def said(self, trace: Any) -> float:
        trace.info["feedback"] = "" if trace.last_reply == "Polly" else "Say Polly."
        return float(trace.last_reply == "Polly")


class Parrots(vf.Taskset[Parrot, vf.TasksetConfig]):
    INFINITE = True

    def load(self) -> Iterator[Parrot]:
        number = 0
        while True:
            yield Parrot(vf.TaskData(prompt=f"Say Polly {number}.", system_prompt="You are a parrot."))
            number += 1


class Broken(Parrot):
    async def setup(self, trace: Any) -> None:
        if self.data.idx == 0:
            raise RuntimeError("no seeds left")
        await asyncio.sleep(60)


class BrokenParrots(vf.Taskset[Broken, vf.TasksetConfig]):
    def load(self) -> list[Broken]:
        return [Broken(vf.TaskData(prompt="Say Polly.")) for _ in range(2)]


def test_an_example_with_tools_is_run_by_its_own_agent() -> None:
    env = sd.from_verifiers("glossary", held_out=1)
    tasks = env.tasks("train")
    assert ([task.id for task in tasks], len(env.tasks("held_out"))) == (["task-0", "task-1", "task-2", "task-3"], 1)
    assert tasks[0]["answer"] == "the first computer programmer"
    right, wrong = env.start_batch(tasks[:2])
    assert isinstance(right, AgentState)
    assert isinstance(wrong, AgentState)
    assert right.opening is not None
    assert right.opening.messages == tasks[0].messages
    assert [tool["function"]["name"] for tool in right.opening.tools] == ["facts_lookup"]
    call = '<tool_call>\n{"name": "facts_lookup", "arguments": {"name": "Ada Lovelace"}}\n</tool_call>'
    found = env.step_batch([(right, Completion("1-0", call, (5,))), (wrong, Completion("1-1", "No idea.", (5,)))])
    assert found[0] == Observation((Message("tool", "the first computer programmer"),))
    assert found[1] == Outcome(0.0, "", {"looked_up": 0.0, "agent_stop": "agent_completed"})
    last = env.step(right, Completion("1-0.1", "<answer>the first computer programmer</answer>", (5,)))
    assert isinstance(last, Outcome)
    assert last.reward == 1
    assert "no task of the taskset" in env.unusable(Task("q", tasks[0].messages))


def test_a_run_and_an_evaluation(tmp_path: Path) -> None:
    env = sd.from_verifiers(Parrots(vf.TasksetConfig()), tasks=2, held_out=1)
    settings: dict[str, Any] = {"sampling": {"max_new_tokens": 8}, "progress": False}
    run = sd.train(
        "sapling",
        env=env,
        method="sdpo",
        steps=1,
        tasks_per_step=2,
        rollouts_per_task=2,
        out=tmp_path / "run",
        **settings,
    )
    found = list(run.rollouts())
    assert len(found) == 4
    assert {(each.reward, each.feedback, each.drop) for each in found} == {(0.0, "Say Polly.", None)}
    assert sd.evaluate("sapling", env=env, **settings).splits["held_out"].value == 0


def test_rewards_and_feedback_of_a_taskset_that_is_an_object() -> None:
    env = sd.from_verifiers(Parrots(vf.TasksetConfig()).skip(3), tasks=2)
    state = env.start(env.tasks("train")[1])
    assert isinstance(state, AgentState)
    assert state.opening is not None
    assert state.opening.messages == (Message("system", "You are a parrot."), Message("user", "Say Polly 4."))
    details = {"said": 0.0, "agent_stop": "agent_completed"}
    assert env.step(state, Completion("1-0", "Coco", (5,))) == Outcome(0.0, "Say Polly.", details)
    config = {"agent": {"max_turns": 1}}
    taskset = Parrots(vf.TasksetConfig())
    function = sd.from_verifiers(taskset, tasks=1, feedback=lambda trace: trace.last_reply, config=config)
    state = function.start(function.tasks("train")[0])
    found = function.step(state, Completion("1-0", "Polly", (5,)))
    assert found == Outcome(2.0, "Polly", {"said": 1.0, "agent_stop": "agent_completed"})


def test_an_agent_that_cannot_begin_costs_its_conversation_alone() -> None:
    env = sd.from_verifiers(BrokenParrots(vf.TasksetConfig()), limit_s=5)
    raised, late = env.start_batch(env.tasks("train"))
    assert isinstance(raised, Fault)
    assert isinstance(late, Fault)
    assert (raised.drop, late.drop) == (DropReason.ENV_RAISED, DropReason.ENV_TIMEOUT)
    assert "no seeds left" in raised.text


def test_what_cannot_be_used_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    (tmp_path / "no_taskset.py").write_text("__all__ = ()\n")
    for taskset, settings, error, says in (
        ("someone/no-such-taskset", {}, ConfigError, "there is no taskset 'someone/no-such-taskset'"),
        ("needs-more", {}, ConfigError, "pip install no_such_package"),
        ("no_taskset", {}, ConfigError, "has no taskset"),
        (3, {}, ConfigError, "needs a taskset"),
        ("glossary", {"colour": "blue"}, ConfigError, "refuses the settings of 'glossary'"),
        ("glossary", {"harness": "nul"}, ConfigError, "'nul'"),
        ("glossary", {"runtime": "cloud"}, ConfigError, "runtime"),
        ("glossary", {"config": {"id": "agentic_judge"}}, ConfigError, "2 agents that our model would play"),
        (Parrots(vf.TasksetConfig()), {}, ConfigError, "has no end"),
    ):
        with pytest.raises(error, match=says):
            sd.from_verifiers(taskset, **settings)
    with pytest.raises(DataError, match="too few tasks"):
        sd.from_verifiers("glossary", held_out=5).tasks("train")
    assert "verifiers" in sys.modules
