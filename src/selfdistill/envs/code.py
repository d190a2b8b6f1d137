"""The code environment: an answer is a program, tests decide, and what a programmer would be told is the feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.envs.base import Scored, require_outcome
from selfdistill.envs.sandbox.limits import SandboxLimits
from selfdistill.envs.sandbox.lockdown import isolation_warning
from selfdistill.envs.sandbox.pool import Sandbox, shared_sandbox
from selfdistill.envs.scoring import MODES, ScoringOptions, TestSplit, score_batch
from selfdistill.envs.syntax import spec_fault
from selfdistill.options import check_ranges, like, option
from selfdistill.types import Completion, Outcome, Task


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """How programs are run, and how much a failed one is told. Raises ConfigError."""

    time_limit_s: float = like(SandboxLimits, "time_s", "seconds for one test, where a task does not set its own")
    memory_mb: int = like(SandboxLimits, "memory_mb", "MiB for one program, beyond the empty interpreter")
    output_kb: int = like(SandboxLimits, "output_kb", "KiB each for a program's files, for what it prints, for a value")
    value_parts: int = like(SandboxLimits, "value_parts", "numbers, texts and containers in one value that it returns")
    recursion_limit: int = like(
        SandboxLimits, "recursion_limit", "nested calls, where the program or its row sets none"
    )
    split: TestSplit = option("public", "tests that decide: public, private, all; an empty one gives way")
    cases: int = option(2, "wrong answers shown in the feedback", least=1, most=1000)
    random_cases: bool = option(False, "draw those for each completion, instead of the shortest")
    allow_weaker: bool = option(False, "run programs also where this machine cannot isolate them fully")

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def limits(self) -> SandboxLimits:
        """What a program may use."""
        return SandboxLimits(self.time_limit_s, self.memory_mb, self.output_kb, self.value_parts, self.recursion_limit)


class CodeEnvironment:
    """Scores programs in a sandbox: the process's shared one, started with the first program, unless one is given.

    Raises SandboxError when this machine cannot isolate programs and `allow_weaker` is off.
    """

    name = "code"

    def __init__(self, options: CodeOptions | None = None, *, sandbox: Sandbox | None = None) -> None:
        self.options = options or CodeOptions()
        self.sandbox = sandbox or shared_sandbox(allow_weaker=self.options.allow_weaker)
        self._judge_options = ScoringOptions(
            split=self.options.split, cases=self.options.cases, random_cases=self.options.random_cases,
            limits=self.options.limits,
        )  # fmt: skip

    @property
    def isolation(self) -> str:
        """How programs are shut in, for a run's records: the level, and what it leaves open."""
        level, warning = self.sandbox.level, isolation_warning(self.sandbox.level)
        return f"{level} ({warning})" if warning else str(level)

    def with_split(self, split: TestSplit) -> CodeEnvironment:
        """The same environment deciding by other tests, such as "private" for evaluation."""
        return CodeEnvironment(replace(self.options, split=split), sandbox=self.sandbox)

    def for_evaluation(self) -> CodeEnvironment:
        """The same environment deciding by the private tests, which training never shows."""
        return self.with_split("private")

    def unusable(self, task: Task) -> str:
        """Why no program can pass: tests of an unknown kind, none at all, or code that does not run in the sandbox."""
        if task.spec.get("kind") not in MODES:
            return f"task {task.id!r} has an unknown kind of tests: {task.spec.get('kind')!r:.80}"
        if not task.spec.get("public") and not task.spec.get("private"):
            return f"task {task.id!r} has no tests"
        fault = spec_fault(task.spec, self.sandbox.modules)
        if fault is None:
            return ""
        return f"task {task.id!r}: {fault.part}[{fault.index}]: expected {fault.expected}, got {fault.got}; {fault.why}"

    def score(self, task: Task, completion: Completion) -> Outcome:
        """One answer; see `score_batch`. Raises EnvError where it cannot be scored."""
        return require_outcome(self.score_batch([(task, completion)])[0])

    def score_batch(self, pairs: Sequence[tuple[Task, Completion]]) -> list[Scored]:
        """All answers in parallel, outcomes in order, a `Fault` for one that cannot be scored.

        Raises DataError for a task without tests, SandboxError.
        """
        return score_batch(self.sandbox, pairs, self._judge_options)
