"""Environments for rows of a data set whose column `answer` is known: prompt, extract, score, feedback.

A subclass reads the expected answer of a row (`gold`), marks the text of an answer (`mark`), and writes a right answer
in the form that it wants (`written`); the rest is here. Feedback names what is wrong, never what is right, unless
`reveal_answer` is set. All of it takes time linear in the length of an answer.

Where the scorer published with SDPO (Hübotter et al. 2026, arXiv 2601.20802) has a defect, `scorer` chooses between it
and the corrected one. The published ones read the whole answer; the corrected ones read it without its thinking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeVar

from selfdistill.envs.base import Pair, Scored, guarded
from selfdistill.envs.compare import same_value
from selfdistill.errors import DataError, Ranged, missing_column, option
from selfdistill.prompts.context import without_thinking
from selfdistill.types import Completion, Message, Outcome, StopReason, Task

G = TypeVar("G")

MAX_FEEDBACK = 2000
MAX_SHOWN = 250  # characters of an answer, or of a name in it
CUT_OFF = "The answer was cut off at the length limit before it was complete. Answer more briefly."


@dataclass(frozen=True, slots=True)
class RowsOptions(Ranged):
    """What the model reads beside the question, and whether feedback shows the answer. Raises `ConfigError`."""

    system: str = option("", "system message where neither the prompt nor a column `system` of the row has one")
    instruction: str = option("", "text behind the question: the form of an answer")
    reveal_answer: bool = option(False, "end the feedback on a wrong answer with a right one")


@dataclass(frozen=True, slots=True)
class ScorerOptions(RowsOptions):
    """Options of an environment with two scorers."""

    scorer: Literal["corrected", "published"] = option(
        "corrected", "published: as in the code of the SDPO paper, with its defects (docs/environments.md)"
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """What a text is worth: the `answer` extracted from it, and what failed: "none" for a right answer, "missing" where
    it could not be read, "wrong", or another word. `bad_format` is the metric of the records."""

    failure: str
    feedback: str = ""
    answer: str = ""
    bad_format: bool = False

    @classmethod
    def missing(cls, feedback: str, cut: bool, answer: str = "") -> Mark:
        """The mark of a text from which no answer could be read, and why."""
        return cls("missing", CUT_OFF if cut else feedback, answer, bad_format=True)

    @classmethod
    def compared(cls, right: bool, feedback: str, answer: str, *, bad_format: bool = False) -> Mark:
        """The mark of an answer that could be read, with the feedback on a wrong one."""
        return cls("none" if right else "wrong", "" if right else feedback, answer, bad_format)


class RowsEnvironment(ABC, Generic[G]):
    """Scores answers to rows by their column `answer`."""

    name = "rows"
    defaults: ClassVar[RowsOptions] = RowsOptions()

    def __init__(self, options: RowsOptions | None = None) -> None:
        self.options = options or self.defaults
        self.published = getattr(self.options, "scorer", "corrected") == "published"

    @abstractmethod
    def gold(self, task: Task) -> G:
        """The expected answer. Raises `DataError` for a row without one that can be used."""

    @abstractmethod
    def mark(self, gold: G, text: str, cut: bool) -> Mark:
        """What the text of an answer is worth; `cut`: the length limit ended it."""

    @abstractmethod
    def written(self, gold: G) -> str:
        """A right answer in the form that is wanted; empty where none can be written."""

    def prepare(self, task: Task) -> Task:
        """The task with its system message and the instruction; a task that has them stays as it is."""
        *earlier, last = task.messages
        if not last.content.endswith(self.options.instruction):
            last = Message(last.role, f"{last.content.rstrip()}\n\n{self.options.instruction}")
        system = task.spec.get("system") or self.options.system
        if isinstance(system, str) and system.strip() and task.messages[0].role != "system":
            earlier.insert(0, Message("system", system))
        return replace(task, messages=(*earlier, last))

    def unusable(self, task: Task) -> str:
        """Why no answer to the task can be scored."""
        try:
            self.gold(task)
        except DataError as error:
            return "; ".join(filter(None, (f"{error.what}, got {error.got}", error.why, error.do)))
        return ""

    def reference(self, task: Task) -> str:
        """A right answer, for `selfdistill check`."""
        return self.written(self.gold(task))

    def score(self, task: Task, completion: Completion) -> Outcome:
        """Reward 1 for a right answer, else 0. Raises `DataError` for a row that cannot be used."""
        gold, cut = self.gold(task), completion.stop is StopReason.LENGTH
        mark = self.mark(gold, completion.text if self.published else without_thinking(completion.text), cut)
        right, feedback = mark.failure == "none", mark.feedback
        if self.options.reveal_answer and not right:
            feedback = f"{feedback}\nA right answer:\n{self.written(gold)}".lstrip()
        failure = "truncated" if mark.failure == "missing" and cut else mark.failure
        answer = clipped(mark.answer)
        details: dict[str, Any] = {"failure": failure, "incorrect_format": mark.bad_format, "answer": answer}
        return Outcome(float(right), clipped(feedback, MAX_FEEDBACK), details, "" if right else task.user_reply)

    def answer(self, task: Task) -> Any:
        """The column `answer` of a row. Raises `DataError` naming the nearest column."""
        if "answer" not in task.spec:
            raise missing_column("answer", task.spec, "answer", f"task {task.id!r}")
        return task.spec["answer"]

    def text(self, task: Task, value: Any, expected: str = "text or a number") -> str:
        """An expected answer as text without white space around it. Raises `DataError` for a blank one."""
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            self.refuse(task, expected, value)
        return str(value).strip()

    def refuse(self, task: Task, expected: str, got: object) -> NoReturn:
        """Raises `DataError` for an expected answer that cannot be used."""
        what = f"task {task.id!r}: column 'answer': expected {expected}"
        raise DataError(what, got=clipped(repr(got)), why="every answer would fail")

    def score_batch(self, pairs: Sequence[Pair]) -> list[Scored]:
        """One outcome a pair, in order; a `Fault` for an answer that cannot be scored."""
        return [guarded(partial(self.score, *pair)) for pair in pairs]


def differing(got: Mapping[str, Any], expected: Mapping[str, Any], *, named: bool) -> str:
    """Which keys have another value, should not be there, or are missing; those are `named`, or only counted."""
    wrong = [key for key in got if key in expected and not same_value(got[key], expected[key])]
    spare, lacking = ([key for key in one if key not in other] for one, other in ((got, expected), (expected, got)))
    missing = ", ".join(lacking) if named else str(len(lacking) or "")
    parts = {"Wrong value": ", ".join(wrong), "Not needed": ", ".join(spare), "Missing": missing}
    return " ".join(f"{title}: {text}." for title, text in parts.items() if text)


def clipped(text: str, limit: int = MAX_SHOWN) -> str:
    """At most `limit` characters of a text, as UTF-8 can hold them."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
