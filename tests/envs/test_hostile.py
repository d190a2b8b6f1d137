"""Attacks on the run and on the machine: each costs its own program alone, and leaves nothing behind."""

import json
import os
import textwrap
import time
from pathlib import Path

import pytest

from sandbox_parts import needs_isolation
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result

pytestmark = needs_isolation
QUICK = SandboxLimits(time_limit_s=10.0, memory_mb=128, output_kb=1024)
NEXT = Program("def f(x): return x + 1", Mode.CALL, ([1], [2]), "f")

# Finds the channel and the nonce of its own run, as a program that searches the interpreter can.
FORGE = """
import gc, json, os, sys
report = next(o for o in gc.get_objects() if getattr(o, "__qualname__", "") == "make_report.<locals>.report")
cells = dict(zip(report.__code__.co_freevars, (cell.cell_contents for cell in report.__closure__)))
def send(body):
    data = b"\\n" + cells["nonce"] + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\\n"
    while data:
        data = data[os.write(cells["descriptor"], data):]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture(scope="module")
def sandbox(folder):
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    import tempfile

    tempfile.tempdir = None
    with Sandbox(1) as box:
        box.run(NEXT)
        yield box
    tempfile.tempdir = None
    os.environ.pop("TMPDIR")
    if before is not None:
        os.environ["TMPDIR"] = before
    assert list(folder.iterdir()) == []


@pytest.fixture(autouse=True)
def _the_worker_lives_and_is_clean(sandbox, folder):
    """After every attack: the same worker, scoring rightly, with no process and no file left."""
    workers = sandbox.worker_pids()
    yield
    assert sandbox.worker_pids() == workers
    assert [result.value for result in sandbox.run(NEXT, QUICK)] == [2, 3]
    (worker,) = workers
    assert Path(f"/proc/{worker}/task/{worker}/children").read_text() == ""
    assert [path.name for path in folder.glob("*/work/*")] == []


def call(sandbox: Sandbox, code: str, *inputs, limits: SandboxLimits = QUICK) -> tuple[Result, ...]:
    return sandbox.run(Program(textwrap.dedent(code), Mode.CALL, inputs or ([],), "f"), limits)


def forge(sandbox: Sandbox, body: str, *inputs) -> tuple[Result, ...]:
    return call(sandbox, f"{FORGE}\nsend({body})\ndef f(x=0): return 7", *inputs)


@pytest.mark.parametrize("body", [
    {"broken": "could not isolate"}, {"ending": "broken"}, {"trouble": "the disk is full", "errno": 28}, {}, [], 3, "x",
    {"ending": ["done"]}, {"ending": {"a": 1}}, {"ending": "timed_out"}, {"ending": None},
    {"ending": "raised", "error": ["not", "text"]}, {"ending": "raised", "error": None, "note": {}},
    {"ending": "done", "loading": "yes"}, {"ending": "failed", "note": 3.5}, {"ending": float("nan")},
])  # fmt: skip
def test_a_forged_message_of_another_type_is_the_program_s_failure(sandbox, body):
    text = repr(json.dumps(body).encode())
    (result,) = forge(sandbox, text)
    assert (result.ending, result.error) == (
        Ending.RAISED,
        "ProcessExit: the program's results could not be read",
    )


@pytest.mark.parametrize("body", [
    "b'[' * 900_000", "b'{\"a\":' * 100_000", "b'{\"ending\": \"done\", \"value\": ' + b'[' * 950 + b']' * 950 + b'}'",
    "b'9' * 900_000", "b'\\xff\\xfe' * 1000", "b'{\"ending\": \"done\"', b''", "b'\\0' * 500_000",
    "{'ending': 'done', 'value': {'a': 1}}", "{'ending': 'done', 'value': ['no such tag', 1]}",
    "{'ending': 'done', 'value': ['int', []]}", "{'ending': 'done', 'value': [['list', 10**9]]}",
    "{'ending': 'done', 'value': [['list', -1]]}", "{'ending': 'done', 'value': [['dict', 1.5]]}",
    "{'ending': 'done', 'value': [float('nan')]}",
])  # fmt: skip
def test_a_forged_message_of_any_content_stops_nothing(sandbox, body):
    (result,) = forge(sandbox, body.replace(", b''", ""))
    assert isinstance(result.ending, Ending)
    assert result.value != 7


def test_forged_texts_are_cut_and_can_be_written_down(sandbox):
    (result,) = forge(sandbox, "{'ending': 'raised', 'error': '\\ud800' * 60_000}")
    assert len(result.error.encode()) <= 20_000 * len(r"\ud800")


def test_extra_results_are_not_counted_and_a_huge_one_ends_the_program(sandbox):
    results = call(sandbox, f"{FORGE}\nfor _ in range(1000): send({{'ending': 'done', 'value': 0}})\n", [1], [2])
    assert [result.value for result in results] == [0, 0]
    (huge,) = forge(sandbox, "b'x' * (40 << 20)", [1])
    assert huge.error.startswith("OutputLimitExceeded")


def test_half_a_message_counts_for_nothing(sandbox):
    code = FORGE + "\nos.write(cells['descriptor'], b'\\n' + cells['nonce'] + b'{\"ending\": \"done\"')\nos._exit(0)"
    assert "exit code 0" in call(sandbox, code)[0].error


def test_noise_on_the_channel_does_not_hold_up_the_clock(sandbox):
    began = time.monotonic()
    flood = (
        FORGE
        + "\nos.write(cells['descriptor'], b'x' * 3_000_000)\nwhile True: os.write(cells['descriptor'], b'\\n' * 65536)"
    )
    (result,) = call(sandbox, flood, limits=SandboxLimits(time_limit_s=0.5, output_kb=4096))
    assert result.ending in (Ending.TIMED_OUT, Ending.RAISED)
    assert time.monotonic() - began < 5


def test_noise_on_the_channel_does_not_hide_the_files(sandbox):
    code = (
        FORGE
        + """
import threading
def fill():
    for n in range(100_000): open(str(n), "w").write("a" * 1000)
threading.Thread(target=fill, daemon=True).start()
while True: os.write(cells["descriptor"], b"\\n")
"""
    )
    assert "OutputLimitExceeded" in call(sandbox, code, limits=SandboxLimits(time_limit_s=5, output_kb=1024))[0].error


@pytest.mark.parametrize("rewrite", [
    "os.pwrite(file, page, 0)", "os.lseek(file, 0, 0), os.write(file, page)",
    "os.lseek(file, 0, 0), os.writev(file, [page] * 16)",
    "os.ftruncate(file, 0), os.pwrite(file, page, 0)", "open('y', 'wb').write(page)", "null.write(page)",
    "open('y', 'wb').write(page), os.unlink('y')",
])  # fmt: skip
def test_what_is_written_over_and_over_is_bounded(sandbox, rewrite):
    code = f"""
    import os
    null = open("/dev/null", "wb", buffering=0)
    file, page = os.open("x", os.O_RDWR | os.O_CREAT), b"a" * 65536
    def f():
        while True: {rewrite}
    """
    (result,) = call(sandbox, code, limits=SandboxLimits(time_limit_s=20, output_kb=1024))
    assert result.error.startswith("OutputLimitExceeded")


def test_writing_through_memory_to_the_disk_is_bounded(sandbox):
    code = """
    import mmap, os
    file = os.open("x", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 1 << 20)
    memory = mmap.mmap(file, 1 << 20)
    def f(n):
        for _ in range(n):
            memory[::4096] = b"a" * 256
            memory.flush()
            os.fsync(file)
        return n
    """
    (result,) = call(sandbox, code, [3000], limits=SandboxLimits(time_limit_s=10, output_kb=1024))
    assert result.value == 3000 or result.error.startswith("OutputLimitExceeded")


def test_threads_are_bounded(sandbox):
    code = """
    import threading, time
    threading.stack_size(32 << 10)
    def f():
        started = 0
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            started += 1
    """
    (result,) = call(sandbox, code, limits=SandboxLimits(time_limit_s=10, memory_mb=1024))
    assert result.error == "ThreadLimitExceeded: more than 128 threads were started"


def test_a_hundred_threads_are_not_too_many(sandbox):
    code = """
    import threading, time
    threading.stack_size(64 << 10)
    def f():
        threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(100)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return len(threads)
    """
    assert call(sandbox, code, limits=SandboxLimits(time_limit_s=10))[0].value == 100


@pytest.mark.parametrize("attack", [
    "os.kill(os.getpid(), 40)", "os.kill(os.getpid(), 64)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 6)",
    "os.closerange(0, 64)", "[os.close(n) for n in range(60) if n != 1 and os.path.exists(f'/proc/self/fd/{n}')]",
    "os._exit(70)", "os._exit(0)", "sys.exit(10**30)", "sys.stdout.close(), sys.stdout.fileno()",
    "raise_it(type('A' * 1_000_000, (Exception,), {})())",
    "raise_it(type('E', (Exception,), {'__str__': lambda self: 'a' * (1 << 30)})())",
    "raise_it(type('E', (Exception,), {'__str__': lambda self: raise_it(SystemExit(3))})())",
    "raise_it(type('E', (Exception,), {'__str__': lambda self: 5})())",
    "raise_it(type('M', (type,), {'__name__': property(lambda cls: raise_it(KeyError()))})('E', (Exception,), {})())",
    "raise_it(BaseExceptionGroup('g', [KeyboardInterrupt()]))", "raise_it(deep())",
    "mmap.mmap(-1, 1 << 40)", "[mmap.mmap(-1, 1 << 24) for _ in range(10_000)]", "ctypes.string_at(0)",
    "fork_by_clone()", "setattr(sys, 'excepthook', None) or raise_it(ValueError())",
])  # fmt: skip
def test_an_attack_is_one_failure(sandbox, attack):
    code = f"""
    import ctypes, mmap, os, sys
    def raise_it(error): raise error
    def deep():
        error = ValueError()
        for _ in range(100_000): error = ValueError(error)
        return error
    def fork_by_clone():
        libc = ctypes.CDLL(None, use_errno=True)
        for number, arguments in ((56, (17, 0)), (57, ()), (58, ()), (435, (b"\\0" * 64, 64)), (56, (0x4111, 0))):
            if libc.syscall(number, *arguments) == 0: os._exit(0)
        raise PermissionError
    def f(): return {attack}
    """
    (result,) = call(sandbox, code)
    assert result.ending is Ending.RAISED
    assert len(result.error) < 25_000


@pytest.mark.parametrize("attack", [
    "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]\n    while True: pass",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n    while True: pass",
    "signal.raise_signal(signal.SIGSTOP)",
    "sys.settrace(lambda *a: (yield from iter(int, 1)))\n    while True: pass",
    "return Endless()",
    "raise type('E', (Exception,), {'__str__': lambda self: [0 for _ in iter(int, 1)]})()",
    "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n    time.sleep(60)",
])  # fmt: skip
def test_no_trick_stretches_the_time(sandbox, attack):
    code = f"""
import signal, sys, threading, time
class Endless:
    def __repr__(self):
        while True: pass
def f():
    {attack}
"""
    began = time.monotonic()
    (result,) = call(sandbox, code, limits=SandboxLimits(time_limit_s=0.4))
    assert result.ending is Ending.TIMED_OUT
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("code", [
    "import atexit\natexit.register(lambda: [0 for _ in iter(int, 1)])",
    "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    "import sys\nsys.stdout = None\nwhile True: pass",
])  # fmt: skip
def test_a_whole_program_that_never_ends_is_timed_out(sandbox, code):
    (result,) = sandbox.run(Program(code, Mode.STDIN, ("",)), SandboxLimits(time_limit_s=0.4))
    assert result.ending is Ending.TIMED_OUT


def test_whatever_is_returned_is_a_value(sandbox):
    code = """
    class Liar(list):
        def __iter__(self): raise SystemExit
        def __len__(self): return 10**9
    class Fake:
        __class__ = list
        def __repr__(self): raise KeyboardInterrupt
    class Array:
        def tolist(self): return self
    Array.__module__ = "numpy"
    def forever():
        while True: yield 1
    def f(n): return [Liar([1]), forever(), Array, 10**5000, float("nan")][n]
    """
    results = call(sandbox, code, *([n] for n in range(5)))
    assert len(results) == 5
    assert results[0].value == [1]


def test_files_of_every_name_and_mode_are_removed(sandbox):
    code = """
    import os
    def f():
        os.umask(0o777)
        for name in ("a" * 255, b"\\xff\\xfe", "new\\nline", "-rf", ".hidden", " "):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0))
        refused = []
        for make in (lambda: os.mkdir("d"), lambda: os.symlink("/etc/passwd", "s"), lambda: os.mkfifo("p"),
                     lambda: os.link(os.__file__, "l"), lambda: os.mknod("n"), lambda: os.rename("-rf", "../x"),
                     lambda: os.open("../x", os.O_CREAT), lambda: os.chmod("-rf", 0o777)):
            try: make()
            except OSError: refused.append(1)
        return len(refused)
    """
    assert call(sandbox, code)[0].value >= 8  # an empty file by mknod is a file as any other


def test_many_small_files_are_stopped_and_removed(sandbox, folder):
    code = "def f():\n    for n in range(10**6): open(str(n), 'w').close()"
    assert "OutputLimitExceeded" in call(sandbox, code, limits=SandboxLimits(time_limit_s=10, output_kb=1024))[0].error


def test_nothing_of_other_processes_can_be_read(sandbox):
    code = """
    import os
    def f():
        read = []
        for pid in ("self", "1", str(os.getppid())):
            for name in ("environ", "mem", "maps", "cmdline", "fd/0", "fd/1", "cwd", "root", "exe", "io", "status"):
                for look in (lambda path: os.open(path, os.O_RDONLY), os.readlink):
                    if pid == "self" and look is os.readlink: continue
                    try: look(f"/proc/{pid}/{name}")
                    except OSError: continue
                    read.append((pid, name))
        return [item for item in read if item not in (("self", "fd/0"), ("self", "fd/1"), ("self", "cwd"))]
    """
    assert call(sandbox, code)[0].value == []
