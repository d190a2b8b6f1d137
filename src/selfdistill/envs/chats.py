"""The environment of conversations from a log: it replies as the user of the log did, and gives no reward."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.envs.known import fact_tasks
from selfdistill.envs.text import TextEnvironment, TextOptions
from selfdistill.errors import Ranged, option
from selfdistill.types import Completion, Outcome, Task


@dataclass(frozen=True, slots=True)
class ChatOptions(Ranged):
    """Which answers of a log become tasks. Raises `ConfigError`."""

    languages: tuple[str, ...] = option((), "languages to keep, as the rows name them (English); empty: all")
    min_reply_characters: int = option(1, "shortest next turn of the user", least=1)
    max_characters: int = option(0, "longest history, answer and next turn together; 0: any length", least=0)


class ChatsEnvironment:
    """Conversations from a log: the reply is the user's next turn, and no answer gets a reward.

    For methods that read replies or instructions alone: `user_replies`, also with `method.logged=true`, and `opcd`.
    What a run unlearns is measured on questions with an `answer`: rows {prompt, answer} of `eval_data`, and short facts
    and sums as the forgetting set.
    """

    name = "chats"
    row_kind = "conversations"

    def __init__(self, options: ChatOptions | None = None) -> None:
        self.options = options or ChatOptions()
        self._words = TextEnvironment(TextOptions(compare="words"))

    def tasks(self, split: str) -> list[Task]:
        """Known questions as the forgetting set."""
        return fact_tasks() if split == "forgetting" else []

    def has_reward(self, task: Task) -> bool:
        """Whether the task is a question with an answer, and no turn of a log."""
        return "answer" in task.spec and not task.user_reply

    def score(self, task: Task, completion: Completion) -> Outcome:
        """For a question reward 1 if the answer's words are there; else reward 0, and the user's next turn in the log,
        which followed the logged answer. Raises `DataError`."""
        if self.has_reward(task):
            return self._words.score(task, completion)
        return Outcome(0.0, reply=task.user_reply)
