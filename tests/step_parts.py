"""Three small samples, an optimiser that keeps gradients, and the literal forms of what a step computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core_parts import sample_of
from selfdistill.losses import Denominators, LossSpec, Reduction, TokenStats, denominators
from selfdistill.models.load import Policy
from selfdistill.models.teacher import Teacher
from selfdistill.training.forward import behaviour_pass, teacher_pass
from selfdistill.training.update import UpdateBatch, UpdateReport, token_weights, update_policy
from selfdistill.types import TokenIds, TrainingSample

PROMPTS = [(40, 41, 42), (50, 51, 52, 53, 54, 55), (60, 61)]
TOLD = [(90, 91, 92, 93, *prompt) for prompt in PROMPTS]
ANSWERS = [(101, 102), (110, 111, 112, 113, 114, 115), (120, 121, 122)]
Gradients = dict[str, Tensor]


class Caught(torch.optim.Optimizer):
    """Keeps the gradients of its last step, and moves nothing."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(list(policy.trainable().values()), {})
        self.policy, self.steps, self.gradients = policy, 0, Gradients()

    def step(self, closure: None = None) -> None:
        self.steps += 1
        found = self.policy.trainable().items()
        self.gradients = {name: value.grad.clone() for name, value in found if value.grad is not None}


def precise(policy: Policy) -> Policy:
    policy.model.double()
    return policy


def distilled(**changes: float) -> list[TrainingSample]:
    """Three answers of different lengths, each read by a teacher that knows four tokens more."""
    return [
        sample_of(f"s{i}", PROMPTS[i], ANSWERS[i], teacher=TOLD[i], **({"distil": 1.0} | changes)) for i in range(3)
    ]


def batch_of(policy: Policy, teacher: Teacher, samples: Sequence[TrainingSample], **options) -> UpdateBatch:
    passes = teacher_pass(policy, teacher, samples, 10_000)
    return weighed(samples, teacher=passes, **({"sampler_correction": False} | options))


def weighed(
    samples: Sequence[TrainingSample],
    over: Denominators | None = None,
    *,
    reduction: Reduction = "sequence-mean",
    loss_spec: LossSpec | None = None,
    stats: Mapping[str, TokenStats] | None = None,
    **options,
) -> UpdateBatch:
    """An update that makes up the whole step; the mean is over these samples, unless `over` is given."""
    over = over or denominators([len(s.completion_ids) for s in samples])
    share = (list(samples), over)
    weights, _, _ = token_weights([loss_spec or LossSpec()], reduction, [share], stats or {}, step=0, memory={})
    return UpdateBatch(samples, weights, **options)


def behaviour_logprobs(policy: Policy, samples: Sequence[TrainingSample]) -> dict[str, Tensor]:
    """log π(y) by uid under the weights as they are."""
    stats = behaviour_pass(policy, [LossSpec()], samples, [], 10_000)
    return {uid: found.logprobs_N for uid, found in stats.items()}


def update(
    policy: Policy,
    batch: UpdateBatch,
    loss_spec: LossSpec | None = None,
    *,
    tokens: int = 10_000,
) -> tuple[UpdateReport, Gradients]:
    caught = Caught(policy)
    report = update_policy(policy, caught, [loss_spec or LossSpec()], batch, max_grad_norm=0, tokens=tokens)
    return report, caught.gradients


def whole_logits(model: torch.nn.Module, prompt: TokenIds, answer: TokenIds) -> Tensor:
    """logits_TV before each token of the answer, from the model as transformers runs it."""
    logits_LV = model(torch.tensor([prompt + answer])).logits[0]
    return logits_LV[len(prompt) - 1 : -1]


def probabilities(model: torch.nn.Module, prompt: TokenIds, answer: TokenIds, temperature: float = 1.0) -> Tensor:
    return (whole_logits(model, prompt, answer) / temperature).softmax(-1)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def divergence(alpha: float, p: Tensor, q: Tensor) -> Tensor:
    mixture = (1 - alpha) * p + alpha * q
    if alpha in (0, 1):
        return kl(p, q) if alpha else kl(q, p)
    return (1 - alpha) * kl(p, mixture) + alpha * kl(q, mixture)


def ppo_loss(ratio: Tensor, advantage: float) -> Tensor:
    """Per token: the clipped objective, and its bound where the advantage is negative."""
    loss = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.28) * advantage)
    return loss.clamp(max=-3.0 * advantage) if advantage < 0 else loss


def literal_gradients(policy: Policy, loss: Tensor) -> Gradients:
    """What autograd says, for the trained parameters."""
    named = policy.trainable()
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same(found: Gradients, wanted: Gradients, rtol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    assert largest > 1e-4, "there is a gradient"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * 1e-1 * largest, msg=name)


def moved(policy: Policy, scale: float = 0.05, seed: int = 0) -> Policy:
    """The student after some updates: every weight a little off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(scale * torch.randn(value.shape, generator=generator).to(value.dtype))
    return policy
