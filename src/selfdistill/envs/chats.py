"""The environment of conversations from a log: it replies as the user of the log did, and gives no reward."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.errors import Ranged, option
from selfdistill.types import Completion, Outcome, Task


@dataclass(frozen=True, slots=True)
class ChatOptions(Ranged):
    """Which answers of a log become tasks. Raises `ConfigError`."""

    languages: tuple[str, ...] = option((), "languages to keep, as the rows name them (English); empty: all")
    min_reply_characters: int = option(1, "shortest next turn of the user", least=1)
    max_characters: int = option(0, "longest history, answer and next turn together; 0: any length", least=0)


class ChatsEnvironment:
    """Conversations from a log, without a reward: the reply is the user's next turn.

    For methods that read replies or instructions alone: `user_replies`, also with `method.logged=true`, and `opcd`.
    """

    name = "chats"
    row_kind = "conversations"

    def __init__(self, options: ChatOptions | None = None) -> None:
        self.options = options or ChatOptions()

    def score(self, task: Task, completion: Completion) -> Outcome:
        """Reward 0, and the user's next turn in the log, which followed the logged answer."""
        return Outcome(0.0, reply=task.user_reply)
