"""Every published method as a small value over one core. To add one: a file here, and a line in `METHODS`.

A user's own needs neither: `--method my_method.py:MyMethod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.errors import ConfigError, nearest
from selfdistill.methods.antisd import AntiSD as AntiSD
from selfdistill.methods.base import Credit as Credit
from selfdistill.methods.base import CreditOrDrop as CreditOrDrop
from selfdistill.methods.base import Method as Method
from selfdistill.methods.erl import ERL as ERL
from selfdistill.methods.grpo import GRPO as GRPO
from selfdistill.methods.nca import NCA as NCA
from selfdistill.methods.opcd import OPCD as OPCD
from selfdistill.methods.opd import OPD as OPD
from selfdistill.methods.opsd import OPSD as OPSD
from selfdistill.methods.pi_distill import PiDistill as PiDistill
from selfdistill.methods.rlcsd import RLCSD as RLCSD
from selfdistill.methods.rlrt import RLRT as RLRT
from selfdistill.methods.rlsd import RLSD as RLSD
from selfdistill.methods.rltf_fm import RLTFFM as RLTFFM
from selfdistill.methods.rltf_sd import RLTFSD as RLTFSD
from selfdistill.methods.safe import Safe as Safe
from selfdistill.methods.sc_sdpo import SCSDPO as SCSDPO
from selfdistill.methods.sdft import SDFT as SDFT
from selfdistill.methods.sdpg import SDPG as SDPG
from selfdistill.methods.sdpo import SDPO as SDPO
from selfdistill.methods.sdpo import SDPOOutcome as SDPOOutcome
from selfdistill.methods.sdpo import SDPORichFeedback as SDPORichFeedback
from selfdistill.methods.sft import SFT as SFT
from selfdistill.methods.srpo import SRPO as SRPO
from selfdistill.methods.user_replies import UserReplies as UserReplies
from selfdistill.options import Where, build
from selfdistill.plugins import class_from_file, is_file_name, refuse_value, their_code

METHODS: Mapping[str, type[Method]] = {
    "sdpo": SDPO,
    "sdpo_rich_feedback": SDPORichFeedback,
    "sdpo_outcome": SDPOOutcome,
    "grpo": GRPO,
    "sft": SFT,
    "opd": OPD,
    "opcd": OPCD,
    "opsd": OPSD,
    "sdft": SDFT,
    "user_replies": UserReplies,
    "erl": ERL,
    "pi_distill": PiDistill,
    "rltf_fm": RLTFFM,
    "rltf_sd": RLTFSD,
    "antisd": AntiSD,
    "nca": NCA,
    "rlcsd": RLCSD,
    "rlrt": RLRT,
    "rlsd": RLSD,
    "safe": Safe,
    "sc_sdpo": SCSDPO,
    "sdpg": SDPG,
    "srpo": SRPO,
}

PRESETS = ("sdpo_rich_feedback", "sdpo_outcome")  # published settings of `sdpo`
OURS = ("safe",)  # put together of published parts
PUBLISHED = tuple(name for name in METHODS if name not in (*PRESETS, *OURS))


def find_method(name: str) -> type[Method]:
    """The class of a method by name, or `FILE.py:NAME` for one of the user's. Raises `ConfigError`."""
    if is_file_name(name):
        return class_from_file(name, Method)
    refuse_value(name, "method")
    if name not in METHODS:
        do = f"{nearest(name, METHODS)} (a file of your own: --method my_method.py:MyMethod)"
        raise ConfigError("unknown method", got=name, do=do)
    return METHODS[name]


def get_method(name: str, options: Mapping[str, Any]) -> Method:
    """A method with some of its settings replaced, checked. Raises `ConfigError`."""
    kind = find_method(name)
    with their_code(kind, "its settings"):
        method = build(kind, options, Where("method"))
    return checked_method(method, name)


def checked_method(method: Method, name: str) -> Method:
    """The method. Raises `ConfigError` for settings that its losses refuse, and for more than one loss with a gate."""
    try:
        with their_code(method, "its `loss_specs`"):
            gates = [loss_spec.gate for loss_spec in method.loss_specs(temperature=1.0) if loss_spec.gate is not None]
    except ValueError as error:
        raise ConfigError(f"the settings of method {name!r} do not work together", got=error) from error
    if len(gates) > 1:
        what, do = f"method {name!r} has more than one signal with a gate", "give the others gate=None"
        raise ConfigError(what, got=gates, why="a run remembers what one gate has read", do=do)
    return method
