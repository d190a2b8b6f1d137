"""An environment of your own: tasks, and a function that scores an answer.

selfdistill train --env examples/my_env.py:env --model HuggingFaceTB/SmolLM2-135M-Instruct \\
    lora.rank=16 optimiser.lr=3e-4
"""

from selfdistill import Completion, Message, Outcome, Task


def tasks() -> list[Task]:
    return [Task(f"{n}", (Message("user", f"What is {n} plus {n}?"),), {"answer": str(2 * n)}) for n in range(11, 43)]


def env(task: Task, completion: Completion) -> Outcome:
    if completion.text.rstrip(". \n").split()[-1:] == [task.spec["answer"]]:
        return Outcome(1.0)
    return Outcome(0.0, feedback=f"The answer should end with the right number: {task.spec['answer']}.")
