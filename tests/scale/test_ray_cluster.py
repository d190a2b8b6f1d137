"""A run on a simulated cluster of four nodes, and what of it is killed. Needs Ray, which `make ray` installs beside the
checkout."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.on_ray import train_on_ray
from selfdistill.config import RunConfig, load_config, resolved
from selfdistill.envs.base import score_all
from selfdistill.errors import RunError
from selfdistill.runs import Event, Note, StepEnd, read_run
from selfdistill.scale.workers import RemoteEnvironment, connected, workers
from selfdistill.training.loop import train
from selfdistill.types import Completion

ray = pytest.importorskip("ray", reason="Ray is not installed: `make ray`")
# Ray gives its processes a low priority, and waits for them 30 s: too little beside other work on two cores.
os.environ |= {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_niceness": "0"}
SMALL = ["model=sapling-small", "tasks_per_step=2", "rollouts_per_task=4", "evaluation.tasks=2", "guards.action=off"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.spare = [made.add_node(num_cpus=1) for _ in range(3)]
    connected(made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def config(out: Path, *settings: str) -> RunConfig:
    return load_config(None, [*SMALL, "steps=3", "checkpoint_every=1", f"out={out}", *settings])


def learned(path: Path) -> list[tuple[float, ...]]:
    """What every step found and learned."""
    run = read_run(path)
    rollouts = [(r.step, r.uid, r.token_ids, r.reward, r.feedback) for r in run.rollouts()]
    assert len({(step, uid) for step, uid, *_ in rollouts}) == len(rollouts), "a rollout was recorded twice"
    return [*[(s.step, s.loss, s.grad_norm, s.reward, s.completions_sampled) for s in run.steps], *rollouts]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    return learned(train(config(tmp_path_factory.mktemp("alone") / "run")))


def test_workers_score_as_one_process_while_one_and_a_node_are_killed(cluster) -> None:
    settings = config(Path("unused"))
    env, notes = settings.make_env(), list[str]()
    texts = [f"```python\ndef f(x):\n    return x[:{n}]\n```" for n in range(24)]
    pairs = [(env.tasks("train")[n % 8], Completion(f"1-{n}", text)) for n, text in enumerate(texts)]
    expected = score_all(env, pairs, seed=settings.seed)
    with workers(ray, resolved(settings), 3, notes.append) as pool:
        remote = RemoteEnvironment(env, pool)
        assert score_all(remote, pairs, seed=settings.seed) == expected
        os.kill(ray.get(pool.handles[0].opened.remote())[1], signal.SIGKILL)
        assert score_all(remote, pairs, seed=settings.seed) == expected
        assert len(notes) == 1
        cluster.remove_node(cluster.spare.pop(), allow_graceful=False)
        cluster.spare.append(cluster.add_node(num_cpus=1))
        assert score_all(remote, pairs, seed=settings.seed) == expected


def killer(chosen: Callable[[str], bool]) -> Callable[[Event], None]:
    """A callback that kills a process of the run after its first step, once."""
    killed, notes = list[int](), list[str]()

    def kill() -> None:
        import psutil  # Ray brings it along

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if chosen(" ".join(process.cmdline())):
                    process.kill()
                    killed.append(process.pid)
                    return

    def callback(event: Event) -> None:
        if isinstance(event, StepEnd) and event.record.step == 1 and not killed:
            kill()
        if isinstance(event, Note):
            notes.append(event.text)

    callback.killed, callback.notes = killed, notes  # type: ignore[attr-defined]
    return callback


@pytest.mark.parametrize("what", ["nothing", "learner", "its seat"])
def test_a_run_on_a_cluster_is_that_of_one_process(cluster, alone, tmp_path: Path, what: str) -> None:
    """Also when the learner, or the process of Ray that holds it, is killed after the first step."""
    names = {"nothing": "no such process", "learner": "-m selfdistill train --quiet --config", "its seat": "ray::Seat"}
    callback = killer(lambda text: names[what] in text)
    settings = config(tmp_path / "run", "scale.env_workers=2")
    assert learned(train_on_ray(settings, cluster.address, callback, resume=False)) == alone
    assert len(callback.killed) == sum("a learner was lost" in note for note in callback.notes) == (what != "nothing")


@pytest.fixture(scope="module")
def pair(cluster, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Of a run of two learners, each on a machine of its own, with a worker each."""
    settings = config(tmp_path_factory.mktemp("pair") / "run", "scale.learners=2", "scale.env_workers=2")
    return learned(train_on_ray(settings, cluster.address, lambda event: None, resume=False))


def test_two_learners_give_the_run_of_one(alone, pair) -> None:
    (one, first), (two, second) = ((found[:3], found[3:]) for found in (alone, pair))
    assert first == second, "rollouts"
    for (_, loss, norm, *rest), (_, other_loss, other_norm, *others) in zip(one, two, strict=True):
        assert (loss, norm) == (pytest.approx(other_loss, rel=1e-5), pytest.approx(other_norm, rel=1e-5))
        assert rest == others
    print([abs(a[2] - b[2]) / b[2] for a, b in zip(one, two, strict=True)])  # noqa: T201 (a measurement)


def test_a_lost_learner_of_two_starts_the_group_again(cluster, pair, tmp_path: Path) -> None:
    callback = killer(lambda text: "-m selfdistill train --quiet --config" in text)
    settings = config(tmp_path / "run", "scale.learners=2", "scale.env_workers=2")
    assert learned(train_on_ray(settings, cluster.address, callback, resume=False)) == pair
    assert len(callback.killed) == sum("a learner was lost" in note for note in callback.notes) == 1


def test_ctrl_c_ends_a_run_after_its_step_and_it_resumes(cluster, alone, tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "steps=12")

    stopped = list[int]()

    def stop(event: Event) -> None:
        if isinstance(event, StepEnd) and not stopped:
            stopped.append(event.record.step)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="saved in"):
        train_on_ray(settings, cluster.address, stop, resume=False)
    with pytest.raises(RunError, match="already in use"):
        train_on_ray(settings, cluster.address, lambda event: None, resume=False)
    again = learned(train_on_ray(settings, cluster.address, lambda event: None, resume=True))
    whole = learned(train(replace(settings, out=str(tmp_path / "whole"))))
    assert again == whole


def test_two_learners_on_one_run_directory_are_refused(cluster, tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "steps=2")
    train_on_ray(settings, cluster.address, lambda event: None, resume=False)
    longer = replace(settings, steps=60)
    second = list[BaseException]()

    def again() -> None:
        try:
            train(longer, resume=True)
        except BaseException as error:  # noqa: BLE001
            second.append(error)

    def stop(event: Event) -> None:
        if isinstance(event, StepEnd) and event.record.step == 3:
            again()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_on_ray(longer, cluster.address, stop, resume=True)
    assert "another process is writing to this run" in str(second[0])


def test_a_model_that_a_machine_does_not_have_is_named(cluster, tmp_path: Path) -> None:
    settings = replace(config(tmp_path / "run"), model=str(tmp_path / "no-model"))
    with pytest.raises(RunError, match="there is no such model"):
        train_on_ray(settings, cluster.address, lambda event: None, resume=False)
