"""Environments of letters for the test before training: contexts that cannot help, and none."""

from zlib import crc32

from selfdistill import Completion, Message, Outcome, Task

QUESTIONS = ["What is seven plus five?", "Say yes or no.", "Write f(xs) that sorts the list.", "The answer is twelve."]


def tasks() -> list[Task]:
    return [Task(f"q{number}", (Message("user", text),)) for number, text in enumerate(QUESTIONS)]


def wordy(task: Task, completion: Completion) -> Outcome:
    """About half of all answers are right; the others hear much, and nothing of use."""
    right = crc32(completion.text.encode()) % 2
    return Outcome(float(right), "" if right else f"{completion.uid}: no, no and no again. " * 9)


def no_signal_steps(task: Task, completion: Completion) -> Outcome:
    return Outcome(0.0)


def broken(task: Task, completion: Completion) -> Outcome:
    raise RuntimeError("always broken")
