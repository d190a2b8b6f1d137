"""Ranks: processes that make one run together, each with its share of the work.

    with joined(rank, size, store_at("10.0.0.1:29500", rank, size), device="auto", timeout_s=1800) as ranks:
        records = ranks.gather(own)             # those of all ranks
        totals = ranks.same(read_them)          # what rank 0 found, or its error

All ranks run the same program and take the same decisions; what differs is their part of the work, and that rank 0
alone writes. A rank that fails, ends or does not answer ends all of them, with one error that names it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from io import BytesIO
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from selfdistill.errors import INTERRUPTED, USER_ERROR, ConfigError, RankError, SelfDistillError
from selfdistill.models.policy import Policy, Ranks
from selfdistill.models.precision import pick_device
from selfdistill.types import TrainingSample

T = TypeVar("T")
Ended: TypeAlias = Callable[[], Mapping[int, str]]
"""Ranks that are known to have ended, and why."""

JOIN_S = 300.0  # for all ranks to start: loading the libraries from a cold disk takes a minute
REPORT_S = 5.0  # for the ranks that are left to say so
LOST = re.compile("gloo|nccl|peer|timed ?out|process group|connection|broken pipe|socket", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Joined(Ranks):
    """One of several ranks. What they exchange are objects, in the memory of their hosts."""

    rank: int
    size: int

    def share(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """As `Ranks.share`: about as many tokens as the others have. Samples of one prompt, which is read once, stay
        together where there are prompts enough. Raises `RankError` where the ranks do not have the same samples."""
        self.agree("training samples", samples)
        together: dict[object, list[int]] = {}
        for place, s in enumerate(samples):
            together.setdefault((s.spec_index, s.student_prompt_ids), []).append(place)
        pieces = list(together.values()) if len(together) >= self.size else [[place] for place in range(len(samples))]
        costs = [sum(_tokens(samples[place]) for place in piece) for piece in pieces]
        loads, own = [0] * self.size, list[int]()
        for number in sorted(range(len(pieces)), key=lambda number: -costs[number]):
            rank = min(range(self.size), key=loads.__getitem__)
            loads[rank] += costs[number]
            own += pieces[number] if rank == self.rank else []
        return [samples[place] for place in sorted(own)]

    def even(self, parts: Sequence[list[T]]) -> Sequence[list[T]]:
        """As `Ranks.even`."""
        return [*parts, *([] for _ in range(self.most(len(parts)) - len(parts)))]

    def gather(self, own: list[T]) -> list[T]:
        """As `Ranks.gather`, rank after rank."""
        return [item for part in self._exchanged(own) for item in part]

    def most(self, number: int) -> int:
        """As `Ranks.most`."""
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def same(self, work: Callable[[], T]) -> T:
        """As `Ranks.same`."""
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [(work(), None)]
            except SelfDistillError as error:
                error.got = None if error.got is None else str(error.got)
                found = [(None, error)]
        dist.broadcast_object_list(found, src=0)
        value, failed = found[0]
        if failed is not None:
            failed.everywhere = True
            raise failed
        return value  # type: ignore[no-any-return]

    def agree(self, what: str, value: object) -> None:
        """As `Ranks.agree`, by `repr`: the ranks would wait for one another in different places."""
        digests = self.gather([sha256(repr(value).encode()).hexdigest()])
        if differing := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            names, do = ", ".join(map(str, differing)), "start all ranks alike, with the same files"
            raise RankError(f"the ranks do not have the same {what}", got=f"another on rank {names}", do=do)

    def _exchanged(self, own: list[T]) -> list[list[T]]:
        """The lists of all ranks. Tensors of a device come to that of the rank that reads them."""
        packed, found = BytesIO(), [b""] * self.size
        torch.save(own, packed)
        dist.all_gather_object(found, packed.getvalue())
        return [torch.load(BytesIO(part), map_location=_here, weights_only=False) for part in found]


def _here(storage: Any, place: str) -> Any:
    return storage if place == "cpu" else storage.cuda()


def _tokens(sample: TrainingSample) -> int:
    prompts = (sample.student_prompt_ids, *sample.teacher_prompts, *sample.against_prompts)
    return sum(len(prompt) for prompt in prompts) + (1 + len(prompts)) * len(sample.completion_ids)


def divided(policy: Policy, ranks: Ranks) -> Policy:
    """The policy with its weights divided among the ranks; itself where there is one. Raises `ModelError`."""
    if ranks.size == 1:
        return policy
    from selfdistill.scale.sharded import sharded

    return sharded(policy, ranks)


def store_at(address: str, rank: int, size: int, timeout_s: float = JOIN_S) -> Store:
    """The store through which ranks meet, at host:port of rank 0, which opens it. Raises `ConfigError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        do = "give the address of rank 0, such as 10.0.0.1:29500"
        raise ConfigError("ranks meet at host:port", got=repr(address), do=do)
    try:
        return TCPStore(host, int(port), size, rank == 0, timedelta(seconds=timeout_s), wait_for_workers=False)
    except RuntimeError as error:  # torch has no narrower type for a port that is taken
        what = "rank 0 cannot be reached" if rank else "this port is in use, or cannot be opened"
        do = "check that rank 0 runs, and its address" if rank else "choose another, or end the process that has it"
        raise ConfigError(what, got=address, why=str(error).splitlines()[0][:200], do=do) from error


@contextmanager
def joined(
    rank: int, size: int, store: Store, *, device: str = "auto", timeout_s: float = 1800.0, ended: Ended = dict
) -> Iterator[Ranks]:
    """Inside, this process is one of the ranks of a run. `ended` returns the ranks that have ended, and why.

    Raises `RankError` where another rank is the reason; ranks other than the lowest one that is left end without a
    message then (`SystemExit`).
    """
    meeting = _Meeting(rank, size, store, ended)
    for other in meeting.absent("here", "", JOIN_S):
        what, do = f"rank {other} did not start", "see its own output; start all ranks within five minutes"
        raise RankError(what, got=ended().get(other), why=f"{size} ranks learn together", do=do)
    backend = "cpu:gloo,cuda:nccl" if pick_device(device).type == "cuda" else "gloo"
    limit, group = timedelta(seconds=timeout_s), PrefixStore("group", store)
    try:
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=limit)
        yield Joined(rank, size)
        dist.barrier()
    except BaseException as error:
        if dist.is_initialized():
            dist.destroy_process_group()  # whoever waits for this rank waits no longer
        meeting.explain(error)
        raise
    dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Where a rank says that it is here, and why it ends."""

    rank: int
    size: int
    store: Store
    ended: Ended

    def absent(self, key: str, value: str, limit_s: float) -> list[int]:
        """The ranks that have not written this key after so many seconds, or have ended; this one writes it."""
        waiting, until = [other for other in range(self.size) if other != self.rank], time.monotonic() + limit_s
        try:
            self.store.set(f"{key}/{self.rank}", f"-{value}")
            while waiting and time.monotonic() < until and not set(waiting) & self.ended().keys():
                waiting = [other for other in waiting if not self.store.check([f"{key}/{other}"])]
                time.sleep(0.05)
        except RuntimeError:  # the store ends with rank 0
            return [0]
        return waiting

    def explain(self, error: BaseException) -> None:
        """Raises what this rank ends with, where that is not its own error."""
        if isinstance(error, KeyboardInterrupt):
            if self.rank:
                raise SystemExit(INTERRUPTED)
            return
        causes = [one for one in (error, error.__cause__) if isinstance(one, RuntimeError)]
        lost = any(LOST.search(str(one)) and not isinstance(one, SelfDistillError) for one in causes)
        text = "" if lost else f"{type(error).__name__}: {error}"
        gone = self.absent("end", text, REPORT_S)
        left = [other for other in range(self.size) if other not in gone]
        if self.rank != left[0]:
            raise SystemExit(USER_ERROR)
        if text:
            return
        why, do = "each rank holds a share of the weights", "correct that, then resume from the last checkpoint"
        for other in left:
            if other != self.rank and (found := self.store.get(f"end/{other}").decode()[1:]):
                raise RankError(f"rank {other} failed", got=found, why=why, do=do) from error
        known = "; ".join(found for other in gone if (found := self.ended().get(other, "")))
        what = f"rank {', '.join(map(str, gone)) or 'unknown'} ended, or did not answer in time"
        raise RankError(what, got=known or str(error).splitlines()[0][:200], why=why, do=do) from error
