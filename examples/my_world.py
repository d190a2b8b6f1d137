"""A world of your own: tasks, and a function that says what became of an answer.

selfdistill train --world examples/my_world.py:world --model smollm2
"""

from selfdistill import Completion, Message, Outcome, Task


def tasks() -> list[Task]:
    return [Task(f"{n}", (Message("user", f"What is {n} plus {n}?"),), {"answer": str(2 * n)}) for n in range(1, 9)]


def world(task: Task, completion: Completion) -> Outcome:
    if completion.text.strip() == task.spec["answer"]:
        return Outcome(1.0)
    return Outcome(0.0, feedback=f"Answer with the number alone: it is {task.spec['answer']}.")
