"""What the embedded model can read: its tokenizer spells anything, but most words are only letters to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from selfdistill.envs.verbs.operations import OPERATIONS
from selfdistill.envs.verbs.programs import Program
from selfdistill.envs.verbs.texts import dictionary_entry
from selfdistill.envs.verbs.words import all_words

WORD = re.compile(r"[^\W\d_]+")
QUOTED = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)")  # texts to work on, which hold any letters
ERRORS = "list index out of range, unsupported operand type(s)"  # words of Python's that its tokenizer spells


def foreign_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """The words that never occurred while the model grew: neither a piece of its tokenizer nor a coined verb. What
    stands in quotes is not read as words."""
    known = {word for token in tokenizer.get_vocab().values() for word in WORD.findall(tokenizer.decode([token]))}
    known |= {*all_words(), *WORD.findall(dictionary_entry("", Program((OPERATIONS["list"][0],))) + ERRORS)}
    said = (word for text in texts for word in WORD.findall(QUOTED.sub("", text)))
    return list(dict.fromkeys(word for word in said if word not in known))
