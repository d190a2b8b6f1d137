"""SDPO on one page computes what the library computes: the same prompts, contexts and gradients."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.config import from_settings
from selfdistill.envs.rewards import as_environment
from selfdistill.methods import get_method
from selfdistill.models.load import load_policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.models.teacher import Ema, Teacher
from selfdistill.plugins import load_from_file
from selfdistill.prompts.render import Renderer
from selfdistill.testing import scripted_sampler
from selfdistill.training.samples import credit_rollouts, roll_out
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import Message, Task
from tiny_models import tiny_policy_dir

FILE = Path(__file__).parent.parent / "examples" / "sdpo_from_scratch.py"
ASKED = "What is seven?"
ANSWERS = ["It is 7.", "six or 8", "Seven!", "7"]  # two solved, a wrong number, none at all


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return load_from_file(f"{FILE}:backward", "backward")[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy_dir(tmp_path_factory.mktemp("model"))


def test_it_is_one_page_of_torch_and_transformers() -> None:
    text = FILE.read_text()
    assert len(text.splitlines()) <= 150
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    assert names <= {*sys.stdlib_module_names, "torch", "tokenizers", "transformers"}


@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_its_gradient_is_the_librarys(
    page: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch, alpha: float, solved: bool
) -> None:
    """In float64 but for token weights, with a teacher that has moved away, top-K with a tail, and both contexts."""
    monkeypatch.setattr(page, "ALPHA", alpha)
    monkeypatch.setattr(page, "TOP_K", 5)
    result = 7 if solved else 12345
    policy = load_policy(str(model), device="cpu", dtype="float32")
    policy.model.double()
    teacher = Teacher(Ema(0.05), policy)
    generator = torch.Generator().manual_seed(1)
    for value in teacher._shadow.values():
        value.add_(0.02 * torch.randn(value.shape, generator=generator))
    task = Task("t", (Message("user", ASKED),))
    groups = roll_out(
        policy, as_environment(lambda task, done: page.score(done, result)),
        Renderer(policy.tokenizer, policy.context_length, 300), [task], SamplingOptions(max_new_tokens=40),
        rollouts=len(ANSWERS), seed=0, label="r", sampler=scripted_sampler(ANSWERS),
    )  # fmt: skip
    method = get_method("sdpo_outcome", {"alpha": alpha, "top_k": 5, "context": {"feedback": True}})
    caught: dict[str, torch.Tensor] = {}
    optimizer = torch.optim.SGD(list(policy.trainable().values()), lr=0.0)
    optimizer.register_step_post_hook(
        lambda *_: caught.update({name: value.grad.clone() for name, value in policy.trainable().items()})
    )
    learner = Learner(method, method.loss_specs(1.0), teacher, None, optimizer, [])
    credited = credit_rollouts(method, groups, Renderer(policy.tokenizer, policy.context_length, 300))
    config = from_settings({"optimiser": {"max_grad_norm": 0}})
    [report], _, _ = update_all(policy, learner, config, groups, credited, [], Totals())

    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).double().eval()
    moved = copy.deepcopy(student)
    for name, value in moved.named_parameters():
        value.data.copy_(teacher._shadow[name])
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [list(rollout.completion.token_ids) for rollout in groups[0].rollouts]
    scores = [page.score(text, result) for text in ANSWERS]
    loss = page.backward(student, moved, tokenizer, ASKED, ids, scores, len(ANSWERS))

    assert [entry.samples[0].context_kind for entry in credited] == ["solution" if solved else "feedback"] * 4
    assert [page.prompt_ids(tokenizer, ASKED)] * 4 == [list(r.prompt_ids) for r in groups[0].rollouts]
    assert loss == pytest.approx(report.loss, rel=1e-6)
    assert loss > 1e-3
    found = {name: value.grad for name, value in student.named_parameters()}
    assert found.keys() == caught.keys()
    largest = max(float(value.abs().max()) for value in caught.values())
    for name, value in caught.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * largest, msg=name)


def test_it_runs_offline_on_a_random_model() -> None:
    done = subprocess.run([sys.executable, str(FILE), "", "2"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2"]
    assert all(float(line.rpartition(" ")[2]) > 0 for line in lines), "a gradient, from feedback alone"
