"""The pool of workers: parallel, restartable, and gone when its owner is gone."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from core_parts import gone
from sandbox_parts import needs_isolation
from selfdistill.envs.sandbox import pool
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.lockdown import IsolationLevel, isolation_warning
from selfdistill.envs.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program
from selfdistill.errors import SandboxError

SOURCE = Path(__file__).parents[2] / "src"
DOUBLE = Program("def f(x): return 2 * x", Mode.CALL, ([1], [2]), "f")
LOOP = "Program('while True: pass', Mode.CALL, ([],), 'f')"


def start(code: str, **variables: str) -> subprocess.Popen[str]:
    """A process of its own that uses a sandbox; it prints its workers' ids first."""
    head = (
        "from selfdistill.envs.sandbox.limits import SandboxLimits\nfrom selfdistill.envs.sandbox.pool import Sandbox\n"
    )
    head += "from selfdistill.envs.sandbox.program import Mode, Program\n"
    head += "if __name__ == '__main__':\n    box = Sandbox(1)\n"
    head += "    box.run(Program('', Mode.STDIN, ('',)))\n    print(*box.worker_pids(), flush=True)\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    command = [sys.executable, "-c", head + textwrap.indent(textwrap.dedent(code), "    ")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@needs_isolation
def test_results_come_in_the_order_of_the_programs():
    with Sandbox(2) as sandbox:
        jobs = [(Program(f"def f(x): return x + {i}", Mode.CALL, ([0],), "f"), SandboxLimits()) for i in range(20)]
        assert sandbox.run_each(jobs, lambda _, results: next(results).value) == list(range(20))
        assert sandbox.run_each([], lambda _, results: list(results)) == []


@needs_isolation
def test_a_dead_worker_is_replaced():
    with Sandbox(1) as sandbox:
        sandbox.run(DOUBLE)
        (pid,) = sandbox.worker_pids()
        os.kill(pid, signal.SIGKILL)
        assert [result.value for result in sandbox.run(DOUBLE)] == [2, 4]
        assert sandbox.worker_pids() != [pid]


@needs_isolation
def test_closing_ends_the_workers_and_leaves_no_files_and_it_can_be_used_again():
    with Sandbox(2) as sandbox:
        path = sandbox.run(Program("import os\ndef f(): return os.getcwd()", Mode.CALL, ([],), "f"))[0].value
        pids = sandbox.worker_pids()
    assert gone(pids)
    assert not Path(path).parents[1].exists()
    assert sandbox.run(DOUBLE)[0].value == 2
    sandbox.close()
    sandbox.close()


@needs_isolation
@pytest.mark.parametrize("end", [
    "pass", "raise SystemExit(3)", "import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)",
    "import os, threading; threading.Timer(0.5, os.kill, (os.getpid(), 9)).start(); "
    f"box.run({LOOP}, SandboxLimits(600))",
])  # fmt: skip
def test_workers_and_their_files_end_with_the_process_that_owns_them(end, tmp_path):
    process = start(end, TMPDIR=str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert gone([int(pid) for pid in output.split()])
    assert list(tmp_path.iterdir()) == []


@needs_isolation
def test_an_interrupt_ends_a_running_program_and_its_worker():
    process = start(f"box.run({LOOP}, SandboxLimits(time_limit_s=600))")
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(1.0)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - began < 10
    assert gone(pids)


@needs_isolation
def test_a_large_parent_does_not_shrink_a_program_s_memory():
    code = """
    import mmap
    large = mmap.mmap(-1, 4 << 30)
    program = Program("def f(): return len(bytearray(48 << 20))", Mode.CALL, ([],), "f")
    print([result.value for result in Sandbox(1).run(program, SandboxLimits(memory_mb=64))])
    """
    output, errors = start(code).communicate(timeout=60)
    assert output.splitlines()[1:] == [str([48 << 20])], errors


@needs_isolation
def test_the_shared_sandbox_is_one():
    assert shared_sandbox() is shared_sandbox()
    assert shared_sandbox().run(DOUBLE)[1].value == 4


@pytest.mark.parametrize("level", [level for level in IsolationLevel if level is not IsolationLevel.FULL])
def test_a_weaker_machine_is_refused_unless_accepted(monkeypatch, level):
    monkeypatch.setattr(pool, "isolation_level", lambda: level)
    with pytest.raises(SandboxError, match="allow_weaker=True"):
        Sandbox(1)
    with pytest.warns(RuntimeWarning, match="no|neither"):
        sandbox = Sandbox(1, allow_weaker=True)
    with sandbox:
        assert sandbox.level is level
        assert sandbox.run(DOUBLE)[1].value == 4


@pytest.mark.skipif(sys.platform != "linux", reason="signals between processes as on Linux")
def test_without_walls_a_program_that_kills_its_worker_stops_nothing_else(monkeypatch):
    monkeypatch.setattr(pool, "isolation_level", lambda: IsolationLevel.LIMITS_ONLY)
    killer = Program("import os\nos.kill(os.getppid(), 9)", Mode.CALL, ([],), "f")
    with pytest.warns(RuntimeWarning):
        sandbox = Sandbox(1, allow_weaker=True)
    with sandbox:
        (result,) = sandbox.run(killer)
        assert (result.ending, "worker died" in result.error) == (Ending.RAISED, True)
        assert sandbox.run(DOUBLE)[0].value == 2


def test_every_weaker_level_names_what_is_open():
    assert isolation_warning(IsolationLevel.FULL) == ""
    assert "file" in isolation_warning(IsolationLevel.NO_FILES)
    assert "sockets" in isolation_warning(IsolationLevel.NO_CALLS)
    both = isolation_warning(IsolationLevel.LIMITS_ONLY)
    assert "file" in both
    assert "sockets" in both


def test_closing_while_workers_start_and_run_raises_nothing():
    endless = Program("def f():\n    while True: pass", Mode.CALL, ((),), "f")
    for wait_s in (0.0, 0.02, 0.1, 0.3):  # the threads then end the same workers at the same time
        box, errors = Sandbox(2), []

        def run(box: Sandbox = box, errors: list[BaseException] = errors) -> None:
            try:
                box.run_each([(endless, SandboxLimits(time_limit_s=20))] * 4, lambda _, results: list(results))
            except (SandboxError, CancelledError) as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not box.worker_pids():
            time.sleep(0.001)
        time.sleep(wait_s)
        box.close()
        thread.join(10)
        assert not thread.is_alive()
        assert errors
