"""Control tokens of a model in what others wrote: they stay text.

A tokenizer makes the token of "<|im_end|>" wherever it finds these letters, also in a failing test's output. So where a
content holds any, they are marked, the template writes around them, and the whole is read by a copy of the tokenizer
that knows its control tokens by other names: those that the template wrote are renamed, the marked ones lose their
mark. All other letters, and texts without a control token, become the same ids as ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfdistill.types import TokenIds

MARKS = range(0xE000, 0xF900)  # letters for private use; one that no content holds is taken
JOINER = "\N{WORD JOINER}"
TAG = re.compile(r"<[^\s<>]+>")

Content = tuple[str, bool]  # a text, and whether the assistant wrote it


@dataclass(frozen=True)
class Markup:
    """`special` tokens are control tokens in every text; `tags`, such as <think>, are ordinary tokens that the template
    writes, and that an assistant may."""

    tokenizer: Any
    special: frozenset[str]
    tags: frozenset[str]
    copies: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Markup:
        """That of a tokenizer with its chat template."""
        added = list(tokenizer.added_tokens_decoder.values())
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens) - {""}
        template = str(tokenizer.chat_template)
        tags = {token.content for token in added if TAG.fullmatch(token.content) and token.content in template}
        return cls(tokenizer, frozenset(special), frozenset(tags - special))

    def mark(self, contents: Sequence[Content]) -> str:
        """A letter that is in none of the contents; "" where none of them holds a control token."""
        if not any(token in text for text, own in contents for token in self._controls(own)):
            return ""
        whole = "".join(text for text, _ in contents)
        return next(letter for letter in map(chr, MARKS) if letter not in whole)

    def marked(self, text: str, own: bool, mark: str) -> str:
        """A content with a mark before each control token; `own`: the assistant wrote it."""
        controls = self._controls(own)
        return re.sub(_any(controls), lambda found: mark + found[0], text) if controls else text

    def encoded(self, text: str, mark: str) -> TokenIds:
        """The ids of a text with marked contents: marked control tokens are text, others are tokens."""
        every, copy = _any(self.special | self.tags), self._copy(mark)
        text = re.sub(f"{mark}(?!{every})", "", text)  # a template may have cut a content behind its mark
        if copy is None:
            text = re.sub(f"{mark}({every})", lambda found: found[1][0] + JOINER + found[1][1:], text)
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        student_reads_context = re.sub(
            f"{mark}?({every})", lambda found: found[1] if found[0] != found[1] else mark + found[1], text
        )
        return tuple(copy.encode(student_reads_context, add_special_tokens=False).ids)

    def _controls(self, own: bool) -> frozenset[str]:
        return self.special if own else self.special | self.tags

    def _copy(self, mark: str) -> Any:
        """The tokenizer with a mark before the name of every control token; None where it cannot be copied so."""
        if mark not in self.copies:
            self.copies[mark] = _renamed(self.tokenizer, {token: mark + token for token in self.special | self.tags})
        return self.copies[mark]


def _any(tokens: frozenset[str]) -> str:
    """A pattern for the longest of these that begins at a place."""
    return "(?:" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")"


def _renamed(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """A copy of the tokenizer in which tokens have other names and the same ids; None for one that is not written in
    `tokenizers`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    model = parts["model"]
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # of plain letters: none may lead to a control token
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()]
    copy = type(backend).from_str(json.dumps(parts))
    copy.no_truncation()
    copy.no_padding()
    added = backend.get_added_tokens_decoder().items()
    same = all(copy.token_to_id(names.get(token.content, token.content)) == number for number, token in added)
    return copy if same else None
