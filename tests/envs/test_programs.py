"""What a scored program sees, in the real sandbox: what `python answer.py` would show it."""

import textwrap

import pytest

from sandbox_parts import needs_isolation
from selfdistill.data.rows import row_to_task
from selfdistill.envs.code import CodeEnvironment
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.pool import Sandbox
from selfdistill.envs.sandbox.program import Ending, Mode, Program, Result
from selfdistill.types import Completion

pytestmark = needs_isolation
LIMITS = SandboxLimits(time_limit_s=10.0, memory_mb=256)
TEXT = "3\n1 2 3\n"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(1) as box:
        yield box


def script(sandbox: Sandbox, code: str, text: str = TEXT) -> Result:
    return sandbox.run(Program(textwrap.dedent(code), Mode.STDIN, (text,)), LIMITS)[0]


def test_a_script_has_the_arguments_and_the_name_of_a_script(sandbox):
    shown = script(sandbox, "import sys\nprint(sys.argv, sys.orig_argv, __file__, __name__, __builtins__.len('ab'))")
    assert shown.value == "['answer.py'] ['python', 'answer.py'] answer.py __main__ 2\n"
    parsed = "import argparse\np = argparse.ArgumentParser()\np.add_argument('-n', default=3)\nprint(p.parse_args().n)"
    assert script(sandbox, parsed).value == "3\n"
    assert script(sandbox, "print(open(__file__).read(), end='')").value == "print(open(__file__).read(), end='')"
    called = Program("import sys\ndef f(): return sys.argv, __file__, __name__", Mode.CALL, ([],), "f")
    assert sandbox.run(called, LIMITS)[0].value == (["answer.py"], "answer.py", "answer")


@pytest.mark.parametrize("read", [
    "''.join(fileinput.input())", "open('/dev/stdin').read()", "open('/dev/fd/0').read()", "open(0).read()",
    "pathlib.Path('/dev/stdin').read_text()", "sys.stdin.read()", "sys.stdin.buffer.read().decode()",
    "os.read(0, 100).decode()", "''.join(select.select([sys.stdin], [], [], 1)[0][0])",
    "argparse.FileType()('-').read()", "input() + '\\n' + sys.stdin.readline()", "'\\n'.join(iter(input, ''))",
])  # fmt: skip
def test_every_way_to_standard_input(sandbox, read):
    code = f"import argparse, fileinput, os, pathlib, select, sys\nprint({read}, end='')"
    text = TEXT + "\n" if "iter(" in read else TEXT
    assert script(sandbox, code, text).value.strip() == TEXT.strip()


def test_line_ends_and_encoding_are_those_of_a_script(sandbox):
    assert script(sandbox, "print(repr(input()))", "a\r\n").value == "'a\\r'\n"
    assert script(sandbox, "import sys\nprint(sys.stdin.encoding, sys.stdin.name, input())", "ä∑").value == (
        "utf-8 <stdin> ä∑\n"
    )


@pytest.mark.parametrize("late", [
    "open(1, 'w').write('x')", "f = open(1, 'w')\nf.write('x')", "open('/dev/stdout', 'w').write('x')",
    "import os\nf = os.fdopen(os.dup(1), 'w')\ndef g(): f.write('x')\ng()",
    "print(end='x')\nexit()", "print(end='x')\nquit()", "print(end='x')\nimport sys\nsys.exit('no')",
    "import atexit\natexit.register(print, end='x')", "import threading\nthreading.Timer(.1, print, 'x').start()",
    "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(print, 'x')",
])  # fmt: skip
def test_everything_printed_is_there_at_the_end(sandbox, late):
    result = script(sandbox, late)
    assert (result.ending, result.value.strip()) == (Ending.DONE, "x")


def test_a_program_may_import_what_it_wrote(sandbox):
    assert script(sandbox, "open('part.py', 'w').write('x = 4')\nimport part\nprint(part.x)").value == "4\n"


@pytest.mark.parametrize("code", [
    "def f(n): return 1 + f(n - 1)", "def f(n): return sorted([n], key=f)", "def f(n): return max(map(f, [n]))",
    "import functools\n@functools.lru_cache(None)\ndef f(n): return f(n + 1)",
    "class A:\n    def __getattr__(self, name): return getattr(self, name)\ndef f(n): return A().x",
    "class A:\n    def __init__(self): self.a = A()\ndef f(n): return A()",
])  # fmt: skip
def test_recursion_ends_in_an_error_and_not_in_a_crash(sandbox, code):
    result = script(sandbox, f"import sys\nsys.setrecursionlimit(50_000)\n{code}\nf(1)")
    assert result.error.startswith("RecursionError"), result


def reward(fields: dict, code: str) -> float:
    outcome = CodeEnvironment().score(row_to_task(fields), Completion("u", f"```python\n{code}\n```"))
    assert outcome.reward or outcome.feedback
    return outcome.reward


LIVECODEBENCH = {
    "question_id": "1", "question_content": "q", "metadata": '{"func_name": "f"}',
    "starter_code": "class Solution:\n    def f(self, x: List[int]) -> int:",
    "public_test_cases": [{"input": "[1, 1, 2]", "output": "2", "testtype": "functional"}],
}  # fmt: skip
PRINTED = [{"input": "1 1 2\n", "output": "2", "testtype": "stdin"}]


@pytest.mark.parametrize("body", [
    "max(Counter(x).values())", "max(collections.Counter(x).values())", "len(set(accumulate(x))) - 1", "int(sqrt(4))",
    "int(math.sqrt(4))", "bisect_right(x, 1)", "heappop(heapq.nlargest(1, x))", "deque(x).pop()", "pow(2, 1, 5)",
    "reduce(lambda a, b: max(a, b), x)", "lru_cache(None)(max)(*x)", "datetime.date(2020, 1, x[2]).day", "prod(x)",
    "len(ascii_lowercase) - 24", "int(re.sub('[13]', '', '123'))", "deepcopy(x)[-1]", "randint(2, 2)",
    "sys.getrecursionlimit() // 25000", "int(mean([2, 2]))", "itemgetter(2)(x)", "len(StringIO('ab').read())",
    "cache(max)(*x)", "loads('2')",
])  # fmt: skip
def test_rows_of_livecodebench_get_the_header_of_its_scorer(body):
    function = f"class Solution:\n    def f(self, x: List[int]) -> int:\n        return {body}"
    assert reward(LIVECODEBENCH, function) == 1.0
    whole = {**LIVECODEBENCH, "starter_code": "", "public_test_cases": PRINTED}
    assert reward(whole, f"x = list(map(int, input().split()))\nprint({body})") == 1.0


def test_the_header_counts_in_no_line_number():
    wrong = Completion("u", "```python\nclass Solution:\n    def f(self, x):\n        return nothing\n```")
    feedback = CodeEnvironment().score(row_to_task(LIVECODEBENCH), wrong).feedback
    assert feedback.startswith("Runtime error.\nNameError: name 'nothing' is not defined\nLine 3 in f")


def test_starter_code_of_any_row_may_use_the_names_of_typing():
    simple = {"prompt": "p", "fn_name": "f", "tests": [{"input": [[1]], "output": [1]}]}
    answer = "class Solution:\n    def f(self, x: List[int]) -> Optional[List[int]]:\n        return x"
    assert reward({**simple, "starter_code": answer.rsplit("\n", 1)[0]}, answer) == 1.0
    assert reward(simple, answer) == 0.0  # nobody promised it: `python answer.py` would fail
    whole = {"prompt": "p", "tests": [{"input": "1", "output": "1"}], "starter_code": "def f(x: List[int]):"}
    assert reward(whole, "def f(x: List[int]):\n    print(x)\nf(input())") == 1.0
    prompt = "def f(x: List[int]) -> int:\n    '''Sum.'''\n"
    human = {"prompt": prompt, "entry_point": "f", "test": "def check(f):\n    assert f([1, 2]) == 3"}
    assert reward(human, prompt + "    return sum(x)") == 1.0
    future = "from __future__ import annotations\n" + prompt
    assert reward({**human, "prompt": future}, future + "    return sum(x)") == 1.0
