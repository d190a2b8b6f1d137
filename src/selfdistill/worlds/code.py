"""The code world: an answer is a program, tests decide, and what a programmer would be told is the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.types import Completion, Outcome, Task
from selfdistill.worlds.judge import JudgeOptions, Split, judge_many
from selfdistill.worlds.sandbox.lockdown import isolation_level, isolation_warning
from selfdistill.worlds.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.worlds.sandbox.program import Limits


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """`time_limit_s`: seconds for one test, where a task does not set its own. `memory_mb`: MiB for one program.
    `split`: the tests that decide, "public" while training. `cases`: wrong answers shown in the feedback, shortest
    first or, with `random_cases`, drawn for each completion. `allow_weaker`: go on where isolation is incomplete."""

    time_limit_s: float = 6.0
    memory_mb: int = 512
    split: Split = "public"
    cases: int = 2
    random_cases: bool = False
    allow_weaker: bool = False


class CodeWorld:
    """Judges programs in a sandbox: the process's shared one, started with the first program, unless one is given.

    Raises SandboxError when this machine cannot isolate programs and `allow_weaker` is off.
    """

    name = "code"

    def __init__(self, options: CodeOptions | None = None, *, sandbox: Sandbox | None = None) -> None:
        self.options = options or CodeOptions()
        self.sandbox = sandbox or shared_sandbox(allow_weaker=self.options.allow_weaker)
        self._judge_options = JudgeOptions(
            split=self.options.split, cases=self.options.cases, random_cases=self.options.random_cases,
            limits=Limits(time_s=self.options.time_limit_s, memory_mb=self.options.memory_mb),
        )  # fmt: skip

    @property
    def isolation(self) -> str:
        """How programs are shut in, for a run's records: the level, and what it leaves open."""
        level = isolation_level()
        warning = isolation_warning(level)
        return f"{level} ({warning})" if warning else str(level)

    def with_split(self, split: Split) -> CodeWorld:
        """The same world deciding by other tests, such as "private" for evaluation."""
        return CodeWorld(replace(self.options, split=split), sandbox=self.sandbox)

    def judge(self, task: Task, completion: Completion) -> Outcome:
        """One answer; see `judge_many`."""
        return self.judge_many([(task, completion)])[0]

    def judge_many(self, pairs: Sequence[tuple[Task, Completion]]) -> list[Outcome]:
        """All answers in parallel, outcomes in order. Raises DataError for a task without tests, SandboxError."""
        return judge_many(self.sandbox, pairs, self._judge_options)
