"""Which weights a server loads, whether they fit, and the version of the journal that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfdistill.errors import ModelError, SelfDistillError
from selfdistill.live.exchange import Version
from selfdistill.live.journal import Journal
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.load import ignore, load_policy, with_adapter
from selfdistill.models.planning import device_memory, model_shape
from selfdistill.models.policy import Policy
from selfdistill.models.precision import pick_device, pick_dtype
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
    """Raises `ModelError` for a model that is larger than the free memory."""
    place = pick_device(device)
    try:
        shape = model_shape(weights, None)
    except ModelError:  # loading it says what is wrong; an unknown architecture is tried
        return
    size, free = shape.parameters * pick_dtype(dtype, place).itemsize, device_memory(place)
    if size > ROOM * free:
        got = f"{size / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB free on {place}"
        do = "name a smaller model, another --device or --dtype bfloat16, or free memory"
        raise ModelError("the model does not fit", got=got, do=do)


class Weights:
    """The weights of versions. Adapters share the tensors of the model below them, which is kept."""

    def __init__(
        self, journal: Journal, *, device: str = "auto", dtype: str = "auto", progress: Callable[[str], None] = ignore
    ) -> None:
        self._journal, self._device, self._dtype, self._progress = journal, device, dtype, progress
        self._model: tuple[str, Policy] | None = None

    def start(self, name: str) -> tuple[Version, Policy]:
        """The version that a server of this model begins with, loaded: the served one where it was trained from this
        model, or is it; else a new one, which is published. Raises `ModelError`, and `VersionError` while one of
        another model is pinned."""
        weights, versions = weights_of(name), self._journal.versions
        directory = Path(weights).expanduser()
        path = str(directory.resolve()) if directory.is_dir() else ""
        if served := versions.served:
            first = versions.line(served)[-1]
            if (first.model, first.path) == (name, path):
                return served, self.load(served)
        policy = self.load(Version(0, None, "", name, path, "published", False))
        return versions.publish(name, path), policy

    def load(self, version: Version) -> Policy:
        """The weights of a version. Raises `ModelError` for those that are missing, do not belong to their base, or do
        not fit beside what is loaded; then nothing has changed."""
        below = self.model_of(version)
        name = below.path or below.model
        try:
            if self._model is None or self._model[0] != name:
                check_fits(name, self._device, self._dtype)
                policy = load_policy(
                    name, device=self._device, dtype=self._dtype, trained=False, progress=self._progress
                )
                self._model = name, policy
            return self._model[1] if version is below else with_adapter(self._model[1], version.path)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, SelfDistillError):
                raise
            do = "name a smaller model, another --device, or --dtype bfloat16"
            raise ModelError("the model does not fit", got=f"{name}: {str(error)[:200]}", do=do) from error

    def model_of(self, version: Version) -> Version:
        """The version whose whole model is loaded for this one: itself, unless it is an adapter that was trained from
        another."""
        line = self._journal.versions.line(version)
        return next((each for each in line if not each.is_adapter), line[-1])
