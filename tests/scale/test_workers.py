"""Scoring by workers that are lost, and groups of learners that are: without Ray, by `local_ray`. `make ray` runs the
same on a cluster."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from local_ray import LocalRay, RayError

from selfdistill.cli.on_ray import scored_on_ray, train_on_ray
from selfdistill.config import Values, load_config, resolved
from selfdistill.envs.base import Fault, score_all
from selfdistill.envs.turns import RepeatedAttempts
from selfdistill.errors import INTERRUPTED, CollapseError, ConfigError, EnvError, RunError
from selfdistill.runs import no_callback
from selfdistill.runs.scale import SamplerOptions
from selfdistill.scale import placement
from selfdistill.scale.placed import PlacedServer
from selfdistill.scale.placement import Group
from selfdistill.scale.workers import RemoteEnvironment, connected, workers
from selfdistill.types import Completion, Message, Task

pytestmark = pytest.mark.usefixtures("unhurried")
ENV = """
import random

def reward(task, completion):
    return random.random() if "draw" in completion else float(task["answer"] in completion)
"""


@pytest.fixture
def settings(tmp_path: Path):
    (tmp_path / "env.py").write_text(ENV)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q", "answer": "4"}\n')
    return load_config(None, [f"env={tmp_path / 'env.py'}:reward", f"data={rows}"])


def answers(count: int):
    task = Task("t", (Message("user", "q"),), {"prompt": "q", "answer": "4"})
    return [(task, Completion(f"1-0-{n}", f"{n} draw" if n % 3 else f"{n}")) for n in range(count)]


def scored(config, pairs, loses=lambda actor, name, given: False):
    """The results, the notes, and how many answers each worker was given."""
    notes, ray = list[str](), LocalRay(loses)
    with workers(ray, resolved(config), 3, notes.append) as pool:
        found = score_all(RemoteEnvironment(config.make_env(), pool), pairs, seed=config.seed)
    assert all(actor.killed for actor in ray.actors)
    return found, notes, ray


def test_workers_give_what_one_process_gives(settings) -> None:
    pairs = answers(20)
    found, notes, ray = scored(settings, pairs)
    assert found == score_all(settings.make_env(), pairs, seed=settings.seed)
    assert (len(ray.actors), notes) == (3, [])


def test_what_a_lost_worker_had_is_scored_again_and_counts_once(settings) -> None:
    lost = list[int]()

    def loses(actor, name, given) -> bool:
        if name == "scored" and len(lost) < 2 and given[0][0][1].uid in ("1-0-4", "1-0-8"):
            lost.append(len(given[0]))
            return True
        return False

    pairs = answers(20)
    found, notes, ray = scored(settings, pairs, loses)
    assert found == score_all(settings.make_env(), pairs, seed=settings.seed)
    assert (len(ray.actors), len(notes)) == (5, 2)
    assert "4 answers are scored again" in notes[0]


def test_results_that_are_lost_with_their_machine_are_scored_again(settings) -> None:
    class Gone(LocalRay):
        lost = False

        def get(self, call, timeout=None):
            found = call()
            if self.lost or "scored" not in call.args:
                return found
            self.lost = True
            raise RayError("the object is lost")

    pairs, notes = answers(20), list[str]()
    with workers(Gone(), resolved(settings), 3, notes.append) as pool:
        found = score_all(RemoteEnvironment(settings.make_env(), pool), pairs, seed=settings.seed)
    assert (found, len(notes)) == (score_all(settings.make_env(), pairs, seed=settings.seed), 1)


def test_the_others_score_on_where_a_lost_worker_finds_no_room(settings) -> None:
    pairs, lost = answers(20), [2]
    expected = score_all(settings.make_env(), pairs, seed=settings.seed)
    ray = LocalRay(lambda actor, name, given: name == "scored" and ray.actors.index(actor) in lost, room=3)
    with workers(ray, resolved(settings), 3, print) as pool:
        env = RemoteEnvironment(settings.make_env(), pool)
        for _ in range(2):
            assert score_all(env, pairs, seed=settings.seed) == expected
        assert len(ray.actors) == 4, "the one that is waiting for room"
        ray.room = 4
        assert score_all(env, pairs, seed=settings.seed) == expected
        assert ray.actors[3].value.env is not None, "it has found some"
        lost += [0, 1, 3]
        with pytest.raises(EnvError, match="an environment worker cannot be placed"):
            score_all(env, pairs, seed=settings.seed)


def test_answers_that_take_three_workers_with_them_are_dropped_alone(settings) -> None:
    pairs = answers(20)
    found, notes, _ = scored(settings, pairs, lambda a, name, given: name == "scored" and given[0][0][1].uid == "1-0-8")
    assert [type(each) is Fault for each in found] == [8 <= n < 12 for n in range(20)]
    assert "3 environment workers ended" in found[8].text
    assert len(notes) == 3


def test_an_environment_that_a_machine_cannot_open_is_named_with_the_machine(settings, tmp_path: Path) -> None:
    (tmp_path / "env.py").unlink()
    with pytest.raises(ConfigError, match=r"no such file \(on an environment worker, at 10\.0\.0\.7\)"):
        opened(settings)
    with pytest.raises(EnvError, match="3 environment workers ended before they scored anything"):
        opened(settings, lambda *_: True)


def opened(config, loses=lambda actor, name, given: False) -> None:
    with workers(LocalRay(loses), resolved(config), 1, print):
        pass


def test_a_cluster_that_cannot_be_had_is_refused(monkeypatch) -> None:
    many = load_config(None, ["scale.env_workers=2"])
    with pytest.raises(ConfigError, match=r"scale\.env_workers=0"), scored_on_ray(many, no_callback):
        pass
    beside = load_config(None, [("scale.sampler.colocate", {"memory": 0.3})])
    with pytest.raises(ConfigError, match="servers on the learner's GPU are none that Ray places"):
        train_on_ray(beside, "10.0.0.1:6379", no_callback, resume=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"selfdistill\[ray\]"):
        connected("10.0.0.1:6379")


class Answering:
    @staticmethod
    def is_initialized() -> bool:
        return False


def test_an_address_at_which_nobody_answers_is_named_at_once(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Answering())
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        connected("127.0.0.1:9")
    with pytest.raises(ConfigError, match="host:port, or auto"):
        connected("ray.example.org")


def group(script: str, tmp_path: Path, monkeypatch, notes: list[str], learners: int = 1, **options) -> Group:
    monkeypatch.setattr(placement, "POLL_S", 0.02)
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-S", "-c", script]
    recorded = options.pop("recorded", lambda: 0)
    ray = LocalRay(**options)
    return Group(ray, learners, False, "settings", lambda: command, {"RUN": "1"}, recorded, notes.append)


DIES_ONCE = """
import os, pathlib, signal, sys
assert sys.stdin.read() == "settings" and os.environ["RUN"] == "1"
place = pathlib.Path("began"); first = not place.exists(); place.write_text("")
print("begins", flush=True)
if first: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_learner_that_is_killed_restarts_the_group(tmp_path: Path, monkeypatch) -> None:
    notes = list[str]()
    assert group(DIES_ONCE, tmp_path, monkeypatch, notes).run(lambda: 0) == 0
    assert [note.partition(" (")[0] for note in notes if "lost" in note] == ["a learner was lost"]
    assert notes[-1] == "begins"


def test_a_machine_that_is_lost_restarts_the_group_elsewhere(tmp_path: Path, monkeypatch) -> None:
    notes, asked = list[str](), list[str]()

    def loses(actor, name, given) -> bool:
        asked.append(name)
        return asked.count("state") == 1 and name == "state"

    assert group("", tmp_path, monkeypatch, notes, loses=loses).run(lambda: 0) == 0
    assert notes == ["a learner was lost (RayActorError): all start again from the newest checkpoint"]


def test_a_group_that_is_lost_again_and_again_ends(tmp_path: Path, monkeypatch) -> None:
    dies, notes = "import os; os.kill(os.getpid(), 9)", list[str]()
    with pytest.raises(RunError, match="lost 4 times without a new step"):
        group(dies, tmp_path, monkeypatch, notes).run(lambda: 0)
    steps = iter(range(1, 100))
    progress = group(dies, tmp_path, monkeypatch, notes, recorded=lambda: min(next(steps), 5))
    with pytest.raises(RunError, match="lost 4 times"):
        progress.run(lambda: 0)
    assert len(notes) == 3 + 7


def test_what_cannot_be_ended_any_more_hides_no_error(tmp_path: Path, monkeypatch) -> None:
    def gone(actor) -> None:
        raise RayError("the head of the cluster is gone")

    collapsed = "import sys; sys.stderr.write('CollapseError: guards stopped the run'); sys.exit(3)"
    ended = group(collapsed, tmp_path, monkeypatch, [], learners=2)
    ended.ray.kill = ended.ray.util.remove_placement_group = gone
    with pytest.raises(CollapseError, match=r"the run failed on .*\n  got  CollapseError: guards stopped the run"):
        ended.run(lambda: 0)


def test_an_error_of_a_learner_is_not_tried_again(tmp_path: Path, monkeypatch) -> None:
    script = "import sys; sys.stderr.write('noise\\nModelError: there is no such model\\n  got  x\\n'); sys.exit(2)"
    notes = list[str]()
    with pytest.raises(RunError, match=rf"failed on {socket.gethostname()}\n  got  ModelError: there is no such model"):
        group(script, tmp_path, monkeypatch, notes).run(lambda: 0)
    missing = group("", tmp_path, monkeypatch, notes)
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "elsewhere"))
    with pytest.raises(RunError, match="no such directory"):
        missing.run(lambda: 0)
    with pytest.raises(RunError, match="no room for 5 learners"):
        group("", tmp_path, monkeypatch, notes, learners=5).run(lambda: 0)
    assert notes == []


def test_a_learner_that_ctrl_c_ends_before_it_attends_to_it_was_interrupted(tmp_path: Path, monkeypatch) -> None:
    dies = "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"
    assert group(dies, tmp_path, monkeypatch, []).run(lambda: 0) == INTERRUPTED


def test_what_a_learner_prints_while_it_is_read_is_kept(tmp_path: Path) -> None:
    seat, go = placement.Seat(), tmp_path / "go"
    script = f"import os\nprint('one', flush=True)\nwhile not os.path.exists({str(go)!r}): pass\nprint('two')"
    seat.start([sys.executable, "-S", "-c", script], "", {}, str(tmp_path))
    while not seat.state()[1]:
        pass
    seat.out.seek(0)  # where a reader may be
    go.touch()
    while seat.state()[0] is None:
        pass
    seat.out.seek(0)
    assert seat.out.read() == b"one\ntwo\n"


def test_a_stop_ends_the_group_after_its_step(tmp_path: Path, monkeypatch) -> None:
    waits = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(130)); print(1, flush=True); time.sleep(20)"
    notes = list[str]()
    assert group(waits, tmp_path, monkeypatch, notes).run(lambda: len(notes)) == 130


def test_the_attempts_of_a_conversation_are_scored_by_workers_too(settings, monkeypatch) -> None:
    monkeypatch.setenv(placement.RAY, "auto")
    monkeypatch.setattr("selfdistill.cli.on_ray.connected", lambda address: LocalRay())
    local = RepeatedAttempts(settings.make_env(), 2)
    config = replace(settings, values=Values(env=local), scale=replace(settings.scale, env_workers=2))
    pairs = [(local.start(task), done) for task, done in answers(6) if "draw" not in done.text]
    expected = [local.step_batch(pairs), local.step_batch(pairs)]
    with scored_on_ray(config, no_callback) as placed:
        env = placed.make_env()
        assert isinstance(env.env, RemoteEnvironment)
        again = [(env.start(state.task), done) for state, done in pairs]
        assert [env.step_batch(again), env.step_batch(again)] == expected
    assert resolved(placed) == resolved(config)


def test_a_vllm_server_is_placed_and_its_end_is_known(tmp_path: Path, monkeypatch) -> None:
    """The server is a script that prints its arguments and ends."""
    monkeypatch.setenv(placement.RAY, "auto")
    lost = list[str]()
    ray = LocalRay(lambda actor, name, given: name in lost)
    monkeypatch.setattr("selfdistill.scale.placed.connected", lambda address: ray)
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$@ $VLLM_SERVER_DEV_MODE" >&2\nexit 3\n')
    program.chmod(0o755)
    server = PlacedServer(SamplerOptions(command=str(program)), 0, "a-model", ["--max-loras", "2"], tmp_path / "log")
    while not (ended := server.ended):
        pass
    port = server.url.rpartition(":")[2]
    assert server.url == f"http://127.0.0.1:{port}"
    assert "ended with code 3" in ended
    assert f"serve a-model --host 127.0.0.1 --port {port}" in ended
    assert ended.endswith("--max-loras 2 1")
    assert "serve a-model" in (tmp_path / "log").read_text(), "where the notes of the run say"
    lost.append("state")
    assert server.ended == "the machine of the server is lost (RayActorError)"
    server.end()
    with pytest.raises(RunError, match=rf"cannot start this\n  got  {socket.gethostname()}: .*No such file.*no-vllm"):
        PlacedServer(SamplerOptions(command="/no-vllm"), 1, "a-model", [], tmp_path / "log")
    lost.append("start")
    with pytest.raises(ConfigError, match=r"cannot start a vLLM server\n  got  http://127.*RayActorError"):
        PlacedServer(SamplerOptions(command=str(program)), 1, "a-model", [], tmp_path / "log")
    assert [actor.killed for actor in ray.actors] == [True] * 3
    lost.append("address")
    with pytest.raises(ConfigError, match="no room for a vLLM server"):
        PlacedServer(SamplerOptions(command=str(program)), 1, "a-model", [], tmp_path / "log")
