"""Reading alone as long as it helps, then learning beside it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdistill.methods import Method
from selfdistill.options import changed, option
from selfdistill.test_time.strategies.base import Attempt, Prompt, SolveState, Strategy
from selfdistill.test_time.strategies.hybrid import Hybrid, RelabelledPrompt
from selfdistill.test_time.strategies.multi_turn import MultiTurn
from selfdistill.test_time.strategies.window import with_feedback, with_text


@dataclass(frozen=True, slots=True)
class ReadFirst(Strategy):
    """One attempt after the other reads all feedback that fits, as in multi-turn. When failures repeat or go on, rounds
    of several attempts are also distilled into the question alone, as in hybrid; all but the first of a round read a
    random choice of the feedback. Nothing is learned while most failures have the same feedback.
    """

    name: ClassVar[str] = "read-first"
    learns: ClassVar[str] = "sdpo"
    method_settings: ClassVar[Mapping[str, Any]] = Hybrid.method_settings
    idle: ClassVar[str] = Hybrid.idle

    batch: int = changed(Strategy, "batch", 8)
    repeats: int = option(3, "failures that equal an earlier one word for word, after which it learns", least=1)
    patience: int = option(16, "failures after which it learns", least=1)
    unlikelihood: float = changed(Hybrid, "unlikelihood", 0.1)
    window: int = changed(MultiTurn, "window", 32_000)

    def most_rounds(self, attempts: int) -> int:
        """One each, where it never learns."""
        return attempts

    def learns_from(self, state: SolveState) -> bool:
        """Whether `repeats` or `patience` is reached, and feedback differs between failures."""
        failures = [past.text for past in state.attempts if past.failed]
        long = len(failures) >= self.patience or len(failures) - len(set(failures)) >= self.repeats
        return long and feedback_differs(state.attempts)

    def prompts(self, state: SolveState, count: int) -> list[Prompt]:
        """The newest feedback; once it learns, also random choices of all feedback."""
        past, others = with_text(state.attempts), range(1, count if self.learns_from(state) else 1)
        drawn = [random.Random(f"window {state.seed} {state.task.id} {len(state.attempts)} {n}") for n in others]
        return [with_feedback(state, past, self.window, each) for each in (None, *drawn)]

    def learner(self, method: Method) -> Method:
        """The method under the question alone, with the unlikelihood of failures."""
        return RelabelledPrompt(method.reduction, method.count_dropped, inner=method, unlikelihood=self.unlikelihood)


def feedback_differs(attempts: Sequence[Attempt]) -> bool:
    """Whether different failures have more than half as many different feedback texts; True without failures. Feedback
    that most failures share carries no information about an answer, and learning from it costs attempts."""
    failures = {past.text: past.feedback for past in attempts if past.failed}
    return not failures or 2 * len(set(failures.values())) > len(failures)
