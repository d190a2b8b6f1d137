"""What other weights, and other prompts, make of the answers: read once per generation batch, without gradients.

    teacher      hidden states of (x, c) ⊕ y for every context of every answer
    reference    hidden states of x ⊕ y under the weights at the start
    ahead        log π(y), entropy and log-ratio under the weights as they are, from one pass; where the method weighs
                 tokens by them, also those weights

Legend: N answer positions of a micro-batch, T answer tokens of one sample, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from selfdistill.losses import (
    Head,
    LossSpec,
    Memory,
    TeacherStates,
    TokenStats,
    TokenTable,
    TokenWeights,
    fused_loss,
    weigh_tokens,
)
from selfdistill.models.policy import Policy, length_buckets
from selfdistill.models.teacher import Source, Teacher, View
from selfdistill.types import TokenIds, TrainingSample

Pairs = Mapping[str, tuple[TokenIds, TokenIds]]
STUDENT = View(1.0, "student")


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What one set of weights makes of one prompt of each sample: hidden_TD by uid, its head, its share of the teacher,
    and whether it speaks against the answer."""

    hidden: Mapping[str, Tensor]
    head: Head
    weight: float = 1.0
    against: bool = False

    def view(self, samples: Sequence[TrainingSample], like_ND: Tensor, *, whole: bool = False) -> TeacherStates:
        """The states of these samples one after the other; one that was not read is absent, and gets zeros. `whole`:
        those that are absent weigh nothing anyway, and it need not be said."""
        size = self.head.weight_VD.shape[1]
        rows = [self.hidden.get(s.uid, like_ND.new_zeros(len(s.completion_ids), size)) for s in samples]
        present = None
        if not whole and not all(s.uid in self.hidden for s in samples):
            present = spread(samples, [s.uid in self.hidden for s in samples], like_ND)
        return TeacherStates(torch.cat(rows), self.head, self.weight, self.against, present)


@dataclass(frozen=True, slots=True)
class BehaviourPass:
    """What was seen before the first update, by uid: log π(y) [T]; (distil [T], advantage [T]) where the method weighs
    token by token; `log_ratio` [T] there too. `numbers` are for the records."""

    logprobs: Mapping[str, Tensor]
    weights: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    log_ratio: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


def views_of(passes: Sequence[ForwardPass], samples: Sequence[TrainingSample], like_ND: Tensor) -> list[TeacherStates]:
    """The readings of any of these samples, the weights of those that speak for the answers as shares of 1.

    Where some lack a context the signal makes the shares position by position. Where all have as many as any, nothing
    is absent and they are made here, so that it does not matter which samples are read together.
    """
    views = [r.view(samples, like_ND) for r in passes if any(s.uid in r.hidden for s in samples)]
    wanted = [view for view in views if not view.against]
    if any(view.present_N is not None for view in wanted):
        return views
    total = sum(view.weight for view in wanted)
    return [view if view.against else replace(view, weight=view.weight / total) for view in views]


def teacher_pass(policy: Policy, teacher: Teacher, samples: Sequence[TrainingSample], tokens: int) -> list[ForwardPass]:
    """Hidden states of every context of every sample, with the teacher's weights, or the student's of now where a
    sample says so: exact for whatever the signals do with them."""
    passes: list[ForwardPass] = []
    heads: dict[Source, Head] = {}
    for against, prompts_of in ((False, _views), (True, _against)):
        for slot in range(max((len(prompts_of(s)) for s in samples), default=0)):
            for live, views in ((False, teacher.views()), (True, (STUDENT,))):
                asked = [s for s in samples if s.live == live and len(prompts_of(s)) > slot]
                pairs = {s.uid: (prompts_of(s)[slot], s.completion_ids) for s in asked}
                passes += [_read(policy, teacher, view, pairs, tokens, heads, against) for view in views if pairs]
    return passes


def reference_pass(
    policy: Policy, reference_policy: Teacher | None, samples: Sequence[TrainingSample], tokens: int
) -> ForwardPass | None:
    """The weights at the start, reading what the student reads; None when no sample asks for it."""
    asked = [s for s in samples if s.reference]
    if not asked:
        return None
    assert reference_policy is not None, "a method that needs the reference says so"
    pairs = {s.uid: (s.student_prompt_ids, s.completion_ids) for s in asked}
    return _read(policy, reference_policy, reference_policy.views()[0], pairs, tokens, {})


@torch.no_grad()
def behaviour_pass(
    policy: Policy,
    loss_specs: Sequence[LossSpec],
    samples: Sequence[TrainingSample],
    teacher: Sequence[ForwardPass],
    *,
    step: int,
    memory: Memory,
    tokens: int,
) -> BehaviourPass:
    """One pass over the answers with the weights as they are, for behaviour log-probabilities, entropies and log-ratio,
    and from them the weight of every token under the signals that look at tokens."""
    assert sum(loss_spec.gate is not None for loss_spec in loss_specs) <= 1, "a method with two gates was refused"
    seen: dict[str, TokenStats] = {}
    for batch in _portions(samples, tokens):
        loss_spec = loss_specs[batch[0].loss_spec]
        hidden_ND = policy.answer_hidden([(s.student_prompt_ids, s.completion_ids) for s in batch], tokens)
        told = spread(batch, [float(bool(s.teacher_prompts)) for s in batch], hidden_ND)
        stats = fused_loss(
            loss_spec,
            hidden_ND,
            policy.head(),
            answer_tokens(batch, hidden_ND),
            TokenWeights(distil_N=told) if loss_spec.needs_log_ratio else TokenWeights(),
            views=views_of(teacher, batch, hidden_ND) if loss_spec.needs_log_ratio else (),
        ).stats
        seen |= _stats_by_uid(batch, stats)
    ahead = BehaviourPass({uid: stats.logprobs_N for uid, stats in seen.items()}, memory=memory)
    for index, loss_spec in enumerate(loss_specs):
        weighed = [s for s in samples if s.loss_spec == index and (s.teacher_prompts or s.advantage)]
        if loss_spec.needs_table and weighed:
            ahead = _weighed(ahead, loss_spec, weighed, seen, step)
    return ahead


def _weighed(
    ahead: BehaviourPass,
    loss_spec: LossSpec,
    samples: Sequence[TrainingSample],
    seen: Mapping[str, TokenStats],
    step: int,
) -> BehaviourPass:
    table = token_table(samples, [seen[s.uid] for s in samples])
    result = weigh_tokens(loss_spec, table, step, ahead.memory)
    distil, advantage = by_uid(samples, result.distil_N), by_uid(samples, result.advantage_N)
    return replace(
        ahead,
        weights={**ahead.weights, **{uid: (distil[uid], advantage[uid]) for uid in distil}},
        log_ratio={**ahead.log_ratio, **by_uid(samples, table.log_ratio_N)},
        memory=result.memory,
        numbers={**ahead.numbers, **result.numbers},
    )


def token_table(samples: Sequence[TrainingSample], stats: Sequence[TokenStats]) -> TokenTable:
    """The samples' numbers, one row per token."""
    like = stats[0].logprobs_N
    return TokenTable(
        answer_N=spread(samples, list(range(len(samples))), like),
        position_N=torch.cat([torch.arange(len(s.completion_ids), device=like.device) for s in samples]),
        logprobs_N=torch.cat([entry.logprobs_N for entry in stats]),
        log_ratio_N=torch.cat([entry.log_ratio_N for entry in stats]),
        teacher_entropy_N=torch.cat([entry.teacher_entropy_N for entry in stats]),
        counted_N=counted(samples, like),
        advantage_R=torch.tensor([s.advantage for s in samples], device=like.device),
        distil_R=torch.tensor([s.distil for s in samples], device=like.device),
    )


def micro_batches(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    """Samples of one signal and of similar length together, at most `tokens` tokens each."""
    batches = []
    for index in sorted({s.loss_spec for s in samples}):
        own = [s for s in samples if s.loss_spec == index]
        lengths = [len(s.student_prompt_ids) + len(s.completion_ids) for s in own]
        batches += [[own[place] for place in bucket] for bucket in length_buckets(lengths, tokens)]
    return batches


def _portions(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    """Samples whose states are held at once. Those of one prompt stay together, to be read behind one reading of it, as
    long as their answers have no more than `tokens` tokens."""
    group_members: dict[tuple[int, TokenIds], list[TrainingSample]] = {}
    for sample in samples:
        group_members.setdefault((sample.loss_spec, sample.student_prompt_ids), []).append(sample)
    pieces = [piece for group in group_members.values() for piece in _joined([[s] for s in group], tokens)]
    return _joined(sorted(pieces, key=lambda piece: piece[0].loss_spec), tokens)


def _joined(pieces: Sequence[list[TrainingSample]], tokens: int) -> list[list[TrainingSample]]:
    """Neighbours of one signal put together while their answers have at most `tokens` tokens."""
    joined: list[list[TrainingSample]] = []
    for piece in pieces:
        last = joined[-1] if joined else []
        if last and last[0].loss_spec == piece[0].loss_spec and _answered(last) + _answered(piece) <= tokens:
            last += piece
        else:
            joined.append(list(piece))
    return joined


def _answered(samples: Sequence[TrainingSample]) -> int:
    return sum(len(s.completion_ids) for s in samples)


def answer_tokens(samples: Sequence[TrainingSample], like: Tensor) -> Tensor:
    """tokens_N of all answers."""
    return torch.tensor([token for s in samples for token in s.completion_ids], device=like.device)


def spread(samples: Sequence[TrainingSample], values: Sequence[float], like: Tensor) -> Tensor:
    """One number per sample, repeated for each of its tokens."""
    return torch.tensor(
        [value for s, value in zip(samples, values, strict=True) for _ in s.completion_ids], device=like.device
    )


def counted(samples: Sequence[TrainingSample], like: Tensor) -> Tensor:
    """counted_N, bool: tokens in the spans of their sample."""
    rows = [torch.full((len(s.completion_ids),), s.spans is None) for s in samples]
    for sample, row_T in zip(samples, rows, strict=True):
        for start, stop in sample.spans or ():
            row_T[start:stop] = True
    return torch.cat(rows).to(like.device)


def by_uid(samples: Sequence[TrainingSample], values_N: Tensor) -> dict[str, Tensor]:
    """The numbers of each answer."""
    rows = torch.split(values_N, [len(s.completion_ids) for s in samples])
    return {s.uid: row for s, row in zip(samples, rows, strict=True)}


def _stats_by_uid(samples: Sequence[TrainingSample], stats: TokenStats) -> Iterator[tuple[str, TokenStats]]:
    columns = {name: by_uid(samples, getattr(stats, name)) for name in TokenStats.__slots__}
    return ((s.uid, TokenStats(**{name: column[s.uid] for name, column in columns.items()})) for s in samples)


def _views(sample: TrainingSample) -> tuple[TokenIds, ...]:
    return sample.teacher_prompts


def _against(sample: TrainingSample) -> tuple[TokenIds, ...]:
    return sample.against_prompts


def _read(
    policy: Policy,
    teacher: Teacher,
    view: View,
    pairs: Pairs,
    tokens: int,
    heads: dict[Source, Head],
    against: bool = False,
) -> ForwardPass:
    """`heads` are those that readings before this one have used; this one's is put there."""
    with teacher.applied(policy, view) as reader:
        hidden_ND, head = reader.answer_hidden(list(pairs.values()), tokens), reader.head().detached()
    rows = torch.split(hidden_ND, [len(answer) for _, answer in pairs.values()])
    if view.source not in heads:
        heads[view.source] = _standing(head, policy)
    return ForwardPass(dict(zip(pairs, rows, strict=True)), heads[view.source], view.weight, against)


def _standing(head: Head, policy: Policy) -> Head:
    """The head as it is now: what of it is trained, which the update is about to move, is copied."""
    trained = {value.data_ptr() for value in policy.trainable().values()}
    weight_VD, bias_V = (
        x.clone() if x is not None and x.data_ptr() in trained else x for x in (head.weight_VD, head.bias_V)
    )
    assert weight_VD is not None
    return replace(head, weight_VD=weight_VD, bias_V=bias_V)
