"""Checkpoints: everything a run needs to go on to the same bits, put in place in one step.

    checkpoints/step-000040/
        config.json, model.safetensors, tokenizer.json, …   a model directory: `from_pretrained` loads it
        (under LoRA: adapter_config.json, adapter_model.safetensors)
        teacher.safetensors     the teacher's shadow in float32
        trainer.pt              optimiser and random states (read with `weights_only=True`)
        checkpoint.json         step, whether it is the run's last, the caller's own `extra`, and checksums of it all

A checkpoint is written beside its final place, made durable, and then renamed: a directory named `step-…` is whole,
unless its disk or somebody else changed it since, which its checksums tell.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfdistill.errors import RunError
from selfdistill.models.adapter import restore_adapter
from selfdistill.models.checksums import ABOUT, changed_files, write_about
from selfdistill.models.policy import Policy
from selfdistill.models.precision import quiet
from selfdistill.models.teacher import Teacher

FORMAT = 1
PARTIAL = ".partial-"  # being written
REPLACED = ".replaced-"  # an older checkpoint of the same step, on its way out
# What libraries raise over a file without checksums that is damaged, or made for another model.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    teacher: Teacher,
    extra: Mapping[str, Any],
    final: bool = False,
    keep: int = 2,
) -> Path:
    """Writes `directory/step-<step>` and returns it; then removes all but the `keep` newest and any `final` one.

    `extra` is the caller's own state as JSON (data position, sampler version, …). Raises `RunError` when it cannot be
    written, a full disk for example; what was there before is then untouched.
    """
    assert keep >= 1
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    clean_checkpoints(directory)
    target = directory / f"step-{step:06d}"
    partial = directory / f"{PARTIAL}{target.name}"
    with _removed_on_failure(partial, target):
        partial.mkdir()
        _write_model(partial, policy)
        save_file(
            {name: value.cpu().contiguous() for name, value in teacher.state_dict().items()},
            partial / "teacher.safetensors",
        )
        with (partial / "trainer.pt").open("wb") as file:
            torch.save({"optimizer": optimizer.state_dict(), "rng": random_states()}, file)
        write_about(partial, {"format": FORMAT, "step": step, "final": final, "extra": dict(extra)})
        _make_durable(partial)
        _put_in_place(partial, target)
    _prune(directory, keep)
    return target


def load_checkpoint(
    path: Path, *, policy: Policy, optimizer: torch.optim.Optimizer, teacher: Teacher
) -> dict[str, Any]:
    """Brings policy, optimiser, teacher and the random states back to the bits they had; returns `extra`.

    The policy must be loaded, and the optimiser and the teacher made, as they were when the run began. Raises
    `RunError` when the checkpoint is damaged or belongs to another model.
    """
    path = Path(path)
    check_whole(path)
    extra: dict[str, Any] = read_about(path)["extra"]
    try:
        _read_model(path, policy)
        teacher.load_state_dict(load_file(path / "teacher.safetensors"))
        trainer = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(trainer["optimizer"])
        restore_random_states(trainer["rng"])
    except RunError:
        raise
    except UNREADABLE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError("this checkpoint cannot be resumed from", got=path, why=why, do="use an earlier one") from error
    return extra


def load_newest(
    directory: Path,
    note: Callable[[str], None],
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    teacher: Teacher,
) -> dict[str, Any] | None:
    """`load_checkpoint` of the newest one that is whole; None where there is none at all. `note` is given a line about
    each damaged one that was passed over. Raises `RunError` where every one is."""
    passed: list[str] = []
    for path in sorted(_checkpoints(Path(directory)), key=_step, reverse=True):
        try:
            extra = load_checkpoint(path, policy=policy, optimizer=optimizer, teacher=teacher)
        except RunError as error:
            passed.append(f"{path.name}: {error.what}{f' ({error.why})' if error.why else ''}")
            continue
        for line in passed:
            note(f"{line}; going on from {path.name} instead, the newest whole checkpoint")
        return extra
    if passed:
        raise RunError(
            "no checkpoint of this run can be resumed from",
            got=directory,
            why="; ".join(passed),
            do="restore one from a copy, or start a new run",
        )
    return None


def check_whole(path: Path) -> None:
    """Raises `RunError` for a checkpoint of which a file is not as it was written, naming the file."""
    about = read_about(path)
    try:
        changed = changed_files(path, about)
    except OSError as error:
        raise RunError("this checkpoint cannot be read", got=path, why=str(error), do="use an earlier one") from error
    if changed:
        why = f"not as it was written: {', '.join(changed)}"
        raise RunError("this checkpoint is damaged", got=path, why=why, do="use an earlier one")


def latest_checkpoint(directory: Path) -> Path | None:
    """The whole checkpoint with the highest step, or None. Whatever a killed run left half-written is not looked at."""
    return max(_checkpoints(Path(directory)), default=None, key=_step)


def read_about(path: Path) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint. Raises `RunError` when it is missing, damaged or of another format."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        do = "name a step-… directory"
        raise RunError("this is not a checkpoint", got=path, why=f"it holds no {ABOUT}", do=do) from error
    except (OSError, ValueError, RecursionError) as error:
        why = f"{ABOUT} cannot be read: {error}"
        raise RunError("this checkpoint is damaged", got=path, why=why, do="use an earlier one") from error
    if not isinstance(about, dict) or not isinstance(about.get("extra"), dict) or "format" not in about:
        why = f"{ABOUT} is not what a run writes"
        raise RunError("this checkpoint is damaged", got=path, why=why, do="use an earlier one")
    if about["format"] != FORMAT:
        got, why = f"{about['format']} in {path / ABOUT}", f"this version reads format {FORMAT}"
        raise RunError("this checkpoint has another format", got=got, why=why, do="use the version that wrote it")
    return about


def clean_checkpoints(directory: Path) -> None:
    """Removes what a killed run left half-written or half-removed."""
    for prefix in (PARTIAL, REPLACED):
        for stray in directory.glob(f"{prefix}*"):
            shutil.rmtree(stray, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """The states of every random generator a run may draw from: torch, CUDA, Python and (when loaded) numpy."""
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(words), gauss]}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = [str(name), [int(key) for key in keys], *rest]
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts back what `random_states` took; generators of devices that are not here are left alone."""
    torch.set_rng_state(states["torch"])
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    if "numpy" in states:
        import numpy

        numpy.random.set_state(tuple(states["numpy"]))


def _write_model(directory: Path, policy: Policy) -> None:
    """An ordinary model (or adapter) directory."""
    with quiet():
        # The base of an adapter is not saved; peft would make an exception for embeddings that are a target.
        options = {"save_embedding_layers": False} if policy.has_adapter else {}
        policy.model.save_pretrained(directory, **options)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(directory)


def _read_model(path: Path, policy: Policy) -> None:
    """Copies the saved parameters into the policy's own, which an optimiser may already point at."""
    if policy.has_adapter:
        restore_adapter(policy.model, load_file(path / "adapter_model.safetensors"))
        return
    saved = _saved_model(path, policy)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            value.copy_(saved[name])


def _saved_model(path: Path, policy: Policy) -> dict[str, Tensor]:
    """Read by transformers, which knows the names its own files use."""
    with quiet():
        model = type(policy.base).from_pretrained(path, dtype=torch.float32)
    return dict(model.named_parameters())


def _make_durable(directory: Path) -> None:
    """Readable by others (weights are written with mode 0600), and on the disk before the rename makes it count."""
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            _sync(file)
    _sync(directory)


def _put_in_place(partial: Path, target: Path) -> None:
    if target.exists():
        target.rename(target.with_name(f"{REPLACED}{target.name}"))
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(target.with_name(f"{REPLACED}{target.name}"), ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed_on_failure(partial: Path, target: Path) -> Iterator[None]:
    """Leaves nothing half-written behind, and says what to do when the disk refused."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap the system's error
        full = _disk_was_full(error)
        reason = os.strerror(errno.ENOSPC) if full else str(error).splitlines()[0]
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            "the disk is full: the checkpoint was not written" if full else "the checkpoint could not be written",
            got=target,
            why=f"{reason}; earlier checkpoints are untouched",
            do="free space and resume from the last checkpoint" if full else "check the disk and resume",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _disk_was_full(error: BaseException | None) -> bool:
    """safetensors gives the system's error number as text; torch raises its own error over the system's."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error):
            return True
        error = error.__context__
    return False


def _checkpoints(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if path.is_dir() and path.name.removeprefix("step-").isdigit()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _prune(directory: Path, keep: int) -> None:
    for path in sorted(_checkpoints(directory), key=_step)[:-keep]:
        if not _is_final(path):
            going = path.with_name(f"{REPLACED}{path.name}")
            path.rename(going)  # first out of sight, so that a kill here cannot leave half a checkpoint
            shutil.rmtree(going, ignore_errors=True)


def _is_final(path: Path) -> bool:
    """A damaged one is of no more use than another one."""
    try:
        return bool(read_about(path).get("final"))
    except RunError:
        return False
