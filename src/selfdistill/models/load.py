"""Loads any causal language model that transformers loads, fully trainable or under a LoRA adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from selfdistill.errors import ConfigError, ModelError, SelfDistillError
from selfdistill.models.adapter import RESIZED, LoraOptions, base_of, fresh_adapter, saved_adapter
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.narrow import multiplies_bfloat16, multiply_in_float32
from selfdistill.models.policy import Policy, context_length
from selfdistill.models.precision import (
    MASTER,
    logit_tolerance,
    pick_device,
    pick_dtype,
    quiet,
    without_cudnn_attention,
)
from selfdistill.prompts.render import ChatTemplate
from selfdistill.runs.store import CHECKPOINTS, METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoraOptions", "Policy", "load_policy"]

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_TIMEOUT_S = 5.0
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def ignore(_: str) -> None:
    """The progress callback that does nothing."""


def load_policy(
    name_or_dir: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    lora: LoraOptions | None = None,
    chat_template: str | None = None,
    trained: bool = True,
    progress: Callable[[str], None] = ignore,
) -> Policy:
    """A model by name: `sapling` (shipped), a directory, or a name on the hub.

    A directory with an adapter is loaded with its base, and the adapter is trained on. `chat_template` (Jinja text)
    replaces the tokenizer's own. With `trained=False` weights are stored in the precision of forward passes, and get no
    gradient. `progress` is called with a line before each slow stage. Code from the hub is never run.

    Raises `ModelError` for a model that is missing, cannot be reached, has no chat template or does not compute its
    logits as `Head` does; `ConfigError` for a device or a precision that is not available.
    """
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    without_cudnn_attention()
    source, root = places_of(name_or_dir, progress)
    adapter = source != root
    if adapter and lora is not None:
        do = "leave the LoRA options out to train this adapter on, or name the base model to start a fresh one"
        raise ConfigError("this directory already holds a LoRA adapter", got=name_or_dir, do=do)
    tokenizer = _tokenizer(source, root, name_or_dir, chat_template)
    full = trained and not adapter and lora is None  # an adapter's base is not trained
    with quiet(), loading(name_or_dir):
        base: Any = AutoModelForCausalLM.from_pretrained(root, dtype=MASTER if full else precision)
        model: Any = base.requires_grad_(True)
        if adapter:
            model = saved_adapter(base, source)
    if lora is not None:
        with quiet():
            model = fresh_adapter(base, lora)
        if not name_or_dir.startswith("sapling") and not Path(name_or_dir).expanduser().is_dir():
            model.peft_config["default"].base_model_name_or_path = name_or_dir  # valid on other machines too
    for value in model.parameters():
        if not trained:
            value.requires_grad_(False)
        elif value.requires_grad:  # a bias, or a whole module that an adapter trains, is a copy of the base's
            value.data = value.data.to(MASTER)
    if not full and precision != MASTER and not multiplies_bfloat16(place) and multiply_in_float32(base):
        progress("this processor has no products of bfloat16: weights are stored in it and multiplied in float32")
        precision = MASTER
    policy = Policy(model.to(place).eval(), base, _output(base, name_or_dir), tokenizer, name_or_dir, place, precision)
    _check_head(policy)
    return policy


def with_adapter(policy: Policy, directory: str) -> Policy:
    """The same frozen model with the adapter of a directory in place of its own. Both can be used: they share the
    tensors of the base, and none of the modules around them. Raises `ModelError`."""
    shared = {id(tensor): tensor for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    model: Any = deepcopy(policy.model, shared)
    base = model.unload() if policy.has_adapter else model
    with quiet(), loading(directory):
        model = saved_adapter(base, Path(directory)).requires_grad_(False)
    model, output = model.to(policy.device).eval(), _output(base, directory)
    adapted = Policy(model, base, output, policy.tokenizer, policy.name, policy.device, policy.dtype)
    _check_head(adapted)
    return adapted


def load_tokenizer(
    name_or_dir: str, *, chat_template: str | None = None, progress: Callable[[str], None] = ignore
) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a model, and how many tokens the model reads; its weights are not loaded. Raises `ModelError`
    as `load_policy`."""
    from transformers import AutoConfig

    source, base = places_of(name_or_dir, progress)
    tokenizer = _tokenizer(source, base, name_or_dir, chat_template)
    with loading(name_or_dir):
        return tokenizer, context_length(AutoConfig.from_pretrained(base), tokenizer)


def is_local(name: str) -> bool:
    """Whether a model needs no hub: an embedded one, or a directory."""
    return name == "sapling" or name.startswith("sapling-") or Path(name).expanduser().is_dir()


def places_of(name: str, progress: Callable[[str], None] = ignore) -> tuple[Path, Path]:
    """The directory of a model, and that of its base: the same, unless it holds an adapter."""
    source = _locate(name, progress)
    if not (source / "adapter_config.json").is_file():
        return source, source
    with loading(name):
        base_name = base_of(source)
    base = _locate(base_name, progress)
    if (base / "adapter_config.json").is_file():
        raise ModelError("the base of this adapter is an adapter itself", got=base, do="merge it into its base first")
    return source, base


def _locate(name: str, progress: Callable[[str], None]) -> Path:
    """The directory that holds the model's files; fetches them where they are not on this machine."""
    if name == "smollm2":
        do = f"name {SMOLLM2}, or the directory that `make smollm2` prints"
        raise ModelError("smollm2 is no longer a name of a model", got=name, do=do)
    if name == "sapling" or name.startswith("sapling-"):
        return _sapling(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        if (directory / METRICS).is_file() or (directory / CHECKPOINTS).is_dir():  # it has a config.json of its own
            newest = latest_checkpoint(directory / CHECKPOINTS)
            do = f"name its newest checkpoint: {newest}" if newest else "name a model, or a run that has a checkpoint"
            raise ModelError("this is a run directory, not a model", got=directory, do=do)
        if any((directory / file).is_file() for file in ("config.json", "adapter_config.json")):
            return directory.resolve()
        what, do = "a model directory has config.json or adapter_config.json", "name one written by save_pretrained"
        raise ModelError(what, got=name, do=do)
    if directory.exists() or not HUB_NAME.fullmatch(name):
        raise ModelError("there is no such model", got=name, do="give a directory, owner/name or sapling")
    return _from_hub(name, progress)


def _sapling(name: str) -> Path:
    weights = Path(str(files("selfdistill"))) / "sapling" / "weights"
    if (weights / name / "config.json").is_file():
        return weights / name
    known = sorted(path.name for path in weights.glob("sapling*"))
    raise ModelError("this model is not in the package", got=name, why=f"it holds: {', '.join(known) or 'none'}")


def in_hub_cache(name: str) -> bool:
    """Whether a model of the hub was fetched to this machine earlier."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _from_hub(name: str, progress: Callable[[str], None]) -> Path:
    """The local snapshot of a model on the hub; without a network, the one fetched earlier."""
    from huggingface_hub import snapshot_download

    progress(f"looking for {name} on the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, etag_timeout=HUB_TIMEOUT_S))
    except (OSError, ValueError) as error:  # the hub's own errors derive from these two
        what, why = "this model is neither a directory here nor to be had from the hub", str(error).splitlines()[0]
        do = "check the name and the network (gated models: `hf auth login`), give a directory, or use sapling"
        raise ModelError(what, got=name, why=why, do=do) from error


def _tokenizer(source: Path, base: Path, name: str, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; an adapter's directory without one means that of its base. Raises `ModelError` for one
    whose chat template cannot be used, `ConfigError` where that is the user's."""
    from transformers import AutoTokenizer

    own = any((source / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json"))
    with loading(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source if own else base)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        do = "use its instruct version, or give a Jinja template with chat_template=FILE"
        raise ModelError("this model has no chat template to write a question with", got=name, do=do)
    try:
        ChatTemplate(tokenizer, thinking="template").check()
    except ModelError as error:
        if chat_template is None:
            raise
        raise ConfigError(error.what, got=error.got, why=error.why, do="correct the file of chat_template") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            do = "set eos_token in tokenizer_config.json"
            raise ModelError("this tokenizer has neither a padding nor an end token", got=name, do=do)
        tokenizer.pad_token = tokenizer.eos_token  # fills the ends of batches; no position looks at it
    return tokenizer


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns the errors of libraries into `ModelError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SelfDistillError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        do = "check that transformers' AutoModelForCausalLM and AutoTokenizer load it, and that its files are whole"
        raise ModelError("this model cannot be loaded", got=name, why=why, do=do) from error


def _output(base: PreTrainedModel, name: str) -> nn.Linear:
    """The linear layer of the head; where an adapter trains a copy of it (`modules_to_save`), that copy."""
    output: Any = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    copies = getattr(output, "modules_to_save", None)
    chosen: nn.Linear | None = output if copies is None else copies[output.active_adapter]
    if chosen is None or any(hasattr(chosen, wrapped) for wrapped in ("base_layer", "token_adapter")):
        do = "use all-linear, or leave the head out of the LoRA targets"
        raise ModelError("the head of this model is missing or carries an adapter", got=name, do=do)
    return chosen


def _check_head(policy: Policy) -> None:
    """Raises `ModelError` for a model whose logits `Head` does not reproduce: every loss would be wrong."""
    rows, words = policy.output.weight.shape[0], policy.vocabulary
    if words > rows:
        why = f"the tokenizer knows {words} tokens, the model {rows}"
        do = RESIZED if policy.has_adapter else "use its own tokenizer, or resize the model's embeddings and save it"
        raise ModelError("model and tokenizer do not belong together", got=policy.name, why=why, do=do)
    ids_BL = torch.arange(1, min(9, words), device=policy.device)[None]
    with torch.no_grad():
        with policy.autocast():
            hidden_BLD, wanted_BLV = policy.backbone(ids_BL), policy.base(ids_BL, use_cache=False).logits
        error = (policy.head().logits(hidden_BLD[0]) - wanted_BLV[0, :, :words].float()).abs().max().item()
        allowed = logit_tolerance(policy.dtype) * max(1.0, wanted_BLV.abs().max().item())
    if not error <= allowed:
        why = f"its logits differ by up to {error:.3g} from head(hidden state)"
        what, got = "the head of this architecture is not supported", type(policy.base).__name__
        raise ModelError(what, got=got, why=why, do="report it")
