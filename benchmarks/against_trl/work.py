"""The work that both libraries do: random-weight Qwen3 models, ragged rollouts, and how much of each.

Everything follows from a seed and is written down once; each side reads the same files.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

VOCABULARY = 151_936
FIRST_ID = 8  # below are the special tokens
LOGIT_SPREAD = 2.5  # standard deviation of the random models' logits: a head that is far from uniform
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a Qwen3 model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int = VOCABULARY
    tied: bool = True

    @property
    def body(self) -> int:
        """Parameters of the layers."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.hidden * self.vocabulary


SIZES = {
    "tiny": Size(64, 2, 4, 2, 16, 192),
    "small": Size(128, 2, 4, 2, 32, 384),
    "small-32k": Size(128, 2, 4, 2, 32, 384, vocabulary=32_768),
    "20m": Size(128, 4, 4, 2, 32, 384),
    "100m": Size(512, 8, 8, 4, 64, 1536),
    "0.6b": Size(1024, 28, 16, 8, 128, 3072),
    "1.7b": Size(2048, 28, 16, 8, 128, 6144),
    "4b": Size(2560, 36, 32, 8, 128, 9728),
    "8b": Size(4096, 36, 32, 8, 128, 12288, tied=False),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout: what the student read, what the teacher reads (None: nothing to learn from it), what was said."""

    prompt: tuple[int, ...]
    teacher: tuple[int, ...] | None
    completion: tuple[int, ...]


def drawn_ids(rng: random.Random, vocabulary: int, count: int) -> tuple[int, ...]:
    """So many ids of tokens that are not special."""
    return tuple(rng.randrange(FIRST_ID, vocabulary) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Ragged:
    """A batch of rollouts: `count` of them, the longest answer, mean over longest, and the share without signal."""

    count: int = 20
    longest: int = 192
    ratio: float = 0.3
    without_signal: float = 0.35
    prompt: int = 32
    context: int = 96
    seed: int = 0

    def rows(self, vocabulary: int) -> list[Row]:
        """The rollouts, in an order that has nothing to do with their lengths."""
        rng = random.Random(f"ragged {self.seed}")
        lengths = ragged_lengths(self.count, self.longest, self.ratio)
        quiet = silent_ranks(self.count, self.without_signal)

        words = partial(drawn_ids, rng, vocabulary)
        rows = []
        for rank, length in enumerate(lengths):
            prompt = words(rng.randint(self.prompt // 2, self.prompt))
            teacher = None if rank in quiet else words(rng.randint(self.context // 2, self.context)) + prompt
            rows.append(Row(prompt, teacher, words(length)))
        rng.shuffle(rows)
        return rows


@dataclass(frozen=True, slots=True)
class Grouped:
    """Answers to a few questions: `members` to each, of ragged lengths. The teacher's prompts have `context` tokens and
    begin with the question. To every other question they are equal, as behind one correct solution; to the rest each
    answer has its own, as behind feedback."""

    questions: int = 2
    members: int = 4
    longest: int = 160
    ratio: float = 0.6
    prompt: int = 120
    context: int = 500
    seed: int = 0

    def rows(self, vocabulary: int) -> list[Row]:
        """The answers, question by question."""
        rng = random.Random(f"grouped {self.seed}")
        lengths = ragged_lengths(self.questions * self.members, self.longest, self.ratio)
        rng.shuffle(lengths)

        words = partial(drawn_ids, rng, vocabulary)
        rows = []
        for question in range(self.questions):
            prompt, solution = words(self.prompt), words(self.context - self.prompt)
            for _ in range(self.members):
                context = words(self.context - self.prompt) if question % 2 else solution
                rows.append(Row(prompt, prompt + context, words(lengths.pop())))
        return rows


def rows_of(case: Mapping[str, Any], vocabulary: int) -> list[Row]:
    """The answers of a case."""
    return (
        Grouped(**case["grouped"]).rows(vocabulary) if "grouped" in case else Ragged(**case["ragged"]).rows(vocabulary)
    )


def ragged_lengths(count: int, longest: int, ratio: float) -> list[int]:
    """Ascending lengths of which the last is `longest` and the mean is `ratio · longest`, to the rounding.

    The quantiles are longest · x^power, with the power found by halving: few answers are long, as when a model
    reasons. Raises `ValueError` for a ratio that so many answers cannot have.
    """
    if not 1 / count < ratio <= 1:
        raise ValueError(f"the mean of {count} lengths cannot be {ratio} of the longest")
    low, high = 0.0, 64.0
    for _ in range(60):
        power = (low + high) / 2
        if _mean_share(count, power) > ratio:
            low = power
        else:
            high = power
    return [max(1, round(longest * ((rank + 1) / count) ** low)) for rank in range(count)]


def _mean_share(count: int, power: float) -> float:
    return sum(math.pow((rank + 1) / count, power) for rank in range(count)) / count


def silent_ranks(count: int, share: float) -> set[int]:
    """Which rollouts, by rank of length, have no signal: spread evenly, so that their tokens are the same share."""
    return {r for r in range(count) if math.floor((r + 1) * share + 0.5) > math.floor(r * share + 0.5)}


def work_of(rows: list[Row]) -> dict[str, int]:
    """Tokens that have to be read, by whom, when nothing is padded and what has no signal is left out."""
    active = [row for row in rows if row.teacher is not None]
    return {
        "rollouts": len(rows),
        "with signal": len(active),
        "student": sum(len(row.prompt) + len(row.completion) for row in active),
        "teacher": sum(len(row.teacher or ()) + len(row.completion) for row in active),
        "answers": sum(len(row.completion) for row in active),
    }


def padded_work(rows: list[Row]) -> dict[str, int]:
    """Tokens of the same rollouts in one rectangle, nothing left out."""
    longest = max(len(row.completion) for row in rows)
    prompt = max(len(row.prompt) for row in rows)
    teacher = max(len(row.teacher or row.prompt) for row in rows)
    count = len(rows)
    return {
        "student": count * (prompt + longest),
        "teacher": count * (teacher + longest),
        "answers": count * longest,
    }


def update_flops(size: Size, tokens: dict[str, int], *, lora: bool = False) -> float:
    """Multiplications and additions, twice the parameters a token: forward and backward of the student, forward of the
    teacher; the head at answer positions alone. Frozen weights need no gradient."""
    student, head = (4.0, 6.0) if lora else (6.0, 8.0)
    return (student * tokens["student"] + 2.0 * tokens["teacher"]) * size.body + head * size.head * tokens["answers"]


def write_model(directory: Path, size: Size, seed: int = 0, *, narrow: bool = False) -> Path:
    """A random Qwen3 with a small tokenizer, as an ordinary model directory, in bfloat16 where it is `narrow`; what is
    there already is kept. Drawn on an accelerator where there is one: a processor needs minutes for billions."""
    if (directory / "config.json").is_file():
        return directory
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        **_shape(size), eos_token_id=1, pad_token_id=0, initializer_range=LOGIT_SPREAD * size.hidden**-0.5
    )
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer(size.vocabulary).save_pretrained(directory)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    (model.bfloat16() if narrow else model).save_pretrained(directory)
    return directory


def _shape(size: Size) -> dict[str, Any]:
    values = asdict(size)
    return {
        "hidden_size": values["hidden"],
        "num_hidden_layers": values["layers"],
        "num_attention_heads": values["heads"],
        "num_key_value_heads": values["kv_heads"],
        "head_dim": values["head_dim"],
        "intermediate_size": values["intermediate"],
        "vocab_size": values["vocabulary"],
        "tie_word_embeddings": values["tied"],
        "max_position_embeddings": 40_960,
    }


def _tokenizer(vocabulary: int) -> Any:
    """Special tokens, a few letters, and names for all other ids: rows of a head that the tokenizer lacks are cut off.
    The rollouts are made of ids, never of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<unk>"]
    words = {word: place for place, word in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz0123456789?"])}
    words |= {f"<{place}>": place for place in range(len(words), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=special
    )
    fast.chat_template = CHAT
    return fast


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), SIZES[sys.argv[2]], narrow="narrow" in sys.argv[3:])
