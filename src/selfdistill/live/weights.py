"""Which weights a server loads, whether they fit, and the version of the journal that they are."""

from __future__ import annotations

from pathlib import Path

from selfdistill.errors import ModelError
from selfdistill.live.exchange import Version
from selfdistill.live.journal import Journal
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.planning import device_memory
from selfdistill.models.precision import pick_device
from selfdistill.runs.store import CHECKPOINTS

ROOM = 0.9  # of what is free, for weights


def weights_of(name: str) -> str:
    """A name that `load_policy` takes: of a run, its newest checkpoint. Raises `ModelError` for a run without one."""
    run = Path(name).expanduser()
    if not (run / CHECKPOINTS).is_dir():
        return name
    newest = latest_checkpoint(run / CHECKPOINTS)
    if newest is None:
        raise ModelError("this run has no checkpoint", got=run, do="resume it until it has, or name a model")
    return str(newest)


def check_fits(weights: str, device: str, dtype: str) -> None:
    """Raises `ModelError` for the weights of a directory that are larger than the free memory."""
    directory = Path(weights).expanduser()
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) if directory.is_dir() else 0
    place = pick_device(device)
    free = device_memory(place)
    if size > ROOM * free:
        got = f"{size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB free on {place}"
        do = "name a smaller model, another --device, or free memory"
        raise ModelError("the model does not fit", got=got, do=do)


def published(journal: Journal, weights: str, name: str) -> Version:
    """The version of these weights: the served one, or one that is published now. Raises `JournalError` while another
    is pinned."""
    directory = Path(weights).expanduser()
    path = str(directory.resolve()) if directory.is_dir() else ""
    served = journal.versions.served
    if served and (served.model, served.path) == (name, path):
        return served
    return journal.versions.publish(name, path)
