"""The algebra: pure tensors in, a loss and its gradient out. Sees torch and nothing of ours.

    log-ratio → support → shape → bound → weight → gradient, beside a policy gradient and a reference

`mixture` makes one teacher of several readings, `support` holds the outcomes on which it is compared, `shape` the
divergences, `clipping` limits to them, `terms` the parts of the loss (and `LossSpec`, which chooses among all of
these), `fused` the kernel that runs them. `weigh_tokens` decides before all that what each token weighs.
"""

from selfdistill.losses.advantages import REWARD_TOLERANCE, equal_rewards, group_advantages
from selfdistill.losses.clipping import Clip, Clipping, Relative, Tanh
from selfdistill.losses.distil_sign import AdvantageSign, Attract, DistillationSign, OppositeAdvantageSign, Repel
from selfdistill.losses.divergences import (
    ClippedForwardKL,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    divergence,
)
from selfdistill.losses.gate import EntropyGate, Gate, Memory
from selfdistill.losses.head import Head
from selfdistill.losses.kernel import FusedResult, fused_loss
from selfdistill.losses.policy_gradient import PolicyGradient
from selfdistill.losses.ratio import RatioCaps, importance_weight
from selfdistill.losses.reduction import Denominators, Reduction, denominators, reduction_weights, relative_size
from selfdistill.losses.reference import ReferenceKL
from selfdistill.losses.schedules import Constant, Linear, Schedule, Trapezoid
from selfdistill.losses.scoring import read_log_ratios, token_logprobs
from selfdistill.losses.shaping import Additive, AdvantageShaping, Centred, Multiplicative, Pooled, Separate
from selfdistill.losses.support import FullVocabulary, SampledToken, Support, TopK
from selfdistill.losses.table import TokenTable
from selfdistill.losses.teacher_mixture import Contrast, Product, TeacherMixture, TeacherStates
from selfdistill.losses.terms import LOSS_TERMS, LossSpec, LossTerm, TokenStats, TokenWeights
from selfdistill.losses.token_mask import TokenMask
from selfdistill.losses.weighing import WeighedTokens, weigh_tokens

__all__ = [
    "LOSS_TERMS",
    "REWARD_TOLERANCE",
    "Additive",
    "AdvantageShaping",
    "AdvantageSign",
    "Attract",
    "Centred",
    "Clip",
    "ClippedForwardKL",
    "Clipping",
    "Constant",
    "Contrast",
    "Denominators",
    "DistillationSign",
    "Divergence",
    "EntropyGate",
    "ForwardKL",
    "FullVocabulary",
    "FusedResult",
    "Gate",
    "Head",
    "JensenShannon",
    "Linear",
    "LossSpec",
    "LossTerm",
    "Memory",
    "Multiplicative",
    "OppositeAdvantageSign",
    "PolicyGradient",
    "Pooled",
    "Product",
    "RatioCaps",
    "Reduction",
    "ReferenceKL",
    "Relative",
    "Repel",
    "ReverseKL",
    "SampledToken",
    "Schedule",
    "Separate",
    "Support",
    "Tanh",
    "TeacherMixture",
    "TeacherStates",
    "TokenMask",
    "TokenStats",
    "TokenTable",
    "TokenWeights",
    "TopK",
    "Trapezoid",
    "WeighedTokens",
    "denominators",
    "divergence",
    "equal_rewards",
    "fused_loss",
    "group_advantages",
    "importance_weight",
    "read_log_ratios",
    "reduction_weights",
    "relative_size",
    "token_logprobs",
    "weigh_tokens",
]
