"""Advantage shaping: how the teacher's log-ratio at a token changes the advantage of its answer; the distillation sign;
and the table of tokens that both read.

Legend: N tokens of all answers, one answer after the other; R answers; A the advantage, u the log-ratio, s the
distillation sign, λ the strength of a token: schedule · gate · credit · mask.

All shapings but `Separate` turn the log-ratio of the sampled token into an advantage, so that one policy gradient
carries both and the teacher needs no pass during the update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, Ranged, option
from selfdistill.losses.clipping import Clipping
from selfdistill.losses.divergences import Divergence, ReverseKL
from selfdistill.losses.policy_gradient import LARGEST_LOG_RATIO


@dataclass(frozen=True, slots=True)
class TokenTable:
    """One row per answer token of a generation batch. Half precision is widened to float32: its means would be coarse.

    answer_N: the number of its answer, 0 … R − 1. position_N: 0 is an answer's first token. logprobs_N: log π(y) of the
    student. log_ratio_N: log q(y) − log π(y); teacher_entropy_N: H(q); both in nats, NaN where no teacher read.
    counted_N: bool, False for tokens that the student did not choose (a tool's output). advantage_R and distil_R: the
    method's credit of each answer; a negative `distil_R` reverses that answer's distillation sign.

    Raises `ConfigError` when shapes disagree, when an answer is out of range or order, or when `counted_N` is not
    boolean.
    """

    answer_N: Tensor
    position_N: Tensor
    logprobs_N: Tensor
    log_ratio_N: Tensor
    teacher_entropy_N: Tensor
    counted_N: Tensor
    advantage_R: Tensor
    distil_R: Tensor

    def __post_init__(self) -> None:
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        for name, values in columns.items():
            if values.is_floating_point() and values.dtype.itemsize < 4:
                object.__setattr__(self, name, values.float())
        shapes = {name: tuple(values.shape) for name, values in columns.items()}
        tokens, answers = shapes["answer_N"], shapes["advantage_R"]
        wrong = [name for name, shape in shapes.items() if shape != (answers if name.endswith("R") else tokens)]
        if wrong or len(tokens) != 1 or len(answers) != 1:
            what, do = "a table has one number per token, or one per answer", f"{tokens} tokens and {answers} answers"
            raise ConfigError(what, got=shapes, do=f"give columns of {do}")
        if self.counted_N.dtype != torch.bool:
            do = "compare: counted_N = weights_N > 0"
            raise ConfigError("counted_N must be boolean, a mask", got=self.counted_N.dtype, do=do)
        if bool((self.answer_N.diff() < 0).any()):
            what, do = "the tokens of an answer must stand together", "concatenate the answers in their order"
            raise ConfigError(what, got=self.answer_N.tolist()[:20], do=do)
        ends = self.answer_N[[0, -1]].tolist() if tokens[0] else [0, -1]
        if ends[0] < 0 or ends[1] >= answers[0]:
            what, do = "answer_N names an answer without credit", f"number the answers 0 to {answers[0] - 1}"
            raise ConfigError(what, got=f"{ends[0]} to {ends[1]}", do=do)

    def answer_means(self, values_N: Tensor, over_N: Tensor) -> Tensor:
        """Mean over the tokens `over_N` of each answer, repeated per token; 0 where an answer has none of them."""
        sizes = torch.bincount(self.answer_N, minlength=len(self.advantage_R)).tolist()
        # Row by row: index_add_ adds in any order on an accelerator, and the last bits would differ from run to run.
        rows = zip(torch.split(torch.where(over_N, values_N, 0), sizes), torch.split(over_N, sizes), strict=True)
        means = [row_T.sum() / over_T.to(row_T).sum().clamp(min=1) for row_T, over_T in rows]
        return torch.stack(means)[self.answer_N] if means else values_N


class DistillationSign(ABC):
    """A number in [−1, 1] for every token, which multiplies its distillation: 1 is toward the teacher.

    Every divergence pulls toward the teacher, so none of them can repair a direction that is wrong (arXiv 2605.11609).
    """

    __slots__ = ()

    @abstractmethod
    def signs(self, advantage_N: Tensor) -> Tensor:
        """signs_N, from the advantage of each token's answer."""


@dataclass(frozen=True, slots=True)
class Attract(DistillationSign):
    """Toward the teacher everywhere: ordinary distillation."""

    def signs(self, advantage_N: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(advantage_N)


@dataclass(frozen=True, slots=True)
class Repel(DistillationSign):
    """Away from the teacher everywhere. Without clipping or a gate it has no minimum. Source: arXiv 2605.11609."""

    def signs(self, advantage_N: Tensor) -> Tensor:
        """−1."""
        return -torch.ones_like(advantage_N)


@dataclass(frozen=True, slots=True)
class AdvantageSign(DistillationSign):
    """sign(A): toward the teacher in answers above their group's mean, away below it, 0 in a zero-advantage group.

    Source: arXiv 2604.03128 (the advantage sets the sign, the teacher the magnitude).
    """

    def signs(self, advantage_N: Tensor) -> Tensor:
        """sign(A)."""
        return advantage_N.sign()


@dataclass(frozen=True, slots=True)
class OppositeAdvantageSign(DistillationSign):
    """−sign(A): rewards good answers most where they are least likely under the teacher. Source: arXiv 2605.10781."""

    def signs(self, advantage_N: Tensor) -> Tensor:
        """−sign(A)."""
        return -advantage_N.sign()


class AdvantageShaping(Ranged, ABC):
    """One way to combine log-ratio and advantage. Where λ is 0 or the log-ratio unknown (NaN), A stays exactly."""

    __slots__ = ()
    needs_log_ratio: ClassVar[bool] = True

    @abstractmethod
    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """advantages_N; `strength_N` is λ ≥ 0, `sign_N` is s. `table` counts only the tokens that the mask keeps."""


@dataclass(frozen=True, slots=True)
class Separate(AdvantageShaping):
    """Two terms: the distillation weighs λ·s and is measured by the kernel on its support, the advantage stays A."""

    needs_log_ratio: ClassVar[bool] = False

    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """A."""
        return table.advantage_R[table.answer_N].to(strength_N)


@dataclass(frozen=True, slots=True)
class Additive(AdvantageShaping):
    """A + r with r = λ s Φ(h(u)) where |r| > `threshold`, else A; no distillation term.

    h is that of `divergence`, h(u) = u by default; Φ is `clipping`. keep_sign: A + r is cut at 0 where it would change
    the sign of A; where A is 0 it then stays 0. two_path: η. Tokens that were changed and tokens that were not are
    averaged apart and the means added, 1 to η: with M of N kept tokens changed, these are multiplied by η·N/M and the
    others by N/(N−M). Exact under the reduction "token-mean" over the kept tokens alone: dropped answers that count in
    it (`count_dropped`), or tokens that are not kept, dilute both means. None averages over all tokens together.

    With λ = 0.5: RLCSD is `Additive(clipping=Tanh(0.02), threshold=0.02, keep_sign=True, two_path=1.0)` on an
    unnormalised contrast; AntiSD is `Additive(JensenShannon(0.5))` with the sign `Repel()`, as ½(softplus(u) − log 2)
    is the h of that divergence. Source: arXiv 2606.11709 (RLCSD), 2605.11609 (AntiSD).
    """

    divergence: Divergence = field(default_factory=ReverseKL)
    clipping: Clipping | None = None
    threshold: float = option(0.0, "the largest change that is left out", least=0)
    keep_sign: bool = False
    two_path: float | None = option(None, "η, the weight of the changed tokens' mean", least=0)

    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """A + r."""
        plain_N, acts_N, change_N = _at_tokens(table, strength_N, self.divergence)
        if self.clipping is not None:
            change_N = self.clipping.clip_(change_N, torch.ones_like(change_N))
        change_N = strength_N * sign_N * change_N
        changed_N = acts_N & (change_N.abs() > self.threshold)
        advantage_N = plain_N + change_N
        if self.keep_sign:
            advantage_N = torch.where(advantage_N.sign() == plain_N.sign(), advantage_N, 0)
        advantage_N = torch.where(changed_N, advantage_N, plain_N)
        if self.two_path is not None:
            kept, changed = int(table.counted_N.sum()), int(changed_N.sum())
            weight_N = torch.full_like(advantage_N, kept / max(kept - changed, 1))
            advantage_N = advantage_N * weight_N.masked_fill(changed_N, self.two_path * kept / max(changed, 1))
        return advantage_N


@dataclass(frozen=True, slots=True)
class Multiplicative(AdvantageShaping):
    """A · ((1 − λ) + λ · clip(e^{s u}, 1 ± `clip`)): the log-ratio scales the advantage. The factor is never negative.

    With `AdvantageSign()` this is RLSD, with `OppositeAdvantageSign()` and credit for solved answers alone RLRT. No
    distillation term. Source: arXiv 2604.03128 (clip 0.2), 2605.10781 (0.5 or 1.0).
    """

    clip: float = option(0.2, "how far from 1 the ratio may be; above 1 it could reverse an advantage", above=0, most=1)

    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """A · factor."""
        plain_N, acts_N, log_ratio_N = _at_tokens(table, strength_N)
        ratio_N = torch.exp(sign_N * log_ratio_N).clamp(1 - self.clip, 1 + self.clip)
        factor_N = (1 + strength_N * (ratio_N - 1)).clamp(min=0)
        return torch.where(acts_N, plain_N * factor_N, plain_N)


@dataclass(frozen=True, slots=True)
class Centred(AdvantageShaping):
    """A + λ s (u − mean of u over its answer): which tokens of an answer, never whether the answer; no distillation.

    The mean is over the tokens of the answer that have strength and log-ratio. Without an advantage (A = 0) and with λ
    = 1 this is the advantage for learning from a user's reply. Source: arXiv 2603.12273.
    """

    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """A + λ s (u − mean)."""
        plain_N, acts_N, log_ratio_N = _at_tokens(table, strength_N)
        centred_N = log_ratio_N - table.answer_means(log_ratio_N, acts_N)
        return torch.where(acts_N, plain_N + strength_N * sign_N * centred_N, plain_N)


@dataclass(frozen=True, slots=True)
class Pooled(AdvantageShaping):
    """A + λ s · (mean of h(u) over its answer): one advantage for all tokens of an answer; no distillation term.

    It leaves the teacher one number per answer: the comparison by which credit for tokens is measured. Source: arXiv
    2601.20802, the ablation of sequence-level credit.
    """

    divergence: Divergence = field(default_factory=ReverseKL)

    def advantages(self, table: TokenTable, strength_N: Tensor, sign_N: Tensor) -> Tensor:
        """A + λ s mean h(u)."""
        plain_N, acts_N, wanted_N = _at_tokens(table, strength_N, self.divergence)
        mean_N = table.answer_means(wanted_N, acts_N)
        return torch.where(acts_N, plain_N + strength_N * sign_N * mean_N, plain_N)


def _at_tokens(
    table: TokenTable, strength_N: Tensor, divergence: Divergence | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A; the tokens at which the log-ratio acts; and the log-ratio u, clamped, 0 elsewhere, or the h(u) of a
    divergence."""
    acts_N = ~table.log_ratio_N.isnan() & (strength_N != 0)
    clamped_N = table.log_ratio_N.to(strength_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    found_N, student_N = torch.where(acts_N, clamped_N, 0), table.logprobs_N.to(strength_N)
    if divergence is not None:
        found_N = divergence.advantage(student_N, student_N + found_N)
    return table.advantage_R[table.answer_N].to(strength_N), acts_N, found_N
