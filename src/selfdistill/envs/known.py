"""Short questions with exact answers that most models know: what training on something else should leave as it is."""

from __future__ import annotations

import random

from selfdistill.types import Message, Task

_SUMS = random.Random("sums")


def _drawn(low: int, high: int) -> tuple[int, int]:
    return _SUMS.randint(low, high), _SUMS.randint(2, 19)


FACTS = {
    **{f"What is {a} + {b}?": str(a + b) for a, b in (_drawn(61, 120) for _ in range(14))},
    **{f"What is {a} - {b}?": str(a - b) for a, b in (_drawn(91, 150) for _ in range(14))},
    **{f"What is {a} * {b}?": str(a * b) for a, b in (_drawn(13, 20) for _ in range(8))},
    **{f"What is {a * b} divided by {b}?": str(a) for a, b in (_drawn(2, 12) for _ in range(8))},
    **{
        f"What is the capital of {country}?": city
        for country, city in {
            "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid", "Cuba": "Havana",
            "Germany": "Berlin", "Russia": "Moscow", "Greece": "Athens", "Austria": "Vienna", "Kenya": "Nairobi",
            "Portugal": "Lisbon", "Norway": "Oslo", "Poland": "Warsaw", "Ireland": "Dublin", "China": "Beijing",
        }.items()
    },
    **{
        f"What is the chemical symbol of {element}?": symbol
        for element, symbol in {
            "gold": "Au", "iron": "Fe", "oxygen": "O", "helium": "He", "sodium": "Na", "silver": "Ag", "carbon": "C",
        }.items()
    },
    **{
        f"What is the opposite of {word}?": other
        for word, other in {
            "hot": "cold", "up": "down", "big": "small", "early": "late", "rich": "poor", "open": "closed",
        }.items()
    },
    "How many days does a week have?": "7",
    "How many minutes does an hour have?": "60",
    "How many months does a year have?": "12",
    "How many legs does a spider have?": "8",
    "Which planet is known as the red planet?": "Mars",
    "Which planet is the largest of the solar system?": "Jupiter",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "Who painted the Mona Lisa?": "Leonardo",
    "Which gas do plants take from the air?": "carbon dioxide",
    "Which keyword defines a function in Python?": "def",
    "What does len([4, 5, 6]) return in Python?": "3",
}  # fmt: skip
"""Short questions with exact answers. They do not ask for a form of the answer: a model that was held to bare results
on them gave bare results everywhere, and wrong ones."""


def fact_tasks() -> list[Task]:
    """A task for each question, with its answer."""
    return [
        Task(f"known-{number}", (Message("user", question),), {"answer": answer})
        for number, (question, answer) in enumerate(FACTS.items(), 1)
    ]
