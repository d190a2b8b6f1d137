"""Every recipe of `examples/paper` opens, without weights, data or a network, and fits its devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from selfdistill.cli.app import app
from selfdistill.config import load_config
from selfdistill.errors import ConfigError
from selfdistill.models.planning import model_shape
from selfdistill.scale.costs import GPUS
from selfdistill.training.planner import memory_plan, needs_of

PAPER = Path(__file__).parent.parent.parent / "examples" / "paper"
RECIPES = sorted(PAPER.glob("*.toml"))


def test_every_recipe_opens_and_fits_an_h100() -> None:
    assert len(RECIPES) == 24
    for file in RECIPES:
        assert "NOT RUN" in file.read_text()
        config = load_config(file)
        needs = needs_of(replace(config, device="cpu"), config.context.max_prompt_tokens, config.make_env())
        needs = replace(needs, device=torch.device("cuda"), available=GPUS["H100"].memory)
        assert memory_plan(config, model_shape(config.model, config.lora), needs).fits, file.name
        answers = (config.tasks_per_update or config.tasks_per_step) * config.rollouts_per_task
        assert answers % config.scale.learners == 0, file.name


@pytest.mark.parametrize("name", ["science-qwen3-8b-1-gpu", "science-qwen3-8b", "sdft-qwen2.5-7b-64-gpus"])
def test_a_plan_says_what_a_recipe_needs_and_costs(name: str) -> None:
    command = ["train", "--config", str(PAPER / f"{name}.toml"), "--plan"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    for part in ("memory of a device (H100)", "peak", "tokens", "operations", "seconds a step"):
        assert part in done.output
    assert ("moved: gradients" in done.output) == ("1-gpu" not in name)
    shorter = CliRunner().invoke(app, [*command, "--gpu", "H200", "--answer-tokens", "500"])
    assert "H200" in shorter.output
    assert "500 tokens each" in " ".join(shorter.output.split())


def test_options_of_a_plan_are_refused_without_it() -> None:
    done = CliRunner().invoke(app, ["train", "--gpu", "H100"])
    assert done.exit_code == 2
    assert "only --plan reads these options" in done.output


def test_a_file_of_settings_stands_on_others(tmp_path: Path) -> None:
    """Nearer files win, and an error names the file and line that wrote the key."""
    (tmp_path / "low.toml").write_text("steps = 3\nseed = 5\n[optimiser]\nlr = 1e-3\n")
    (tmp_path / "more.toml").write_text("seed = 6\n")
    top = tmp_path / "top.toml"
    top.write_text('base = ["low.toml", "more.toml"]\noptimiser.warmup_steps = 2\n')
    config = load_config(top, ["steps=4"])
    assert (config.steps, config.seed, config.optimiser.lr, config.optimiser.warmup_steps) == (4, 6, 1e-3, 2)
    (tmp_path / "more.toml").write_text("\nsteps = 0\n")
    with pytest.raises(ConfigError, match=r"more\.toml, line 2"):
        load_config(top)
    (tmp_path / "more.toml").write_text('base = "top.toml"\n')
    with pytest.raises(ConfigError, match="base of one another"):
        load_config(top)
    top.write_text("base = 3\n")
    with pytest.raises(ConfigError, match="names other files"):
        load_config(top)
    top.write_text('base = "no.toml"\n')
    with pytest.raises(ConfigError, match=r"no\.toml"):
        load_config(top)
