import json
from pathlib import Path

import pytest

from selfdistill.config import (
    NamedComponent,
    OptimiserOptions,
    RunConfig,
    completed,
    from_settings,
    load_config,
    parse_override,
    resolved,
)
from selfdistill.errors import ConfigError, RunError
from selfdistill.models.load import LoraOptions
from selfdistill.models.teacher import Ema, Frozen, Other
from selfdistill.options import settings_of
from selfdistill.runs.store import allowed_changes
from selfdistill.test_time.config import solve_config


def toml(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text)
    return file


def test_defaults_then_file_then_overrides(tmp_path: Path):
    file = toml(tmp_path, 'seed = 7\nsteps = 3\nteacher = "ema"\n[optimiser]\nlr = 1e-4\n[lora]\nrank = 4\n')
    config = load_config(file, ["steps=9", "teacher.rate=0.5", "optimiser.warmup_steps=2", ("seed", 8)])
    assert (config.seed, config.steps) == (8, 9)
    assert config.teacher == Ema(0.5)
    assert (config.optimiser.lr, config.optimiser.warmup_steps) == (1e-4, 2)
    assert config.lora == LoraOptions(rank=4)


def test_resolved_json_is_read_back():
    config = load_config(
        None, ["teacher.kind=ema", "lora.rank=8", "method.alpha=0.25", "env=code", "replay.per_step=4"]
    )
    again = from_settings(json.loads(json.dumps(resolved(config))))
    assert again == config
    assert resolved(config)["method"] == {"name": "sdpo", "alpha": 0.25}


def test_an_override_of_a_resolved_run_keeps_the_rest():
    base = resolved(load_config(None, ["method=grpo", "method.clip_low=0.3", "seed=5", "teacher=ema"]))
    longer = load_config(None, ["steps=99"], base)
    assert (longer.steps, longer.seed, longer.teacher) == (99, 5, Ema())
    assert resolved(longer)["method"] == {"name": "grpo", "clip_low": 0.3}


def test_another_kind_starts_from_its_own_defaults(tmp_path: Path):
    file = toml(tmp_path, '[method]\nname = "grpo"\nclip = 0.3\n[teacher]\nkind = "ema"\nrate = 0.9\n')
    config = load_config(file, ["method=sdpo", "teacher=frozen"])
    assert config.method.options == {}
    assert config.teacher == Frozen()


def test_the_order_of_overrides_loses_none():
    """`method=grpo` after a setting of the method names its method, and takes nothing back."""
    for overrides in (["method=grpo", "method.clip_low=0.3"], ["method.clip_low=0.3", "method=grpo"]):
        assert load_config(None, overrides).method == NamedComponent("grpo", {"clip_low": 0.3})
    assert load_config(None, ["teacher.rate=0.5", "teacher=ema"]).teacher == Ema(0.5)
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2
    with pytest.raises(ConfigError, match=r"unknown setting[\s\S]*method\.clip_low"):
        load_config(None, ["method.clip_low=0.3", "method=sdpo"])


@pytest.mark.parametrize("name", ["['a']", "3", "{a = 1}", "true"])
def test_a_name_that_is_no_text_is_refused(name: str, tmp_path: Path):
    for key in ("method", "env"):
        with pytest.raises(ConfigError, match=rf"{key}\.name should be text"):
            load_config(toml(tmp_path, f"[{key}]\nname = {name}\n"))


def test_tables_deeper_than_any_setting_are_refused(tmp_path: Path):
    deep = ".".join(["a"] * 2000)
    for config in (lambda: load_config(None, [f"{deep}=1"]), lambda: load_config(toml(tmp_path, f"{deep} = 1\n"))):
        with pytest.raises(ConfigError, match="tables more than 10 deep"):
            config()


def test_a_teachers_setting_without_its_kind_is_one_of_the_methods_own_teacher():
    assert load_config(None, ["method=opd", "teacher.model=some/model"]).teacher == Other("some/model")
    assert load_config(None, ["method=sdft", "teacher.rate=0.01"]).teacher == Ema(0.01)
    with pytest.raises(ConfigError, match="unknown setting"):
        load_config(None, ["method=opsd", "teacher.rate=0.01"])
    with pytest.raises(ConfigError, match="kind is missing"):
        load_config(None, ["method=grpo", "teacher.rate=0.01"])


def test_what_a_model_needs_gives_way_to_what_the_user_says():
    assert load_config().optimiser.lr != load_config(None, ["model=other/model"]).optimiser.lr
    assert load_config(None, ["optimiser.lr=0.125"]).optimiser.lr == 0.125


def test_a_data_file_is_one_of_programming_tasks_unless_a_world_is_named():
    assert load_config(None, ["data=tasks.jsonl"]).env.name == "code"
    assert load_config(None, ["data=tasks.jsonl", "env=other"]).env.name == "other"


@pytest.mark.parametrize("setting", ["env.cases=3", "env.allow_weaker=true", "env.time_limit_s=2"])
def test_settings_of_the_world_name_none(setting: str, tmp_path: Path):
    key, _, value = setting.partition("=")
    options = {key.removeprefix("env."): json.loads(value)}
    for config in (
        load_config(None, [setting, "data=tasks.jsonl"]),
        load_config(toml(tmp_path, f'data = "tasks.jsonl"\n{setting}\n')),
        load_config(None, [setting], {"data": "tasks.jsonl"}),
        solve_config(overrides=[setting], tasks=["tasks.jsonl"]).run,
    ):
        assert (config.env.name, config.env.options) == ("code", options)
    assert load_config(None, ["env.cases=3"]).env.name == "verbs"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimiser.lr=1e-5", "optimiser.lr", 1e-5),
        ("steps=3", "steps", 3),
        ("a.b.c=true", "a.b.c", True),
        ("data=my tasks.jsonl", "data", "my tasks.jsonl"),
        ("data=a=b", "data", "a=b"),
        ('model="123"', "model", "123"),
        ("sizes=[1, 2]", "sizes", [1, 2]),
        ("data=", "data", ""),
    ],
)
def test_overrides(text: str, key: str, value: object):
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=1", "--steps=1", "a b=1"])
def test_what_is_no_override(text: str):
    with pytest.raises(ConfigError, match="key=value"):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=3", r"did you mean 'steps'.*"),
        ("lr=1e-5", r"did you mean 'optimiser\.lr'"),
        ("optimiser.rl=1e-5", r"did you mean 'lr'"),
        ("teacher=emma", r"did you mean 'ema'"),
        ("steps=3.5", r"steps should be a whole number"),
        ("steps=many", r"'many'  \(command line\)"),
        ("steps=0", r"steps must be a whole number, 1 or more"),
        ("seed=-1", r"seed must be a whole number from 0 to"),
        ("optimiser.lr=0", r"optimiser\.lr must be a number above 0, up to 1"),
        ("optimiser.lr=nan", r"optimiser\.lr = nan  \(command line\)"),
        ("optimiser.beta1=1", r"from 0, below 1"),
        ("evaluation.temperature=-1", r"0 or more"),
        ("replay.weight=0", r"a number above 0"),
        ("optimiser=fast", r"optimiser should be a table"),
        ("method=3", r"method should be a name or a table"),
        ("lora=true", r"lora should be a table"),
    ],
)
def test_bad_settings(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_a_bad_key_in_a_file_is_named_with_its_line(tmp_path: Path):
    file = toml(tmp_path, "seed = 1\n\n[optimiser]\n# a comment\nlearning_rat = 1\n")
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rat = 1  \(.*run\.toml, line 5\)"):
        load_config(file)


def test_a_file_that_is_not_toml_is_named_with_its_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"run\.toml.*line 2"):
        load_config(toml(tmp_path, "seed = 1\nsteps = = 2\n"))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_settings_can_be_counted_on_and_explained():
    own = list(settings_of(load_config(None, ["replay.per_step=32"])))
    assert len(own) <= 80
    component = ("sampling.", "lora", "teacher")
    assert not [s.key for s in own if not s.text and not s.key.startswith(component)]


def test_completions_are_what_the_run_samples():
    config = load_config(None, ["steps=20", "tasks_per_step=16", "rollouts_per_task=8"])
    assert config.completions_sampled == 2560
    assert isinstance(config, RunConfig)


def test_columns_are_a_table_of_names_and_read_back() -> None:
    given = ["data=rows.parquet", "env=my_env.py:reward", "columns.prompt=question", "columns.image="]
    config = load_config(None, given)
    assert config.columns == {"prompt": "question", "image": ""}
    assert from_settings(json.loads(json.dumps(resolved(config)))) == config
    with pytest.raises(ConfigError, match=r"columns should be a table"):
        load_config(None, ["columns.prompt=3"])


def test_a_run_older_than_a_setting_had_its_default(tmp_path: Path) -> None:
    config = load_config(None, ["env=code", "lora.rank=4", "teacher.kind=ema", "teacher.rate=0.2"])
    saved = resolved(config)
    del saved["tasks_per_update"], saved["lora"]["alpha"], saved["teacher"]["rate"], saved["context"]["templates"]
    (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))

    def changes(*overrides: str) -> dict[str, object]:
        new = resolved(load_config(None, overrides, saved))
        kind = type(config.make_method())
        return allowed_changes(tmp_path, new, {"steps"}, lambda settings: completed(settings, kind))

    assert changes() == {}
    assert changes("steps=7", "env.turns=1", "method.alpha=0.5", "teacher.rate=0.05", "lora.alpha=32") == {"steps": 7}
    for override in (
        "tasks_per_update=2",
        "teacher.rate=0.1",
        "env.turns=2",
        "lora.alpha=3",
        "method.context.attempt=true",
    ):
        key = override.partition("=")[0]
        with pytest.raises(RunError, match=rf"cannot change its settings\n  got  {key} = "):
            changes(override)


def test_the_rate_rises_and_then_falls_towards_zero_at_the_end() -> None:
    """Steps 0 … 5, a warm-up of 2: the last step still learns. In a run of two steps the rate only rises."""
    rates = {
        schedule: [OptimiserOptions(lr=1.0, warmup_steps=2, schedule=schedule).rate(step, 6) for step in range(6)]
        for schedule in ("constant", "linear", "cosine")
    }
    assert rates["constant"] == [0.5, 1, 1, 1, 1, 1]
    assert rates["linear"] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates["cosine"] == pytest.approx([0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert [OptimiserOptions(lr=1.0, warmup_steps=4, schedule="linear").rate(step, 2) for step in (0, 1)] == [0.25, 0.5]
