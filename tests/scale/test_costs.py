"""The costs of a step: sums that a reader can redo, and operations as torch counts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.config import load_config
from selfdistill.errors import ConfigError
from selfdistill.models.load import load_policy
from selfdistill.models.planning import model_shape
from selfdistill.scale.costs import (
    ACHIEVED,
    GPUS,
    Layout,
    Lengths,
    gpu_named,
    layers_of,
    sampling_seconds,
    seconds,
    step_costs,
)

SETTINGS = ["model=sapling-small", "tasks_per_step=4", "rollouts_per_task=8", "sampling.max_new_tokens=40"]


ONE = Layout()


def costs(*overrides: str, layout: Layout = ONE):
    config = load_config(None, [*SETTINGS, *overrides])
    return step_costs(config, model_shape(config.model, config.lora), layout, prompt=50)


def test_tokens_of_a_step() -> None:
    """32 answers of 40 tokens to 4 questions of 50, each read under a context of 90; a group's prompt is read once."""
    found = costs("method=sdpo").tokens
    assert found == {"sampled": 1280, "prefilled": 200, "teacher": 32 * 130, "behaviour": 0, "student": 200 + 1280}
    assert costs("method=grpo").tokens["teacher"] == 0
    assert costs("teacher.kind=trust_region").tokens["teacher"] == 2 * 32 * 130
    assert costs("tasks_per_update=2").tokens["behaviour"] == 200 + 1280
    assert costs("activation_checkpointing=true").tokens["student"] == 32 * 90
    assert costs("replay.per_step=10").tokens["sampled"] == 42 * 40


def test_bytes_that_a_learner_receives() -> None:
    """Of four: three quarters of all weights in bfloat16 for each forward and backward pass, of the gradients in
    float32; under LoRA the gradients of the factors alone."""
    full, adapter = costs(layout=Layout(4)), costs("lora.rank=4", layout=Layout(4))
    weights = full.shape.parameters
    assert full.gathers == 1 + 1 + 2  # to sample, for the teacher, forward and backward
    assert full.moved["weights gathered"] == 0.75 * 2 * weights * 4
    assert full.moved["gradients"] == 0.75 * 4 * weights
    assert adapter.moved["gradients"] == 0.75 * 4 * adapter.shape.trained
    assert costs("micro_batch_tokens=740").gathers == 1 + 6 + 2 * 2
    assert not any(costs().moved.values())
    served = costs(layout=Layout(2, 2))
    assert (served.gathers, served.moved["weights to the sampler"]) == (3, 2 * weights)


def test_seconds_follow_from_the_figures_of_a_device() -> None:
    found, gpu = costs(layout=Layout(4)), GPUS["A100"]
    modelled = seconds(found, gpu)
    learned = sum(found.flops.values()) - found.flops["sampling"]
    assert modelled.parts["learning"] == pytest.approx(learned / 4 / (312e12 * ACHIEVED["operations"]))
    assert modelled.parts["gradients"] == pytest.approx(found.moved["gradients"] / (300e9 * ACHIEVED["transfer"]))
    assert modelled.total == sum(modelled.parts.values())
    across = seconds(replace(found, layout=Layout(16)), gpu)
    assert across.parts["gradients"] == pytest.approx(12 * modelled.parts["gradients"])  # 25 GB/s between machines


def test_more_answers_than_the_memory_holds_are_sampled_one_batch_after_the_other() -> None:
    shape = model_shape("Qwen/Qwen3-8B", None)
    lengths = Lengths(prompt=2048, answer=8192, context=10240, longest=8192)
    few, many, more = (sampling_seconds(shape, lengths, rows, GPUS["H100"]) for rows in (1, 200, 400))
    assert few == pytest.approx(8192 * 2 * shape.parameters / (3.35e12 * 0.6), rel=0.1)  # weights read for each token
    assert more == pytest.approx(2 * many)
    assert sampling_seconds(shape, lengths, 200, GPUS["H200"]) < many


@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_that_torch_counts(frozen: bool) -> None:
    """Forward and backward of four answers of 40 tokens behind prompts of 60, nothing shared or padded. Weights that
    are not trained, as under LoRA, get no gradient, and what they read does."""
    policy, shape = load_policy("sapling-small", device="cpu"), model_shape("sapling-small", None)
    if frozen:
        policy.base.requires_grad_(False).get_input_embeddings().requires_grad_(True)
    pairs = [(tuple(range(20 + n, 80 + n)), tuple(range(30, 71))) for n in range(4)]
    with FlopCounterMode(display=False) as counter:
        policy.answer_hidden(pairs).sum().backward()
    body = 2 * layers_of(shape) * 4 * 100
    attention = 4 * shape.layers * shape.query * 4 * 100**2 / 2
    assert counter.get_total_flops() == pytest.approx(body * (2 if frozen else 3) + 3 * attention, rel=0.1)


def test_a_device_that_is_not_known_is_refused() -> None:
    assert gpu_named("NVIDIA H100 80GB HBM3").name == "H100"
    assert gpu_named("NVIDIA GH200 480GB").name == "GH200"
    with pytest.raises(ConfigError, match="H100"):
        gpu_named("h10")
