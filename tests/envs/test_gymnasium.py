"""Objects with `reset` and `step(action)` as conversations, by a tiny one."""

from typing import Any

import pytest

import selfdistill as sd
from selfdistill.envs.base import ConversationEnvironment, Fault, tasks_of
from selfdistill.envs.turns import finish, step_all
from selfdistill.errors import DataError
from selfdistill.types import Completion, DropReason, Message, Observation, Outcome, Task
from tiny_models import tiny_policy_dir


class Line:
    """Reach 3 on a line, from the seed, in at most four steps; each costs a tenth."""

    closed = 0

    def reset(self, *, seed: int) -> tuple[int, dict[str, Any]]:
        self.place, self.left = seed, 4
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if action not in (-1, 1):
            raise AssertionError(f"{action} is not in the action space")
        self.place, self.left = self.place + action, self.left - 1
        return self.place, float(self.place == 3) - 0.1, self.place == 3, self.left == 0, {}

    def close(self) -> None:
        Line.closed += 1


class OldLine(Line):
    def reset(self, *, seed: int) -> Any:
        return super().reset(seed=seed)[0]

    def step(self, action: int) -> Any:
        place, reward, ended, cut, info = super().step(action)
        return place, reward, ended or cut, info


def line(make: Any = Line, **settings: Any) -> Any:
    own = {"instruction": "Go to 3: say 1 or -1.", "seeds": range(3), "action": int, "show": "At {}.".format}
    return sd.from_gymnasium(make, **own | settings)


def turn(env: ConversationEnvironment, state: Any, text: str) -> Any:
    done = Completion("a", text)
    return step_all(env, [(Task("t", (Message("user", "?"),)), done)], {"a": state}, seed=0)[0]


@pytest.mark.parametrize("make", [Line, OldLine])
def test_an_episode_is_a_conversation(make: Any) -> None:
    env = line(make)
    assert isinstance(env, ConversationEnvironment)
    tasks = tasks_of(env, "train")
    assert [task.messages[0].content for task in tasks] == [f"Go to 3: say 1 or -1.\n\nAt {n}." for n in range(3)]
    before, state, other = Line.closed, env.start(tasks[1]), env.start(tasks[1])
    assert turn(env, state, "<think>forward</think> 1 ") == Observation((Message("user", "At 2."),))
    assert turn(env, other, "-1") == Observation((Message("user", "At 0."),))  # an object of its own
    found = turn(env, state, "1")
    assert found == Outcome(pytest.approx(0.8), "At 3.", {"steps": 2})
    assert Line.closed == before + 1


def test_an_episode_that_is_truncated_has_the_rewards_so_far() -> None:
    env = line()
    state = env.start(tasks_of(env, "train")[0])
    found = [turn(env, state, "-1") for _ in range(4)]
    assert found[-1] == Outcome(pytest.approx(-0.4), "At -4.", {"steps": 4})
    assert all(isinstance(each, Observation) for each in found[:-1])


def test_text_that_is_no_action_is_read_and_makes_no_step() -> None:
    env = line()
    state = env.start(tasks_of(env, "train")[0])
    found = turn(env, state, "north")
    assert isinstance(found, Observation)
    assert "That is no action: invalid literal for int()" in found.messages[0].content
    assert finish(env, state, found) == Outcome(0.0, "At 0.", {"steps": 0})


def test_an_error_of_the_object_drops_its_conversation() -> None:
    env = line()
    found = turn(env, env.start(tasks_of(env, "train")[0]), "7")
    assert isinstance(found, Fault)
    assert found.drop is DropReason.ENV_RAISED
    assert "7 is not in the action space" in found.text


def test_a_reset_that_does_not_repeat_is_named() -> None:
    starts = iter(range(9))
    env = line(type("Restless", (Line,), {"reset": lambda self, *, seed: (next(starts), {})}), seeds=[5])
    (task,) = tasks_of(env, "train")
    with pytest.raises(ValueError, match=r"reset\(seed=5\) of 'gymnasium' does not show the same again: 'At 1.'"):
        env.start(task)


def test_held_out_seeds_are_others() -> None:
    assert [task.spec["seed"] for task in tasks_of(line(held_out=[8, 9]), "held_out")] == [8, 9]
    assert tasks_of(line(), "held_out") == []
    with pytest.raises(DataError, match="held out too"):
        line(held_out=[2])


def test_a_model_learns_from_episodes(tmp_path: Any) -> None:
    small = {"sampling": {"max_new_tokens": 4, "turns": 3}, "tasks_per_step": 2, "rollouts_per_task": 2}
    env = line(action=lambda text: 1, seeds=range(1, 3))
    run = sd.train(str(tiny_policy_dir(tmp_path)), method="grpo", env=env, steps=1, out=tmp_path / "run",
                   device="cpu", progress=False, **small)  # fmt: skip
    rollouts = run.rollouts(1)
    assert sorted(rollout.reward for rollout in rollouts) == pytest.approx([0.8, 0.8, 0.9, 0.9])
