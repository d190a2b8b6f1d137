"""Objects in the shape of Gymnasium's environments (`reset`, `step(action)`) as environments of conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from selfdistill.errors import DataError
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Completion, Message, Observation, Outcome, Task


@dataclass(slots=True)
class Episode:
    """The state of a conversation: an object of its own, what it showed last, the rewards so far and its steps."""

    env: Any
    shown: str
    reward: float = 0.0
    steps: int = 0


class GymnasiumEnvironment:
    """An environment of conversations from objects with `reset(seed=…)` and `step(action)`, such as Gymnasium's.

    `make` returns a new object; each conversation has its own. A task is a seed of `seeds`, in evaluations one of
    `held_out`: the model reads the `instruction` and the first observation. `action` makes an action of the text of a
    turn, and raises `ValueError` for text that is none, which the model reads. `show` makes text of an observation. The
    reward is the sum of an episode. Raises `DataError` for a seed in both.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        instruction: str = "",
        seeds: Iterable[int] = range(64),
        held_out: Iterable[int] = (),
        action: Callable[[str], Any] = str,
        show: Callable[[Any], str] = str,
        name: str = "gymnasium",
    ) -> None:
        self.make, self.instruction, self.action, self.show, self.name = make, instruction, action, show, name
        self.seeds = {"train": tuple(seeds), "held_out": tuple(held_out)}
        both = sorted({*self.seeds["train"]} & {*self.seeds["held_out"]})
        if both:
            raise DataError("seeds to train on are held out too", got=both[:5], do="give seeds and held_out apart")

    def tasks(self, split: str) -> list[Task]:
        """A task for each seed of a split: the instruction, and what a reset by that seed shows."""
        found = []
        for seed in self.seeds.get(split, ()):
            episode = self._reset(seed)
            self._close(episode)
            prompt = f"{self.instruction}\n\n{episode.shown}".strip()
            found.append(Task(f"seed-{seed}", (Message("user", prompt),), {"seed": seed}))
        return found

    def start(self, task: Task) -> Episode:
        """An episode after its reset. Raises `ValueError` where that shows what the task does not."""
        episode = self._reset(task["seed"])
        if not task.messages[-1].content.endswith(episode.shown.strip()):
            what = f"reset(seed={task['seed']}) of {self.name!r} does not show the same again"
            raise ValueError(f"{what}: {episode.shown[:200]!r}")
        return episode

    def step(self, state: Episode, completion: Completion) -> Observation | Outcome:
        """What the object shows after an action, or the sum of the rewards once the episode has ended."""
        try:
            action = self.action(without_thinking(completion.text).strip())
        except ValueError as error:
            return Observation((Message("user", f"That is no action: {error}"),))
        shown, reward, *ended, _ = state.env.step(action)  # one flag in Gym, two in Gymnasium
        state.shown, state.reward, state.steps = self.show(shown), state.reward + float(reward), state.steps + 1
        return self.finish(state) if any(ended) else Observation((Message("user", state.shown),))

    def finish(self, state: Episode) -> Outcome:
        """The rewards of an episode that has ended, or that a budget ends, with what was shown last as feedback."""
        self._close(state)
        return Outcome(state.reward, state.shown, {"steps": state.steps})

    def _reset(self, seed: int) -> Episode:
        env = self.make()
        shown = env.reset(seed=seed)
        return Episode(env, self.show(shown[0] if isinstance(shown, tuple) else shown))

    def _close(self, episode: Episode) -> None:
        getattr(episode.env, "close", lambda: None)()


from_gymnasium = GymnasiumEnvironment
