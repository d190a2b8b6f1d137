"""The sapling's tokenizer: a byte-level BPE in which what recurs (numbers, frames, lines of programs) is one token.

Short sequences are what makes growing on a laptop possible: a failing case costs about twenty tokens, an answer eight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from selfdistill.envs.scoring import TestRecord, TestStatus, feedback_text, missing_block_text
from selfdistill.envs.verbs.lexicon import NOUN, all_words
from selfdistill.envs.verbs.operations import OPERATIONS, VARIABLE
from selfdistill.prompts.context import Templates

PAD, END, SYSTEM, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
BPE_VOCABULARY = 900
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(context_length: int) -> PreTrainedTokenizerFast:
    """Makes the tokenizer anew; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_prose(), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(_units())])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )


def _prose() -> Iterator[str]:
    """Text from which the BPE learns the pieces of words."""
    for kind, operations in OPERATIONS.items():
        yield from (f"to {word} a {NOUN[kind]}" for word in all_words())
        for operation in operations:
            yield from [f", then {operation.english}", f"No, {operation.casual}, please."] * 40
    yield from [missing_block_text(False), missing_block_text(True)] * 40
    for name in ("ValueError", "IndexError", "NameError", "TypeError", "SyntaxError", "AttributeError", "KeyError"):
        yield from [
            f"{name}: name is not defined, invalid syntax, object has no attribute, out of range\nLine in f"
        ] * 40


def _units() -> Iterator[str]:
    """Strings that are always one token."""
    for operations in OPERATIONS.values():
        yield from (operation.line for operation in operations)
    for name in VARIABLE.values():
        yield from (f"def f({name}):\n", f"    return {name}\n", f"Write f({name}) to")
    yield from (f" the {noun}." for noun in NOUN.values())
    yield from ("```python\n", "```", "[]", "['", "']", ", then", ", please.")
    sections = ("document", "demonstration", "solution", "feedback", "reply")
    yield from ("\n\n" + getattr(Templates(), name).removesuffix(f"{{{name}}}") for name in sections)
    yield Templates().message.partition("{context}")[2]
    yield from _feedback_frames()
    yield from (str(number) for number in range(-99, 1000))
    yield from (f", {number}" for number in range(-49, 150))


def _feedback_frames() -> Iterable[str]:
    """The fixed parts of feedback, cut out of real ones, alone and together with the bracket or quote beside them."""
    wrong = TestRecord(TestStatus.WRONG, "\0", "\0", "\0")
    first, output, expected, _ = feedback_text([wrong]).split("\0")
    error = feedback_text([TestRecord(TestStatus.ERROR, "\0", error="\0")])
    head, last, _ = error.split("\0")
    for left, right in (("", ""), ("[", "]"), ("'", "'")):
        yield from (first + left, f"{right}\n{first}{left}", right + output + left, right + expected + left)
        yield last + left
    yield head
