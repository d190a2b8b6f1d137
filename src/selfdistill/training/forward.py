"""Forward passes over the answers of a generation batch, once per step and without gradients.

    teacher      hidden states of (x, c) ⊕ y, for every context of every sample
    reference    hidden states of x ⊕ y under the weights at the start of the run
    behaviour    log π(y), entropy and log-ratio of every token under the weights at the start of the step

Legend: N answer positions of a micro-batch, T answer tokens of one sample, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from selfdistill.losses import Head, LossSpec, TeacherStates, TokenStats, TokenWeights, fused_loss
from selfdistill.models.policy import Policy
from selfdistill.models.teacher import Ema, Snapshot, Source, Teacher, View
from selfdistill.types import TokenIds, TrainingSample

STUDENT = View(1.0, "student")
PROBED = 2  # samples on which a move of the teacher is measured
PROBED_TOKENS = 64  # of each
PROBE_EVERY = 5  # moves of an EMA between two measurements


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One prompt of each sample, read by one set of weights: hidden states [T, D] by uid, the head that belongs to
    them, the pass's share of the teacher, and whether it is one that the answer is contrasted with."""

    hidden: Mapping[str, Tensor]
    head: Head
    weight: float = 1.0
    against: bool = False

    def rows(self, samples: Sequence[TrainingSample], like_ND: Tensor) -> Tensor:
        """hidden_ND of these samples one after the other; zeros for those that were not read."""
        size = self.head.weight_VD.shape[1]
        rows = [self.hidden.get(s.uid, like_ND.new_zeros(len(s.completion_ids), size)) for s in samples]
        return torch.cat(rows)


def teacher_pass(
    policy: Policy,
    teacher: Teacher,
    samples: Sequence[TrainingSample],
    tokens: int,
    own: Collection[str] | None = None,
) -> list[ForwardPass]:
    """Every context of every sample, read by the teacher's weights, or by the student's current ones for samples that
    are `live`. At most `tokens` tokens are read at a time. Of the samples this rank reads its `own`, by uid (None: all
    are), in as many passes as the others."""
    passes: list[ForwardPass] = []
    heads: dict[Source, Head] = {}
    for against in (False, True):
        prompts = {s.uid: s.against_prompts if against else s.teacher_prompts for s in samples}
        for slot in range(max(map(len, prompts.values()), default=0)):
            for live, views in ((False, teacher.views()), (True, (STUDENT,))):
                chosen = [s for s in samples if s.live == live and len(prompts[s.uid]) > slot]
                mine = [s for s in chosen if own is None or s.uid in own]
                read = [prompts[s.uid][slot] for s in mine]
                for view in views if chosen else ():
                    passes.append(_forward(policy, teacher, view, read, mine, tokens, heads, against))
    return passes


def reference_pass(
    policy: Policy,
    reference_policy: Teacher | None,
    samples: Sequence[TrainingSample],
    tokens: int,
    own: Collection[str] | None = None,
) -> ForwardPass | None:
    """The student's prompts, read by the weights at the start; None when no sample has a reference divergence. `own` as
    in `teacher_pass`."""
    samples = [s for s in samples if s.reference]
    if not samples:
        return None
    assert reference_policy is not None, "a method whose credits have a reference divergence declares needs_reference"
    mine, view = [s for s in samples if own is None or s.uid in own], reference_policy.views()[0]
    return _forward(policy, reference_policy, view, [s.student_prompt_ids for s in mine], mine, tokens, {})


def move_teacher(policy: Policy, teacher: Teacher, samples: Sequence[TrainingSample], tokens: int) -> float | None:
    """Moves the teacher after the last update of a step. Every few moves returns KL(teacher after‖before) in nats, a
    mean over the tokens of a few samples."""
    rule = teacher.rule
    measured = isinstance(rule, Snapshot) or (isinstance(rule, Ema) and teacher.batches % PROBE_EVERY == 0)
    probed = [s for s in samples if s.teacher_prompts and not s.live][:PROBED] if measured and teacher.next_rate else []
    before_NV = _teacher_logprobs(policy, teacher, probed, tokens) if probed else None
    teacher.update(policy)
    if before_NV is None:
        return None
    after_NV = _teacher_logprobs(policy, teacher, probed, tokens)
    return float((after_NV.exp() * (after_NV - before_NV)).sum(-1).mean())


def _teacher_logprobs(policy: Policy, teacher: Teacher, samples: Sequence[TrainingSample], tokens: int) -> Tensor:
    """log q of the teacher's weights on the first tokens of each sample: [N, V]."""
    with teacher.applied(policy, teacher.views()[0]) as reader:
        hidden_ND = sampled_hidden(reader, [s.teacher_prompts[0] for s in samples], samples, tokens)
        rows = torch.cat([row_TD[:PROBED_TOKENS] for row_TD in by_uid(samples, hidden_ND, dim=0).values()])
        return reader.head().logits(rows).float().log_softmax(-1)


def _forward(
    policy: Policy,
    teacher: Teacher,
    view: View,
    prompts: Sequence[TokenIds],
    samples: Sequence[TrainingSample],
    tokens: int,
    heads: dict[Source, Head],
    against: bool = False,
) -> ForwardPass:
    """One pass over the samples behind these prompts. `heads` holds the heads of earlier passes by source; of a trained
    head the weights are copied, since the update is about to move them."""
    with teacher.applied(policy, view) as reader:
        hidden_ND, head = sampled_hidden(reader, prompts, samples, tokens), reader.head().detached()
    if view.source not in heads:
        trained = {value.data_ptr() for value in policy.shards().values()}
        weight_VD, bias_V = head.rounded(head.weight_VD), head.bias_V
        heads[view.source] = replace(
            head,
            weight_VD=weight_VD.clone() if weight_VD.data_ptr() in trained else weight_VD,
            bias_V=bias_V.clone() if bias_V is not None and bias_V.data_ptr() in trained else bias_V,
        )
    return ForwardPass(by_uid(samples, hidden_ND, dim=0), heads[view.source], view.weight, against)


def sampled_hidden(
    policy: Policy, prompts: Sequence[TokenIds], samples: Sequence[TrainingSample], tokens: int | None = None
) -> Tensor:
    """hidden_ND of the positions that predict the sampled tokens of each sample, read behind these prompts in batches
    of at most `tokens` tokens."""
    if not any(sample.observed for sample in samples):
        pairs = [(prompt, sample.completion_ids) for prompt, sample in zip(prompts, samples, strict=True)]
        return policy.answer_hidden(pairs, tokens)
    read = [sample.continuation() for sample in samples]
    pairs = [(prompt, ids) for prompt, (ids, _) in zip(prompts, read, strict=True)]
    hidden_ND = policy.answer_hidden(pairs, tokens)
    starts = accumulate((len(ids) for ids, _ in read), initial=0)
    return hidden_ND[[start + place for start, (_, places) in zip(starts, read, strict=False) for place in places]]


@torch.no_grad()
def behaviour_pass(
    policy: Policy,
    loss_specs: Sequence[LossSpec],
    samples: Sequence[TrainingSample],
    teacher: Sequence[ForwardPass],
    tokens: int,
) -> dict[str, TokenStats]:
    """Numbers of every token [T] by uid, under the weights as they are. Those of the teacher are NaN where the sample's
    loss does not weigh tokens by them."""
    found: dict[str, TokenStats] = {}
    for part in policy.ranks.even(_portions(samples, tokens)):
        hidden_ND = sampled_hidden(policy, [s.student_prompt_ids for s in part], part, tokens)
        if not part:
            continue
        loss_spec = loss_specs[part[0].spec_index]
        reads_teacher = loss_spec.needs_log_ratio
        stats = fused_loss(
            loss_spec,
            hidden_ND,
            policy.head(),
            torch.tensor([token for s in part for token in s.completion_ids], device=hidden_ND.device),
            TokenWeights(per_token(part, [float(bool(s.teacher_prompts)) for s in part], hidden_ND))
            if reads_teacher
            else TokenWeights(),
            teacher=teacher_states(teacher, part, hidden_ND) if reads_teacher else (),
        ).stats
        columns = {name: by_uid(part, getattr(stats, name)) for name in TokenStats.__slots__}
        found |= {s.uid: TokenStats(**{name: column[s.uid] for name, column in columns.items()}) for s in part}
    return found


def teacher_states(
    passes: Sequence[ForwardPass], samples: Sequence[TrainingSample], like_ND: Tensor
) -> list[TeacherStates]:
    """The passes over these samples, each with its share of the teacher.

    Where some samples lack a context the kernel makes the shares position by position. Where all have the same number
    they are made here, so that it does not matter which samples are read together.
    """
    states = []
    for each in passes:
        read = [s.uid in each.hidden for s in samples]
        if any(read):
            present_N = None if all(read) else per_token(samples, read, like_ND)
            states.append(TeacherStates(each.rows(samples, like_ND), each.head, each.weight, each.against, present_N))
    teachers = [state for state in states if not state.against]
    if any(state.present_N is not None for state in teachers):
        return states
    total = sum(state.weight for state in teachers)
    return [state if state.against else replace(state, weight=state.weight / total) for state in states]


def _portions(samples: Sequence[TrainingSample], tokens: int) -> list[list[TrainingSample]]:
    """Samples whose states are held at once. Those of one prompt stay together, to be read behind one reading of it, as
    long as their answers have no more than `tokens` tokens."""
    by_prompt: dict[tuple[int, TokenIds], list[TrainingSample]] = {}
    for sample in samples:
        by_prompt.setdefault((sample.spec_index, sample.student_prompt_ids), []).append(sample)
    pieces = [piece for group in by_prompt.values() for piece in _joined([[s] for s in group], tokens)]
    return _joined(sorted(pieces, key=lambda piece: piece[0].spec_index), tokens)


def _joined(pieces: Sequence[list[TrainingSample]], tokens: int) -> list[list[TrainingSample]]:
    """Neighbours of one loss put together while their answers have at most `tokens` tokens."""
    joined: list[list[TrainingSample]] = []
    for piece in pieces:
        both = [*(joined[-1] if joined else []), *piece]
        if both[0].spec_index == piece[0].spec_index and sum(len(s.completion_ids) for s in both) <= tokens and joined:
            joined[-1] = both
        else:
            joined.append(list(piece))
    return joined


def per_token(samples: Sequence[TrainingSample], values: Sequence[float], like: Tensor) -> Tensor:
    """One number per sample, repeated for each of its tokens: values_N."""
    repeated = [value for s, value in zip(samples, values, strict=True) for _ in s.completion_ids]
    return torch.tensor(repeated, device=like.device)


def by_uid(samples: Sequence[TrainingSample], values_N: Tensor, dim: int = -1) -> dict[str, Tensor]:
    """The part of each sample, of numbers whose dimension `dim` is N."""
    rows = torch.split(values_N, [len(s.completion_ids) for s in samples], dim=dim)
    return {s.uid: row for s, row in zip(samples, rows, strict=True)}
