"""Adapters around a base model: fresh, or saved and trained further, and the tensors of both.

All that peft saves of an adapter is read back: LoRA factors of any layer, DoRA magnitudes, biases, single tokens, and
whole modules that train beside them (`modules_to_save`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdistill.errors import ConfigError, ModelError, Ranged, nearest, option
from selfdistill.models.shards import part_of
from selfdistill.options import SEED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
RESIZED = "save the resized model, and name its directory as base_model_name_or_path in adapter_config.json"


@dataclass(frozen=True, slots=True)
class LoraOptions(Ranged):
    """LoRA: two thin factors beside each weight are trained instead of the weight. One starts at zero, so a fresh
    adapter changes nothing. Raises `ConfigError`. Source: Hu et al. 2021 (arXiv 2106.09685)."""

    rank: int = option(16, "width of the factors", least=1, most=4096)
    alpha: int = option(32, "their product is multiplied by alpha / rank", least=1, most=1_000_000)
    targets: str | tuple[str, ...] = option(
        ALL_LINEAR, "names of layers (a list, or text with commas), or all-linear: every linear layer but the head"
    )
    seed: int = option(0, "draws the factor that does not start at zero", least=0, most=SEED)

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)
        if not self.names or not all(self.names):
            raise ConfigError("the LoRA targets must name layers", got=repr(self.targets), do=f"try {ALL_LINEAR}")

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, one by one."""
        listed = self.targets.split(",") if isinstance(self.targets, str) else self.targets
        return tuple(name.strip() for name in listed)


def fresh_adapter(base: PreTrainedModel, lora: LoraOptions) -> Any:
    """An adapter around `base` that changes nothing yet. Raises `ConfigError` for targets that the model lacks."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, Conv1D)
    layers = [f".{name}" for name, module in base.named_modules() if isinstance(module, kinds)]
    for name in lora.names:
        if lora.names != (ALL_LINEAR,) and not any(layer.endswith(f".{name}") for layer in layers):
            do = nearest(name, {layer.rpartition(".")[2] for layer in layers} | {ALL_LINEAR})
            why = "a target is the name of linear or embedding layers, or the end of it"
            raise ConfigError("the LoRA targets name no layer of this model", got=name, why=why, do=do)
    targets = ALL_LINEAR if lora.names == (ALL_LINEAR,) else list(lora.names)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )  # fmt: skip
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(lora.seed)
        try:
            with _without_old_names():
                return _factored(get_peft_model(base, config))
        except ValueError as error:
            what, got, why = "the LoRA targets cannot carry an adapter", lora.targets, str(error).splitlines()[0]
            raise ConfigError(what, got=got, why=why, do=f"use {ALL_LINEAR}") from error


def saved_adapter(base: PreTrainedModel, directory: Path) -> Any:
    """The adapter of a directory around `base`, to be trained further.

    Raises `ModelError` for one that belongs to another base, and for a kind whose training could not be resumed.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights

    config = PeftConfig.from_pretrained(str(directory))
    if config.is_prompt_learning:
        why = "it adds virtual tokens to the prompt, which neither the sampler nor the losses read"
        raise ModelError("this kind of adapter is not supported", got=config.peft_type, why=why, do="use LoRA")
    try:
        with _without_old_names():
            model = PeftModel.from_pretrained(base, str(directory), is_trainable=True)
        found = load_peft_weights(str(directory), device="cpu")
    except (RuntimeError, ValueError, KeyError) as error:
        why = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ModelError("this adapter does not fit its base model", got=directory, why=why, do=RESIZED) from error
    state = _state(model)
    lacking = sorted(state.keys() - found.keys())
    foreign = sorted(name for name in found.keys() - state.keys() if "lora_" in name)
    if lacking or foreign:
        why = f"its file lacks {lacking[0]}" if lacking else f"its base has no place for {foreign[0]}"
        do = "check base_model_name_or_path and target_modules in its adapter_config.json"
        raise ModelError("this adapter does not fit its base model", got=directory, why=why, do=do)
    places = {value.data_ptr() for value in state.values()}
    lost = [name for name, value in model.named_parameters() if value.requires_grad and value.data_ptr() not in places]
    if lost:
        why = f"peft does not save {lost[0]}, which is trained: the run could not be resumed"
        raise ModelError("this kind of adapter is not supported", got=config.peft_type, why=why)
    return _factored(model)


def base_of(adapter: Path) -> str:
    """The name or directory of the model that an adapter was made for. Raises `ModelError` where it names none."""
    from peft import PeftConfig

    name = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    if not name:
        do = "write base_model_name_or_path into adapter_config.json"
        raise ModelError("this adapter does not name its base model", got=adapter, do=do)
    return str(name)


def restore_adapter(model: Any, saved: Mapping[str, Tensor]) -> None:
    """Copies a saved adapter into the model's own parameters. Raises `ValueError` where it does not fit."""
    state = _state(model)
    for name, value in state.items():
        found = tuple(saved[name].shape) if name in saved else "nothing"
        if found != tuple(value.shape):
            raise ValueError(f"{name}: {found} was saved, {tuple(value.shape)} is needed")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(part_of(saved[name], value))


def _factored(model: Any) -> Any:
    """The same adapter, in layers that make fewer copies of what they read and give."""
    from peft.tuners.lora import Linear

    from selfdistill.models.factors import FactoredLinear

    for module in model.modules():
        if type(module) is Linear and FactoredLinear.computes(module):
            module.__class__ = FactoredLinear
    return model


@contextmanager
def _without_old_names() -> Iterator[None]:
    """No warning that peft reads an attribute of transformers by its old name: nobody here can change that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _state(model: Any) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in its file, without the base's embeddings, which peft may save too."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state
