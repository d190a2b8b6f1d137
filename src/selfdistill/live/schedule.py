"""When a server learns: one thread that waits for a trigger, has another process train, and serves what was admitted.

schedule = Schedule(service, options)      schedule.start() … schedule.close()
schedule.request()                         an update now
schedule.approve(number)                   serves a candidate that waits for a person; or `reject`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from selfdistill.errors import JournalError, SelfDistillError, VersionError
from selfdistill.live.exchange import Version
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import waiting
from selfdistill.live.service import Service
from selfdistill.live.update import finish
from selfdistill.live.updates import UpdateRecord, Updates
from selfdistill.options import plain
from selfdistill.prompts.render import Thinking
from selfdistill.protocol.chat import ChatError
from selfdistill.training.stopping import PARENT, end_process

TICK_S = 0.5
GRACE_S = 5.0  # for a process that is to end
FAILURES = (OSError, RuntimeError, MemoryError)  # of the system and of torch, which end an update and not the server


class Schedule:
    """Starts updates of a service by the trigger of its settings. `say` gets a line about every update that ends."""

    def __init__(
        self,
        service: Service,
        options: LiveLearning,
        *,
        device: str = "auto",
        dtype: str = "auto",
        thinking: Thinking = "off",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.service, self.options, self._say = service, options, say
        self.updates = Updates(service.journal.database)
        self._settings = {"learning": plain(options), "device": device, "dtype": dtype, "thinking": thinking}
        self._wake, self._closed, self._child = threading.Event(), False, None
        self._busy, self._moved, self._seen, self._tried = time.monotonic(), -1, (), set[str]()
        self._waiting: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="learning", daemon=True)

    def start(self) -> None:
        """Finishes what an earlier server left behind, and begins to wait."""
        self._repair()
        self._thread.start()

    def close(self) -> None:
        """Ends the process of an update; its lessons wait for the next one."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2 * GRACE_S)

    def request(self) -> UpdateRecord:
        """Queues an update, which begins as soon as none is in progress. Raises `ChatError` where it could not."""
        if why := self.obstacle():
            raise ChatError(why, status=HTTPStatus.CONFLICT, code="not_learning")
        record = self.updates.queue("now")
        self._wake.set()
        return record

    def obstacle(self) -> str:
        """Why nothing is learned now, whatever the trigger; empty where something is."""
        journal = self.service.journal
        if journal.paused:
            return "learning is paused: what comes back is recorded, and learned once it is resumed"
        if journal.versions.served and journal.versions.served.pinned:
            return f"version {self.service.version.id} is pinned: what comes back is recorded, and not learned"
        return ""

    def approve(self, number: int) -> UpdateRecord:
        """Serves a candidate that waits for approval; while a version is pinned it keeps waiting. Raises
        `JournalError`, `ModelError`."""
        record = self._reviewed(number)
        if (served := self.service.version).pinned:
            why, do = f"update {number} still waits", "unpin it first"
            raise VersionError("the served version is pinned", got=f"version {served.id}", why=why, do=do)
        return finish(self.service.journal, record, self._publish)

    def reject(self, number: int) -> UpdateRecord:
        """Drops a candidate that waits for approval. Raises `JournalError`."""
        reason = "rejected by a person"
        return self.updates.change(self._reviewed(number).id, "rejected", only_from=["review"], reason=reason)

    def status(self) -> dict[str, Any]:
        """What is learned now, for the status of the server."""
        going = [each for each in self.updates.all if each.state in ("training", "queued", "review")]
        shown = {"id": going[0].id, "state": going[0].state} if going else None
        return {
            "learning": True,
            "trigger": self.options.trigger,
            "lessons_waiting": len(self._waiting),
            "update": shown,
        }

    def _reviewed(self, number: int) -> UpdateRecord:
        record = self.updates.get(number)
        if record.state != "review":
            raise JournalError("this update does not wait for approval", got=f"update {number} is {record.state}")
        return record

    def _publish(self, path: str, parent: int) -> Version:
        return self.service.publish(path, parent=parent)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(TICK_S)
            self._wake.clear()
            try:
                record = self._due()
                if record and not self._closed:
                    self._perform(record)
            except (SelfDistillError, *FAILURES) as error:
                self._say(f"learning: {' '.join(str(error).split()) or type(error).__name__}")

    def _repair(self) -> None:
        for record in self.updates.repaired():
            self._say(f"update {record.id} {record.state}: {record.reason}")

    def _due(self) -> UpdateRecord | None:
        """The update that should begin now."""
        if any(each.state == "training" for each in self.updates.all):
            self._repair()  # one of a server that was killed
        engine, now = self.service.engine, time.monotonic()
        if any(engine.load) or engine.sampled != self._moved:
            self._busy, self._moved = now, engine.sampled
        if self.obstacle():
            return None
        if queued := next((each for each in self.updates.all if each.state == "queued"), None):
            return queued
        options = self.options
        if options.trigger == "now" or any(each.state == "review" for each in self.updates.all):
            return None
        self._look()
        new = self._waiting - self._tried
        enough = len(self._waiting) >= options.pending if options.trigger == "pending" else bool(self._waiting)
        idle = options.trigger == "pending" or now - self._busy >= options.idle_s
        return self.updates.queue(options.trigger) if new and enough and idle else None

    def _look(self) -> None:
        """Brings the lessons that wait up to date, where anything has come back since."""
        database, last = self.service.journal.database, "(SELECT coalesce(max(id), 0) FROM {})"
        tables = ("follow_ups", "feedback", "updates")
        seen = tuple(database.rows(f"SELECT {', '.join(last.format(name) for name in tables)}")[0])
        seen += tuple((each.id, each.state) for each in self.service.journal.versions.all)
        if seen != self._seen:
            self._seen = seen
            self._waiting = {key for _, key in waiting(self.service.journal, self.updates.history())}

    def _perform(self, record: UpdateRecord) -> None:
        """Has another process train and measure, and serves what was admitted."""
        self._look()
        self._tried |= self._waiting
        path = self.service.journal.database.path.resolve()
        arguments = [str(path), str(record.id), json.dumps(self._settings)]
        variables = {**os.environ, PARENT: str(os.getpid())}
        try:
            child = subprocess.Popen([sys.executable, "-m", "selfdistill.live.update", *arguments], env=variables)
        except OSError as error:
            reason = f"its process could not begin: {error}"
            self.updates.change(record.id, "failed", only_from=["queued"], reason=reason)
            raise
        stopped, version = "", self.service.version.id
        try:
            while child.poll() is None and not (stopped := self._stopped(version)):
                time.sleep(0.05)
        finally:
            end_process(child, GRACE_S)
        stopped = stopped or self._stopped(version)
        done = self.updates.get(record.id)
        if done.state in ("queued", "training") and (stopped or not done.path or child.returncode):
            why = stopped or f"its process ended with status {child.returncode}"
            reason = f"{why}; its lessons wait for the next update"
            done = self.updates.change(done.id, "failed", only_from=["queued", "training"], reason=reason)
            self._tried -= self._waiting if stopped else set()  # they failed for no reason of their own
        elif not stopped:
            done = finish(self.service.journal, done, self._publish, review=self.options.trigger == "review")
        self._seen = ()
        served = f", version {done.version}" if done.version else ""
        self._say(f"update {done.id} {done.state}{served}: {done.reason}")

    def _stopped(self, version: int) -> str:
        """Why an update from this version would not be served any more; empty where it would."""
        if self._closed:
            return "the server ended"
        served = self.service.version.id
        return self.obstacle().partition(":")[0] or (f"version {served} is served now" if served != version else "")
