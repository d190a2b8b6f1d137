from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from selfdistill.errors import ConfigError, ModelError
from selfdistill.losses.head import Head
from selfdistill.models.load import LoraOptions, Policy, load_policy, load_tokenizer
from tiny_models import CHATML, FAMILIES, tiny_policy_dir

PAIRS = [((5, 6), (7, 8)), (tuple(range(10, 40)), (41, 42, 43)), ((5, 6, 9), (7,)), ((3,), tuple(range(60, 90)))]


def expected_logits(policy: Policy, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """The model's own logits, one sequence at a time and without padding."""
    logits_LV = policy.base(torch.tensor([prompt + completion])).logits[0]
    return logits_LV[len(prompt) - 1 : -1].float()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_head_of_answer_hidden_is_the_models_own_logits(policy_of, family: str, tied: bool) -> None:
    policy = policy_of(family, tied=tied)
    with torch.no_grad():
        got_NV = policy.head().logits(policy.answer_hidden(PAIRS))
        wanted_NV = torch.cat([expected_logits(policy, *pair) for pair in PAIRS])
    assert got_NV.shape == (2 + 3 + 1 + 30, len(policy.tokenizer))
    torch.testing.assert_close(got_NV, wanted_NV, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "softcap", "scale"), [("gemma2", 3.0, 1.0), ("granite", None, 1 / 4), ("cohere", None, 1 / 4)]
)
def test_the_head_knows_what_the_architecture_does_after_it(
    policy_of, family: str, softcap: float | None, scale: float
) -> None:
    head = policy_of(family).head()
    assert (head.softcap, head.scale) == (softcap, scale)


def test_an_architecture_with_an_unknown_step_after_its_head_is_refused(shelf, monkeypatch) -> None:
    monkeypatch.setattr(Policy, "head", lambda self: Head(self.output.weight, scale=2.0))
    with pytest.raises(ModelError, match="head of this architecture is not supported"):
        load_policy(str(tiny_policy_dir(shelf)), device="cpu")


def test_gradients_flow_when_they_are_enabled_and_only_then(policy) -> None:
    assert policy.answer_hidden(PAIRS).requires_grad
    policy.answer_hidden(PAIRS).sum().backward()
    assert all(value.grad is not None for value in policy.trainable().values())
    with torch.no_grad():
        assert not policy.answer_hidden(PAIRS).requires_grad


def test_the_head_is_never_applied_to_all_positions(policy) -> None:
    calls: list[int] = []
    policy.output.register_forward_hook(lambda *_: calls.append(1))
    policy.answer_hidden(PAIRS)
    assert calls == []


def test_no_pairs_give_no_rows(policy) -> None:
    assert policy.answer_hidden([]).shape == (0, 32)


def test_an_empty_side_or_too_long_a_pair_is_refused(policy) -> None:
    with pytest.raises(ModelError, match="0 and 1 tokens"):
        policy.answer_hidden([((), (1,))])
    with pytest.raises(ModelError, match=r"200 \+ 57 tokens[\s\S]*at most 256"):
        policy.answer_hidden([((1,) * 200, (1,) * 57)])
    assert policy.answer_hidden([((1,) * 200, (1,) * 56)]).shape == (56, 32)


def test_tied_weights_are_trained_once(policy_of) -> None:
    tied, untied = policy_of(tied=True), policy_of(tied=False)
    assert "lm_head.weight" not in tied.trainable()
    assert "lm_head.weight" in untied.trainable()
    assert any(value is tied.head().weight_VD for value in tied.trainable().values())


def test_end_tokens_are_those_of_the_tokenizer_and_of_the_chat_template(policy_of) -> None:
    gemma, qwen = policy_of("gemma3"), policy_of("qwen3")
    assert {gemma.tokenizer.decode([end]) for end in gemma.end_ids} == {"<eos>", "<end_of_turn>"}
    assert {qwen.tokenizer.decode([end]) for end in qwen.end_ids} == {"<|im_end|>"}


def test_end_tokens_listed_by_the_generation_config_count(tmp_path: Path) -> None:
    directory = tiny_policy_dir(tmp_path)
    file = directory / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 77]}))
    assert load_policy(str(directory), device="cpu").end_ids == {2, 77}


def test_the_model_is_in_eval_mode_and_describes_itself(policy) -> None:
    assert not policy.model.training
    assert policy.context_length == 256
    assert policy.description.endswith("Qwen3ForCausalLM on cpu, float32, 31 k parameters, 31 k trained")


def test_a_missing_pad_token_becomes_the_end_token(tmp_path: Path) -> None:
    policy = load_policy(str(tiny_policy_dir(tmp_path, pad=False)), device="cpu")
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id
    with torch.no_grad():
        got = policy.answer_hidden(PAIRS)
        alone = torch.cat([policy.answer_hidden([pair]) for pair in PAIRS])
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_no_chat_template_names_the_way_out(tmp_path: Path) -> None:
    directory = str(tiny_policy_dir(tmp_path, chat=False))
    with pytest.raises(ModelError, match="chat_template=FILE"):
        load_policy(directory, device="cpu")
    policy = load_policy(directory, device="cpu", chat_template=CHATML)
    assert "<|im_start|>user" in policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False
    )


def test_a_missing_directory_an_empty_one_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model"):
        load_policy(str(tmp_path / "absent"), device="cpu")
    with pytest.raises(ModelError, match=r"has config\.json or adapter_config\.json"):
        load_policy(str(tmp_path), device="cpu")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match="there is no such model"):
        load_policy(str(tmp_path / "notes.txt"), device="cpu")


def test_a_hub_name_without_a_network_is_one_clear_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said: list[str] = []
    with pytest.raises(ModelError, match=r"someone/some-model[\s\S]*use sapling"):
        load_policy("someone/some-model", device="cpu", progress=said.append)
    assert said == ["looking for someone/some-model on the hub"]


def test_an_unknown_sapling_is_refused() -> None:
    with pytest.raises(ModelError, match="sapling-giant"):
        load_policy("sapling-giant", device="cpu")


def test_damaged_weights_are_a_model_error(tmp_path: Path) -> None:
    directory = tiny_policy_dir(tmp_path)
    (directory / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(str(directory), device="cpu")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = tiny_policy_dir(tmp_path)
    other = tiny_policy_dir(tmp_path / "other", "gemma2")  # one token more
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ModelError, match="the tokenizer knows 388 tokens, the model 387"):
        load_policy(str(directory), device="cpu")


def test_a_token_beyond_the_model_is_refused_wherever_the_tokenizer_has_gaps(tmp_path: Path) -> None:
    directory = tiny_policy_dir(tmp_path)
    file = directory / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["vocab"][next(word for word, place in tree["model"]["vocab"].items() if place == 300)] = 500
    tree["model"]["merges"] = []
    file.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="the tokenizer knows 501 tokens, the model 387"):
        load_policy(str(directory), device="cpu")


def test_devices_and_precisions_that_are_not_there_are_refused(shelf) -> None:
    directory = str(tiny_policy_dir(shelf))
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        load_policy(directory, device="coda")
    with pytest.raises(ConfigError, match="cuda:99"):
        load_policy(directory, device="cuda:99")
    with pytest.raises(ConfigError, match="float16 overflows"):
        load_policy(directory, device="cpu", dtype="float16")


def test_bfloat16_computes_coarsely_and_trains_in_float32(policy_of) -> None:
    exact, coarse = policy_of(), policy_of(dtype="bfloat16")
    assert {value.dtype for value in coarse.trainable().values()} == {torch.float32}
    with torch.no_grad():
        differences = (coarse.answer_hidden(PAIRS).float() - exact.answer_hidden(PAIRS)).abs()
    assert 1e-4 < differences.max().item() < 0.5


def test_a_model_that_is_not_trained_is_stored_as_it_computes_and_asks_for_no_gradient(shelf) -> None:
    fixed = load_policy(str(tiny_policy_dir(shelf)), device="cpu", dtype="bfloat16", trained=False)
    assert {value.dtype for value in fixed.model.parameters()} == {torch.bfloat16}
    assert fixed.trainable() == {}
    assert not fixed.answer_hidden(PAIRS).requires_grad
    assert fixed.description.endswith("0 trained")


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained(policy_of) -> None:
    plain, adapted = policy_of(), policy_of(lora=LoraOptions(rank=2, alpha=4))
    with torch.no_grad():
        assert torch.equal(plain.answer_hidden(PAIRS), adapted.answer_hidden(PAIRS))
    assert all("lora_" in name for name in adapted.trainable())
    # 2 layers; q, o: 2·(32+32), k, v: 2·(32+16), gate, up, down: 2·(32+64) parameters each
    assert sum(value.numel() for value in adapted.trainable().values()) == 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert adapted.description.endswith("2.05 k trained")


def test_adapters_of_one_seed_are_equal_and_leave_the_global_generator_alone(policy_of) -> None:
    torch.manual_seed(1)
    one = policy_of(lora=LoraOptions(rank=2, seed=3))
    drawn = torch.rand(1)
    torch.manual_seed(2)
    same, other = policy_of(lora=LoraOptions(rank=2, seed=3)), policy_of(lora=LoraOptions(rank=2, seed=4))
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    factors = [next(iter(policy.trainable().values())) for policy in (one, same, other)]
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_under_bfloat16_the_base_is_stored_small_and_the_factors_wide(policy_of) -> None:
    policy = policy_of(lora=LoraOptions(rank=2), dtype="bfloat16")
    assert {value.dtype for value in policy.trainable().values()} == {torch.float32}
    assert policy.head().weight_VD.dtype == torch.bfloat16


def test_a_saved_adapter_is_loaded_with_its_base_and_trained_on(adapted, tmp_path: Path) -> None:
    with torch.no_grad():
        for value in adapted.trainable().values():
            value.add_(0.05)
    adapted.model.save_pretrained(tmp_path / "adapter")
    adapted.tokenizer.save_pretrained(tmp_path / "adapter")
    again = load_policy(str(tmp_path / "adapter"), device="cpu")
    tokenizer, length = load_tokenizer(str(tmp_path / "adapter"))
    assert (tokenizer.get_vocab(), length) == (again.tokenizer.get_vocab(), again.context_length)
    assert again.trainable().keys() == adapted.trainable().keys()
    with torch.no_grad():
        assert torch.equal(again.answer_hidden(PAIRS), adapted.answer_hidden(PAIRS))
    with pytest.raises(ConfigError, match="already holds a LoRA adapter"):
        load_policy(str(tmp_path / "adapter"), device="cpu", lora=LoraOptions())


def test_an_adapter_on_the_head_and_one_on_nothing_are_refused(policy_of) -> None:
    with pytest.raises(ModelError, match="carries an adapter"):
        policy_of(tied=False, lora=LoraOptions(targets=("q_proj", "lm_head")))
    with pytest.raises(ConfigError, match="name no layer"):
        policy_of(lora=LoraOptions(targets=("no_such_layer",)))


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}])
def test_lora_options_check_their_ranges(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        LoraOptions(**options)
