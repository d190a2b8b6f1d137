"""Adapters of every kind that peft saves: trained a step, saved, resumed to the same bits; the others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.errors import ConfigError, ModelError
from selfdistill.losses import LossSpec, TokenWeights, fused_loss
from selfdistill.models.checkpoint import load_checkpoint, save_checkpoint
from selfdistill.models.factors import FactoredLinear
from selfdistill.models.load import LoraOptions, Policy, load_policy
from selfdistill.models.resumable import Resumable
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.models.teacher import Ema, Teacher
from tiny_models import padded, tiny_policy_dir

PAIRS = [((5, 6), (7, 8)), ((9, 10, 11), (12,))]
ANSWERS_N = torch.tensor([7, 8, 12])
KINDS: dict[str, dict[str, Any]] = {
    "factors": {"target_modules": ["q_proj", "down_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "bias of targets": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "every bias": {"target_modules": ["q_proj"], "bias": "all"},
    "a norm beside": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "the embedding beside": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "the head beside": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both beside": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "both beside, tied": {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def bases(shelf: Path) -> dict[bool, Path]:
    """Tiny models with biases, tied and not."""
    found = {}
    for tied in (True, False):
        source, found[tied] = tiny_policy_dir(shelf, tied=tied), shelf / f"biased-{tied}"
        model = AutoModelForCausalLM.from_pretrained(source, attention_bias=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, value in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(value)
        model.save_pretrained(found[tied])
        AutoTokenizer.from_pretrained(source).save_pretrained(found[tied])
    return found


def adapter_dir(base: Path, target: Path, config: Any, *, tokenizer: bool = False) -> str:
    """What a user of peft has after a training of their own: the adapter, mostly without a tokenizer."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.02)
    model.save_pretrained(target)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return str(target)


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **options)


class Run:
    """A policy in training by the fused kernel, with a teacher that follows."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
        self.teacher = Teacher(Ema(0.1), policy)

    def train(self) -> float:
        weights = TokenWeights(torch.zeros(3), advantage_N=torch.tensor([1.0, -0.5, 0.7]))
        hidden_ND = self.policy.answer_hidden(PAIRS)
        result = fused_loss(LossSpec(), hidden_ND, self.policy.head(), ANSWERS_N, weights)
        result.loss.backward()
        assert all(value.grad is not None for value in self.policy.trainable().values())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.teacher.update(self.policy)
        return result.loss.item()

    def parts(self) -> Resumable:
        return Resumable(self.policy, self.optimizer, self.teacher)

    def bits(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        moments = {f"{row} {key}": value for row, state in states.items() for key, value in state.items()}
        return {**self.policy.trainable(), **self.teacher.state_dict(), **moments}


def assert_same_bits(one: Run, other: Run) -> None:
    left, right = one.bits(), other.bits()
    assert left.keys() == right.keys()
    assert not [name for name, value in left.items() if not torch.equal(value, right[name])]


def assert_the_head_is_the_models(policy: Policy) -> None:
    """What the losses and the sampler read is what the model itself computes, after training too."""
    ids_BL = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        wanted_LV = policy.base(ids_BL).logits[0].float()
        found_LV = policy.head().logits(policy.backbone(ids_BL)[0])
        torch.testing.assert_close(found_LV, wanted_LV, atol=2e-5, rtol=1e-5)
    (drawn,) = sample(policy, [(5, 6, 7, 8, 9)], SamplingOptions(1, 0.0), seed=0, uids=["a"], version=0)
    assert drawn.token_ids == (int(wanted_LV[-1].argmax()),)
    assert drawn.logprobs == pytest.approx((float(wanted_LV[-1].log_softmax(-1).max()),), abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_is_trained_saved_and_resumed_to_the_same_bits(bases, tmp_path, kind, tied) -> None:
    if "tied" in kind and not tied:
        pytest.skip("there is nothing to tie")
    directory = adapter_dir(bases[tied], tmp_path / "own", lora(**KINDS[kind]))
    run = Run(load_policy(directory, device="cpu"))
    before = {name: value.detach().clone() for name, value in run.policy.trainable().items()}
    run.train()
    assert all(not torch.equal(before[name], value) for name, value in run.policy.trainable().items())
    path = save_checkpoint(tmp_path / "checkpoints", 1, run.parts(), extra={})
    resumed = Run(load_policy(directory, device="cpu"))
    load_checkpoint(path, resumed.parts())
    assert_same_bits(run, resumed)
    assert resumed.train() == run.train()
    assert_same_bits(run, resumed)
    assert_the_head_is_the_models(run.policy)


@pytest.mark.parametrize("kind", ["embedding", "both beside"])
def test_a_checkpoint_of_an_adapter_is_loaded_by_its_path_and_by_peft(bases, tmp_path, kind: str) -> None:
    run = Run(load_policy(adapter_dir(bases[True], tmp_path / "own", lora(**KINDS[kind])), device="cpu"))
    run.train()
    path = save_checkpoint(tmp_path / "checkpoints", 1, run.parts(), extra={})
    assert not any("base_layer" in name for name in load_file(path / "adapter_model.safetensors"))
    again = load_policy(str(path), device="cpu")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[True]), str(path))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again.answer_hidden(PAIRS), run.policy.answer_hidden(PAIRS))
        assert torch.equal(plain(ids).logits, run.policy.base(ids).logits)


def test_an_embedding_is_a_target_of_a_fresh_adapter_too(bases, tmp_path) -> None:
    options = LoraOptions(rank=2, targets=("q_proj", "embed_tokens"))
    run = Run(load_policy(str(bases[True]), device="cpu", lora=options))
    run.train()
    path = save_checkpoint(tmp_path, 1, run.parts(), extra={})
    resumed = Run(load_policy(str(bases[True]), device="cpu", lora=options))
    load_checkpoint(path, resumed.parts())
    assert_same_bits(run, resumed)
    assert_the_head_is_the_models(run.policy)


def test_what_an_adapter_trains_is_wide_where_the_rest_is_bfloat16(bases, tmp_path) -> None:
    config = lora(target_modules=["q_proj"], bias="all", modules_to_save=["lm_head"])
    policy = load_policy(adapter_dir(bases[False], tmp_path, config), device="cpu", dtype="bfloat16")
    assert {value.dtype for value in policy.trainable().values()} == {torch.float32}
    assert {value.dtype for value in policy.model.parameters() if not value.requires_grad} == {torch.bfloat16}
    Run(policy).train()


@pytest.mark.parametrize("kind", [{"target_modules": ["lm_head"]}, {"trainable_token_indices": [1, 2]}])
def test_a_head_that_is_not_one_matrix_is_refused_when_it_is_loaded(bases, tmp_path, kind: dict[str, Any]) -> None:
    """Single tokens of a tied embedding are single rows of the head."""
    tied = "trainable_token_indices" in kind
    with pytest.raises(ModelError, match="carries an adapter"):
        load_policy(adapter_dir(bases[tied], tmp_path, lora(**kind)), device="cpu")


def test_single_tokens_of_an_embedding_of_its_own_are_resumed(bases, tmp_path) -> None:
    config = lora(target_modules=["q_proj"], trainable_token_indices=[5, 7])
    directory = adapter_dir(bases[False], tmp_path / "own", config)
    run, resumed = (Run(load_policy(directory, device="cpu")) for _ in range(2))
    run.train()
    load_checkpoint(save_checkpoint(tmp_path / "kept", 1, run.parts(), extra={}), resumed.parts())
    assert_same_bits(run, resumed)


def test_virtual_tokens_are_refused(bases, tmp_path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="virtual tokens"):
        load_policy(adapter_dir(bases[True], tmp_path, config), device="cpu")


@pytest.mark.parametrize("larger", ["adapter", "base"])
@pytest.mark.parametrize("config", [KINDS["embedding"], KINDS["both beside"]])
def test_an_adapter_of_a_resized_base_is_refused_by_its_shapes(bases, tmp_path, config, larger: str) -> None:
    sizes = {"adapter": padded(bases[True], tmp_path / "more", 5), "base": bases[True]}
    trained_on, named = sizes[larger], sizes["base" if larger == "adapter" else "adapter"]
    directory = Path(adapter_dir(trained_on, tmp_path / "own", lora(**config)))
    rewrite(directory / "adapter_config.json", base_model_name_or_path=str(named))
    with pytest.raises(ModelError, match=r"does not fit its base[\s\S]*387[\s\S]*resized model"):
        load_policy(str(directory), device="cpu")


def test_an_adapter_with_added_tokens_and_the_old_base_is_refused(bases, tmp_path) -> None:
    directory = adapter_dir(bases[True], tmp_path, lora(target_modules=["q_proj"]), tokenizer=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ModelError, match=r"the tokenizer knows 389 tokens, the model 387[\s\S]*resized model"):
        load_policy(directory, device="cpu")


def test_an_adapter_of_a_deeper_or_a_flatter_base_is_refused(bases, tmp_path) -> None:
    directory = Path(adapter_dir(bases[True], tmp_path, lora(target_modules=["q_proj"])))
    file = directory / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if "layers.1." not in name}, file)
    with pytest.raises(ModelError, match=r"does not fit its base[\s\S]*lacks .*layers\.1\."):
        load_policy(str(directory), device="cpu")
    more = {name.replace("layers.1.", "layers.2."): value.clone() for name, value in whole.items()}
    save_file(whole | more, file)
    with pytest.raises(ModelError, match=r"no place for .*layers\.2\."):
        load_policy(str(directory), device="cpu")


def test_an_adapter_that_names_no_base_is_refused(bases, tmp_path) -> None:
    directory = Path(adapter_dir(bases[True], tmp_path, lora(target_modules=["q_proj"])))
    rewrite(directory / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not name its base"):
        load_policy(str(directory), device="cpu")


def test_an_adapter_upon_an_adapter_is_refused(bases, tmp_path) -> None:
    first = adapter_dir(bases[True], tmp_path / "first", lora(target_modules=["q_proj"]))
    second = Path(adapter_dir(bases[True], tmp_path / "second", lora(target_modules=["q_proj"])))
    rewrite(second / "adapter_config.json", base_model_name_or_path=first)
    with pytest.raises(ModelError, match="is an adapter itself"):
        load_policy(str(second), device="cpu")


def gradients(policy: Policy) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Hidden states, the gradient of a sum over them, and how many tensors autograd kept."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        hidden_ND = policy.answer_hidden(PAIRS).float()
    policy.model.zero_grad()
    (hidden_ND * torch.arange(hidden_ND.numel()).view_as(hidden_ND).sin()).sum().backward()
    gradient = torch.cat([value.grad.flatten() for value in policy.trainable().values()])
    return hidden_ND.detach(), gradient, len({value.data_ptr() for value in kept})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 6e-2)])
def test_layers_with_factors_compute_what_those_of_peft_do(
    policy_of, monkeypatch, dtype: str, tolerance: float
) -> None:
    monkeypatch.setattr("selfdistill.models.load.multiplies_bfloat16", lambda device: True)
    policy = policy_of(lora=LoraOptions(rank=2), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for value in policy.trainable().values():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    hidden_ND, gradient, count = gradients(policy)
    layers = [module for module in policy.model.modules() if type(module) is FactoredLinear]
    assert layers
    for layer in layers:
        layer.__class__ = Linear
    wanted_ND, wanted, copies = gradients(policy)
    assert torch.dist(hidden_ND, wanted_ND) <= tolerance * wanted_ND.norm()
    assert torch.dist(gradient, wanted) <= tolerance * wanted.norm()
    assert (count < copies) == (dtype == "bfloat16")


@pytest.mark.parametrize("targets", ["q_proj", "q_proj, embed_tokens", "self_attn.q_proj", ("q_proj", "v_proj")])
def test_targets_are_names_as_text_or_as_a_list(policy_of, targets: str | tuple[str, ...]) -> None:
    names = {name.rpartition(".lora_")[0] for name in policy_of(lora=LoraOptions(rank=2, targets=targets)).trainable()}
    listed = targets.replace(" ", "").split(",") if isinstance(targets, str) else targets
    assert len(names) == sum(1 if name == "embed_tokens" else 2 for name in listed)
    assert all(name.endswith(tuple(listed)) for name in names)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_prj", "did you mean 'q_proj'"),
        ("q_proj,mlp", "got  mlp"),
        ("norm", "got  norm"),
        ("all_linear", "all-linear"),
    ],
)
def test_unknown_targets_are_refused_with_the_nearest(policy_of, targets: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"name no layer[\s\S]*{said}"):
        policy_of(lora=LoraOptions(targets=targets))


@pytest.mark.parametrize("targets", ["", " , ", (), ("q_proj", "")])
def test_targets_without_a_name_are_refused(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="must name layers"):
        LoraOptions(targets=targets)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
