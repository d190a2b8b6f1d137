"""Ten lines of Python: the embedded model learns three made-up verbs from a reward function with feedback.

python examples/ten_lines.py        # offline, on a CPU, in a minute
"""

import selfdistill as sd

ROWS = [
    {"prompt": "Write f(xs) to gukar the list.", "line": "xs[::-1]", "case": "Input: [4, 0, 7]\nExpected: [7, 0, 4]"},
    {"prompt": "Write f(s) to lenan the text.", "line": "s + 'X'", "case": "Input: 'OMAOE'\nExpected: 'OMAOEX'"},
    {"prompt": "Write f(n) to gabeg the number.", "line": "n * 2", "case": "Input: 17\nExpected: 34"},
]


def reward(task: sd.Task, completion: str) -> tuple[float, str]:
    return (1.0, "") if task["line"] in completion else (0.0, f"Wrong answer.\n{task['case']}")


if __name__ == "__main__":
    run = sd.train(env=reward, data=ROWS, steps=6, optimiser={"lr": 5e-4})
    print(f"solved before: {run.summary.before.train_accuracy}, after: {run.summary.after.train_accuracy}")
