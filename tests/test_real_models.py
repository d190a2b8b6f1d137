"""Two steps of each family that users bring, from model directories as `transformers` writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.config import from_settings
from selfdistill.models.load import load_policy
from selfdistill.runs import read_run
from selfdistill.training.loop import train
from selfdistill.types import DropReason
from tiny_models import tiny_policy_dir

WORLD = Path(__file__).parent / "training" / "loop_envs.py"
Two = Callable[..., tuple[Path, Path]]


@pytest.fixture
def two_steps(tmp_path: Path) -> Two:
    """The model's directory and that of a run of two SDPO steps with a moving teacher."""

    def run(family: str, *, tied: bool = True, pad: bool = True, **settings: Any) -> tuple[Path, Path]:
        model = tiny_policy_dir(tmp_path / "models", family, tied=tied, pad=pad)
        tree = {
            "model": str(model),
            "env": f"{WORLD}:hashed",
            "teacher": {"kind": "ema", "rate": 0.1},
            "out": str(tmp_path / "run"),
            "device": "cpu",
            "steps": 2,
            "tasks_per_step": 4,
            "rollouts_per_task": 4,
            "sampling": {"max_new_tokens": 12},
            "evaluation": {"tasks": 1, "every": 0},
            "optimiser": {"lr": 1e-3, "warmup_steps": 0},
        }
        return model, train(from_settings({**tree, **settings}))

    return run


def assert_learned(path: Path) -> None:
    """Both steps had something to learn from, and their numbers are numbers."""
    run = read_run(path)
    assert len(run.steps) == 2
    for record in run.steps:
        assert record.samples >= 8
        assert record.extra["skipped"] == 0
        assert record.loss > 0
        assert 0 < record.grad_norm < math.inf
        assert record.log_ratio > 0
    for rollout in run.rollouts():
        assert rollout.drop in (None, DropReason.ONLY_SUCCESS)
        assert all(map(math.isfinite, (*rollout.log_ratio, *rollout.logprobs)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3"])
def test_two_steps_move_the_model_and_save_one_that_transformers_loads(two_steps: Two, family, tied) -> None:
    model, run = two_steps(family, tied=tied)
    assert_learned(run)
    saved = run / "checkpoints" / "step-000002"
    before, after = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (model, saved))
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) == tied
    moved = [name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))]
    assert len(moved) == len(list(after.named_parameters())), "every weight takes part"
    policy = load_policy(str(saved), device="cpu")
    prompt, answer = tuple(AutoTokenizer.from_pretrained(saved)("What is seven plus five?").input_ids), (9, 10, 11)
    with torch.no_grad():
        found = policy.head().logits(policy.answer_hidden([(prompt, answer)]))
        wanted = after(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
def test_a_missing_pad_token_is_no_matter(two_steps: Two, family: str) -> None:
    model, run = two_steps(family, pad=False)
    assert AutoTokenizer.from_pretrained(model).pad_token is None
    assert_learned(run)


def test_bounded_logits_are_bounded_in_what_is_sampled_and_learned(two_steps: Two) -> None:
    """Soft-capping at 3 bounds the ratio of any two tokens by e^6: no log-probability is below −(6 + log V)."""
    _, run = two_steps("gemma2")
    lowest = min(value for rollout in read_run(run).rollouts() for value in rollout.logprobs)
    assert -(6 + math.log(400)) < lowest < -math.log(400)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3"])
def test_in_bfloat16_the_weights_stay_in_float32(two_steps: Two, family: str) -> None:
    model, run = two_steps(family, dtype="bfloat16", optimiser={"lr": 1e-6, "warmup_steps": 0})
    assert_learned(run)
    before = load_file(model / "model.safetensors")
    after = load_file(run / "checkpoints" / "step-000002" / "model.safetensors")
    shadow = load_file(run / "checkpoints" / "step-000002" / "teacher.safetensors")
    for name in before:
        assert after[name].dtype == shadow[f"shadow.{name}"].dtype == torch.float32
    change = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert 1e-6 < change < 1e-5, "steps far below the spacing of bfloat16 are kept"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
def test_a_lora_student_trains_and_shadows_its_adapter_only(two_steps: Two, family: str, dtype: str) -> None:
    model, run = two_steps(family, dtype=dtype, lora={"rank": 4, "alpha": 8})
    assert_learned(run)
    saved = run / "checkpoints" / "step-000002"
    assert not (saved / "model.safetensors").exists()
    shadow = load_file(saved / "teacher.safetensors")
    assert all("lora_" in name for name in shadow if name != "batches")
    size = sum(value.numel() for value in shadow.values())
    assert size < sum(value.numel() for value in load_file(model / "model.safetensors").values()) / 2
    assert any(
        value.any() for name, value in load_file(saved / "adapter_model.safetensors").items() if "lora_B" in name
    )
    again = load_policy(str(saved), device="cpu", dtype=dtype)
    assert again.has_adapter
