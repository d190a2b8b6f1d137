"""What the config.json of a model says about its size, and what memory a device has free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfdistill.errors import ModelError
from selfdistill.models.adapter import ALL_LINEAR, LoraOptions
from selfdistill.models.load import is_local, loading, places_of

_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960}
# The sizes in the config.json of models that recipes name: they are planned without a network.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-8B": {
        **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-4B": {
        **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-1.7B": {
        **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "allenai/Olmo-3-7B-Instruct": {
        "model_type": "olmo3", "vocab_size": 100278, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 65536, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of parameters (`head`: those of the output layer) and widths of a decoder: `query` and `key_value` are
    those of all heads together. `published` is the format of its file, `tied` whether the head is the embedding."""

    parameters: int
    trained: int
    largest: int
    head: int
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    qk_norm: bool
    vocabulary: int
    context: int
    published: torch.dtype
    tied: bool = False


def model_shape(name: str, lora: LoraOptions | None) -> ModelShape:
    """Of a model by its name, as `load_policy` takes it; no weights are read, and of a `KNOWN` model no file. Raises
    `ModelError`."""
    adapter, base = places_of(name) if is_local(name) else (name, name)
    if adapter != base:
        with loading(name):
            saved = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        lora = LoraOptions(rank=int(saved.get("r") or 16))
    try:
        with loading(name):
            return _shape(_config(str(base)).to_json_string(use_diff=False), str(base), lora)
    except (AttributeError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ModelError("the size of this architecture is not known", got=name, why=str(error)) from error


def _config(name: str) -> Any:
    from transformers import AutoConfig

    if name in KNOWN and not Path(name).is_dir():
        return AutoConfig.for_model(**KNOWN[name], dtype="bfloat16")
    return AutoConfig.from_pretrained(name)


@cache
def _shape(_: str, base: str, lora: LoraOptions | None) -> ModelShape:
    from transformers import AutoModelForCausalLM

    config = _config(base)
    text = config.get_text_config()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", None) or 1
    wide = (getattr(text, "moe_intermediate_size", None) or 0) * experts or text.intermediate_size
    counts = {name: value.numel() for name, value in model.named_parameters()}
    published = getattr(config, "dtype", None) or torch.float32
    return ModelShape(
        parameters=sum(counts.values()),
        trained=sum(counts.values()) if lora is None else _adapter(model, lora),
        largest=max(counts.values()),
        head=model.get_output_embeddings().weight.numel(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=wide,
        query=heads * size,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * size,
        qk_norm=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        vocabulary=text.vocab_size,
        context=int(getattr(text, "max_position_embeddings", None) or 2**20),
        published=published if isinstance(published, torch.dtype) else getattr(torch, str(published)),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def _adapter(model: nn.Module, lora: LoraOptions) -> int:
    """Parameters of the two factors beside every target."""
    every, output = lora.names == (ALL_LINEAR,), model.get_output_embeddings()  # type: ignore[operator]
    sizes = [
        module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and (
            isinstance(module, nn.Linear) and module is not output
            if every
            else any(f".{name}".endswith(f".{target}") for target in lora.names)
        )
    ]
    return sum(lora.rank * sum(shape) for shape in sizes)


def device_memory(device: torch.device) -> float:
    """Free bytes of a device; of the CPU what the machine, and the control group of this process, have left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(_free_of_machine(), _free_of_group())


def _free_of_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")  # a system that does not say


def _free_of_group() -> float:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        cached = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return float(limit) - float(used) + float(cached["inactive_file"])
    except (OSError, ValueError, KeyError):
        return float("inf")
