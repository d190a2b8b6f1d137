"""Learners over ranks: the single process again, whatever their number; what they refuse; how they end."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._C._distributed_c10d import FileStore

from core_parts import sample_of
from selfdistill.config import Values, load_config
from selfdistill.envs.rewards import as_environment
from selfdistill.errors import ConfigError, RankError
from selfdistill.files import read_text
from selfdistill.runs import RunDir, no_callback, read_run
from selfdistill.scale.launch import check_ranks, learners, opened_by_first
from selfdistill.scale.ranks import Joined, joined, store_at
from selfdistill.training.loop import train
from selfdistill.training.session import open_session

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(filter(None, (str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH"))))
    command, env = [sys.executable, SCRIPT, folder], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    [file] = [f for f in (run / "checkpoints" / f"step-{step:06d}").glob("*.safetensors") if f.stem != "teacher"]
    return load_file(file)


@pytest.mark.parametrize("name", ["sdpo", "many", "served"])
def test_two_ranks_give_the_run_of_one_process(runs, name: str):
    folder, found = runs
    one, two = (found["steps"][f"{name}-{size}"] for size in (1, 2))
    for (loss, norm, samples), (other_loss, other_norm, other_samples) in zip(one[:3], two[:3], strict=True):
        assert samples == other_samples > 0
        assert loss == pytest.approx(other_loss, rel=1e-5, abs=1e-6)
        assert norm == pytest.approx(other_norm, rel=1e-5)
    mine, theirs = (weights_of(folder / f"{name}-{size}", 3) for size in (1, 2))
    assert mine.keys() == theirs.keys()
    start = load_file(folder / "tiny-qwen3-0" / "model.safetensors")
    moved = [n for n in mine if n in start or "lora_B" in n]  # that factor starts at zero
    change = math.sqrt(sum(float((mine[n] - start.get(n, torch.zeros(()))).square().sum()) for n in moved))
    difference = math.sqrt(sum(float((mine[n] - theirs[n]).square().sum()) for n in moved))
    assert difference <= 1e-3 * change


def test_a_checkpoint_of_two_ranks_is_an_ordinary_model_and_resumes_in_one_process(runs):
    from transformers import AutoModelForCausalLM

    folder, found = runs
    model = AutoModelForCausalLM.from_pretrained(folder / "sdpo-2" / "checkpoints" / "step-000003")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    config = json.loads(read_text(folder / "sdpo-2" / "checkpoints" / "step-000003" / "config.json"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    (loss, norm, _), (other_loss, other_norm, _) = (found["steps"][f"sdpo-{size}"][3] for size in (1, 2))
    assert loss == pytest.approx(other_loss, rel=1e-4, abs=1e-6)  # moments of the optimiser and the teacher were read
    assert norm == pytest.approx(other_norm, rel=1e-3, abs=1e-6)


def test_a_rank_that_is_killed_is_named_and_the_resumed_run_is_bit_identical(runs):
    folder, found = runs
    assert "rank 1 ended" in found["lost"]
    assert "resume" in found["lost"]
    assert found["steps"]["killed"] == found["steps"]["many-2"]
    whole, again = (weights_of(folder / name, 3) for name in ("many-2", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_rank_that_scale_learners_starts_is_one_of_two(runs):
    _, found = runs
    assert found["steps"]["started"] == found["steps"]["sdpo-2"][:1]


def test_rank_0_samples_by_servers_for_all(runs):
    folder, _ = runs
    one, two = (read_run(folder / f"served-{size}") for size in (1, 2))
    assert [step.extra["staleness"] for step in two.steps] == [0, 1, 1]
    assert all(step.extra["sampler_gap"] < 1e-4 for step in two.steps if "sampler_gap" in step.extra)
    answers = [[(r.uid, r.token_ids, r.policy_version) for r in run.rollouts()] for run in (one, two)]
    assert answers[0] == answers[1]
    assert not list(folder.glob("*.samplers")), "weights for servers are removed"


def test_a_rank_without_the_model_is_named(runs):
    _, found = runs
    assert "rank 1 failed\n  got  ModelError: there is no such model\n  got  /models/of-another-node" in found["failed"]


def test_shards_that_one_rank_cannot_write_or_read_are_named_on_all(runs):
    _, found = runs
    assert "could not be written" in found["unwritten"]
    assert "rank 1: OSError: [Errno 27] File too large" in found["unwritten"]
    assert "cannot be resumed from" in found["unread"]
    assert "rank 1: OSError: [Errno 5] Input/output error" in found["unread"]


def entered(context: AbstractContextManager[object]) -> None:
    with context:
        pass


def test_ranks_that_do_not_fit_together_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Joined, "gather", lambda self, own: [*own, "another"])
    with pytest.raises(RankError, match="do not have the same settings\n  got  another on rank 1"):
        Joined(0, 2).agree("settings", {"steps": 3})
    monkeypatch.setattr(Joined, "same", lambda self, work: None)
    with pytest.raises(RankError, match="rank 1 does not see the run directory"):
        entered(opened_by_first(Joined(1, 2), tmp_path / "run", lambda: RunDir.resume(tmp_path, 0, {})))
    monkeypatch.setattr("selfdistill.scale.ranks.JOIN_S", 0.1)
    with pytest.raises(RankError, match=r"rank 1 did not start[\s\S]*2 ranks learn together"):
        entered(joined(0, 2, FileStore(str(tmp_path / "store"), 2), device="cpu"))
    values = Values(env=as_environment(lambda task, done: 1.0), tasks=[{"prompt": "Say yes."}])
    own = load_config(None, ["scale.learners=2", ("env", "python:f"), ("data", "python:data")], values=values)
    with pytest.raises(ConfigError, match=r"given to other processes[\s\S]*torchrun --nproc-per-node 2 PROGRAM.py"):
        entered(learners(own, None, resume=False))
    judge: Any = SimpleNamespace(policy_weights="trained", name="judged")
    with pytest.raises(ConfigError, match="the run's own model cannot be its judge over ranks"):
        check_ranks(own, judge, Joined(0, 2))
    monkeypatch.setattr("selfdistill.scale.launch.pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="every learner needs a GPU of its own\n  got  2 learners, 1 GPUs"):
        entered(learners(own, None, resume=False))


def test_rank_0_alone_writes_records(runs):
    folder, _ = runs
    assert [step.step for step in read_run(folder / "sdpo-2").steps] == [1, 2, 3, 4]
    assert not list((folder / "sdpo-2" / "checkpoints").glob(".partial*"))


def test_samples_are_shared_by_tokens_and_prompts_stay_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Joined, "agree", lambda *_: None)  # there are no others here
    samples = [sample_of(f"{p}-{n}", (p,) * 4, (1,) * (5 + n)) for p in (1, 2, 3, 4) for n in range(3)]
    shares = [Joined(rank, 2).share(samples) for rank in (0, 1)]
    assert sorted(s.uid for share in shares for s in share) == sorted(s.uid for s in samples)
    assert not {s.student_prompt_ids for s in shares[0]} & {s.student_prompt_ids for s in shares[1]}
    assert sum(len(s.completion_ids) for s in shares[0]) == sum(len(s.completion_ids) for s in shares[1])
    alone = [Joined(rank, 2).share(samples[:3]) for rank in (0, 1)]  # one prompt: its answers are shared
    assert [len(share) for share in alone] in ([1, 2], [2, 1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.states=8bit", "optimiser.states = 8bit works in one process"),
        ("offload=both", "offload = both"),
        ("scale.sampler.transfer=nccl", r"transfer = nccl works in one process alone\n  got  2 learners"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_loaded(override: str, message: str, tmp_path: Path):
    config = load_config(
        None, ["model=there-is-no-such-model", "scale.learners=2", override, f"out={tmp_path / 'run'}"]
    )
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_torchrun_and_the_settings_must_agree(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = load_config(None, ["scale.learners=2"])
    with pytest.raises(ConfigError, match="torchrun decides"), learners(config, None, resume=False):
        pass


def test_learners_that_cannot_meet_are_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = load_config(None, ["device=cpu", f"out={tmp_path / 'run'}"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"cannot meet\n  got  RANK=None, WORLD_SIZE=2[\s\S]*RANK expected"):
        train(config)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=rf"MASTER_PORT={port}[\s\S]*address already in use"):
            train(config)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK is no number\n  got  first"):
        train(config)


def test_a_rank_that_ends_while_another_joins_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def closed(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed: Connection closed by peer")

    store = FileStore(str(tmp_path / "store"), 2)
    store.set("here/1", "-")
    store.set("end/1", "-ModelError: there is no such model")
    monkeypatch.setattr("torch.distributed.init_process_group", closed)
    with pytest.raises(RankError, match="rank 1 failed\n  got  ModelError: there is no such model"):
        entered(joined(0, 2, store, device="cpu"))


def test_other_commands_have_one_process(model_dir: Path):
    with pytest.raises(ConfigError, match="works in one process"):
        open_session(load_config(None, [f"model={model_dir}", "scale.learners=2"]), no_callback)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="this port is in use") as caught:
            store_at(address, 0, 2)
    assert address in str(caught.value)
    with pytest.raises(ConfigError, match="host:port"):
        store_at("127.0.0.1", 0, 2)
