"""The plan of a run's memory: sums that a reader can redo, refusals that name a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import selfdistill as sd
from selfdistill.cli.app import app
from selfdistill.config import RunConfig, load_config
from selfdistill.errors import OutOfMemoryError
from selfdistill.models.batching import tokens_read
from selfdistill.models.load import LoraOptions
from selfdistill.models.planning import model_shape
from selfdistill.training import planner, session
from selfdistill.training.loop import train
from selfdistill.training.planner import Needs, check_memory, memory_plan, needs_of, planned

NEEDS = Needs(prompt_tokens=20, answers=8)


def settings(model, *overrides: str) -> RunConfig:
    return load_config(None, [f"model={model}", "sampling.max_new_tokens=12", *overrides])


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)])
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_parameters_are_those_of_the_loaded_model(tiny_policy, model_shelf, family: str, lora) -> None:
    policy = tiny_policy(family, lora=lora)
    shape = model_shape(policy.name, lora)
    assert shape.trained == sum(value.numel() for value in policy.trainable().values())
    counts = {name: value.numel() for name, value in policy.base.named_parameters()}
    assert shape.parameters == sum(count for name, count in counts.items() if "lora" not in name)


def bytes_kept(policy, pairs) -> int:
    """What autograd keeps of a forward pass."""
    found = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        found.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        policy.answer_hidden(pairs)
    return sum(value.untyped_storage().nbytes() for value in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)])
def test_activations_are_those_that_autograd_keeps(tiny_policy, monkeypatch, dtype: str, lora) -> None:
    """Of layers; within a tenth. In a layer as narrow as this, what does not grow with its width counts as well."""
    monkeypatch.setattr("selfdistill.models.load.multiplies_bfloat16", lambda device: True)
    policy = tiny_policy(dtype=dtype, lora=lora)

    def kept(tokens: int) -> int:
        return bytes_kept(policy, [(tuple(range(5, 5 + tokens // 2)), tuple(range(5, 6 + tokens // 2)))])

    measured = (kept(180) - kept(60)) / 120 / 2
    shape = model_shape(policy.name, lora)
    narrow, rank = policy.dtype == torch.bfloat16, lora.rank if lora else 0
    assert planner._kept(shape, full=lora is None, narrow=narrow, rank=rank) == pytest.approx(measured, rel=0.1)


def test_answers_behind_a_common_prompt_keep_a_mask_and_repeated_keys_beside(tiny_policy) -> None:
    """Two layers, six answers of 81 tokens, of which the last predicts nothing, behind a prompt of 100."""
    policy = tiny_policy(lora=LoraOptions(rank=4))
    prompt, answers = tuple(range(5, 105)), [tuple(range(place, place + 81)) for place in range(5, 11)]
    assert tokens_read([(prompt, answer) for answer in answers], shares=True) == 100 + 6 * 80
    shape = model_shape(policy.name, LoraOptions(rank=4))
    layer = planner._kept(shape, full=False, narrow=False, rank=4)
    planned = 2 * (100 + 6 * 80) * (layer + planner._kept_behind(shape, 180, 4))
    assert planned == pytest.approx(bytes_kept(policy, [(prompt, answer) for answer in answers]), rel=0.1)


def test_full_training_keeps_sixteen_bytes_and_a_shadow_of_each_parameter(model_dir) -> None:
    shape = model_shape(str(model_dir), None)
    plan = memory_plan(settings(model_dir), shape, NEEDS)
    sizes = [plan.parts[name][0] / shape.parameters for name in ("weights", "gradients ", "optimiser", "shadow")]
    assert sizes == [4, 4, 8, 4]
    evaluation = memory_plan(settings(model_dir), shape, replace(NEEDS, learns=False))
    assert not {"optimiser", "gradients", "shadow", "activations"} & evaluation.parts.keys()
    narrow = memory_plan(settings(model_dir, "dtype=bfloat16"), shape, replace(NEEDS, learns=False))
    assert narrow.parts["weights"][0] == 2 * shape.parameters


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("micro_batch_tokens=32", "activations"),
        ("activation_checkpointing=true", "activations"),
        ("sampling.batch_tokens=32", "keys and values"),
        ("lora.rank=2", "optimiser"),
        ("optimiser.states=8bit", "optimiser"),
        ("offload=both", "shadow"),
    ],
)
def test_every_setting_that_saves_memory_is_in_the_plan(model_dir, override: str, part: str) -> None:
    needs = replace(NEEDS, device=torch.device("cuda"))
    whole, less = settings(model_dir), settings(model_dir, override)
    shapes = [replace(model_shape(c.model, c.lora), layers=24) for c in (whole, less)]
    sizes = [memory_plan(*pair, needs).parts[part][0] for pair in zip((whole, less), shapes, strict=True)]
    assert sizes[1] < sizes[0]


def test_conversations_are_as_long_as_all_their_turns(model_dir) -> None:
    """Three turns of 12 tokens and two observations that may be as long: 60 tokens after the prompt's 20."""
    config = settings(model_dir, "env.turns=3")
    needs = needs_of(config, 20, config.make_env(), answers=8)
    assert needs.turns == 3
    shape = model_shape(str(model_dir), None)
    single = settings(model_dir, "sampling.max_new_tokens=60")
    activations = [memory_plan(*pair).parts["activations"] for pair in ((config, shape, needs), (single, shape, NEEDS))]
    assert activations[0] == activations[1]
    assert needs_of(single, 20, single.make_env()).turns == 1


def test_what_does_not_fit_is_refused_and_the_fewest_settings_named(model_dir) -> None:
    config, shape = settings(model_dir), model_shape(str(model_dir), None)
    many = replace(NEEDS, answers=64)
    peak = memory_plan(config, shape, many).peak
    assert planned(config, replace(many, available=1.1 * peak)).endswith("free")
    short = replace(many, available=0.8 * peak)
    assert "it may run out of memory; to be sure, set micro_batch_tokens=512" in planned(config, short)
    check_memory(config, short)
    with pytest.raises(OutOfMemoryError, match=r"set lora.rank=16"):
        check_memory(config, replace(NEEDS, available=14.0 * shape.parameters))
    with pytest.raises(OutOfMemoryError, match="take a smaller model"):
        check_memory(config, replace(NEEDS, available=1.0))


def test_a_run_that_cannot_fit_loads_nothing(config_of, model_dir, monkeypatch) -> None:
    monkeypatch.setattr(planner, "device_memory", lambda device: 1e5)
    monkeypatch.setattr(session, "load_policy", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(OutOfMemoryError, match="does not fit into the memory of its device"):
        train(config_of())
    found = CliRunner().invoke(app, ["train", "--plan", "--model", str(model_dir), "device=cpu"])
    assert found.exit_code == 2
    assert "optimiser" in found.output
    plan = sd.plan_memory(settings(model_dir, "device=cpu"), prompt_tokens=9)
    assert "0 MiB are free" in plan.line
    assert "peak" in str(plan)
