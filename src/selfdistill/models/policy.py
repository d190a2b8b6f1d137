"""A language model as the rest of the package sees it: token ids in, hidden states out, and a head.

Legend: B sequences, L tokens of the longest, N answer positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfdistill.errors import ModelError
from selfdistill.losses.head import Head
from selfdistill.models.precision import autocast_to
from selfdistill.models.prefix import can_share, plan_sharing, read_shared, read_whole
from selfdistill.types import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Policy:
    """A causal language model with its tokenizer.

    The model is always in `eval()` mode: dropout would make the student's own log-probabilities noisy, and with the
    same context its divergence from its teacher would not be zero. `dtype` is the precision of forward passes;
    trained parameters are float32 (see `models.device`). `end_ids` are the tokens that end the model's turn.
    `base` is the transformers model; `model` is the same object, or the adapter around it. `vocabulary` is how many of
    the head's first rows are tokens; others, which pad it to a round size, are neither sampled nor compared. None: all.
    """

    model: nn.Module
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    device: torch.device
    dtype: torch.dtype
    end_ids: frozenset[int]
    vocabulary: int | None = None

    @property
    def context_length(self) -> int:
        """The number of tokens the model can read, prompt and answer together."""
        return context_length(self.base.config, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Fills batches; never attended to."""
        assert isinstance(self.tokenizer.pad_token_id, int)
        return self.tokenizer.pad_token_id

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter, and nothing else, is trained."""
        return self.model is not self.base

    @property
    def description(self) -> str:
        """One line: architecture, device, precision, size."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.trainable().values())
        precision = str(self.dtype).removeprefix("torch.")
        kind = f"{type(self.base).__name__}{' with LoRA' if self.has_adapter else ''}"
        return (
            f"{self.name}: {kind} on {self.device}, {precision}, {_count(total)} parameters, {_count(trained)} trained"
        )

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters an optimiser moves, by name; a tied weight appears once."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def output(self) -> nn.Linear | None:
        """The linear layer under the head; where an adapter trains a copy of it (`modules_to_save`), that copy."""
        output = self.base.get_output_embeddings()  # type: ignore[no-untyped-call]
        copies = getattr(output, "modules_to_save", None)
        chosen: nn.Linear | None = output if copies is None else copies[output.active_adapter]
        return chosen

    def head(self) -> Head:
        """The map from `answer_hidden` to logits; they are the model's own (`load_policy` checks it), padding of the
        vocabulary left out where `vocabulary` says so."""
        output, config = self.output(), self.base.config.get_text_config()
        assert output is not None
        # Cohere multiplies logits, Granite divides them; Gemma bounds them.
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        softcap = getattr(config, "final_logit_softcapping", None)
        head = Head(output.weight, output.bias, None if softcap is None else float(softcap), scale)
        return head if self.vocabulary in (None, head.vocabulary) else head.first(self.vocabulary)

    def autocast(self) -> torch.autocast:
        """The context of forward passes."""
        return autocast_to(self.dtype, self.device)

    def backbone(self, ids_BL: Tensor, **options: Any) -> Tensor:
        """hidden_BLD: the model without its head. `options` go to the transformers model (cache, mask, positions)."""
        backbone = getattr(self.base, self.base.base_model_prefix)
        hidden_BLD: Tensor = backbone(input_ids=ids_BL, **options).last_hidden_state
        return hidden_BLD

    def answer_hidden(self, pairs: Sequence[tuple[TokenIds, TokenIds]], max_tokens: int | None = None) -> Tensor:
        """hidden_ND of the positions that *predict* each completion token, rows of all pairs one after the other.

        For prompt [5, 6] and completion [7, 8] the model reads 5 6 7; the states at 6 and at 7 predict 7 and 8.
        Pairs are read in batches of similar length, of at most `max_tokens` tokens each, and come back in the order
        given. Without gradients a prompt that several pairs share is read once, where that saves a quarter of their
        tokens (`models.prefix`). Carries a gradient when gradients are enabled. Raises `ModelError` for a sequence
        that is empty on either side or longer than the context.
        """
        for prompt, completion in pairs:
            self._check_fits(len(prompt), len(completion))
        plan = [] if torch.is_grad_enabled() or not can_share(self) else plan_sharing(pairs, max_tokens)
        states: dict[int, Tensor] = {}
        with self.autocast():
            for batch in plan:
                states |= read_shared(self, pairs, batch)
            rest = [index for index in range(len(pairs)) if index not in states]
            states |= read_whole(self, pairs, rest, max_tokens)
        if not states:
            return torch.zeros(0, self.head().weight_VD.shape[1], device=self.device)
        return torch.cat([states[index] for index in range(len(pairs))])

    def _check_fits(self, prompt: int, completion: int) -> None:
        if not prompt or not completion:
            raise ModelError(
                "a prompt and a completion need at least one token each",
                got=f"{prompt} and {completion} tokens",
                why="the first answer token is predicted from the last prompt token",
                do="drop rollouts that said nothing",
            )
        if prompt + completion > self.context_length:
            raise ModelError(
                "prompt and completion are longer than the model can read",
                got=f"{prompt} + {completion} tokens",
                why=f"{self.name} reads at most {self.context_length}",
                do="shorten the prompt, or sample fewer tokens",
            )


def context_length(config: Any, tokenizer: Any) -> int:
    """The number of tokens that a model of this configuration reads."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
