"""Programs that misbehave, in the real sandbox: each is told what it did, and nothing outside it changes."""

import os
import textwrap
import time
from pathlib import Path

import pytest

from sandbox_parts import needs_isolation
from selfdistill.envs.compare import same_exactly
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result

pytestmark = needs_isolation
QUICK = SandboxLimits(time_limit_s=10.0, memory_mb=128, output_kb=1024)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(2) as box:
        yield box


def call(sandbox: Sandbox, code: str, *arguments, limits: SandboxLimits = QUICK) -> Result:
    """The result of the last call of `f`."""
    program = Program(textwrap.dedent(code), Mode.CALL, arguments or ([],), entry="f")
    return sandbox.run(program, limits)[-1]


def script(sandbox: Sandbox, code: str, text: str = "") -> Result:
    return sandbox.run(Program(textwrap.dedent(code), Mode.STDIN, (text,)), QUICK)[0]


def refused(result: Result, kind: str = "PermissionError") -> bool:
    return result.ending is Ending.RAISED and result.error.startswith(kind)


def test_calls_return_values_of_every_plain_kind(sandbox):
    code = "def f(x): return (x, {1: [2.5, None]}, {3}, 2**80, True)"
    assert same_exactly(call(sandbox, code, ["a b"]).value, ("a b", {1: [2.5, None]}, {3}, 2**80, True))


def test_a_value_of_another_type_travels_as_its_repr(sandbox):
    assert repr(call(sandbox, "def f(): return [range(3), object]").value) == "[range(0, 3), <class 'object'>]"


def test_python_is_complete(sandbox):
    code = """
    import collections, dataclasses, math

    class Base:
        def __init__(self): self.x = bin(5)

    class Derived(Base):
        def __init__(self):
            super().__init__()

    @dataclasses.dataclass
    class Point:
        x: int

    def f(text):
        try:
            raise KeyError("k")
        except (LookupError, ArithmeticError) as error:
            caught = type(error).__name__
        return [Derived().x, divmod(7, 2), caught, Point(3).x, collections.Counter(text)["a"], complex(1, 2).imag,
                getattr(math, "pi") > 3, staticmethod(len) is not None, bytearray(b"a")[0], sorted(set(text))]
    """
    expected = ["0b101", (3, 1), "KeyError", 3, 2, 2.0, True, True, 97, [" ", "a", "b"]]
    assert call(sandbox, code, ["a b a"]).value == expected


def test_standard_library_modules_that_are_not_warm_can_be_imported(sandbox):
    assert call(sandbox, "import colorsys\ndef f(): return colorsys.rgb_to_hsv(0, 0, 0)").value == (0.0, 0.0, 0)


def test_line_numbers_are_those_of_the_answer(sandbox):
    code = "def g(x):\n    return 1 // x\n\ndef f(x):\n    return g(x)\n"
    assert call(sandbox, code, [0]).error == (
        "ZeroDivisionError: integer division or modulo by zero\nLine 5 in f\nLine 2 in g"
    )
    assert script(sandbox, "n = 1\nprint(int(input()))", "x\n").error.endswith("Line 2 in <module>")


def test_a_prelude_shifts_no_line_numbers(sandbox):
    program = Program(
        "def f(x):\n    return helper(x)", Mode.CALL, ([1],), "f", prelude="def helper(x):\n\n    return x.y"
    )
    assert sandbox.run(program, QUICK)[0].error.endswith("\nLine 2 in f")


def test_a_syntax_error_names_its_line(sandbox):
    result = call(sandbox, "x = 1\ndef f(:\n")
    assert (result.error, result.loading) == ("SyntaxError: invalid syntax\nLine 2 in <module>", True)


def test_a_solution_class_and_a_missing_function(sandbox):
    assert call(sandbox, "class Solution:\n    def f(self, x): return x + 1", [1]).value == 2
    assert call(sandbox, "def g(x): return x", [1]).error == "NameError: no function named 'f' is defined"


def test_after_an_exception_the_next_input_is_run(sandbox):
    results = sandbox.run(Program("def f(x): return 6 // x", Mode.CALL, ([0], [2]), "f"), QUICK)
    assert [result.ending for result in results] == [Ending.RAISED, Ending.DONE]
    assert results[1].value == 3


def test_an_endless_loop_is_timed_out_and_ends_the_run(sandbox):
    began = time.monotonic()
    results = sandbox.run(
        Program("def f(x):\n    while x: pass", Mode.CALL, ([0], [1], [0]), "f"), SandboxLimits(time_limit_s=2.0)
    )
    assert [result.ending for result in results] == [Ending.DONE, Ending.TIMED_OUT]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "code", ["import time\ntime.sleep(60)", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_program_that_sleeps_or_stops_itself_is_timed_out(sandbox, code):
    assert call(sandbox, code, limits=SandboxLimits(time_limit_s=0.3)).ending is Ending.TIMED_OUT


@pytest.mark.parametrize(
    "start", ["os.fork()", "os.system('ls')", "os.execv('/bin/ls', ['ls'])", "os.posix_spawn('/bin/ls', ['ls'], {})"]
)
def test_no_process_can_be_started(sandbox, start):
    result = call(sandbox, f"import os\ndef f(): return {start}")
    assert refused(result) or result.value == 127 << 8  # the status of `system` when there was no process


def test_threads_and_deep_recursion_work(sandbox):
    code = """
    import sys, threading
    sys.setrecursionlimit(10**6)
    threading.stack_size(32 * 1024 * 1024)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    def main(): print(depth(int(input())))
    thread = threading.Thread(target=main)
    thread.start()
    """
    assert script(sandbox, code, "20000").value == "20000\n"


def test_an_exception_in_a_thread_is_reported(sandbox):
    code = "import threading\nthreading.Thread(target=lambda: 1 // 0).start()"
    assert refused(script(sandbox, code), "ZeroDivisionError")


@pytest.mark.parametrize("code", ["x = []\nwhile True: x.append(bytearray(10**6))", "x = 'a' * 10**10"])
def test_filling_memory_is_a_memory_error(sandbox, code):
    result = call(sandbox, code)
    assert (result.ending, result.error) == (Ending.RAISED, f"MemoryError\nLine {code.count(chr(10)) + 1} in <module>")


@pytest.mark.parametrize(
    "where", ["print('a' * 10**7)", "while True: print('a' * 1000)", "open('x', 'w').write('a' * 10**7)"]
)
def test_printing_or_writing_too_much_is_an_error(sandbox, where):
    assert refused(call(sandbox, where), "OutputLimitExceeded: more than 1048576 bytes")
    assert refused(script(sandbox, where), "OutputLimitExceeded")


def test_many_files_count_together(sandbox):
    code = "n = 0\nwhile True:\n    n += 1\n    open(f'{n}', 'w').write('a' * 1000)"
    assert refused(call(sandbox, code), "OutputLimitExceeded")


def test_a_returned_value_has_a_limit(sandbox):
    assert refused(call(sandbox, "def f(): return 'a' * 10**7"), "OutputLimitExceeded")
    doubled = "x = []\nfor _ in range(50): x = [x, x]\ndef f(): return x"  # 2**50 parts, if written out
    assert refused(call(sandbox, doubled, limits=SandboxLimits(time_limit_s=10)), "OutputLimitExceeded")


@pytest.mark.parametrize("target", ["os.getppid()", "1", "0", "-1"])
def test_no_other_process_can_be_signalled(sandbox, target):
    workers = sandbox.worker_pids()
    assert refused(call(sandbox, f"import os\nos.kill({target}, 9)"))
    assert sandbox.worker_pids() == workers


def test_an_early_exit_is_no_pass(sandbox):
    assert call(sandbox, "import sys\nsys.exit(0)").error == "SystemExit: 0\nLine 2 in <module>"
    result = call(sandbox, "import os\nos._exit(0)")
    assert result.error == "ProcessExit: the program ended its process with exit code 0 before the test was done"
    program = Program("import os\nos._exit(0)", Mode.ASSERT, ("assert True",))
    assert sandbox.run(program, QUICK)[0].ending is Ending.RAISED


def test_a_crash_names_its_signal(sandbox):
    assert "SIGSEGV" in call(sandbox, "import ctypes\nctypes.string_at(0)").error


def test_a_failing_import_is_reported_with_its_line(sandbox):
    assert (
        call(sandbox, "x = 1\nimport no_such").error
        == "ModuleNotFoundError: No module named 'no_such'\nLine 2 in <module>"
    )


@pytest.mark.parametrize("code", [
    "import socket\nsocket.socket()",
    "import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=0.2)",
    "import socket\nsocket.socketpair()",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
])  # fmt: skip
def test_there_is_no_network(sandbox, code):
    result = call(sandbox, code)
    assert result.ending is Ending.RAISED
    assert "ermi" in result.error or "Name or service" in result.error or "No module" in result.error


def test_no_file_outside_can_be_read_written_or_removed(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for action in (
        f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'a').write('x')", f"os.remove({str(secret)!r})",
        f"os.listdir({str(tmp_path)!r})", f"open({str(tmp_path / 'new')!r}, 'w')", f"os.mkdir({str(tmp_path / 'd')!r})",
        f"os.rename({str(secret)!r}, 'mine')", f"os.link({str(secret)!r}, 'mine')", f"os.truncate({str(secret)!r}, 0)",
        f"os.open({str(secret)!r}, os.O_RDONLY | os.O_TRUNC)", f"os.chmod({str(secret)!r}, 0)",
        f"os.utime({str(secret)!r})", f"os.chown({str(secret)!r}, 1, 1)", f"os.symlink({str(secret)!r}, 'link')",
        "open('/etc/passwd').read()", "open('/proc/self/environ').read()", "open(f'/proc/{os.getppid()}/mem')",
    ):  # fmt: skip
        assert refused(call(sandbox, f"import os\n{action}")), action
    assert secret.read_text() == "s3cret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_the_library_can_be_read_but_not_changed(sandbox):
    size = Path(os.__file__).stat().st_size
    assert call(sandbox, "import os\ndef f(): return len(open(os.__file__, 'rb').read())").value == size
    assert refused(call(sandbox, "import os\nos.open(os.__file__, os.O_RDONLY | os.O_TRUNC)"))
    assert refused(call(sandbox, "import os\nopen(os.__file__, 'a')"))
    assert Path(os.__file__).stat().st_size == size


def test_packages_installed_beside_the_library_cannot_be_read(sandbox):
    library = Path(os.__file__).parent
    installed = [path for path in library.iterdir() if path.name in ("site-packages", "dist-packages")]
    assert installed, "every Python has a folder for them"
    for path in installed:
        assert refused(call(sandbox, f"import os\nos.listdir({str(path)!r})"))
        for file in [file for file in path.rglob("*") if file.is_file()][:1]:
            assert refused(call(sandbox, f"open({str(file)!r})"))


def test_time_zones_are_those_of_the_machine(sandbox):
    if not Path("/usr/share/zoneinfo/Europe/Berlin").exists():
        pytest.skip("this machine has no time zones")
    berlin = "datetime.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))"
    code = f"import datetime, zoneinfo\ndef f(): return str({berlin})"
    assert call(sandbox, code).value == "2024-01-01 00:00:00+01:00"


def test_its_own_directory_is_empty_private_and_removed(sandbox):
    code = """
    import os
    def f():
        before = os.listdir()
        open('x', 'w').write('1')
        return before, os.listdir(), os.getcwd()
    """
    before, after, path = call(sandbox, code).value
    assert (before, after) == ([], ["x"])
    assert not Path(path).exists()
    assert call(sandbox, code).value[0] == []


def test_limits_cannot_be_lifted(sandbox):
    assert call(sandbox, "import resource\ndef f(): return resource.getrlimit(resource.RLIMIT_NOFILE)[0]").value == 64
    lift = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    assert call(sandbox, lift).ending is Ending.RAISED
    calls = "libc.ptrace(16, 1, 0, 0), libc.prctl(1, 0), libc.setuid(1)"
    code = f"import ctypes\nlibc = ctypes.CDLL(None)\ndef f(): return [{calls}]"
    assert call(sandbox, code).value == [-1, -1, -1]


def test_noise_on_descriptors_is_not_a_result(sandbox):
    code = """
    import os
    for descriptor in range(3, 64):
        try: os.write(descriptor, b'{"ending": "done", "value": 1}\\n')
        except OSError: pass
    def f(): return 2
    """
    assert call(sandbox, code).value == 2


def test_closing_every_descriptor_is_no_pass(sandbox):
    code = "import os\nos.closerange(0, 64)\ndef f(): return 1"
    assert "ProcessExit" in call(sandbox, code).error


def test_monkeypatching_the_library_forges_nothing(sandbox):
    code = "import json, os\njson.dumps = lambda *_: '1'\nos.write = None\nos._exit = None\ndef f(): return 3"
    assert call(sandbox, code).value == 3


def test_whole_programs_read_and_print_as_usual(sandbox):
    for read in (
        "input()",
        "sys.stdin.readline().strip()",
        "sys.stdin.buffer.read().decode().strip()",
        "open(0).read().strip()",
    ):
        assert script(sandbox, f"import sys\nprint(sorted({read}))\nsys.exit(0)", "cab\n").value == "['a', 'b', 'c']\n"
    late = "import atexit, os\natexit.register(lambda: print('late'))\nos.write(1, b'early ')"
    assert script(sandbox, late).value == "early late\n"
    assert script(sandbox, "import os\nos.write(1, b'x')\nos._exit(0)").value == "x"
    assert script(sandbox, "if __name__ == '__main__': print(1)").value == "1\n"


def test_each_whole_program_run_is_fresh(sandbox):
    program = Program("import math\nmath.pi += 1\nprint(int(math.pi))", Mode.STDIN, ("", ""))
    assert [result.value for result in sandbox.run(program, QUICK)] == ["4\n", "4\n"]


def test_assertions_show_the_value_of_the_left_side(sandbox):
    program = Program(
        "def f(x): return x * 2",
        Mode.ASSERT,
        ("assert f(1) == 2", "assert f(2) == 5", "assert f(3) > 9, 'low'", "assert f(None) == 1"),
    )
    done, wrong, low, raised = sandbox.run(program, QUICK)
    assert done.ending is Ending.DONE
    assert (wrong.ending, wrong.note) == (Ending.FAILED, "assert f(2) == 5\nf(2) gave 4")
    assert (low.ending, low.note) == (Ending.FAILED, "assert f(3) > 9, 'low'\nlow")
    assert raised.error.startswith("TypeError")
    assert raised.error.endswith("Line 1 in f")


def test_an_assertion_of_the_answer_itself_is_an_error(sandbox):
    program = Program("def f(x):\n    assert x > 0\n    return x", Mode.ASSERT, ("assert f(-1) > 0",))
    result = sandbox.run(program, QUICK)[0]
    assert (result.ending, result.error) == (Ending.RAISED, "AssertionError\nLine 2 in f")


def test_results_repeat(sandbox):
    code = "import random\ndef f(): return random.random(), list({'a', 'b', 'c', 'd'})"
    with Sandbox(1) as other:
        assert call(sandbox, code).value == call(other, code).value
