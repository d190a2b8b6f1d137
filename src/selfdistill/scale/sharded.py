"""A policy whose weights are divided among ranks: FSDP2, layer by layer.

Every call of the model gathers one layer after the other from all ranks, so all ranks must make as many calls, forward
and backward. In `ShardedPolicy.answer_hidden` a rank that has read all of its own reads one token, which counts for
nothing, as often as another rank still makes a call. The head is gathered whole, logits never are. Gradients are added
over ranks, not averaged: the weights of tokens are shares of the whole batch already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from selfdistill.errors import ModelError
from selfdistill.losses import Head
from selfdistill.models.batching import TokenPair
from selfdistill.models.policy import Policy, Ranks
from selfdistill.models.precision import MASTER
from selfdistill.models.shards import local

if TYPE_CHECKING:
    from transformers import Cache

T = TypeVar("T")
R = TypeVar("R")


class _Reader(nn.Module):
    """The model without its head, as a module of its own: the root of all that is sharded keeps the class of `base`
    as it is. Embeddings, the last norm and the head are its own parameters."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, **options: Any) -> Any:
        return getattr(self.base, self.base.base_model_prefix)(**options)


@dataclass
class ShardedPolicy(Policy):
    """A policy of which each rank holds a shard. `parameters` are those that are trained, sharded."""

    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    read: list[Tensor] | None = None  # hidden states of the calls of one `answer_hidden`
    is_whole: bool = False

    @property
    def parts(self) -> list[Any]:
        """The modules whose parameters are gathered together; the first one is the root."""
        return [module for module in self.body.modules() if isinstance(module, FSDPModule)]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The sharded parameters, whatever is gathered at the moment."""
        return dict(self.parameters)

    def shards(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter."""
        return {name: local(value.detach()) for name, value in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Policy.put`, of shards, which are copied: gathering reads them where they are."""
        self.forget()
        shards = self.shards()
        before = {name: shards[name].clone() for name in weights}
        for name, value in weights.items():
            shards[name].copy_(value)
        return before

    def forget(self) -> None:
        """Frees what was gathered, which the weights may have left behind."""
        self.parts[0].reset_iter_state()

    def gathered(self) -> dict[str, Tensor]:
        """As `Policy.gathered`; all ranks take part. Tied weights are one tensor here too."""
        self.forget()
        state: dict[str, Any] = self.model.state_dict(keep_vars=True)
        found, known = dict[str, Tensor](), dict[int, Tensor]()
        for name, value in state.items():
            if self.has_adapter and name not in self.parameters:
                continue
            if id(value) not in known:
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                known[id(value)] = torch.empty(0) if self.ranks.rank else whole.detach().cpu()
            found[name] = known[id(value)]
        return found

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each rank has all weights and calls the model as often as it likes."""
        root, *layers = self.parts
        self.forget()
        root.set_reshard_after_forward(False)
        for part in (root, *layers):
            part.unshard()
        self.is_whole = True
        try:
            yield
        finally:
            self.is_whole = False
            self.forget()
            for layer in layers:
                layer.set_reshard_after_forward(True, recurse=False)

    def each(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]], *, first: bool = False) -> list[R]:
        """As `Policy.each`: this rank works on every n-th item."""
        if first:
            return self.ranks.same(lambda: work(items))
        rank, size = self.ranks.rank, self.ranks.size
        with self.whole():
            own = work(items[rank::size])
        found = self.ranks.gather([own])
        return [found[place % size][place // size] for place in range(len(items))]

    def backbone(self, ids_BL: Tensor, cache: Cache | None = None, mask_BL: Tensor | None = None) -> Tensor:
        """As `Policy.backbone`; all ranks make a call, if it is one of `answer_hidden`."""
        if self.read is None:
            return super().backbone(ids_BL, cache, mask_BL)
        self.ranks.most(1)
        self.read.append(super().backbone(ids_BL, cache, mask_BL))
        return self.read[-1]

    def answer_hidden(self, pairs: Sequence[TokenPair], max_tokens: int | None = None) -> Tensor:
        """As `Policy.answer_hidden`, in as many calls on every rank. Each call is on the graph of the result, also one
        whose states nobody reads: its layers take part in the backward pass."""
        if self.is_whole:
            return super().answer_hidden(pairs, max_tokens)
        self.read = []
        try:
            hidden_ND = super().answer_hidden(pairs, max_tokens)
            with self.autocast():
                while self.ranks.most(0):  # another rank makes a call
                    self.read.append(super().backbone(torch.zeros(1, 1, dtype=torch.long, device=self.device)))
            if torch.is_grad_enabled():
                hidden_ND = torch.cat([hidden_ND, *(states_BLD[:0, 0] for states_BLD in self.read)])
        finally:
            self.read = None
        return hidden_ND

    def head(self, *, sampling: bool = False) -> Head:
        """As `Policy.head`, gathered. Without gradients it is a copy, which outlives the gathered weights."""
        self.parts[0].unshard()
        head = super().head(sampling=sampling)
        if self.is_whole or torch.is_grad_enabled():
            return head
        bias_V = None if head.bias_V is None else head.bias_V.clone()
        return replace(head, weight_VD=head.weight_VD.clone(), bias_V=bias_V)


def sharded(policy: Policy, ranks: Ranks) -> Policy:
    """The policy with its weights divided among several ranks. Raises `ModelError`."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(policy.device.type, (ranks.size,))
    # Autocast finds gathered weights in its format, so that the backward pass keeps no copies of them.
    param, reduced = (policy.dtype, MASTER) if policy.dtype != MASTER else (None, None)
    precision = MixedPrecisionPolicy(param, reduced, cast_forward_inputs=False)
    layers = [module for module in policy.base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        do = "train it in one process"
        raise ModelError("the layers of this architecture cannot be divided", got=type(policy.base).__name__, do=do)
    names = [name for name, value in policy.model.named_parameters() if value.requires_grad]
    body = _Reader(policy.base)
    for module in (*layers, body):
        part: Any = fully_shard(module, mesh=mesh, mp_policy=precision)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        part.set_reduce_scatter_unused_params(True)  # of which one rank may use less than another
    given = {item.name: getattr(policy, item.name) for item in fields(Policy) if item.init}
    found = ShardedPolicy(**(given | {"ranks": ranks}))
    found.recomputes, found.body = policy.recomputes, body
    named = dict(policy.model.named_parameters())
    found.parameters = {name: named[name] for name in names}
    with torch.no_grad(), found.autocast():
        found.backbone(torch.zeros(1, 1, dtype=torch.long, device=policy.device))  # FSDP finds its root by a first call
    return found
