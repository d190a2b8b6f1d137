"""Checkpoints: everything that a bit-identical continuation of a run needs, put in place in one step.

    checkpoints/step-000040/
        config.json, model.safetensors, tokenizer.json, …   a model directory: `from_pretrained` loads it
        (under LoRA: adapter_config.json, adapter_model.safetensors)
        teacher.safetensors     the teacher's shadow
        trainer.pt              optimiser and random states (read with `weights_only=True`)
        shards/                 of several ranks: shadow and optimiser, as `torch.distributed.checkpoint` writes them
        checkpoint.json         step, whether it is the run's last, the caller's own `extra`, and checksums

A checkpoint is written beside its final place, made durable, and then renamed: a directory named `step-…` is whole
unless it was changed since, which its checksums show. `checkpoint.json` holds the SHA-256 of every other file, and its
own: of its text with zeros in place of that digest. They cost about a second per gigabyte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from selfdistill.errors import RunError
from selfdistill.models.policy import Policy
from selfdistill.models.resumable import Resumable, write_model

FORMAT = 1
ABOUT = "checkpoint.json"
BLANK = "0" * 64  # stands for the file's own digest while that is computed
PARTIAL = ".partial-"  # being written
ASIDE = "stopped-"  # of a run that guards stopped, from after the trouble began
REPLACED = ".replaced-"  # an older checkpoint of the same step, being removed


def save_checkpoint(
    directory: Path,
    step: int,
    state: Resumable,
    *,
    extra: Mapping[str, Any],
    final: bool = False,
    keep: int = 2,
    well: int = 0,
) -> Path:
    """Writes `directory/step-<step>` and returns it; then removes all but the `keep` newest, any `final` one, and the
    newest up to step `well`.

    `extra` is the caller's own state as JSON (data position, sampler version, …). Raises `RunError` when it cannot be
    written, a full disk for example; what was there before is then untouched.
    """
    assert keep >= 1
    directory, ranks = Path(directory), state.policy.ranks
    target = directory / f"step-{step:06d}"
    partial = directory / f"{PARTIAL}{target.name}"

    def begin() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for stray in (*directory.glob(f"{PARTIAL}*"), *directory.glob(f"{REPLACED}*")):  # of a killed run
            shutil.rmtree(stray, ignore_errors=True)
        partial.mkdir()

    def finish() -> None:
        _write_about(partial, {"format": FORMAT, "step": step, "final": final, "extra": dict(extra)})
        _make_durable(partial)
        _put_in_place(partial, target)

    try:
        ranks.same(begin)
        state.write(partial)
        ranks.same(finish)
    except BaseException as error:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError | RuntimeError):  # torch and safetensors wrap the system's
            raise _not_written(error, target) from error
        raise
    if ranks.rank == 0:
        _remove_older(directory, keep, well)
    return target


def _remove_older(directory: Path, keep: int, well: int) -> None:
    good = [path for path in _checkpoints(directory) if _step(path) <= well][-1:]
    for path in _checkpoints(directory)[:-keep]:
        if path not in good and not _is_final(path):
            going = path.with_name(f"{REPLACED}{path.name}")
            path.rename(going)  # first out of sight, so that a kill here cannot leave half a checkpoint
            shutil.rmtree(going, ignore_errors=True)


def save_weights(
    target: Path, policy: Policy, weights: Mapping[str, Tensor] | None = None, *, head: Tensor | None = None
) -> None:
    """Writes a model, or an adapter, as a directory that is whole or not there; with the `weights` that were gathered
    from several ranks, and the head of a tied model in a file of its own. Raises `RunError`, as `save_checkpoint`."""
    partial = target.with_name(f"{PARTIAL}{target.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    try:
        partial.mkdir(parents=True)
        write_model(partial, policy, weights)
        if head is not None:
            save_file({"lm_head.weight": head.contiguous()}, partial / "lm_head.safetensors")
        _make_durable(partial)
        _put_in_place(partial, target)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _not_written(error, target) from error


def load_checkpoint(path: Path, state: Resumable) -> dict[str, Any]:
    """Restores policy, optimiser, teacher and random states, bit-identical; returns `extra`.

    The policy must be loaded, and the optimiser and the teacher made, as they were when the run began. Raises
    `RunError` when the checkpoint is damaged or belongs to another model.
    """
    extra: dict[str, Any] = state.policy.ranks.same(lambda: check_whole(path))["extra"]
    try:
        state.read(path)
    except RunError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError) as error:  # of libraries, for another model's files
        why = str(error).splitlines()[0]
        raise RunError("this checkpoint cannot be resumed from", got=path, why=why, do="use an earlier one") from error
    return extra


def load_newest(directory: Path, note: Callable[[str], None], state: Resumable) -> dict[str, Any] | None:
    """`load_checkpoint` of the newest whole one; None where there is no checkpoint. `note` gets a line about each
    damaged one that was passed over. Raises `RunError` where all are damaged."""
    passed: list[str] = []
    for path in reversed(_checkpoints(directory)):
        try:
            extra = load_checkpoint(path, state)
        except RunError as error:
            if state.policy.ranks.size > 1 and not error.everywhere:
                raise  # other ranks may have read it, and would continue from it
            passed.append(f"{path.name}: {error.what}{f' ({error.why})' if error.why else ''}")
            continue
        for line in passed:
            note(f"{line}; resumes from {path.name} instead, the newest whole checkpoint")
        return extra
    if passed:
        what, do = "no checkpoint of this run can be resumed from", "restore one from a copy, or start a new run"
        raise RunError(what, got=directory, why="; ".join(passed), do=do)
    return None


def set_aside(directory: Path, step: int) -> int | None:
    """Renames the checkpoints after `step`, so that a resume does not take them; returns the step of the newest that
    stays, None where none does."""
    kept = None
    for path in _checkpoints(directory):
        if _step(path) <= step:
            kept = _step(path)
            continue
        target = path.with_name(path.name.replace("step-", ASIDE))
        shutil.rmtree(target, ignore_errors=True)  # of an earlier stop
        path.rename(target)
    return kept


def check_whole(path: Path) -> dict[str, Any]:
    """`checkpoint.json`. Raises `RunError` for a checkpoint of which a file is not as it was written, with its name."""
    about = read_about(path)
    own, files = str(about.get("sha256")), about.get("files")
    try:
        blanked = (path / ABOUT).read_bytes().replace(own.encode(), BLANK.encode(), 1)
        if not isinstance(files, dict) or hashlib.sha256(blanked).hexdigest() != own:
            files = {ABOUT: ""}  # no file has this checksum
        found = _digests(path, [name for name in files if (path / name).is_file()])
    except OSError as error:
        raise RunError("this checkpoint cannot be read", got=path, why=str(error), do="use an earlier one") from error
    if changed := [name for name, digest in files.items() if found.get(name) != digest]:
        raise _damaged(path, f"not as it was written: {', '.join(changed)}")
    return about


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the highest step, or None. What a killed run left half-written does not count."""
    return next(reversed(_checkpoints(directory)), None)


def read_about(path: Path) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint. Raises `RunError` when it is missing, damaged or of another format."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        do = "name a step-… directory"
        raise RunError("this is not a checkpoint", got=path, why=f"it holds no {ABOUT}", do=do) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{ABOUT} cannot be read: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("extra"), dict) or "format" not in about:
        raise _damaged(path, f"{ABOUT} is not what a run writes")
    if about["format"] != FORMAT:
        got, why = f"{about['format']} in {path / ABOUT}", f"this version reads format {FORMAT}"
        raise RunError("this checkpoint has another format", got=got, why=why, do="use the version that wrote it")
    return about


def _write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """Writes `checkpoint.json`, with the checksums of all that the directory holds by now."""
    names = [str(file.relative_to(directory)) for file in sorted(directory.rglob("*")) if file.is_file()]
    text = json.dumps({"sha256": BLANK, **about, "files": _digests(directory, names)}, indent=1) + "\n"
    own = hashlib.sha256(text.encode()).hexdigest()
    (directory / ABOUT).write_text(text.replace(BLANK, own, 1), encoding="utf-8")


def _digests(directory: Path, names: list[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (directory / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip(names, pool.map(digest, names), strict=True))


def _make_durable(directory: Path) -> None:
    """Readable by others (weights are written with mode 0600), and on the disk before the rename makes it count."""
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            _sync(file)
    _sync(directory)


def _put_in_place(partial: Path, target: Path) -> None:
    replaced = target.with_name(f"{REPLACED}{target.name}")
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(error: BaseException, target: Path) -> RunError:
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    # safetensors gives the system's error number as text; torch raises its own error over the system's.
    full = any(getattr(e, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(e) for e in chain)
    reason = os.strerror(errno.ENOSPC) if full else str(error).splitlines()[0]
    what, do = "the checkpoint could not be written", "check the disk and resume"
    if full:
        what, do = "the disk is full: the checkpoint was not written", "free space and resume from the last checkpoint"
    return RunError(what, got=target, why=f"{reason}; earlier checkpoints are untouched", do=do)


def _damaged(path: Path, why: str) -> RunError:
    return RunError("this checkpoint is damaged", got=path, why=why, do="use an earlier one")


def _checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the oldest first."""
    steps = {path: path.name.removeprefix("step-") for path in Path(directory).glob("step-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step.isdigit()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_final(path: Path) -> bool:
    """Whether it is a run's last; a damaged one need not be kept."""
    try:
        return bool(read_about(path).get("final"))
    except RunError:
        return False
