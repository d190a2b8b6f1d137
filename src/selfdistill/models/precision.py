"""Device and precision of a model.

Trained parameters are float32 whatever the precision of forward passes: at a learning rate of 1e-6 a step is smaller
than the spacing of bfloat16, and would be rounded away. With `dtype="bfloat16"` the forward pass runs under autocast;
parameters that are not trained (the base under a LoRA adapter, a teacher that is another model) are stored in bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selfdistill.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
