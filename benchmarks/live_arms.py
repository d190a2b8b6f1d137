"""A model with a simulated user, the journal of a server with its updates, and `user_replies` as published."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

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
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Live, Teacher
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.training.optimiser import new_optimizer
from selfdistill.training.samples import CreditedRollout
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import Completion, Context, Message, Rollout, RolloutGroup, Task, TrainingSample

ASKED = 8  # questions at a time
MOST_ASKED = 30  # times, after which a user who never complains has no more to say


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass
class Bench:
    """A model with its users: what is asked, answered and measured."""

    options: argparse.Namespace
    preference: Preference
    seed: int
    learning: LiveLearning
    turns: list[tuple[str, str, str]] = field(default_factory=list)  # question, answer, reply

    @cached_property
    def policy(self) -> Policy:
        """The model, with an adapter that changes nothing yet."""
        return load_policy(
            self.options.model, device=self.options.device, dtype=self.options.dtype, lora=self.learning.lora
        )

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.policy.tokenizer, self.policy.context_length, self.policy.context_length)

    def messages(self, question: str) -> tuple[Message, ...]:
        """A question behind the system turn, if there is one."""
        system = (Message("system", self.options.system),) if self.options.system else ()
        return (*system, Message("user", question))

    def answers(
        self, questions: Sequence[str], label: str, *, context: bool = False, temperature: float = 1.0
    ) -> list[Completion]:
        """An answer to each question; with `context` behind all replies so far."""
        before: tuple[Message, ...] = ()
        for question, answer, reply in self.turns if context else ():
            before += (Message("user", question), Message("assistant", answer), Message("user", reply), AGREED)
        prompts = []
        for question in questions:
            *system, last = self.messages(question)
            prompts.append(self.renderer.prompt((*system, *before, last)))
        most = self.learning.max_new_tokens
        options = SamplingOptions(max_new_tokens=most, temperature=temperature, batch_tokens=self.options.batch_tokens)
        uids = [f"{label}-{number}" for number in range(len(prompts))]
        return sample(self.policy, prompts, options, seed=self.seed, uids=uids, version=0)

    def adherence(self, preference: Preference, *, context: bool = False) -> dict[str, Any]:
        """The share of unseen questions whose answers the user likes."""
        unseen = preference.questions(self.seed)[1][: self.options.unseen]
        found = self.answers(unseen, "unseen", context=context)
        met = [preference.met(done.text) for done in found]
        cut = sum(done.stop == "length" for done in found)
        return {"met": sum(met), "of": len(met), "cut": cut, "tokens": fmean(len(done.token_ids) for done in found)}

    def known(self, *, context: bool = False) -> list[bool]:
        """Which of the known tasks are solved."""
        tasks = known_tasks(self.options.known)
        found = self.answers([question for question, _ in tasks], "known", context=context, temperature=0.0)
        return [solved(answer, done.text) for (_, answer), done in zip(tasks, found, strict=True)]

    def replies(self, preference: Preference, label: str) -> Iterator[tuple[str, Completion, str]]:
        """Questions whose answers violate the preference, each with the answer and the user's reply, from the weights
        as they are when it is asked for."""
        questions, given = preference.questions(self.seed)[0], 0
        for turn in range(MOST_ASKED):
            asked = [questions[(turn * ASKED + number) % len(questions)] for number in range(ASKED)]
            for question, done in zip(asked, self.answers(asked, f"{label}-{turn}"), strict=True):
                if not preference.met(done.text):
                    yield question, done, preference.replies[given % len(preference.replies)]
                    given += 1


class LiveArm:
    """The journal of a server and the updates that it would make, in this process."""

    def __init__(self, bench: Bench, folder: Path, frames: Sequence[Frame] = FRAMES) -> None:
        path = folder / "journal.db"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("journal.db*"):  # of a run that was stopped: its weights are gone
            if old.is_file():
                old.unlink()
        self.bench, self.journal, self.frames, self.log = bench, Journal.serve(path), frames, list[dict[str, Any]]()
        self.journal.versions.publish(bench.options.model)
        self.updates = Updates(self.journal.database)

    def record(self, session: str, question: str, done: Completion, reply: str) -> None:
        """An exchange of a conversation, and the user's next turn."""
        served = self.journal.versions.served
        assert served is not None
        body = {"messages": [{"role": m.role, "content": m.content} for m in self.bench.messages(question)]}
        receipt = f"{session}-{len(list(self.journal.recent(10_000)))}"
        first = Exchange(
            receipt, session, served.id, body, {"role": "assistant", "content": done.text}, (), done.token_ids, (),
            str(done.stop), done.text, new_text=question,
        )  # fmt: skip
        if self.bench.options.as_feedback:
            self.journal.record(first)
            self.journal.add_feedback(Feedback(receipt, text=reply))
            return
        came = FollowUp(receipt, (Message("user", reply),))
        after = replace(first, receipt=f"{receipt}-next", status="cancelled", new_text=reply, follow_up=came)
        self.journal.record(first, after)

    def update(self) -> dict[str, Any]:
        """One update, served where it is admitted."""
        began, bench = time.monotonic(), self.bench
        record = self.updates.queue("now")
        learner = LiveLearner(
            bench.policy, bench.renderer, probe_set(), bench.learning, seed=1000 * bench.seed + record.id,
            frames=self.frames, progress=lambda text: say(f"    {text}"),
        )  # fmt: skip
        found = choose(self.journal, self.updates.history(), bench.learning, learner.fits, seed=record.id)
        parent = self.journal.versions.served
        assert parent is not None
        self.updates.change(record.id, "training", only_from=["queued"], parent=parent.id)
        result = learner.update(found.all, past_questions(self.journal, learner.fits)) if found.new else None
        about = {
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
        say(f"  update {record.id}: {'admitted' if about['admitted'] else 'rejected'}: {about['reason']}")
        self.log.append(about)
        return about


class Published:
    """`user_replies` as published: a step on the one answer of each reply, its teacher the model itself."""

    def __init__(self, bench: Bench) -> None:
        method, self.bench = UserReplies(), bench
        self.config = replace(
            run_settings(bench.learning, bench.options.model, "auto", "auto"),
            optimiser=OptimiserOptions(lr=bench.learning.lr, warmup_steps=0),
        )
        optimizer = new_optimizer(self.config, list(bench.policy.trainable().values()))
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
