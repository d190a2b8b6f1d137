"""Grows a sapling from nothing: `python -m tools.sapling grow`.

One process, CPU or GPU. The episodes of a round follow from the seed and the round's number, so that a stopped run
resumes from its last checkpoint with the same data.
"""

from __future__ import annotations

import json
import pickle
import platform
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import selfdistill
from selfdistill.errors import RunError
from selfdistill.runs.environment import git_commit
from tools.sapling.episodes import Episode, draw_episode
from tools.sapling.recipe import Recipe
from tools.sapling.tokenizer import END, build_tokenizer


@dataclass(frozen=True, slots=True)
class Progress:
    """Where growing stands. Loss in nats per token of the answers, mean over the last round."""

    round: int
    rounds: int
    step: int
    tokens: int
    answer_loss: float
    seconds: float


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A random model of this size."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.hidden // recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, episodes: list[Episode]) -> list[tuple[list[int], int]]:
    """Token ids of each conversation, and how many of them, at the end, are the answer with its end token."""
    chats = [[{"role": m.role, "content": m.content} for m in episode.messages] for episode in episodes]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer([episode.answer + END for episode in episodes], add_special_tokens=False)["input_ids"]
    return [(prompt + answer, len(answer)) for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]


def round_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a round, in random order: ids [B, L] and loss weights [B, L] of the token at each place.

    Rows are padded to the next bucket; those longer than the last, and those that fill no batch, are left out.
    """
    rng = random.Random(f"{recipe.seed} {number}")
    rows = encode(tokenizer, [draw_episode(rng) for _ in range(recipe.episodes_per_round)])
    batches: list[list[tuple[list[int], int]]] = []
    for shortest, longest in zip((0, *recipe.buckets), recipe.buckets, strict=False):
        fitting = [row for row in rows if shortest < len(row[0]) <= longest]
        size = max(1, recipe.batch_tokens // longest)
        batches += [fitting[i : i + size] for i in range(0, len(fitting) - size + 1, size)]
    rng.shuffle(batches)
    pad = int(tokenizer.pad_token_id or 0)
    for batch in batches:
        length = next(bucket for bucket in recipe.buckets if bucket >= max(len(ids) for ids, _ in batch))
        ids_BL = torch.full((len(batch), length), pad)
        weight_BL = torch.zeros(len(batch), length)
        for row, (ids, answer) in enumerate(batch):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            weight_BL[row, 1 : len(ids)] = recipe.context_weight
            weight_BL[row, len(ids) - answer : len(ids)] = 1.0
        yield ids_BL, weight_BL


class Optimisers:
    """Muon for the matrices of the layers, AdamW for embeddings and norms, one schedule for both."""

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self.recipe = recipe
        self.muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.muon_weight_decay)
        self.adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=recipe.adam_betas, weight_decay=0.0)

    def step(self, step: int, progress: float) -> None:
        """One update at this share of the schedule (0 to 1)."""
        warm = min(1.0, (step + 1) / self.recipe.warmup_steps)
        scale = warm * min(1.0, (1.0 - progress) / self.recipe.decay_share)
        for optimiser, lr in ((self.muon, self.recipe.muon_lr), (self.adam, self.recipe.adam_lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * scale
            optimiser.step()  # type: ignore[no-untyped-call]
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores both states."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def weighted_loss(model: Any, ids_BL: Tensor, weight_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, averaged by weight; and, detached, averaged over the answers' tokens alone."""
    logits_BLV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1]
    loss_N = functional.cross_entropy(logits_BLV.flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="none")
    weight_N = weight_BL[:, 1:].flatten()
    answer_N = (weight_N == 1.0).float()
    return (loss_N * weight_N).sum() / weight_N.sum(), ((loss_N * answer_N).sum() / answer_N.sum()).detach()


def grow(recipe: Recipe, directory: Path, *, device: str, compile_model: bool) -> Iterator[Progress]:
    """Grows to the end of the recipe, saving every round to `directory`; resumes from the state of an earlier call."""
    tokenizer = build_tokenizer(recipe.context_length)
    model = new_model(recipe, tokenizer)
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps it without its overloads
    model.set_attn_implementation("eager")  # on CPU the backward of the fused one takes a third of a step
    optimisers = Optimisers(recipe, model)
    state_file = directory / "state.pt"
    first, step, tokens, seconds = 0, 0, 0, 0.0
    if state_file.exists():
        try:
            state = torch.load(state_file, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimisers.load_state_dict(state["optimisers"])
            first, step, tokens, seconds = state["round"], state["step"], state["tokens"], state["seconds"]
        except (OSError, ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            do = "grow the size that was begun here, or remove the file to begin again"
            raise RunError("this state cannot be resumed", got=f"{state_file} ({error})", do=do) from error
    run: Any = torch.compile(model, dynamic=False) if compile_model else model
    torch._dynamo.config.cache_size_limit = 64
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(first, recipe.rounds):
        began, losses = time.monotonic(), []
        batches = list(round_batches(recipe, tokenizer, number))
        for index, (ids_BL, weight_BL) in enumerate(batches):
            with _autocast(device):
                loss, answer_loss = weighted_loss(run, ids_BL.to(device), weight_BL.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimisers.step(step, recipe.progress(number, index / len(batches)))
            losses.append(answer_loss)
            step, tokens = step + 1, tokens + int((weight_BL > 0).sum())
        seconds += time.monotonic() - began
        _save(state_file, model, optimisers, round=number + 1, step=step, tokens=tokens, seconds=seconds)
        yield Progress(number + 1, recipe.rounds, step, tokens, float(torch.stack(losses).mean()), seconds)
    _write_model(directory / "model", model, tokenizer, growth_record(recipe, model, device, step, tokens, seconds))


def growth_record(
    recipe: Recipe, model: nn.Module, device: str, steps: int, tokens: int, seconds: float
) -> dict[str, Any]:
    """How a sapling was grown, for its card."""
    return {
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": tokens,
        "steps": steps,
        "seconds": round(seconds),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "commit": git_commit(Path(selfdistill.__file__).parent) or "unknown",
    }


def hardware(device: str) -> str:
    """What growing runs on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)} ({platform.machine()})"


def _write_model(
    directory: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, growth: dict[str, Any]
) -> None:
    """An ordinary model directory in bfloat16, readable by everybody."""
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "growth.json").write_text(json.dumps(growth, indent=1) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)


def _autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, dtype=torch.bfloat16)


def _save(file: Path, model: nn.Module, optimisers: Optimisers, **numbers: float) -> None:
    temporary = file.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimisers": optimisers.state_dict(), **numbers}, temporary)
    temporary.replace(file)
