"""A language model as the rest of the package uses it: token ids in, hidden states out, and the head to logits.

What several prompts begin with is read once, and its keys and values are copied for each of them: 8 completions of T
tokens after P tokens cost P + 8·T tokens, not 8·(P + T), with gradients and without.

Legend: B rows of a batch, L tokens of the longest, N answer positions, T of one answer, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from selfdistill.errors import ModelError
from selfdistill.losses.head import Head, widened
from selfdistill.models import precision
from selfdistill.models.batching import SharedBatch, TokenPair, length_buckets, plan_sharing
from selfdistill.prompts.render import ChatTemplate
from selfdistill.types import TokenIds, TrainingSample

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
R = TypeVar("R")

LAUNCHED = 4e11  # floating-point operations of an H100 in the millisecond that launching those of a layer takes


class Ranks:
    """The processes that make a run together. Here it is one, which shares nothing; see `scale.ranks`."""

    rank: int = 0
    size: int = 1

    def share(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples from which this rank learns, in order."""
        return list(samples)

    def even(self, parts: Sequence[list[T]]) -> Sequence[list[T]]:
        """This rank's parts, with empty ones after them, so that every rank has as many."""
        return parts

    def gather(self, own: list[T]) -> list[T]:
        """The items of all ranks."""
        return own

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return number

    def same(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone calls it, or the error of ours that it raises there."""
        return work()

    def agree(self, what: str, value: object) -> None:
        """Raises `RunError` where the ranks have different values."""


ALONE = Ranks()


@dataclass
class Policy:
    """A causal language model with its tokenizer.

    The model is always in `eval()` mode: with dropout its divergence from a teacher with the same context would not be
    zero. `model` is `base`, the transformers model, or the adapter around it; `output` is the linear layer of the head.
    `dtype` is the precision of forward passes; trained parameters are float32 (see `models.precision`). `end_ids` end
    the model's turn. `context_length` bounds prompt and answer together. Rows of the head from `vocabulary` on are
    padding: they are neither sampled nor compared. `recomputes`: see `models.activations`. `body` is `base` without its
    head. A batch of up to `launched` tokens takes a GPU about as long as one of a single token; 0 on a CPU.
    `ranks` are the processes that read and learn together with this one.
    """

    model: nn.Module
    base: PreTrainedModel
    output: nn.Linear
    tokenizer: PreTrainedTokenizerBase
    name: str
    device: torch.device
    dtype: torch.dtype
    context_length: int = field(init=False)
    end_ids: frozenset[int] = field(init=False)
    vocabulary: int = field(init=False)
    recomputes: bool = field(init=False, default=False)
    body: nn.Module = field(init=False)
    launched: int = field(init=False, default=0)
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        generation = self.base.generation_config
        listed = generation.eos_token_id if generation is not None else None
        # Beside those of model and tokenizer the one that the chat template writes: <end_of_turn> of Gemma, <|im_end|>.
        ends = {*(listed if isinstance(listed, list) else [listed]), self.tokenizer.eos_token_id}
        ends.add(ChatTemplate(self.tokenizer).end())
        self.end_ids = frozenset(end for end in ends if isinstance(end, int))
        self.context_length = context_length(self.base.config, self.tokenizer)
        self.vocabulary = 1 + max(self.tokenizer.get_vocab().values())
        self.body = getattr(self.base, self.base.base_model_prefix)
        if self.device.type == "cuda":
            layers = max(1, self.base.config.get_text_config().num_hidden_layers)
            counted = sum(value.numel() for value in self.body.parameters()) - self.output.weight.numel()
            self.launched = int(LAUNCHED * layers / (2 * max(1, counted)))

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter, and nothing else, is trained."""
        return self.model is not self.base

    @property
    def shares_prompts(self) -> bool:
        """Whether the model keeps only keys and values of a prompt, of which rows can be copied and left-padded. Layers
        that are computed again would add to them twice."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        # Not their subclasses: those keep more, such as a recurrent state.
        layers = DynamicCache(config=self.base.config).layers
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        again = self.recomputes and torch.is_grad_enabled()
        return not again and all(type(layer) in kinds for layer in layers)

    @property
    def description(self) -> str:
        """One line: architecture, device, precision, size."""
        counts = []
        for parameters in (self.model.parameters(), self.trainable().values()):
            number = sum(parameter.numel() for parameter in parameters)
            size, unit = next((pair for pair in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if number >= pair[0]), (1, ""))
            counts.append(f"{number / size:.3g}{unit}")
        kind = f"{type(self.base).__name__}{' with LoRA' if self.has_adapter else ''}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {kind} on {self.device}, {dtype}, {counts[0]} parameters, {counts[1]} trained"

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimiser moves, by name; a tied weight appears once."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def shards(self) -> dict[str, Tensor]:
        """What this process holds of each trained parameter: all of it, or its shard (`scale.sharded`)."""
        return {name: value.data for name, value in self.trainable().items()}

    def put(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes with these `shards` from now on; returns those that were there, which are never written."""
        parameters = self.trainable() if weights else {}
        before = {name: value.data for name, value in parameters.items()}
        for name, value in parameters.items():
            value.data = weights[name].to(value.device, value.dtype)
        return before

    def gathered(self) -> dict[str, Tensor] | None:
        """On rank 0 the weights that a checkpoint holds, whole and on the host; None: the model has them."""
        return None

    def each(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]], *, first: bool = False) -> list[R]:
        """The results of `work`, one per item and in their order. Every rank computes some, with all weights, and gets
        all; with `first` the first rank computes them, without weights."""
        return work(items)

    def head(self, *, sampling: bool = False) -> Head:
        """The map from hidden states to the model's own logits (`load_policy` checks it), without padding rows; for
        `sampling` cut off from the graph and ready for many products."""
        config = self.base.config.get_text_config()
        # Cohere multiplies logits, Granite divides them; Gemma bounds them.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        softcap = None if softcap is None else float(softcap)
        products = precision.HEAD_PRODUCTS.get((self.device.type, self.dtype))
        head = Head(self.output.weight, self.output.bias, softcap, float(scale), products)
        head = head if self.vocabulary == head.vocabulary else head.first(self.vocabulary)
        if not sampling:
            return head
        # A processor converts a weight in bfloat16 as it multiplies, with no copy of all of it.
        return head.detached() if self.device.type == "cpu" else widened([head])[0]

    def autocast(self) -> torch.autocast:
        """The context of forward passes: autocast for bfloat16, nothing for float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def backbone(self, ids_BL: Tensor, cache: Cache | None = None, mask_BL: Tensor | None = None) -> Tensor:
        """hidden_BLD: the model without its head. With a cache, ids follow what it holds, and are added to it.

        `mask_BL` covers cache and ids, 0 for padding on the left; None: no such padding, and the model takes its fast
        causal path.
        """
        options = {}
        if mask_BL is not None:
            # Pads after a short answer may lie past the end of the context; their states are never used.
            positions_BL = (mask_BL.cumsum(1) - 1).clamp(0, self.context_length - 1)
            options = {"attention_mask": mask_BL, "position_ids": positions_BL[:, -ids_BL.shape[1] :]}
        found = self.body(input_ids=ids_BL, past_key_values=cache, use_cache=cache is not None, **options)
        hidden_BLD: Tensor = found.last_hidden_state
        return hidden_BLD

    def answer_hidden(self, pairs: Sequence[TokenPair], max_tokens: int | None = None) -> Tensor:
        """hidden_ND of the positions that *predict* each completion token, rows of all pairs one after the other.

        For prompt [5, 6] and completion [7, 8] the model reads 5 6 7; the states at 6 and at 7 predict 7 and 8. Pairs
        are read in batches of at most `max_tokens` tokens. Carries a gradient when gradients are enabled. Raises
        `ModelError` for a pair that is empty on either side or longer than the context.
        """
        for prompt, completion in pairs:
            if not prompt or not completion:
                what, got = "prompt and completion need a token each", f"{len(prompt)} and {len(completion)} tokens"
                raise ModelError(what, got=got, do="drop rollouts with an empty completion")
            if len(prompt) + len(completion) > self.context_length:
                what, got = "the model cannot read that much", f"{len(prompt)} + {len(completion)} tokens"
                do = "shorten the prompt, or sample fewer tokens"
                raise ModelError(what, got=got, why=f"{self.name} reads at most {self.context_length}", do=do)
        plan = plan_sharing(pairs, max_tokens, self.launched) if self.shares_prompts else []
        states: dict[int, Tensor] = {}
        with self.autocast():
            for batch in plan:
                states |= read_shared(self, pairs, batch)
            rest = [index for index in range(len(pairs)) if index not in states]
            states |= read_unshared(self, pairs, rest, max_tokens)
        if not states:
            return torch.zeros(0, self.output.weight.shape[1], device=self.device)
        return torch.cat([states[index] for index in range(len(pairs))])


def context_length(config: object, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens that a model of this configuration reads."""
    text = config.get_text_config()  # type: ignore[attr-defined]
    return int(getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length)


def padded(policy: Policy, rows: Sequence[TokenIds], side: Literal["left", "right"]) -> tuple[Tensor, Tensor | None]:
    """ids_BL, and mask_BL with 0 for padding, or None where all rows are equally long. A causal model never looks at
    padding on the right."""
    assert isinstance(policy.tokenizer.pad_token_id, int)
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    ids_BL = pad([torch.tensor(row) for row in rows], padding_value=policy.tokenizer.pad_token_id)
    if len({len(row) for row in rows}) == 1:
        return ids_BL.to(policy.device), None
    mask_BL = pad([torch.ones(len(row), dtype=torch.long) for row in rows])
    return ids_BL.to(policy.device), mask_BL.to(policy.device)


def read_unshared(
    policy: Policy, pairs: Sequence[TokenPair], rows: Sequence[int], max_tokens: int | None
) -> dict[int, Tensor]:
    """hidden_TD by index into `pairs`, of the pairs in `rows`: the states that predict their completions."""
    read = [pairs[index][0] + pairs[index][1][:-1] for index in rows]
    states: dict[int, Tensor] = {}
    for bucket in length_buckets([len(row) for row in read], max_tokens, launched=policy.launched):
        ids_BL, _ = padded(policy, [read[place] for place in bucket], "right")
        hidden_BLD = policy.backbone(ids_BL)
        for row, place in enumerate(bucket):
            own_TD = hidden_BLD[row, len(pairs[rows[place]][0]) - 1 : len(read[place])]
            # Without a graph, which needs them anyway, a view would hold all states of its batch.
            states[rows[place]] = own_TD if own_TD.requires_grad else own_TD.clone()
    return states


def read_shared(policy: Policy, pairs: Sequence[TokenPair], batch: SharedBatch) -> dict[int, Tensor]:
    """What `read_unshared` gives, up to float noise, of the pairs of one batch."""
    from selfdistill.models.kv_cache import rounded_cache

    cache = rounded_cache(policy.base.config, precision.cache_dtype(policy.dtype))
    ids_BL, mask_BL = padded(policy, batch.beginnings, "left")
    last_BD = policy.backbone(ids_BL, cache, mask_BL)[:, -1].clone()
    states = {index: last_BD[place][None] for index, place in batch.places.items()}
    for bucket in batch.buckets:
        rows_B = torch.tensor([batch.places[index] for index in bucket], device=policy.device)
        read = [(*pairs[i][0], *pairs[i][1][:-1])[len(batch.beginnings[batch.places[i]]) :] for i in bucket]
        ids_BL, _ = padded(policy, read, "right")
        behind_BL = None if mask_BL is None else torch.cat([mask_BL[rows_B], torch.ones_like(ids_BL)], dim=1)
        copies = copy(cache)  # layers replace their tensors, so the beginnings' own stay as they are
        copies.layers = [copy(layer) for layer in cache.layers]
        copies.batch_select_indices(rows_B)
        hidden_BLD = policy.backbone(ids_BL, copies, behind_BL)
        for row, index in enumerate(bucket):
            length, count = len(read[row]), len(pairs[index][1])
            own_TD = hidden_BLD[row, max(0, length - count) : length]
            states[index] = torch.cat([states[index], own_TD])[-count:] if length < count else own_TD.clone()
    return states
