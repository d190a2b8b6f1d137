"""The algebra: pure tensors in, a loss and its gradient out. Sees torch and nothing of ours.

    evidence → support → shape → bound → weight → gradient, beside a policy gradient and a reference

`evidence` makes one teacher of several readings, `support` holds the outcomes on which it is compared, `shape` the
divergences, `bound` limits to them, `terms` the parts of the loss (and `Signal`, which chooses among all of these),
`fused` the kernel that runs them. `weigh` decides before all that what each token weighs.
"""

from selfdistill.signal.advantages import REWARD_TOLERANCE, equal_rewards, group_advantages
from selfdistill.signal.allocation import Allocation
from selfdistill.signal.bound import Bound, Clip, Relative, Tanh
from selfdistill.signal.coupling import Additive, Centred, Coupling, Multiplicative, Pooled, Separate
from selfdistill.signal.direction import AgainstVerdict, Away, Direction, Toward, WithVerdict
from selfdistill.signal.evidence import Contrast, Evidence, Product, TeacherView
from selfdistill.signal.fused import FusedResult, fused_signal
from selfdistill.signal.gate import EntropyGate, Gate, Memory
from selfdistill.signal.head import Head
from selfdistill.signal.policy_gradient import PolicyGradient
from selfdistill.signal.ratio import RatioCaps, importance_weight
from selfdistill.signal.reduction import Denominators, Reduction, denominators, relative_size, token_weights
from selfdistill.signal.reference import ReferenceKL
from selfdistill.signal.schedule import Constant, Linear, Schedule, Trapezoid
from selfdistill.signal.scoring import evidence, token_logprobs
from selfdistill.signal.shape import (
    ClippedForwardKL,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    Shape,
    divergence,
)
from selfdistill.signal.support import FullVocabulary, SampledToken, Support, TopK
from selfdistill.signal.table import TokenTable
from selfdistill.signal.terms import LOSS_TERMS, LossTerm, Signal, TokenStats, TokenWeights
from selfdistill.signal.weigh import Weighed, weigh

__all__ = [
    "LOSS_TERMS",
    "REWARD_TOLERANCE",
    "Additive",
    "AgainstVerdict",
    "Allocation",
    "Away",
    "Bound",
    "Centred",
    "Clip",
    "ClippedForwardKL",
    "Constant",
    "Contrast",
    "Coupling",
    "Denominators",
    "Direction",
    "EntropyGate",
    "Evidence",
    "ForwardKL",
    "FullVocabulary",
    "FusedResult",
    "Gate",
    "Head",
    "JensenShannon",
    "Linear",
    "LossTerm",
    "Memory",
    "Multiplicative",
    "PolicyGradient",
    "Pooled",
    "Product",
    "RatioCaps",
    "Reduction",
    "ReferenceKL",
    "Relative",
    "ReverseKL",
    "SampledToken",
    "Schedule",
    "Separate",
    "Shape",
    "Signal",
    "Support",
    "Tanh",
    "TeacherView",
    "TokenStats",
    "TokenTable",
    "TokenWeights",
    "TopK",
    "Toward",
    "Trapezoid",
    "Weighed",
    "WithVerdict",
    "denominators",
    "divergence",
    "equal_rewards",
    "evidence",
    "fused_signal",
    "group_advantages",
    "importance_weight",
    "relative_size",
    "token_logprobs",
    "token_weights",
    "weigh",
]
