"""Trouble of the machine is an error of the run, or over at the second try: never a program's failure."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox_parts import needs_isolation
from selfdistill.envs.base import Fault
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.sandbox import pool, worker
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.lockdown import IsolationLevel
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program
from selfdistill.errors import ProgramLostError, SandboxError
from selfdistill.types import Completion, DropReason, Outcome, Task

pytestmark = needs_isolation
DOUBLE = Program("def f(x): return 2 * x", Mode.CALL, ([1], [2]), "f")
WRITE = Program("def f(x): return open('x', 'w').write('a' * 1000)", Mode.CALL, ([1],), "f")


@pytest.fixture
def in_workers(monkeypatch):
    """Run code in every worker before it takes jobs, as a machine in trouble would change what it finds."""

    def patch(code: str) -> None:
        boot = worker._BOOT.replace("\nfrom selfdistill", f"\nimport errno, os, time\n{code}\nfrom selfdistill", 1)
        monkeypatch.setattr(worker, "_BOOT", boot)

    monkeypatch.setattr(worker, "_PAUSES_S", (0.01, 0.01))
    return patch


@pytest.fixture
def temporary_folder(monkeypatch):
    """Moves the temporary folder."""

    def move(path: Path) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(path))

    return move


def refused(match: str, advice: str, program: Program = DOUBLE) -> None:
    with Sandbox(1) as sandbox, pytest.raises(SandboxError, match=match) as caught:
        sandbox.run(program)
    assert advice in caught.value.do


@pytest.mark.parametrize(("number", "advice"), [
    (errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "free memory"), (errno.EMFILE, "ulimit -n"),
])  # fmt: skip
def test_a_refused_fork_stops_the_run_with_advice(in_workers, number, advice):
    in_workers(f"def refuse(): raise OSError({number}, os.strerror({number}))\nos.fork = refuse")
    refused(os.strerror(number), advice)


def test_a_fork_refused_once_is_tried_again(in_workers, tmp_path, monkeypatch):
    mark = tmp_path / "refused"
    in_workers(f"""
fork = os.fork
def refuse():
    if os.path.exists({str(mark)!r}): return fork()
    raise BlockingIOError(errno.EAGAIN, "no processes")
os.fork = refuse
""")
    monkeypatch.setattr(worker, "_PAUSES_S", (0.5, 0.5))
    with Sandbox(1) as sandbox:
        threading.Timer(0.1, mark.touch).start()
        assert [result.value for result in sandbox.run(DOUBLE)] == [2, 4]


@pytest.mark.parametrize(("call", "number"), [
    ("os.pipe", errno.EMFILE), ("tempfile.mkdtemp", errno.ENOSPC), ("tempfile.TemporaryFile", errno.EDQUOT),
    ("os.closerange", errno.EMFILE), ("os.chdir", errno.ENOENT),
])  # fmt: skip
def test_whatever_the_machine_refuses_before_a_program_starts_is_no_failure_of_it(in_workers, call, number):
    in_workers(
        f"import tempfile\ndef refuse(*_, **__): raise OSError({number}, os.strerror({number}))\n{call} = refuse"
    )
    refused(os.strerror(number), "")


def test_a_program_that_cannot_be_shut_in_is_not_run(in_workers, tmp_path):
    in_workers("""
from selfdistill.envs.sandbox import lockdown
def refuse(*_): raise OSError(errno.EINVAL, "landlock: Invalid argument")
lockdown._drop_capabilities = refuse
""")
    with Sandbox(1) as sandbox, pytest.raises(SandboxError, match="landlock: Invalid argument"):
        sandbox.run(Program("import os\nos._exit(0)", Mode.STDIN, ("",)))


def test_a_process_ended_before_its_program_began_is_no_failure_of_it(in_workers):
    in_workers("os.chdir = lambda _: os.kill(os.getpid(), 9)")
    refused("ended before its program began", "memory")


def room_for(calls: int, **values: int) -> str:
    return f"""
asked = []
statvfs = os.statvfs
class Full:
    f_frsize, f_bavail, f_files, f_favail = 4096, 1 << 30, 1 << 30, 1 << 30
for name, value in {values!r}.items(): setattr(Full, name, value)
def report(path):
    asked.append(path)
    return statvfs(path) if len(asked) <= {calls} else Full
os.statvfs = report
"""


@pytest.mark.parametrize(("values", "what"), [({"f_bavail": 5}, "is full"), ({"f_favail": 5}, "no inodes")])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_disk_that_is_full_before_or_after_a_program_is_no_failure_of_it(in_workers, values, what, calls):
    in_workers(room_for(calls, **values))
    refused(what, "free space", WRITE)


def test_a_disk_that_is_full_in_truth(temporary_folder, tmp_path):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path]).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        temporary_folder(tmp_path)
        refused("full", "TMPDIR", WRITE)
        with Sandbox(1) as sandbox:  # within its own limit, a program's excess is the program's
            (result,) = sandbox.run(
                Program("open('x', 'w').write('a' * 10**6)", Mode.STDIN, ("",)), SandboxLimits(output_kb=512)
            )
        assert (result.ending, result.error.split(":")[0]) == (Ending.RAISED, "OutputLimitExceeded")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_temporary_folder_that_is_gone(temporary_folder, tmp_path):
    temporary_folder(tmp_path / "gone")
    refused("No such file", "TMPDIR")


def test_a_folder_that_was_removed_under_a_worker_is_made_again(temporary_folder, tmp_path):
    temporary_folder(tmp_path)
    with Sandbox(1) as sandbox:
        sandbox.run(DOUBLE)
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        assert [result.value for result in sandbox.run(WRITE)] == [1000]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("raise MemoryError", "MemoryError"),
        ("os.kill(os.getpid(), 9)", "ready"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_worker_that_cannot_start_gives_the_reason(in_workers, end, what):
    in_workers(end)
    with Sandbox(1) as sandbox, pytest.raises(SandboxError, match=what) as caught:
        sandbox.run(DOUBLE)
    assert not isinstance(caught.value, ProgramLostError)


def test_a_trainer_that_cannot_start_a_process(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(worker, "_PAUSES_S", ())
    monkeypatch.setattr(subprocess, "Popen", refuse)
    refused("temporarily unavailable", "ulimit -u")


def test_a_trainer_without_descriptors(tmp_path):
    code = """
import os, resource
from selfdistill.errors import ProgramLostError, SandboxError
from selfdistill.types import Completion, DropReason, Outcome, Task
from selfdistill.envs.base import Fault
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Mode, Program
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), 4096))
try:
    Sandbox(1).run(Program("", Mode.STDIN, ("",)))
except SandboxError as error:
    print(error.do)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert "ulimit -n" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_with_thousands_of_open_files():
    code = """
import os, resource
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Mode, Program
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1500)]
print(Sandbox(1).run(Program("print(5)", Mode.STDIN, ("",)))[0].value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "5", done.stderr


def test_workers_that_are_killed_again_and_again_stop_the_run(monkeypatch):
    monkeypatch.setattr(worker, "_PAUSES_S", (0.01, 0.01))
    with Sandbox(1) as sandbox:
        over = threading.Event()

        def kill() -> None:
            while not over.is_set():
                for pid in sandbox.worker_pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)

        sandbox.run(DOUBLE)
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with pytest.raises(SandboxError, match=r"worker (died|was ended)"):
                sandbox.run(Program("import time\ntime.sleep(30)", Mode.STDIN, ("",)), SandboxLimits(time_limit_s=60))
        finally:
            over.set()
            killer.join()


KILLED = Program("import os\nos.kill(os.getpid(), 9)", Mode.CALL, ([],), "f")


def test_a_program_that_the_kernel_ended_for_lack_of_memory_is_not_to_blame(in_workers):
    in_workers("from selfdistill.envs.sandbox import supervise\nkills = iter(range(99))\n"
               "supervise._oom_kills = lambda: next(kills)")  # fmt: skip
    refused("memory of the machine ran out", "memory", KILLED)
    task = Task("t", (), {"kind": "functional", "fn_name": "f", "public": [{"input": [1], "output": 2}]})
    answers = [f"```\n{KILLED.code}\n```", "```\ndef f(x): return 2 * x\n```"]
    with Sandbox(1) as sandbox:
        lost, scored = CodeEnvironment(sandbox=sandbox).score_batch(
            [(task, Completion(text[4:9], text)) for text in answers]
        )
    assert isinstance(lost, Fault)
    assert lost.drop is DropReason.PROGRAM_LOST
    assert isinstance(scored, Outcome)
    assert scored.reward == 1


def test_a_program_that_ends_itself_is(in_workers):
    with Sandbox(1) as sandbox:
        assert "SIGKILL" in sandbox.run(KILLED)[0].error


@pytest.mark.parametrize("frame", [
    b"\xff" * 8, (1 << 30).to_bytes(8), (5).to_bytes(8) + b"[1,2]", (2).to_bytes(8) + b"{}", (3).to_bytes(8) + b"{[}",
    (2000).to_bytes(8) + b"[" * 1000 + b"]" * 1000, (16).to_bytes(8) + b'{"results": 3.5}', (100).to_bytes(8) + b"{",
    (31).to_bytes(8) + b'{"results":[3,[],{}],"more":"x"}', b"\0" * 20,
])  # fmt: skip
def test_without_walls_frames_that_a_program_forges_are_its_own_failure(monkeypatch, frame):
    monkeypatch.setattr(pool, "isolation_level", lambda: IsolationLevel.LIMITS_ONLY)
    monkeypatch.setattr(worker, "_PAUSES_S", ())
    monkeypatch.setattr(worker, "_GRACE_S", 0.5)
    code = f"import os\nos.write(os.open(f'/proc/{{os.getppid()}}/fd/1', os.O_WRONLY), {frame!r})\nwhile True: pass"
    with pytest.warns(RuntimeWarning):
        sandbox = Sandbox(1, allow_weaker=True)
    with sandbox:
        results = sandbox.run(Program(code, Mode.STDIN, ("",)), SandboxLimits(time_limit_s=0.2))
        assert results[0].ending in (Ending.RAISED, Ending.TIMED_OUT)
        assert [result.value for result in sandbox.run(DOUBLE)] == [2, 4]
