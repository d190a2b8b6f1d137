"""The sapling that ships: its size, its card, and that it can do a little of what the card says."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfdistill
from selfdistill.config import FOR_MODEL
from selfdistill.envs.verbs.env import VerbsEnvironment, fresh_verbs, known_tasks, plain_tasks
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.training.evaluation import accuracy
from selfdistill.training.samples import roll_out
from selfdistill.types import Context
from tools.sapling.recipe import RECIPES

SHIPPED = Path(selfdistill.__file__).parent / "sapling" / "weights"
WEIGHTS = SHIPPED / "sapling"
GREEDY = SamplingOptions(max_new_tokens=48, temperature=0.0)


@pytest.fixture(scope="module")
def policy():
    return load_policy("sapling", device="cpu")


def share_right(policy, tasks, prompts=None):
    renderer = Renderer(policy.tokenizer, policy.context_length, 2000)
    ids = [renderer.prompt(prompt) for prompt in prompts] if prompts else None
    env = VerbsEnvironment().for_evaluation()
    groups = roll_out(policy, env, renderer, tasks, GREEDY, rollouts=1, seed=0, label="t", prompts=ids)
    return accuracy(groups).estimate.value


def test_it_is_small_and_loads_with_plain_transformers():
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    assert model.config.model_type == "qwen3"
    assert sum(parameter.numel() for parameter in model.parameters()) <= 6_000_000
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 12_000_000
    assert AutoTokenizer.from_pretrained(WEIGHTS).chat_template


@pytest.mark.parametrize("name", RECIPES)
def test_a_card_tells_how_it_was_grown_and_the_recipe_is_still_the_same(name):
    growth = json.loads((SHIPPED / name / "growth.json").read_text())
    card = (SHIPPED / name / "CARD.md").read_text()
    assert growth["recipe"] == json.loads(json.dumps(asdict(RECIPES[name])))
    assert f"{growth['tokens'] / 1e6:.1f} M tokens" in card
    assert "plain English" in card
    assert name in FOR_MODEL


def test_the_small_one_is_a_fifth_of_it_and_understands_plain_english(policy):
    small = load_policy("sapling-small", device="cpu")
    sizes = [sum(parameter.numel() for parameter in one.model.parameters()) for one in (small, policy)]
    assert sizes[0] < 0.25 * sizes[1]
    assert share_right(small, plain_tasks(60, seed=5)) >= 0.8


def test_it_understands_plain_english(policy):
    assert share_right(policy, plain_tasks(60, seed=5)) >= 0.9


def test_it_knows_its_lexicon(policy):
    assert share_right(policy, known_tasks()[:60]) >= 0.85


def test_a_fresh_verb_means_nothing_to_it_until_it_is_told(policy):
    tasks = fresh_verbs(40, (1, 2), seed=9)
    told = [teacher_messages(task.messages, Context("", solution=task.demonstration)) for task in tasks]
    assert share_right(policy, tasks) <= 0.15
    assert share_right(policy, tasks, told) >= 0.9
