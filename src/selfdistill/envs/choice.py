"""Multiple choice in the format of the SDPO paper (rows of SciKnowEval): the letter in the last `<answer>` tag."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfdistill.envs.rows import Mark, RowsEnvironment, ScorerOptions, clipped
from selfdistill.errors import option
from selfdistill.types import Task

SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. Do not \
restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""  # that of the paper's rows
_LETTER = re.compile(r"[A-Z]")
_PUBLISHED_FORMAT = re.compile(r"<answer>\s*+[ABCD]\s*+</answer>\n?\Z")


@dataclass(frozen=True, slots=True)
class ChoiceOptions(ScorerOptions):
    """Options of `choice`. Raises `ConfigError`."""

    system: str = option(SYSTEM, "system message where neither the prompt nor a column `system` of the row has one")


class ChoiceEnvironment(RowsEnvironment[str]):
    """Multiple choice: the letter in the last <answer> tag equals the row's `answer`.

    Text without a tag counts as a whole. Both scorers give the same reward to an answer without thinking. The published
    one gives no feedback, and its metric `incorrect_format` is 1 where the format is right.
    """

    name, defaults = "choice", ChoiceOptions()

    def gold(self, task: Task) -> str:
        """The letter. Raises `DataError`."""
        expected = "one capital letter"
        letter = self.text(task, self.answer(task), expected)
        return letter if _LETTER.fullmatch(letter) else self.refuse(task, expected, letter)

    def written(self, gold: str) -> str:
        """The letter in its tag."""
        return f"<answer>\n{gold}\n</answer>"

    def mark(self, gold: str, text: str, cut: bool) -> Mark:
        """The letter is compared exactly: `b`, `B.` and `B)` are wrong."""
        answer = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
        right = answer == gold
        if self.published:
            inverted = _PUBLISHED_FORMAT.search(text, max(0, text.rfind("<answer>"))) is not None
            return Mark("none" if right else "wrong", answer=answer, bad_format=inverted)
        tagged = "<answer>" in text and "</answer>" in text[text.rindex("<answer>") :]
        if right or _LETTER.fullmatch(answer):
            return Mark.compared(right, f"{answer} is not the right answer.", answer, bad_format=not tagged)
        form = "Put the letter of your choice alone, as a capital, between <answer> and </answer>."
        found = f"The <answer> tag holds {clipped(repr(answer))}, not one capital letter alone."
        why = found if tagged else "No complete <answer> tag was found."
        return Mark.missing(f"{why} {form}", cut and not tagged, answer)
