"""One update of a journal, from its lessons to a candidate on the disk: in a process of its own beside a server
(`python -m selfdistill.live.update JOURNAL NUMBER SETTINGS`), or offline.

Whatever ends the process, the journal says what was done: the row is `training` with this process's name until its last
transaction, and lessons count as learned only once the update is accepted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from selfdistill.errors import JournalError, SelfDistillError, is_out_of_memory
from selfdistill.live.exchange import Version
from selfdistill.live.journal import Journal
from selfdistill.live.learner import LiveLearner, run_settings
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import REPLY_TOO_LONG, TOO_LONG, choose, past_questions
from selfdistill.live.probe import probe_set
from selfdistill.live.updates import UpdateRecord, Updates, this_process
from selfdistill.models.checkpoint import save_weights
from selfdistill.models.load import load_policy
from selfdistill.models.planning import device_memory
from selfdistill.models.precision import pick_device
from selfdistill.options import build
from selfdistill.prompts.render import Renderer, Thinking
from selfdistill.training.planner import Needs, check_memory
from selfdistill.training.stopping import watch_parent

Progress = Callable[[str], None]
NICE = 10
NO_LESSON = "nothing came back that no update has learned"


def perform(
    journal: Journal,
    number: int,
    options: LiveLearning,
    *,
    device: str = "auto",
    dtype: str = "auto",
    thinking: Thinking = "off",
    progress: Progress = lambda _: None,
) -> UpdateRecord:
    """Trains and measures the candidate of a queued update. One that is admitted is on the disk when this returns, and
    its row, still `training`, names it: `finish` serves it. Raises `JournalError` for an update that is not queued."""
    updates, served = Updates(journal.database), journal.versions.served
    if served is None:
        raise JournalError("no version is published", do="serve a model first")
    record = updates.change(number, "training", only_from=["queued"], process=this_process(), parent=served.id)
    if served.pinned:
        reason = f"version {served.id} is pinned: what comes back is recorded, and not learned"
        return updates.change(number, "rejected", only_from=["training"], reason=reason)
    try:
        return _performed(journal, record, served, options, device, dtype, thinking, progress)
    except (SelfDistillError, RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, SelfDistillError) and not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return updates.change(number, "failed", only_from=["training"], reason=reason)


def finish(
    journal: Journal, record: UpdateRecord, publish: Callable[[str, int], Version], *, review: bool = False
) -> UpdateRecord:
    """Serves the candidate of an update that was admitted, or has it wait for approval. Raises what `publish` raises;
    the update then counts as failed."""
    updates = Updates(journal.database)
    if record.state not in ("training", "review") or not record.path or record.parent is None:
        return record
    if review and record.state == "training":
        return updates.change(record.id, "review", only_from=["training"])
    try:
        version = publish(record.path, record.parent)
    except SelfDistillError as error:
        reason = f"it was admitted, and could not be served: {error.what} ({error.got})"
        updates.change(record.id, "failed", only_from=[record.state], reason=reason)
        raise
    return updates.change(record.id, "accepted", only_from=[record.state], version=version.id)


def check_learning_fits(model: str, options: LiveLearning, device: str, dtype: str) -> None:
    """Raises `OutOfMemoryError` where an update does not fit into what is free beside the served model."""
    place, rows = pick_device(device), options.round_questions * options.completions
    needs = Needs(options.max_prompt_tokens, rows, device=place, available=device_memory(place))
    check_memory(run_settings(options, model, device, dtype), needs)


def adapter_path(journal: Journal, number: int) -> Path:
    """Where the weights of an update lie: beside the journal."""
    path = journal.database.path.resolve()
    return path.with_name(f"{path.name}.versions") / f"update-{number:06d}"


def _performed(
    journal: Journal,
    record: UpdateRecord,
    served: Version,
    options: LiveLearning,
    device: str,
    dtype: str,
    thinking: Thinking,
    progress: Progress,
) -> UpdateRecord:
    updates, number = Updates(journal.database), record.id
    history = updates.history()
    lora, name = None if served.is_adapter else options.lora, served.path or served.model
    policy = load_policy(name, device=device, dtype=dtype, lora=lora, progress=progress)
    renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length, thinking=thinking)
    learner = LiveLearner(policy, renderer, probe_set(options.probe), options, seed=number, progress=progress)
    lessons = choose(journal, history, options, learner.fits, learner.reads, seed=number)
    if not lessons.new:
        left_out = dict(lessons.left_out)
        long = [f"{left_out[name]} times {name}" for name in (TOO_LONG, REPLY_TOO_LONG) if name in left_out]
        reason = f"{NO_LESSON}; {', '.join(long)} (max_prompt_tokens)" if long else NO_LESSON
        return updates.change(number, "rejected", only_from=["training"], reason=reason, numbers={"left_out": left_out})
    past = past_questions(journal, learner.fits)
    found = learner.update(lessons.all, past)
    numbers = {
        **found.numbers,
        "new": len(lessons.new),
        "older": len(lessons.older),
        "left_out": dict(lessons.left_out),
    }
    keys = [lesson.key for lesson in found.lessons]
    if not found.admission.admitted:
        return updates.change(
            number, "rejected", only_from=["training"], reason=found.admission.reason, numbers=numbers, lessons=keys
        )
    target = adapter_path(journal, number)
    save_weights(target, policy)
    return updates.change(
        number, "training", only_from=["training"], reason=found.admission.reason, numbers=numbers, lessons=keys,
        path=str(target),
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    """The update of a server, with the rest of the machine's time and half of its cores."""
    path, number, settings = arguments
    given = json.loads(settings)
    watch_parent(lambda: os._exit(1))  # once its server is gone nobody would serve what it learns
    os.nice(NICE)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))

    def progress(text: str) -> None:
        sys.stderr.write(f"update {number}: {text}\n")

    with Journal.open(path) as journal:
        options = build(LiveLearning, given.pop("learning"))
        perform(journal, int(number), options, progress=progress, **given)


if __name__ == "__main__":
    main(sys.argv[1:])
