"""A strategy of your own: every attempt reads what was said of the one before it, and all of them are learned from.

selfdistill solve --strategy examples/my_strategy.py:Reminded --task my_task.jsonl --model smollm2
selfdistill compare --way examples/my_strategy.py:Reminded --way hybrid --task my_task.jsonl --model smollm2
"""

from dataclasses import dataclass
from typing import ClassVar

from selfdistill import Message, Prompt, Scene, Strategy


@dataclass(frozen=True, slots=True)
class Reminded(Strategy):
    """The question with the newest feedback; every failure is distilled from its own."""

    learns: ClassVar = "sdpo"  # the method that learns from each round; "" for none
    before: str = "An earlier answer was wrong:"

    def prompts(self, scene: Scene, count: int) -> list[Prompt]:
        said = [past.feedback for past in scene.attempts if past.failed and past.feedback]
        added = (Message("user", f"{self.before}\n{said[-1]}"),) if said else ()
        return [Prompt((*scene.task.messages, *added))] * count
