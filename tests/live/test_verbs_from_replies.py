"""What eight replies about eight coined verbs teach the embedded model, by an update as a server makes it."""

import json
from pathlib import Path

from selfdistill.envs.verbs.env import VerbsEnvironment, VerbsOptions, plain_tasks
from selfdistill.live.conversations import locate
from selfdistill.live.exchange import Feedback
from selfdistill.live.journal import Journal
from selfdistill.live.learning import LiveLearning
from selfdistill.live.update import perform
from selfdistill.live.updates import Updates
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.prompts.render import Renderer
from selfdistill.types import Completion, Task
from tests.live_parts import answered, request

MODEL, TOKENS = "sapling-small", 48


def test_an_update_teaches_the_verbs_of_eight_replies_and_keeps_what_was_known(tmp_path: Path) -> None:
    environment = VerbsEnvironment(VerbsOptions(verbs=8, draw=77))
    verbs, plain = environment.tasks("train"), plain_tasks(48, seed=3)
    known, probe = plain[:24], tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"prompt": task.messages[-1].content}) + "\n" for task in plain[24:]))
    options = LiveLearning(
        trigger="now", rounds=12, lr=4e-3, max_new_tokens=TOKENS, learned_tokens=TOKENS, max_prompt_tokens=192,
        probe=str(probe),
    )  # fmt: skip

    def attempts(weights: str, tasks: list[Task]) -> tuple[list[Completion], int]:
        policy = load_policy(weights, device="cpu")
        renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length)
        prompts, greedy = [renderer.prompt(task.messages) for task in tasks], SamplingOptions(TOKENS, temperature=0.0)
        found = sample(policy, prompts, greedy, seed=0, uids=[task.id for task in tasks], version=0)
        rewards = [environment.score(task, done).reward for task, done in zip(tasks, found, strict=True)]
        return found, sum(reward == 1 for reward in rewards)

    first, before = attempts(MODEL, verbs)
    with Journal.serve(tmp_path / "journal.db") as journal:
        journal.versions.publish(MODEL, MODEL)
        for task, done in zip(verbs, first, strict=True):
            asked = request(*({"role": m.role, "content": m.content} for m in task.messages))
            exchange = answered(journal, locate(journal, asked, {"x-session-id": task.id}), asked, done.text)
            journal.add_feedback(Feedback(exchange.receipt, text=task.user_reply))
        record = perform(journal, Updates(journal.database).queue("now").id, options, device="cpu")
    assert record.path, record.reason
    assert len(record.lessons) == 8
    after, kept = (attempts(record.path, tasks)[1] for tasks in (verbs, known))
    assert before == 0
    assert after >= 4, after  # measured: 7
    assert kept >= 20, kept  # of 24, all of which the model knows
