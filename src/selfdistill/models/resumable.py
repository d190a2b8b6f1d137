"""What a checkpoint holds of a run: model, teacher, optimiser and random states, whole or in shards."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfdistill.models.adapter import restore_adapter
from selfdistill.models.policy import Policy
from selfdistill.models.precision import MASTER, quiet
from selfdistill.models.shards import local, make_moments, part_of, placed
from selfdistill.models.teacher import Teacher

SHARDS = "shards"


@dataclass(frozen=True)
class Resumable:
    """What a checkpoint restores: everything that a step changes, beside the caller's own state. Whole or in shards, it
    is read from either."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    teacher: Teacher

    def write(self, folder: Path) -> None:
        """Writes all files but `checkpoint.json`. All ranks write together; they write shards."""
        ranks, weights = self.policy.ranks, self.policy.gathered()
        if ranks.size > 1:
            from torch.distributed.checkpoint.state_dict_saver import save

            with _together():
                save(self._tensors(), checkpoint_id=folder / SHARDS)
        if ranks.rank:
            return
        write_model(folder, self.policy, weights)
        trainer: dict[str, Any] = {"rng": random_states()}
        if ranks.size == 1:
            shadow = {name: value.cpu().contiguous() for name, value in self.teacher.state_dict().items()}
            save_file(shadow, folder / "teacher.safetensors")
            trainer["optimizer"] = self.optimizer.state_dict()
        with (folder / "trainer.pt").open("wb") as file:
            torch.save(trainer, file)

    def read(self, folder: Path) -> None:
        """Restores what `write` wrote, whichever number of ranks it was."""
        _read_model(folder, self.policy)
        trainer = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
        if (folder / SHARDS).is_dir():
            self._read_shards(folder / SHARDS)
        else:
            weights, shadow = self.policy.trainable(), load_file(folder / "teacher.safetensors")
            whole = {name: shadow.pop(f"shadow.{name}") for name in weights if f"shadow.{name}" in shadow}
            own = {f"shadow.{name}": local(part_of(value, weights[name])) for name, value in whole.items()}
            self.teacher.load_state_dict(shadow | own)
            state = trainer["optimizer"]
            for place, like in enumerate(weights.values()):
                moments = state["state"].get(place, {})
                moments.update({k: part_of(value, like) for k, value in moments.items() if value.shape == like.shape})
            self.optimizer.load_state_dict(state)
        restore_random_states(trainer["rng"])

    def _tensors(self) -> dict[str, Tensor]:
        """Shadow and moments by name."""
        weights, found = self.policy.trainable(), dict[str, Tensor]()
        for key, value in self.teacher.state_dict().items():
            name = key.removeprefix("shadow.")
            found[f"teacher.{key}"] = placed(value.to(MASTER), weights[name]) if name in weights else value
        for name, weight in weights.items():
            found |= {f"optimiser.{key}.{name}": value for key, value in self.optimizer.state[weight].items()}
        return found

    def _read_shards(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        written = FileSystemReader(folder).read_metadata().state_dict_metadata
        if any(name.startswith("optimiser.") for name in written):
            make_moments(self.optimizer)
        tensors = self._tensors()
        with _together():
            load(tensors, checkpoint_id=folder, no_dist=self.policy.ranks.size == 1)
        shadow = {key.removeprefix("teacher."): local(x) for key, x in tensors.items() if key.startswith("teacher.")}
        self.teacher.load_state_dict(shadow)


@contextmanager
def _together() -> Iterator[None]:
    """Inside, ranks write or read shards. Where one fails, all raise its error, as an `OSError`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:  # which is no Exception, and whose text is the tracebacks of all
        rank, (cause, _) = next(iter(error.failures.items()))
        number = [cause.errno] if isinstance(cause, OSError) and cause.errno else []
        raise OSError(*number, f"rank {rank}: {type(cause).__name__}: {cause}") from cause


def random_states() -> dict[str, Any]:
    """The states of the random generators of torch, CUDA, MPS, Python and numpy."""
    words: Any = numpy.random.get_state()  # of which only an array may not be in a file
    words = [part.tolist() if isinstance(part, numpy.ndarray) else part for part in words]
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": words}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restores `random_states`; generators of devices that are not here are left alone."""
    torch.set_rng_state(states["torch"])
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))  # earlier checkpoints hold lists
    numpy.random.set_state(tuple(states["numpy"]))
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def write_model(directory: Path, policy: Policy, weights: Mapping[str, Tensor] | None) -> None:
    """An ordinary model (or adapter) directory, with these weights (None: those that the model has)."""
    with quiet():
        # The base of an adapter is not saved; peft would make an exception for embeddings that are a target.
        options: dict[str, Any] = {"save_embedding_layers": False} if policy.has_adapter else {}
        options |= {} if weights is None else {"state_dict": weights}
        policy.model.save_pretrained(directory, **options)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(directory)


@torch.no_grad()
def _read_model(path: Path, policy: Policy) -> None:
    """Copies the saved parameters into the policy's own, which an optimiser may already point at."""
    if policy.has_adapter:
        restore_adapter(policy.model, load_file(path / "adapter_model.safetensors"))
        return
    with quiet():  # transformers knows the names that its own files use
        saved = dict(type(policy.base).from_pretrained(path, dtype=MASTER).named_parameters())
    for name, value in policy.trainable().items():
        value.copy_(part_of(saved[name], value))
