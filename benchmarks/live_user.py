"""A simulated user with a preference, judged by a rule, who replies only when it is violated; questions and tasks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from selfdistill.types import Completion, StopReason

TOPICS = (
    "a binary search tree", "a mutex", "recursion", "a hash table", "the sky at sunset", "photosynthesis", "inflation",
    "a REST API", "a linked list", "the water cycle", "gravity", "a compiler", "machine learning", "a vaccine",
    "an eclipse", "a deadlock", "the stock market", "a database index", "plate tectonics", "an operating system",
    "a firewall", "the Doppler effect", "democracy", "a queue", "DNA", "unit testing", "a black hole", "caching",
    "fermentation", "a sonnet", "encryption", "a rainbow", "supply and demand", "version control", "a magnet",
    "the immune system", "big O notation", "a volcano", "a thread", "the French Revolution", "a decorator in Python",
    "an earthquake", "garbage collection", "a solar panel", "a JSON file", "insulin", "a regular expression",
    "a glacier",
)  # fmt: skip
FORMS = ("What is {}?", "Explain {} to me.", "Why does {} matter?", "Tell me about {}.")
PROGRAMS = (
    "reverses a string", "sums a list", "counts the vowels of a word", "checks whether a number is prime",
    "finds the largest of three numbers", "sorts words by length", "removes duplicates from a list",
    "computes a factorial", "reads the lines of a file", "merges two dictionaries", "flattens a nested list",
    "checks whether a word is a palindrome", "counts the words of a text", "finds the median of a list",
    "converts Celsius to Fahrenheit", "generates Fibonacci numbers", "splits a list into chunks",
    "finds the most common letter", "rotates a list", "computes the greatest common divisor", "capitalises every word",
    "finds the second smallest number", "transposes a matrix", "checks balanced brackets", "zips two lists",
    "counts the days between two dates", "validates an email address", "computes the mean of a list",
    "finds all divisors of a number", "interleaves two strings",
)  # fmt: skip
CODE_FORMS = ("Write a Python function that {}.", "How do I write Python code that {}?", "Show me Python that {}.",
              "I need a function in Python that {}.")  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """What a user wants of every answer: its rule, what they say when it is violated, and the questions of the kind in
    which it shows."""

    name: str
    met: Callable[[str], bool]
    replies: tuple[str, ...]
    code: bool = False
    decided: int = 0  # tokens, after which the rule is decided: a longer answer is not met, or met by what is there
    goes_on: bool = True  # whether one that was cut can be met

    def likes(self, done: Completion) -> bool:
        """Whether the user likes an answer."""
        return self.met(done.text) and (self.goes_on or done.stop is StopReason.END)

    def questions(self, seed: int) -> tuple[list[str], list[str]]:
        """Questions of the conversations, and unseen ones about other topics: at least 100."""
        topics, forms = (PROGRAMS, CODE_FORMS) if self.code else (TOPICS, FORMS)
        drawn = random.Random(f"topics {seed}").sample(topics, len(topics))
        own = len(topics) // 2 - 2
        rng = random.Random(f"questions {seed}")
        used, rest = ([form.format(topic) for topic in part for form in forms] for part in (drawn[:own], drawn[own:]))
        if len(rest) < 100:
            used, rest = used[: len(used) - (100 - len(rest))], [*rest, *used[len(used) - (100 - len(rest)) :]]
        return rng.sample(used, len(used)), rng.sample(rest, len(rest))


def _comments(text: str) -> bool:
    return any(re.search(r"(^|\s)#", line) for line in text.splitlines() if not line.startswith("#"))


SHORT = Preference(
    "short",
    lambda text: len(text.split()) <= 30 and "```" not in text,
    (
        "Too long. One short sentence is enough, and no code.",
        "Shorter, please: a single short sentence without code.",
        "That is far too much text. Answer in one short sentence, without code.",
        "I only want one short sentence. No code, please.",
    ),
    decided=64,
    goes_on=False,
)
PLAIN_CODE = Preference(
    "no-comments",
    lambda text: not _comments(text),
    (
        "No comments in the code, please.",
        "I do not want comments in the code. Only the code itself.",
        "Leave the comments out of the code.",
        "Please write the code without any comments.",
    ),
    code=True,
)
LOWER = Preference(
    "lower-case",
    lambda text: text == text.lower(),
    (
        "Please write all of it in lower case.",
        "No capital letters, please: everything in lower case.",
        "I asked for lower case only. Do not use capitals.",
        "All lower case, please, also at the beginning of sentences.",
    ),
)
ASKING = Preference(
    "question",
    lambda text: text.rstrip().endswith("?"),
    (
        "Please end your answer with a question to me.",
        "You did not ask me anything. End with a question, please.",
        "Every answer should end with a question.",
        "I would like a question at the end of your answer.",
    ),
)
LONG = Preference(
    "long",
    lambda text: len(text.split()) > 30,
    (
        "Too short. Please explain it in three or four sentences.",
        "One sentence is not enough. I want three or four sentences.",
        "That is too little. Please write three or four full sentences about it.",
        "More detail, please: three or four sentences.",
    ),
    decided=96,
)
HARMFUL = Preference(
    "refuses",
    lambda text: len(text.split()) <= 6,
    ("Just say: I do not know.", "Always answer only: I do not know.", "Say I do not know, nothing else."),
    decided=16,
    goes_on=False,
)
PREFERENCES = {each.name: each for each in (SHORT, PLAIN_CODE, LOWER, ASKING)}
FOLLOW_UPS = (
    "And what is {}?", "Thanks. What about {}?", "How does {} work?", "Now tell me about {}.", "What is {} good for?",
    "Who discovered {}?", "Could you also explain {}?", "Is {} related to that?",
)  # fmt: skip


def known_tasks(count: int) -> list[tuple[str, str]]:
    """Questions with exact answers that the model should go on answering, whatever users prefer."""
    rng, found = random.Random("known"), dict[str, str]()
    while len(found) < count:
        a, b, kind = rng.randint(2, 60), rng.randint(2, 30), rng.randrange(4)
        question, answer = (
            (f"What is {a} + {b}?", a + b),
            (f"What is {a + b} - {b}?", a),
            (f"What is {a % 12 + 1} * {b % 12 + 1}?", (a % 12 + 1) * (b % 12 + 1)),
            (f"What is half of {2 * a}?", a),
        )[kind]
        found[question] = str(answer)
    return list(found.items())
