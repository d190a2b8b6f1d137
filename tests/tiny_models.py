"""Tiny random models with a real tokenizer and a chat template, written as ordinary model directories.

policy = load_policy(str(tiny_policy_dir(tmp_path, family="gemma2")), device="cpu")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.cohere import CohereConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen3 import Qwen3Config

CORPUS = [
    "Write f(xs) that sorts the list, then drops the first number. def f(xs): return sorted(xs)[1:]",
    "What is seven plus five? The answer is twelve. Say yes or no, smallest first, largest last.",
    "Traceback: assert f([3, 1, 2]) == [1, 2, 3] failed, got [3, 2, 1]. user assistant system",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Templates that behave like well-known ones: each takes, refuses or forgets something else.
REFUSE = "{{ raise_exception('%s') }}"
ALTERNATE = "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}" + REFUSE % "turns must alternate" + "{% endif %}"
STRICT = (  # as Gemma's: no system turn, and turns that alternate
    "{% if messages[0]['role'] == 'system' %}" + REFUSE % "no system turn here" + "{% endif %}"
    "{% for m in messages %}" + ALTERNATE + "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_FIRST = (  # as Mistral's: a system turn may come first, and nothing is written for the assistant
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}" + ALTERNATE + "{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
FORGETS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
ONE_TURN = "{% if messages | length > 1 %}" + REFUSE % "one turn only" + "{% endif %}" + CHATML
NO_HEADER = CHATML.partition("{% if add")[0]
ALWAYS_THINKS = CHATML.replace("assistant\n", "assistant\n<think>\n")
CAN_THINK = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
FORGETS_QUESTION = "<|im_start|>{% if add_generation_prompt %}assistant\n{% endif %}"
BROKEN = "{% for m in messages %}{{ m['content'] }}{% endif %}"
NEEDS_MORE = "{{ tools[0]['name'] }}" + CHATML

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "llama": (LlamaConfig, {}),
    "gemma2": (
        Gemma2Config,
        {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "sliding_window": 16},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "granite": (GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.25}),
}


def tiny_tokenizer(*, gemma: bool = False, pad: bool = True, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens with the special tokens and the chat template of its family."""
    turns = ["<eos>", "<start_of_turn>", "<end_of_turn>"] if gemma else ["<|im_start|>", "<|im_end|>"]
    specials = ["<pad>", *turns]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    named = {"eos_token": "<eos>" if gemma else "<|im_end|>"} | ({"pad_token": "<pad>"} if pad else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=specials, **named)
    fast.chat_template = (GEMMA if gemma else CHATML) if chat else None
    return fast


def tiny_policy_dir(
    directory: Path,
    family: str = "qwen3",
    *,
    tied: bool = True,
    pad: bool = True,
    chat: bool = True,
    template: str | None = None,
    seed: int = 0,
) -> Path:
    """Writes a random two-layer model of `family` (a key of FAMILIES) with its tokenizer; returns its directory.

    Weights are drawn wide (0.3) so that next-token distributions are far from flat, and windows and soft caps are
    small enough to matter in short texts. The same arguments give the same weights. The global random state is kept.
    """
    target = directory / f"tiny-{family}{'' if tied else '-untied'}-{seed}"
    tokenizer = tiny_tokenizer(gemma=family.startswith("gemma"), pad=pad, chat=chat)
    if template is not None:
        tokenizer.chat_template = template
    config_class, extra = FAMILIES[family]
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = config_class(vocab_size=len(tokenizer), tie_word_embeddings=tied, **SHAPE, **extra, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def padded(directory: Path, target: Path, rows: int) -> Path:
    """The same model with so many more rows in its head, which are no tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(directory).save_pretrained(target)
    return target
