import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from selfdistill.errors import RunError
from selfdistill.runs import (
    Accuracies,
    Estimate,
    EvalRecord,
    RolloutRecord,
    Run,
    RunDir,
    StepRecord,
    Summary,
    fresh_path,
    read_run,
    saved_config,
)
from selfdistill.runs.records import record_from_json, to_json
from selfdistill.runs.store import allowed_changes, probe, write_atomic
from selfdistill.test_time.config import solve_config, solve_settings

CONFIG = {"settings": {"seed": 3, "steps": 10, "optimiser": {"lr": 1e-5}}}


def a_step(step: int, loss: float = 0.5) -> StepRecord:
    return StepRecord(step, step * 8, step * 80, step * 1.5, 0.25, 0.125, loss, 1.0, 1e-5, dropped={"no_context": 2})


def an_eval(step: int, value: float = 0.5) -> EvalRecord:
    return EvalRecord(step, step * 8, 1.0, "train", Estimate(value, 16, 0.2, 0.8), tasks=16, solved=8)


def a_rollout(step: int, uid: str) -> RolloutRecord:
    return RolloutRecord(
        step,
        uid,
        task="t",
        prompt="question\u2028",
        completion="answer\n",
        stop="end",
        reward=1.0,
        token_ids=(1, 2),
        log_ratio=(0.5, -0.5),
    )


def a_run(path: Path, steps: int = 3) -> Path:
    with RunDir.create(path, CONFIG) as run:
        for step in range(1, steps + 1):
            run.append(a_step(step), a_rollout(step, f"{step}a"), a_rollout(step, f"{step}b"))
    return path


def uids(run: Run) -> list[str]:
    return [record.uid for record in run.rollouts()]


@pytest.mark.parametrize("record", [a_step(1), an_eval(2), a_rollout(3, "u")])
def test_a_record_survives_its_line(record: StepRecord | EvalRecord | RolloutRecord):
    line = to_json(record)
    assert "\n" not in line
    assert record_from_json(line) == record


def test_numbers_that_are_not_finite_are_valid_json():
    line = to_json(a_step(1, loss=math.nan))
    assert json.loads(line, parse_constant=pytest.fail)["loss"] == "NaN"
    record = record_from_json(line)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss)


def test_a_field_of_a_later_version_is_passed_over():
    line = json.loads(to_json(a_step(1))) | {"colour": "blue"}
    assert record_from_json(json.dumps(line)) == a_step(1)


def test_what_is_written_is_read_back(tmp_path: Path):
    run = read_run(a_run(tmp_path / "run"))
    assert run.steps == (a_step(1), a_step(2), a_step(3))
    assert uids(run) == ["1a", "1b", "2a", "2b", "3a", "3b"]
    assert run.config == CONFIG
    assert run.summary is None


def test_summary_is_read_back(tmp_path: Path):
    accuracies = Accuracies(train_accuracy=Estimate(0.5, 10, 0.2, 0.8))
    summary = Summary("sdpo", "toy", "verbs", 0, 3, 24, 240, 4.5, Accuracies(), accuracies)
    with RunDir.create(tmp_path / "run", CONFIG) as run:
        run.finish(summary)
    assert str(summary).splitlines() == [
        "sdpo on verbs, toy: 3 steps, 24 completions, 4 s",
        f"  train accuracy: – → {accuracies.train_accuracy}",
    ]
    assert read_run(tmp_path / "run").summary == summary
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["after"]["train_accuracy"] == {"value": 0.5, "n": 10, "low": 0.2, "high": 0.8}


def test_a_used_directory_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match=r"choose another with out \(--out\)$"):
        RunDir.create(tmp_path, CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_directory_that_a_run_uses_can_be_gone_on_with(tmp_path: Path):
    path = tmp_path / "run"
    RunDir.create(path, CONFIG).close()
    with pytest.raises(RunError, match=f"resume its run: selfdistill train --resume {path}$"):
        RunDir.create(path, CONFIG)


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="already in use"):
        RunDir.create(tmp_path / "run", CONFIG)


def test_a_place_that_cannot_be_written_to_is_refused_before_the_first_step(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunDir.create(tmp_path / "file" / "run", CONFIG)


def test_a_disk_that_is_too_full_is_refused_before_the_first_step(tmp_path: Path):
    with pytest.raises(RunError, match="too full"):
        RunDir.create(tmp_path / "run", CONFIG, expected_bytes=2**60)
    assert not (tmp_path / "run" / "config.json").exists()
    RunDir.create(tmp_path / "run", CONFIG).close()  # the refused attempt is not in the way


def test_a_full_disk_later_is_a_clean_stop(tmp_path: Path):
    run = RunDir.create(tmp_path / "run", CONFIG)
    run.append(a_step(1))
    fill_the_disk(run)
    with pytest.raises(RunError, match=f"resume with: selfdistill train --resume {tmp_path / 'run'}$"):
        run.append(a_step(2))
    assert read_run(tmp_path / "run").steps == (a_step(1),)


def test_a_search_is_gone_on_with_as_a_whole(tmp_path: Path):
    """The folder of all tasks is what `selfdistill solve` resumes, not the run of one task inside it."""
    config = {"settings": solve_settings(solve_config())}
    whole = tmp_path / "solve"
    command = f"selfdistill solve --resume {whole}$"
    whole.mkdir()
    write_atomic(whole / "config.json", json.dumps(config))
    with RunDir.create(whole / "000-first", config) as run:
        fill_the_disk(run)
        with pytest.raises(RunError, match=f"resume with: {command}"):
            run.append(a_step(1))
    for used in (whole, run.path):
        with pytest.raises(RunError, match=f"resume its run: {command}"):
            RunDir.create(used, config)
    with pytest.raises(RunError, match=f"resume with: {command}"):
        write_atomic(whole / "001-second" / "result.json", "{}")


def test_what_could_not_even_begin_is_started_again(tmp_path: Path):
    with pytest.raises(RunError, match=r"make room, then start again$"):
        write_atomic(tmp_path / "run" / "config.json", "{}")


def fill_the_disk(run: RunDir) -> None:
    os.close(run._files["metrics.jsonl"].fileno())
    full = os.open("/dev/full", os.O_WRONLY)  # every write to it fails with "No space left on device"
    os.dup2(full, run._files["metrics.jsonl"].fileno())


def test_a_resume_takes_back_later_steps(tmp_path: Path):
    path = a_run(tmp_path / "run", steps=3)
    before = (path / "metrics.jsonl").read_bytes()
    with RunDir.resume(path, 1) as run:
        run.append(a_step(2, loss=9.0), a_rollout(2, "again"))
    assert read_run(path).steps == (a_step(1), a_step(2, loss=9.0))
    assert uids(read_run(path)) == ["1a", "1b", "again"]
    assert (path / "metrics.jsonl").read_bytes().startswith(before)  # nothing was rewritten


def test_rollouts_are_on_the_disk_before_the_line_that_counts_their_step(tmp_path: Path):
    path = a_run(tmp_path / "run", steps=1)
    with RunDir.resume(path, 1) as run:
        fill_the_disk(run)
        with pytest.raises(RunError, match="records cannot be written"):
            run.append(a_step(2), a_rollout(2, "2a"))
    assert read_run(path).steps == (a_step(1),)
    assert uids(read_run(path)) == ["1a", "1b", "2a"]
    with RunDir.resume(path, 1) as run:
        run.append(a_step(2), a_rollout(2, "again"))
    assert read_run(path).steps == (a_step(1), a_step(2))
    assert uids(read_run(path)) == ["1a", "1b", "again"]


def test_two_resumes(tmp_path: Path):
    path = a_run(tmp_path / "run", steps=3)
    with RunDir.resume(path, 2) as run:
        run.append(a_step(3, loss=8.0), a_rollout(3, "second"))
    with RunDir.resume(path, 1) as run:
        run.append(a_step(2, loss=9.0), a_rollout(2, "third"))
    assert [record.loss for record in read_run(path).steps] == [0.5, 9.0]
    assert uids(read_run(path)) == ["1a", "1b", "third"]


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path, cut: int):
    path = a_run(tmp_path / "run", steps=2)
    whole = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(whole[:-cut])
    expected = (a_step(1), a_step(2)) if cut == 1 else (a_step(1),)
    assert read_run(path).steps == expected
    with RunDir.resume(path, 1) as run:
        run.append(a_step(2, loss=7.0))
    assert read_run(path).steps == (a_step(1), a_step(2, loss=7.0))


def test_a_resume_that_is_killed_as_well(tmp_path: Path):
    path = a_run(tmp_path / "run", steps=2)
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "gen\n{"step": 1, "event": "resu')
    with RunDir.resume(path, 1):
        pass
    assert read_run(path).steps == (a_step(1),)


def test_a_damaged_line_is_named(tmp_path: Path):
    path = a_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
        read_run(path)


def test_an_evaluation_that_was_made_twice_counts_once(tmp_path: Path):
    with RunDir.create(tmp_path / "run", CONFIG) as run:
        run.append(an_eval(5, 0.4), an_eval(0), an_eval(5, 0.6))
    assert [(e.step, e.accuracy.value) for e in read_run(tmp_path / "run").evals] == [(0, 0.5), (5, 0.6)]


def test_a_resume_with_other_settings_is_refused_by_name(tmp_path: Path):
    path = a_run(tmp_path / "run")
    other = {"seed": 3, "steps": 20, "optimiser": {"lr": 1e-4}}
    with pytest.raises(RunError, match=r"optimiser\.lr"):
        allowed_changes(path, other, {"steps"})
    longer = {"seed": 3, "steps": 20, "optimiser": {"lr": 1e-5}}
    RunDir.resume(path, 3, allowed_changes(path, longer, {"steps"})).close()
    assert '"changes":{"steps":20}' in (path / "metrics.jsonl").read_text()


def test_a_directory_without_a_run_cannot_be_resumed_or_read(tmp_path: Path):
    with pytest.raises(RunError, match="not a run directory"):
        RunDir.resume(tmp_path, 0)
    with pytest.raises(RunError, match="not a run directory"):
        read_run(tmp_path)


WRITER = """
    import sys, time
    from pathlib import Path
    from selfdistill.runs import RunDir, StepRecord
    run = RunDir.create(Path(sys.argv[1]), {"settings": {}})
    for step in range(1, 10**6):
        run.append(StepRecord(step, step, step, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, extra={"filler" * 50: 1.0}))
        print(step, flush=True)
"""


def test_a_run_that_is_killed_keeps_every_step_that_it_wrote(tmp_path: Path):
    path = tmp_path / "run"
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(20)]
    with pytest.raises(RunError, match="another process"):
        RunDir.resume(path, 1)
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().splitlines()]
    writer.wait()
    steps = [record.step for record in read_run(path).steps]
    assert steps[: len(said)] == said
    RunDir.resume(path, 5).close()  # the lock ended with its process
    assert [record.step for record in read_run(path).steps] == [1, 2, 3, 4, 5]


def test_a_file_is_whole_or_not_there(tmp_path: Path):
    write_atomic(tmp_path / "a.json", "1")
    write_atomic(tmp_path / "a.json", "2")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "2")]
    with pytest.raises(RunError, match="cannot be written"):
        write_atomic(tmp_path / "missing" / "a.json", "1")


def test_probe_leaves_nothing_behind(tmp_path: Path):
    probe(tmp_path / "run", 0)
    assert list((tmp_path / "run").iterdir()) == []


def test_fresh_path_never_names_an_existing_one(tmp_path: Path):
    for expected in ("sdpo", "sdpo-2", "sdpo-3"):
        path = fresh_path(tmp_path, "sdpo")
        assert path.name == expected
        path.mkdir()


def test_saved_config_is_what_was_given(tmp_path: Path):
    assert saved_config(a_run(tmp_path / "run")) == CONFIG
