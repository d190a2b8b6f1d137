"""Loads any causal language model that transformers loads, fully trainable or under a LoRA adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from selfdistill.errors import ConfigError, ModelError
from selfdistill.models.device import pick_device, pick_dtype, quiet
from selfdistill.models.policy import Policy, context_length
from selfdistill.models.smollm2 import ensure_smollm2
from selfdistill.options import option
from selfdistill.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoraOptions", "Policy", "load_policy"]

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_TIMEOUT_S = 5.0


def ignore(_: str) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Trains two thin factors beside each weight instead of the weight. One starts at zero, so a fresh adapter changes
    nothing. Raises `ConfigError`. Source: Hu et al. 2021 (arXiv 2106.09685)."""

    rank: int = option(16, "width of the factors")
    alpha: int = option(32, "their product is multiplied by alpha / rank")
    targets: str | tuple[str, ...] = option(
        "all-linear", "names of layers, or all-linear: every linear layer but the head"
    )
    seed: int = option(0, "draws the factor that does not start at zero")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError("the rank of a LoRA adapter must be at least 1", got=self.rank, do="try 16")
        if self.alpha <= 0:
            why = "the adapter's output is multiplied by alpha / rank"
            raise ConfigError("LoRA's alpha must be positive", got=self.alpha, why=why, do="try twice the rank")


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
    """A model by name: `sapling` (shipped), `smollm2` (fetched once), a directory, or a name on the hub.

    A directory with an adapter is loaded with its base, and the adapter is trained on. `chat_template` (Jinja text)
    replaces the tokenizer's own. With `trained=False` weights are stored in the precision of the computation and ask
    for no gradient. `progress` hears one line for each slow thing. Code from the hub is never run.

    Raises `ModelError` for a model that is missing, cannot be reached, has no chat template or does not compute its
    logits as `Head` does; `ConfigError` for a device or a precision that is not there.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    source = _locate(name_or_dir, progress)
    adapter = (source / "adapter_config.json").is_file()
    if adapter and lora is not None:
        do = "leave the LoRA options out to train this adapter on, or name the base model to start a fresh one"
        raise ConfigError("this directory already holds a LoRA adapter", got=name_or_dir, do=do)
    tokenizer = _tokenizer(source, name_or_dir, chat_template)
    moves = trained and not adapter and lora is None  # an adapter's base does not
    stored = torch.float32 if moves else precision
    with quiet():
        base: Any = _loaded(lambda: _base(source, adapter, stored, progress), name_or_dir)
        model = _adapted(base, source if adapter else None, lora)
    if lora is not None and not _here(name_or_dir):
        model.peft_config["default"].base_model_name_or_path = name_or_dir  # means something on other machines too
    if not trained:
        model.requires_grad_(False)
    end_ids = end_tokens(base, tokenizer)
    policy = Policy(model.to(place).eval(), base, tokenizer, name_or_dir, place, precision, end_ids)
    _check(policy)
    return policy


def load_tokenizer(
    name_or_dir: str, *, chat_template: str | None = None, progress: Callable[[str], None] = ignore
) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a model, and how many tokens the model reads; its weights are not loaded. Raises `ModelError`
    as `load_policy`."""
    from peft import PeftConfig
    from transformers import AutoConfig

    source = _locate(name_or_dir, progress)
    tokenizer = _tokenizer(source, name_or_dir, chat_template)
    if (source / "adapter_config.json").is_file():
        source = _locate(str(PeftConfig.from_pretrained(str(source)).base_model_name_or_path), progress)
    return tokenizer, context_length(_loaded(lambda: AutoConfig.from_pretrained(source), name_or_dir), tokenizer)


def _locate(name: str, progress: Callable[[str], None]) -> Path:
    """The directory that holds the model's files; fetches them where they are not on this machine."""
    if name == "smollm2":
        return ensure_smollm2(progress)
    if name == "sapling" or name.startswith("sapling-"):
        return _sapling(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        if any((directory / file).is_file() for file in ("config.json", "adapter_config.json")):
            return directory.resolve()
        why = "it has neither config.json nor adapter_config.json"
        raise ModelError(
            "this directory is not a model directory", got=name, why=why, do="name one written by save_pretrained"
        )
    if directory.exists() or not HUB_NAME.fullmatch(name):
        why = "it is not a directory, and cannot be a name on the hub"
        raise ModelError(
            "there is no such model", got=name, why=why, do="give a directory, owner/name, sapling or smollm2"
        )
    return _from_hub(name, progress)


def _here(name: str) -> bool:
    """Whether a name stands for files on this machine rather than for a model on the hub."""
    return name == "smollm2" or name.startswith("sapling") or Path(name).expanduser().is_dir()


def _sapling(name: str) -> Path:
    weights = Path(str(files("selfdistill"))) / "sapling" / "weights"
    if (weights / name / "config.json").is_file():
        return weights / name
    known = sorted(path.name for path in weights.glob("sapling*")) if weights.is_dir() else []
    why = f"the package holds: {', '.join(known) or 'none'}"
    raise ModelError(
        "this size of the embedded model is not in the package", got=name, why=why, do="reinstall the package"
    )


def _from_hub(name: str, progress: Callable[[str], None]) -> Path:
    """The local snapshot of a model on the hub; without a network, the one fetched earlier."""
    from huggingface_hub import snapshot_download

    progress(f"looking for {name} on the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, etag_timeout=HUB_TIMEOUT_S))
    except (OSError, ValueError) as error:  # the hub's own errors derive from these two
        raise ModelError(
            "this model is neither a directory here nor to be had from the hub",
            got=name,
            why=str(error).splitlines()[0],
            do="check the name and the network (gated models: `hf auth login`), give a directory, or use sapling",
        ) from error


def _tokenizer(source: Path, name: str, chat_template: str | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _loaded(lambda: AutoTokenizer.from_pretrained(source), name)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise ModelError(
            "this model has no chat template",
            got=name,
            why="without one nobody can say how a question and its answer are written as text",
            do="use its instruct version, or give a Jinja template with chat_template=FILE",
        )
    try:
        ChatTemplate(tokenizer, "template").check()
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


def _loaded(load: Callable[[], Any], name: str) -> Any:
    """What `load` returns; its errors in our words."""
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        do = "check that transformers' AutoModelForCausalLM and AutoTokenizer load it, and that its files are whole"
        raise ModelError("this model cannot be loaded", got=name, why=why, do=do) from error


def _base(source: Path, adapter: bool, dtype: torch.dtype, progress: Callable[[str], None]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if adapter:
        from peft import PeftConfig

        source = _locate(str(PeftConfig.from_pretrained(str(source)).base_model_name_or_path), progress)
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    return base


def _adapted(base: PreTrainedModel, adapter: Path | None, lora: LoraOptions | None) -> Any:
    """The model to train: `base` itself, or an adapter around it (a saved one, or a fresh one drawn from its seed)."""
    if adapter is None and lora is None:
        return base.requires_grad_(True)
    from peft import LoraConfig, PeftModel, get_peft_model

    if lora is None:
        return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )  # fmt: skip
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(lora.seed)
        try:
            return get_peft_model(base, config)
        except ValueError as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                "the LoRA targets name no layer of this model", got=lora.targets, why=why, do="use all-linear"
            ) from error


def end_tokens(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a turn: those the model and the tokenizer name, and the one the chat template writes.

    The last matters where a base model's `<eos>` is kept but chats end in `<end_of_turn>` (Gemma) or `<|im_end|>`.
    """
    listed = base.generation_config.eos_token_id if base.generation_config is not None else None
    ends = set(listed) if isinstance(listed, list) else {listed}
    ends |= {tokenizer.eos_token_id, ChatTemplate(tokenizer).end()}
    return frozenset(end for end in ends if isinstance(end, int))


def _check(policy: Policy) -> None:
    """Refuses a model whose logits `Head` does not reproduce: every signal would be computed from wrong numbers."""
    output = policy.output()
    if output is None or hasattr(output, "base_layer"):
        do = "use all-linear, or leave the head out of the LoRA targets"
        raise ModelError("the head of this model is missing or carries an adapter", got=policy.name, do=do)
    rows, words = output.weight.shape[0], len(policy.tokenizer)
    if words > rows:
        why = f"the tokenizer knows {words} tokens, the model {rows}"
        raise ModelError(
            "model and tokenizer do not belong together", got=policy.name, why=why, do="use its own tokenizer"
        )
    ids_BL = torch.arange(1, min(9, words), device=policy.device)[None]
    with torch.no_grad(), policy.computing():
        hidden_BLD, wanted_BLV = policy.backbone(ids_BL, use_cache=False), policy.base(ids_BL, use_cache=False).logits
    with torch.no_grad():
        error = (policy.head().logits(hidden_BLD[0]) - wanted_BLV[0].float()).abs().max().item()
        allowed = (1e-4 if policy.dtype == torch.float32 else 3e-2) * max(1.0, wanted_BLV.abs().max().item())
    if not error <= allowed:
        why = f"its logits differ by up to {error:.3g} from head(hidden state)"
        raise ModelError(
            "the head of this architecture is not supported", got=type(policy.base).__name__, why=why, do="report it"
        )
