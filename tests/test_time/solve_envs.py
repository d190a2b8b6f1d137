"""Environments for searches by a tiny model, whose answers mean nothing: what they earn follows from their letters
alone."""

from __future__ import annotations

from zlib import crc32

from selfdistill import Completion, Message, Outcome, Task

QUESTIONS = ["What is seven plus five?", "Say yes or no.", "Write f(xs) that sorts the list."]


def tasks() -> list[Task]:
    return [Task(f"q{number}", (Message("user", text),)) for number, text in enumerate(QUESTIONS)]


def luck(completion: Completion) -> int:
    return crc32(completion.text.encode())


def hints(task: Task, completion: Completion) -> Outcome:
    """Never right, and always told so."""
    return Outcome(0.0, f"Not {completion.text!r}.")


def wordy(task: Task, completion: Completion) -> Outcome:
    """Never right, and told so at length."""
    return Outcome(0.0, "This is wrong, and was wrong, and will be wrong. " * 9)


def mute(task: Task, completion: Completion) -> Outcome:
    """Never right, and nothing is said."""
    return Outcome(0.0)


def rare(task: Task, completion: Completion) -> Outcome:
    """One in twelve is right; the others hear what they were."""
    right = luck(completion) % 12 == 0
    return Outcome(float(right), "" if right else f"Not {completion.text!r}.")


class Strict:
    """One in four passes; of those one in five passes the private tests too."""

    name = "strict"
    private = False

    def score(self, task: Task, completion: Completion) -> Outcome:
        quarter, rest = divmod(luck(completion), 4)
        passed = rest == 0 and (not self.private or quarter % 5 == 1)
        return Outcome(float(passed), "" if passed else f"Not {completion.text!r}.")

    def tasks(self, split: str) -> list[Task]:
        return tasks() if split == "train" else []

    def for_evaluation(self) -> Strict:
        score = Strict()
        score.private = True
        return score


def flaky(task: Task, completion: Completion) -> Outcome:
    """Never right, and in every fourth round the server does not answer."""
    if int(completion.uid.partition("-")[0]) % 4 == 0:
        raise ConnectionError("the server is busy")
    return Outcome(0.0, "No.")
