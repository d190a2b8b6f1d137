"""What saves memory changes no result; a device that runs out of it costs half a micro-batch, or a resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError, OutOfMemoryError
from selfdistill.models.activations import recompute_activations
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.models.load import LoraOptions
from selfdistill.models.teacher import Ema, Frozen, Teacher
from selfdistill.runs import read_run
from selfdistill.training import update
from selfdistill.training.loop import train
from selfdistill.training.optimiser import new_optimizer
from step_parts import assert_same, batch_of, distilled, moved, precise
from step_parts import update as updated


def kept_bytes(policy) -> int:
    """What autograd keeps of one forward pass, beside weights."""
    kept = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, torch.nn.Parameter):
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        policy.answer_hidden([(tuple(range(5, 45)), (7, 8, 9))])
    return sum(value.untyped_storage().nbytes() for value in kept.values())


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(tiny_policy, family: str) -> None:
    policy = precise(tiny_policy(family))
    batch = batch_of(policy, Teacher(Frozen(), policy), distilled())
    moved(policy)
    (_, wanted), before = updated(policy, batch), kept_bytes(policy)
    recompute_activations(policy)
    assert_same(updated(policy, batch, tokens=8)[1], wanted)
    assert kept_bytes(policy) < 0.5 * before


def test_recomputed_activations_of_an_adapter_under_bfloat16(tiny_policy) -> None:
    policy = moved(tiny_policy(lora=LoraOptions(rank=2), dtype="bfloat16"))
    batch = batch_of(policy, Teacher(Ema(), policy), distilled())
    moved(policy, seed=1)
    wanted = updated(policy, batch)[1]
    recompute_activations(policy)
    found = updated(policy, batch)[1]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not policy.model.training


def trained_weights(policy, config: RunConfig) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """Three steps along fixed gradients, the optimiser restored after the second."""
    weights = list(policy.trainable().values())
    optimizer, generator = new_optimizer(config, weights), torch.Generator().manual_seed(0)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        for value in weights:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
        if step == 1:
            saved, optimizer = optimizer.state_dict(), new_optimizer(config, weights)
            optimizer.load_state_dict(saved)
    return {name: value.detach().clone() for name, value in policy.trainable().items()}, optimizer


def test_what_waits_on_the_host_gives_the_same_bits(tiny_policy) -> None:
    plain, _ = trained_weights(tiny_policy(), RunConfig())
    hosted, optimizer = trained_weights(tiny_policy(), RunConfig(offload="both"))
    assert type(optimizer).__name__ == "Offloaded"
    assert all(torch.equal(hosted[name], value) for name, value in plain.items())
    policy = tiny_policy()
    teachers = [Teacher(Ema(0.3), policy, on_host=on_host) for on_host in (False, True)]
    moved(policy)
    for teacher in teachers:
        teacher.update(policy)
    here, there = (teacher.state_dict() for teacher in teachers)
    assert all(torch.equal(there[name], value) for name, value in here.items())


def test_states_on_the_host_are_restored_without_the_device() -> None:
    """A device that holds no numbers loses what is moved there."""
    saved = new_optimizer(RunConfig(), [torch.nn.Parameter(torch.ones(3)) for _ in range(2)])
    for weight in saved.param_groups[0]["params"]:
        weight.grad = torch.ones(3)
    saved.step()
    elsewhere = [torch.nn.Parameter(torch.empty(3, device="meta")) for _ in range(2)]
    restored = new_optimizer(RunConfig(offload="optimiser"), elsewhere)
    restored.load_state_dict(saved.state_dict())
    for weight, like in zip(elsewhere, saved.state.values(), strict=True):
        own = restored.state[weight]
        assert all(torch.equal(own[name], like[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_states_in_8_bits_need_their_extra(tiny_policy, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    config = replace(RunConfig(), optimiser=replace(RunConfig().optimiser, states="8bit"))
    with pytest.raises(ConfigError, match=r"optimiser.states=8bit needs the package torchao[\s\S]*selfdistill\[8bit\]"):
        new_optimizer(config, list(tiny_policy().trainable().values()))


def failing(monkeypatch, name: str, call: int) -> None:
    """Lets a function of `training/update.py` run out of memory at this call."""
    real, count = getattr(update, name), [0]

    def called(*arguments, **options):
        count[0] += 1
        if count[0] == call:
            raise CUDA_OOM
        return real(*arguments, **options)

    monkeypatch.setattr(update, name, called)


CUDA_OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_OOM = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def weights_of(path) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(path / "checkpoints") / "model.safetensors")


def test_micro_batches_are_halved_once_and_the_result_is_the_same(config_of, tmp_path, monkeypatch, recorder) -> None:
    """In its second backward pass, after part of its gradient was summed."""
    options = {"steps": 1, "micro_batch_tokens": 40}
    wanted = train(config_of(out=str(tmp_path / "whole"), **options))
    failing(monkeypatch, "_backward", 2)
    path = train(config_of(**options), recorder)
    for name, value in weights_of(wanted).items():
        torch.testing.assert_close(weights_of(path)[name], value, rtol=0, atol=2e-6)
    assert len([note for note in recorder.notes if "ran out of memory" in note]) == 1
    assert [record.extra.get("micro_batch_tokens") for record in read_run(path).steps] == [20]


def test_else_the_run_stops_saved_and_resumes(config_of, monkeypatch) -> None:
    config = config_of(steps=3, micro_batch_tokens=64)
    with monkeypatch.context() as patched:
        real, steps = update.update_policy, [0]

        def policy_update(*arguments, **options):
            steps[0] += 1
            if steps[0] == 3:
                patched.setattr(update, "_backward", lambda *_: (_ for _ in ()).throw(CPU_OOM))
            return real(*arguments, **options)

        patched.setattr(update, "update_policy", policy_update)
        with pytest.raises(OutOfMemoryError, match=r"can't allocate[\s\S]*micro_batch_tokens=16[\s\S]*train --resume"):
            train(config)
    saved = latest_checkpoint(read_run(config.out).path / "checkpoints")
    assert saved is not None
    assert saved.name == "step-000002"
    assert len(read_run(train(replace(config, micro_batch_tokens=16), resume=True)).steps) == 3
