"""An environment of your own: tasks, and a function that scores an answer.

selfdistill train --env examples/my_env.py:env --model HuggingFaceTB/SmolLM2-135M-Instruct \\
    lora.rank=16 optimiser.lr=3e-4
"""

from selfdistill import Message, Task


def tasks() -> list[Task]:
    return [Task(f"{n}", (Message("user", f"What is {n} plus {n}?"),), {"answer": str(2 * n)}) for n in range(11, 43)]


def env(task: Task, completion: str) -> tuple[float, str]:
    last = completion.rstrip(". \n").split()[-1:]
    if last == [task["answer"]]:
        return 1.0, ""
    return 0.0, f"The answer ends with {last[0]}, which is not the sum." if last else "The answer is empty."
