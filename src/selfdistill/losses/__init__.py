"""The loss of self-distillation: pure tensors in, a loss and its gradient out.

    weigh_tokens      log-ratios, advantages, sign, mask, schedule and gate  →  the weight of each token in each term
    fused_loss        hidden states and head  →  support, divergence, clipping, policy gradient, reference  →  gradient

`LossSpec` holds one choice of each part.
"""

from selfdistill.losses.clipping import Clip, Clipping, Relative, Tanh
from selfdistill.losses.divergences import ClippedForwardKL, Divergence, ForwardKL, JensenShannon, ReverseKL, divergence
from selfdistill.losses.head import Head
from selfdistill.losses.kernel import FusedResult, fused_loss
from selfdistill.losses.policy_gradient import PolicyGradient, RatioCaps, ReferenceKL
from selfdistill.losses.reduction import Denominators, Reduction, denominators, equal_rewards, group_advantages
from selfdistill.losses.schedules import Constant, EntropyGate, Linear, Trapezoid
from selfdistill.losses.shaping import (
    Additive,
    AdvantageShaping,
    AdvantageSign,
    Attract,
    Centred,
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
from selfdistill.losses.token_weights import weigh_tokens

__all__ = [
    "LOSS_TERMS",
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
    "Divergence",
    "EntropyGate",
    "ForwardKL",
    "FullVocabulary",
    "FusedResult",
    "Head",
    "JensenShannon",
    "Linear",
    "LossSpec",
    "LossTerm",
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
    "denominators",
    "divergence",
    "equal_rewards",
    "fused_loss",
    "group_advantages",
    "weigh_tokens",
]
