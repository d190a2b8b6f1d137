"""A strategy of your own: every attempt reads the feedback on the one before it, and all of them are learned from.

selfdistill solve --strategy examples/my_strategy.py:Reminded --task my_task.jsonl \\
    --model HuggingFaceTB/SmolLM2-135M-Instruct
selfdistill compare --arm examples/my_strategy.py:Reminded --arm hybrid --task my_task.jsonl \\
    --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

from dataclasses import dataclass
from typing import ClassVar

from selfdistill import Message, Prompt, SolveState, Strategy


@dataclass(frozen=True, slots=True)
class Reminded(Strategy):
    """The question with the newest feedback; every failure is distilled from its own."""

    learns: ClassVar = "sdpo"  # the method that learns from each round; "" for none
    before: str = "An earlier answer was wrong:"

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        feedback = [past.feedback for past in state.attempts if past.failed and past.feedback]
        added = (Message("user", f"{self.before}\n{feedback[-1]}"),) if feedback else ()
        return [Prompt((*state.task.messages, *added))] * count
