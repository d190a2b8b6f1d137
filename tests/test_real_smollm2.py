"""A real pretrained model: two SDPO steps on real programming tasks with real feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfdistill.data.load import load_tasks
from selfdistill.envs.code import CodeEnvironment
from selfdistill.losses import denominators
from selfdistill.methods import SDPO, Method
from selfdistill.models.load import LoraOptions, Policy, load_policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.prompts.render import Renderer
from selfdistill.training.forward import teacher_pass
from selfdistill.training.samples import credit_rollouts, roll_out
from selfdistill.training.update import UpdateBatch, token_weights, update_policy
from selfdistill.types import TrainingSample
from tools.smollm2 import cached_smollm2

MBPP = Path(__file__).parents[2] / "shared" / "data" / "mbpp" / "mbpp.jsonl"
TOKENS = 2048

pytestmark = [
    pytest.mark.skipif(cached_smollm2() is None, reason="SmolLM2 is not in the cache; `make smollm2` puts it there"),
    pytest.mark.skipif(not MBPP.is_file(), reason=f"no MBPP rows at {MBPP}"),
]


@pytest.fixture(scope="module")
def student() -> Policy:
    return load_policy(str(cached_smollm2()), device="cpu", lora=LoraOptions(rank=8, alpha=16))


def mean_divergence(policy: Policy, method: SDPO, batch: UpdateBatch) -> float:
    """From the teacher as it was read, over all tokens of the batch."""
    found: list[float] = []
    with torch.no_grad():
        for sample in batch.samples:
            hidden = policy.answer_hidden([(sample.student_prompt_ids, sample.completion_ids)])
            log_p = policy.head().logits(hidden).log_softmax(-1)
            log_q = batch.teacher[0].head.logits(batch.teacher[0].hidden[sample.uid]).log_softmax(-1)
            found += method.loss_spec(1.0).divergence.evaluate(log_p, log_q).divergence_N.tolist()
    return sum(found) / len(found)


def test_steps_on_mbpp_bring_the_student_nearer_to_what_it_thinks_with_feedback(student: Policy) -> None:
    method, env = SDPO(), CodeEnvironment()
    renderer = Renderer(student.tokenizer, student.context_length, 2048)
    tasks = load_tasks(MBPP)[:1]
    teacher = Teacher(Frozen(), student)
    optimizer = torch.optim.AdamW(list(student.trainable().values()), lr=2e-4)
    for step in range(2):
        found = roll_out(
            student,
            env,
            renderer,
            tasks,
            SamplingOptions(max_new_tokens=32),
            rollouts=2,
            seed=1,
            label=str(step),
            version=step,
        )
        assert not any(r.fault for group in found for r in group.rollouts)
        samples = [sample for entry in credit_rollouts(method, found, renderer) for sample in entry.samples]
        assert len(samples) >= 2, "32 tokens are too few to be right, and the feedback says so"
        batch = batch_of(student, teacher, method, samples)
        before = mean_divergence(student, method, batch)
        report = update_policy(student, optimizer, method.loss_specs(1.0), batch, max_grad_norm=1.0, tokens=TOKENS)
        assert not report.skipped
        assert report.divergence == pytest.approx(before, rel=1e-2), "what it minimised is what is measured here"
        assert mean_divergence(student, method, batch) < before
        failed = [r.outcome for group in found for r in group.rollouts if r.outcome and r.outcome.reward < 0.5]
        assert all(outcome.feedback for outcome in failed)


def batch_of(policy: Policy, teacher: Teacher, method: Method, samples: list[TrainingSample]) -> UpdateBatch:
    share = (samples, denominators([len(sample.completion_ids) for sample in samples]))
    weights, _, _ = token_weights(method.loss_specs(1.0), method.reduction, [share], {}, step=0, memory={})
    return UpdateBatch(samples, weights, teacher_pass(policy, teacher, samples, TOKENS))
