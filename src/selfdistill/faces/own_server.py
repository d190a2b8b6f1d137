"""A server in a child process, for as long as a program needs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from selfdistill.envs.sandbox.lockdown import die_with_parent
from selfdistill.errors import EndpointError
from selfdistill.training.stopping import end_process

_ADDRESS = re.compile(r"^serving .* at (http://\S+/v1)", re.MULTILINE)
END_S = 15.0  # for the answers in progress and the journal


@contextmanager
def own_server(model: str, options: Sequence[str], note: Callable[[str], None], *, token: str = "") -> Iterator[str]:
    """The address of a `selfdistill serve` of a model, on a free port, with more of its `options`. `note` takes what it
    prints until it answers. It has a session of its own, so that Ctrl-C does not reach it, and ends with the caller.

    Raises `EndpointError` where it does not start.
    """
    command = (sys.executable, "-P", "-m", "selfdistill", "serve", "--model", model, "--port", "0", *options)
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "SELFDISTILL_TOKEN": token},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            yield _address(child, log, note)
        finally:
            end_process(child, END_S)


def _address(child: subprocess.Popen[bytes], log: IO[bytes], note: Callable[[str], None]) -> str:
    """Waits until the server prints its address."""
    noted = 0
    while True:
        ended = child.poll() is not None
        text = os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace")
        lines = text.splitlines() if ended else text.split("\n")[:-1]
        for line in lines[noted:]:
            note(line)
        noted = len(lines)
        if found := _ADDRESS.search(text):
            return found[1]
        if ended:
            do = "see what it printed above; `selfdistill serve` alone shows the same"
            raise EndpointError("the server did not start", got=f"exit code {child.returncode}", do=do)
        time.sleep(0.1)
