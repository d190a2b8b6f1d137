"""The algebra: pure tensors in, a loss and its gradient out. Sees torch and nothing of ours.

    evidence → shape → weight → gradient, on a support, beside a policy gradient and a reference

`shape` holds the divergences, `support` the outcomes they are measured on, `terms` the parts of the
loss (and `Signal`, which chooses among all of these), `fused` the kernel that runs them.
"""

from selfdistill.signal.advantages import group_advantages
from selfdistill.signal.evidence import TeacherView
from selfdistill.signal.fused import FusedResult, fused_signal
from selfdistill.signal.head import Head
from selfdistill.signal.policy_gradient import PolicyGradient
from selfdistill.signal.ratio import RatioCaps, importance_weight
from selfdistill.signal.reduction import Denominators, Reduction, denominators, token_weights
from selfdistill.signal.reference import ReferenceKL
from selfdistill.signal.scoring import evidence, token_logprobs
from selfdistill.signal.shape import ForwardKL, JensenShannon, ReverseKL, Shape, divergence
from selfdistill.signal.support import FullVocabulary, SampledToken, StudentTopK, Support
from selfdistill.signal.terms import Signal, TokenStats, TokenWeights

__all__ = [
    "Denominators",
    "ForwardKL",
    "FullVocabulary",
    "FusedResult",
    "Head",
    "JensenShannon",
    "PolicyGradient",
    "RatioCaps",
    "Reduction",
    "ReferenceKL",
    "ReverseKL",
    "SampledToken",
    "Shape",
    "Signal",
    "StudentTopK",
    "Support",
    "TeacherView",
    "TokenStats",
    "TokenWeights",
    "denominators",
    "divergence",
    "evidence",
    "fused_signal",
    "group_advantages",
    "importance_weight",
    "token_logprobs",
    "token_weights",
]
