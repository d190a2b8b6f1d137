"""The loss of self-distillation: pure tensors in, a loss and its gradient out.

    weigh_tokens      log-ratios, advantages, sign, mask, schedule and gate  →  the weight of each token in each term
    fused_loss        hidden states and head  →  support, divergence, clipping, policy gradient, reference  →  gradient

`LossSpec` holds one choice of each part.
"""

from selfdistill.losses.clipping import Clip, Clipping, Relative, Tanh
from selfdistill.losses.divergences import ClippedForwardKL, Divergence, ForwardKL, JensenShannon, ReverseKL, divergence
from selfdistill.losses.head import Head
from selfdistill.losses.kernel import FusedResult, fused_loss, read_log_ratios, token_logprobs
from selfdistill.losses.policy_gradient import PolicyGradient, RatioCaps, ReferenceKL, importance_weight
from selfdistill.losses.reduction import (
    REWARD_TOLERANCE,
    Denominators,
    Reduction,
    denominators,
    equal_rewards,
    group_advantages,
    reduction_weights,
    relative_size,
)
from selfdistill.losses.schedules import Constant, EntropyGate, Gate, Linear, Memory, Schedule, Trapezoid
from selfdistill.losses.shaping import (
    Additive,
    AdvantageShaping,
    AdvantageSign,
    Attract,
    Centred,
    DistillationSign,
    Multiplicative,
    OppositeAdvantageSign,
    Pooled,
    Repel,
    Separate,
    TokenTable,
)
from selfdistill.losses.spec import LOSS_TERMS, LossSpec, LossTerm, TokenMask, TokenStats, TokenWeights
from selfdistill.losses.support import FullVocabulary, SampledToken, Support, TopK
from selfdistill.losses.teacher_mixture import Contrast, Product, TeacherMixture, TeacherStates
from selfdistill.losses.token_weights import WeighedTokens, weigh_tokens

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
