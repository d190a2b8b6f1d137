"""The reward of an attempt that passes the public tests alone."""

from selfdistill.test_time.search import _without_false_reward
from selfdistill.types import Completion, Message, Outcome, Rollout, RolloutGroup, Task

TASK = Task("q", (Message("user", "?"),))


def test_it_is_not_above_that_of_a_wrong_attempt() -> None:
    rewards = {"wrong": -1.0, "public": 1.0, "negative": 1.0, "right": 1.0}
    rollouts = [Rollout(TASK, (1,), Completion(uid, ""), Outcome(reward)) for uid, reward in rewards.items()]
    group = _without_false_reward(RolloutGroup(TASK, tuple(rollouts)), {"public": 0.5, "negative": -1.0, "right": 1.0})
    assert [r.outcome.reward for r in group.rollouts if r.outcome] == [-1.0, 0.0, -1.0, 1.0]
