"""A model with a simulated user, the journal of a server with its updates, and `user_replies` as published."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.arms import say
from benchmarks.live_user import Preference, known_tasks
from selfdistill.config import OptimiserOptions
from selfdistill.live.exchange import Exchange, Feedback, FollowUp
from selfdistill.live.journal import Journal
from selfdistill.live.learner import LiveLearner, run_settings
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import choose, past_questions
from selfdistill.live.measuring import AGREED, FRAMES, Frame
from selfdistill.live.probe import probe_set, solved
from selfdistill.live.update import adapter_path
from selfdistill.live.updates import Updates
from selfdistill.methods.user_replies import UserReplies
from selfdistill.models.checkpoint import save_weights
from selfdistill.models.kept_states import KeptStates, ReadState
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.precision import cache_dtype
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Live, Teacher
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.runs.store import write_atomic
from selfdistill.training.optimiser import new_optimizer
from selfdistill.training.samples import CreditedRollout
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import Completion, Context, Message, Rollout, RolloutGroup, Task, TokenIds, TrainingSample

ASKED = 8  # questions at a time
MOST_ASKED = 30  # times, after which a user who never complains has no more to say
KNOWN_TOKENS = 64  # of an answer to a known task


class SharedBeginning(KeptStates):
    """What all prompts begin with, which is read once."""

    @torch.no_grad()
    def __init__(self, policy: Policy, prompts: Sequence[TokenIds]) -> None:
        from selfdistill.models.kv_cache import PreallocatedCache

        super().__init__(0)
        low, high = min(prompts), max(prompts)
        same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        self.ids = low[: min(same, *(len(prompt) - 1 for prompt in prompts))]
        cache = PreallocatedCache(policy.base.config, cache_dtype(policy.dtype))
        with policy.autocast():
            policy.backbone(torch.tensor([self.ids], device=policy.device), cache, None)
        self.layers = cache.row(0, None)

    def take(self, name: str, prompt: TokenIds) -> ReadState | None:
        """The same for every prompt."""
        return ReadState(self.ids, self.layers) if self.ids and self.layers else None

    def put(self, name: str, state: ReadState) -> None:
        """Nothing else is kept."""


@dataclass
class Bench:
    """A model with its users: what is asked, answered and measured. `turns` are the question, answer and reply of those
    that got one, `batches` how often questions were asked."""

    options: argparse.Namespace
    preference: Preference
    seed: int
    learning: LiveLearning
    weights: str = ""
    turns: list[tuple[str, str, str]] = field(default_factory=list)
    batches: int = 0

    @cached_property
    def policy(self) -> Policy:
        """The model, with an adapter that changes nothing yet, or that of an arm which was stopped."""
        device, dtype, lora = self.options.device, self.options.dtype, None if self.weights else self.learning.lora
        return load_policy(self.weights or self.options.model, device=device, dtype=dtype, lora=lora)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.policy.tokenizer, self.policy.context_length, self.policy.context_length)

    def messages(self, question: str) -> tuple[Message, ...]:
        """A question behind the system turn, if there is one."""
        system = (Message("system", self.options.system),) if self.options.system else ()
        return (*system, Message("user", question))

    def answers(
        self, questions: Sequence[str], label: str, *, context: bool = False, temperature: float = 1.0, most: int = 0
    ) -> list[Completion]:
        """An answer to each question; with `context` behind all replies so far."""
        before: tuple[Message, ...] = ()
        for question, answer, reply in self.turns if context else ():
            before += (Message("user", question), Message("assistant", answer), Message("user", reply), AGREED)
        prompts = []
        for question in questions:
            *system, last = self.messages(question)
            prompts.append(self.renderer.prompt((*system, *before, last)))
        most = most or self.learning.max_new_tokens
        options = SamplingOptions(max_new_tokens=most, temperature=temperature, batch_tokens=self.options.batch_tokens)
        uids = [f"{label}-{number}" for number in range(len(prompts))]
        kept = SharedBeginning(self.policy, prompts)
        return sample(self.policy, prompts, options, seed=self.seed, uids=uids, version=0, kept=kept, threads=uids)

    def adherence(self, preference: Preference, count: int, *, context: bool = False) -> dict[str, Any]:
        """The share of unseen questions whose answers the user likes."""
        unseen = preference.questions(self.seed)[1][:count]
        found = self.answers(unseen, "unseen", context=context, most=preference.decided)
        met = [preference.likes(done) for done in found]
        cut = sum(done.stop == "length" for done in found)
        return {"met": sum(met), "of": len(met), "cut": cut, "tokens": fmean(len(done.token_ids) for done in found)}

    def known(self, *, context: bool = False) -> list[bool]:
        """Which of the known tasks are solved."""
        tasks = known_tasks(self.options.known)
        questions = [question for question, _ in tasks]
        found = self.answers(questions, "known", context=context, temperature=0.0, most=KNOWN_TOKENS)
        return [solved(answer, done.text) for (_, answer), done in zip(tasks, found, strict=True)]

    @cached_property
    def known_before(self) -> list[bool]:
        """Those that the model solves as it is, which all arms share; call it before the weights move."""
        file = self.options.out / f"known-{self.options.known}.json"
        if not file.exists():
            assert not self.weights
            file.write_text(json.dumps(self.known()))
        found: list[bool] = json.loads(file.read_text())
        return found

    def asked(self, preference: Preference, label: str, *, context: bool = False) -> list[tuple[str, Completion, bool]]:
        """The next questions, answered by the weights as they are, and whether the user likes the answer."""
        questions = preference.questions(self.seed)[0]
        asked = [questions[(self.batches * ASKED + number) % len(questions)] for number in range(ASKED)]
        found = self.answers(asked, f"{label}-{self.batches}", context=context)
        self.batches += 1
        return [(question, done, preference.likes(done)) for question, done in zip(asked, found, strict=True)]

    def reply(self, preference: Preference) -> str:
        """What the user says next."""
        return preference.replies[len(self.turns) % len(preference.replies)]


class Done:
    """What parts of a measurement found, by their names, in a file: a part that is there is not done again."""

    def __init__(self, bench: Bench, file: Path) -> None:
        self.bench, self.file = bench, file
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"parts": {}, "batches": 0}
        self.parts, bench.batches = dict[str, Any](found["parts"]), found["batches"]

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What the part found, now or earlier."""
        if name not in self.parts:
            self.parts[name] = work()
            say(f"  {name}: {self.parts[name]}")
            write_atomic(self.file, json.dumps({"parts": self.parts, "batches": self.bench.batches}))
        return self.parts[name]


class LiveArm:
    """The journal of a server and the updates that it would make, in this process."""

    def __init__(self, bench: Bench, folder: Path, frames: Sequence[Frame] = FRAMES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.bench, self.journal, self.frames = bench, Journal.serve(folder / "journal.db"), frames
        self.log, self.updates = list[dict[str, Any]](), Updates(self.journal.database)
        self.updates.repaired()
        if self.journal.versions.served is None:
            self.journal.versions.publish(bench.options.model)
        served = self.journal.versions.served
        if served and served.is_adapter:
            bench.weights = served.path

    def converse(
        self, preference: Preference, label: str, count: int, session: str = "", most_batches: int = MOST_ASKED
    ) -> int:
        """Questions until the user has replied so often; all of them are in the journal, each a conversation of its own
        unless they have a common one. Returns how many replies there were."""
        given, last = 0, min(self.bench.batches + most_batches, MOST_ASKED)
        while given < count and self.bench.batches < last:
            for question, done, liked in self.bench.asked(preference, label):
                reply = "" if liked or given == count else self.bench.reply(preference)
                self.record(session or f"{label}-{len(self.journal.recent(10_000))}", question, done, reply)
                if reply:
                    given += 1
                    self.bench.turns.append((question, done.text, reply))
        return given

    def record(self, session: str, question: str, done: Completion, reply: str) -> None:
        """An exchange of a conversation, and the user's next turn (empty: none came)."""
        served = self.journal.versions.served
        assert served is not None
        body = {"messages": [{"role": m.role, "content": m.content} for m in self.bench.messages(question)]}
        receipt = f"{session}-{len(self.journal.recent(10_000))}"
        first = Exchange(
            receipt, session, served.id, body, {"role": "assistant", "content": done.text}, (), done.token_ids, (),
            str(done.stop), done.text, new_text=question,
        )  # fmt: skip
        if not reply or self.bench.options.as_feedback:
            self.journal.record(first)
            if reply:
                self.journal.add_feedback(Feedback(receipt, text=reply))
            return
        came = FollowUp(receipt, (Message("user", reply),))
        after = replace(first, receipt=f"{receipt}-next", status="cancelled", new_text=reply, follow_up=came)
        self.journal.record(first, after)

    def update(self) -> dict[str, Any]:
        """One update, served where it is admitted."""
        began, bench = time.monotonic(), self.bench
        record, parent = self.updates.queue("now"), self.journal.versions.served
        assert parent is not None
        learner = LiveLearner(
            bench.policy, bench.renderer, probe_set(), bench.learning, seed=1000 * bench.seed + record.id,
            frames=self.frames, progress=lambda text: say(f"    {time.monotonic() - began:.0f} s {text}"),
        )  # fmt: skip
        found = choose(
            self.journal, self.updates.history(), bench.learning, learner.fits, learner.reads, seed=record.id
        )
        self.updates.change(record.id, "training", only_from=["queued"], parent=parent.id)
        result = learner.update(found.all, past_questions(self.journal, learner.fits)) if found.new else None
        about: dict[str, Any] = {
            "admitted": bool(result and result.admission.admitted), "new": len(found.new), "older": len(found.older),
            "reason": result.admission.reason if result else "no lesson", "seconds": time.monotonic() - began,
            "numbers": dict(result.numbers) if result else {},
        }  # fmt: skip
        keys = [lesson.key for lesson in result.lessons] if result else []
        columns = {"reason": about["reason"], "numbers": about["numbers"], "lessons": keys}
        if about["admitted"]:
            path = adapter_path(self.journal, record.id)
            save_weights(path, bench.policy)
            version = self.journal.versions.publish(bench.options.model, str(path), parent=parent.id)
            self.updates.change(record.id, "accepted", only_from=["training"], version=version.id, **columns)
        else:
            if result and result.trained:
                learner.restore()
            self.updates.change(record.id, "rejected", only_from=["training"], **columns)
        decided = "admitted" if about["admitted"] else "rejected"
        say(f"  update {record.id}, {about['seconds']:.0f} s: {decided}: {about['reason']}")
        for criterion in about["numbers"].get("criteria", ()):
            say(f"    {criterion['name']} {criterion['finding']}: {criterion['reason']}")
        self.log.append(about)
        return about


class Published:
    """`user_replies` as published: a step on the one answer of each reply, its teacher the model itself."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        method, self.bench, self.file = UserReplies(), bench, folder / "weights.pt"
        self.config = replace(
            run_settings(bench.learning, bench.options.model, "auto", "auto"),
            optimiser=OptimiserOptions(lr=bench.learning.lr, warmup_steps=0),
        )
        self.optimizer = optimizer = new_optimizer(self.config, list(bench.policy.trainable().values()))
        teacher = Teacher(Live(), bench.policy)
        self.learner, self.totals = Learner(method, method.loss_specs(1.0), teacher, None, optimizer, ()), Totals()

    def step(self, question: str, done: Completion, reply: str) -> None:
        """One optimiser step."""
        messages = self.bench.messages(question)
        prompt = self.bench.renderer.prompt(messages)
        read = self.bench.renderer.prompt(teacher_messages(messages, Context("reply", reply=reply)))
        task = Task("reply", messages)
        rollout = Rollout(task, prompt, done)
        entry = TrainingSample(done.uid, prompt, (read,), done.token_ids, done.logprobs, distil=1.0)
        group, credited = RolloutGroup(task, (rollout,)), CreditedRollout(rollout, (entry,))
        update_all(self.bench.policy, self.learner, self.config, [group], [credited], [], self.totals)
        self.totals.step += 1

    def save(self) -> None:
        """Writes what a later process goes on from."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: value.data for name, value in self.bench.policy.trainable().items()}
        torch.save((weights, self.optimizer.state_dict(), self.totals.step), self.file)

    def resume(self) -> None:
        """Goes on from what was written."""
        weights, state, self.totals.step = torch.load(self.file)
        for name, value in self.bench.policy.trainable().items():
            value.data.copy_(weights[name])
        self.optimizer.load_state_dict(state)
