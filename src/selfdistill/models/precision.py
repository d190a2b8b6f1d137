"""Device and precision of a model: the one place that decides in which format anything is stored or computed.

trained parameters, gradients, optimiser, moving shadow   float32 (`MASTER`): at a learning rate of 1e-6 a step is
                                                          smaller than the spacing of bfloat16, and would be lost
forward passes                                            the run's dtype, bfloat16 under autocast
parameters that are not trained, keys and values          the run's dtype; where a processor has no products of
                                                          bfloat16, multiplied in float32 (`narrow.py`)
a shadow that never moves                                 bfloat16 where that holds it exactly
products with the head                                    summed in float32; on CUDA of bfloat16 inputs
                                                          (`losses/head.py` computes them), else of float32: a CPU
                                                          would round the sums too, or convert its inputs back
log-probabilities, losses                                 float32; sums of probabilities in float64
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from selfdistill.errors import ConfigError, nearest

MASTER = torch.float32
DTYPES = {"float32": MASTER, "bfloat16": torch.bfloat16}
# To which inputs of products with the head are rounded, by kind of device and dtype of the run; others are not.
HEAD_PRODUCTS = {("cuda", torch.bfloat16): torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """`auto`: the first of CUDA, MPS and CPU that is available. Raises `ConfigError` for a device that is not."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    here = [kind for kind, count in counts.items() if count]
    if name == "auto":
        return torch.device(here[0])
    if name not in (*here, *(f"{kind}:{number}" for kind in here for number in range(counts[kind]))):
        kind = name.split(":")[0]
        do = "use auto" if kind in counts else nearest(kind, [*counts, "auto"])
        raise ConfigError("this machine does not have that device", got=name, why=f"it has {', '.join(here)}", do=do)
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of forward passes. `auto`: bfloat16 on CUDA, float32 elsewhere. Raises `ConfigError`."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        why = "float16 overflows without loss scaling; float32 and bfloat16 do not need it"
        raise ConfigError("this precision is not supported", got=name, why=why, do=nearest(name, [*DTYPES, "auto"]))
    return DTYPES[name]


def cache_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """The format of keys and values; None: as they come. Under autocast a rotation makes float32 of bfloat16 keys,
    which attention rounds again."""
    return torch.bfloat16 if dtype == torch.bfloat16 else None


def compact(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that is only read, in the precision of forward passes where that holds it exactly, as the weights of
    most published models; else as it is."""
    rounded = value.to(dtype)
    return rounded if torch.equal(rounded.to(value.dtype), value) else value


def without_cudnn_attention() -> None:
    """Leaves attention on CUDA to torch's other kernels, in this whole process. On an H100 torch 2.11 to 2.13 prefer
    cuDNN's, whose gradient of the queries is NaN where there is a mask, the keys are 64 more than a multiple of 128,
    and a row's log-sum-exp is below −88.7, as it is of padding (github.com/pytorch/pytorch/issues/196678)."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def logit_tolerance(dtype: torch.dtype) -> float:
    """How far two ways to compute a logit may differ, relative to the largest."""
    return 1e-4 if dtype == MASTER else 3e-2


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars off the terminal while it loads or saves a model, and its warning about a
    property that peft reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
