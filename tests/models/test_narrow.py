"""Frozen weights in bfloat16 that are multiplied in float32, on processors without products of bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import selfdistill.models.load as loading
from selfdistill.models.load import LoraOptions, load_policy
from selfdistill.models.narrow import FEW, NarrowLinear, multiply_in_float32
from tiny_models import tiny_policy_dir

PAIRS = [((5, 6, 7), (8, 9)), ((5, 6), (7, 8, 9))]


def test_products_and_gradients_are_those_of_the_converted_weight() -> None:
    layer = nn.Linear(8, 1100).bfloat16().requires_grad_(False)
    wide = nn.Linear(8, 1100)
    wide.load_state_dict(layer.state_dict())
    assert multiply_in_float32(layer)
    assert isinstance(layer, NarrowLinear)
    for rows in (3, FEW + 1):
        inputs = torch.randn(rows, 8, requires_grad=True)
        found, wanted = layer(inputs), wide(inputs)
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(output.square().sum(), inputs)[0] for output in (found, wanted)]
        torch.testing.assert_close(*gradients)


def test_an_adapter_on_such_a_base_learns_as_in_float32(tmp_path, monkeypatch) -> None:
    """The base is stored in bfloat16 by both; one converts it when it is loaded, the other at every product."""
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda device: False)
    whole = load_policy(str(tiny_policy_dir(tmp_path)), device="cpu")
    whole.base.bfloat16().save_pretrained(tmp_path / "narrow")
    whole.tokenizer.save_pretrained(tmp_path / "narrow")
    notes, gradients = [], []
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(
            str(tmp_path / "narrow"), device="cpu", dtype=dtype, lora=LoraOptions(rank=2), progress=notes.append
        )
        with torch.no_grad():
            for name, value in policy.trainable().items():
                value.fill_(0.05 if "lora_B" in name else 0.1)
        policy.answer_hidden(PAIRS).square().sum().backward()
        gradients.append([value.grad for value in policy.trainable().values()])
    assert policy.dtype == torch.float32
    assert {value.dtype for value in policy.base.parameters() if not value.requires_grad} == {torch.bfloat16}
    assert notes == ["this processor has no products of bfloat16: weights are stored in it and multiplied in float32"]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_layers_of_unknown_kinds_stay_as_they_are() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    model.bfloat16().requires_grad_(False)
    assert not multiply_in_float32(model)
    assert not any(isinstance(module, NarrowLinear) for module in model.modules())


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_is_trained_as_a_whole_is_not_changed(tmp_path, monkeypatch, trained: bool) -> None:
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda device: False)
    path = str(tiny_policy_dir(tmp_path / "model"))
    policy = load_policy(path, device="cpu", dtype="bfloat16", trained=trained)
    assert policy.dtype == (torch.bfloat16 if trained else torch.float32)
