"""TRL's side: one case from the command line, one line of numbers back. Runs in TRL's own virtual environment.

Nothing of TRL is copied: its trainers are built as a user builds them, and their own methods are called. Where the
loss section alone is measured, the model's layers are replaced by something that returns given hidden states, so that
its head, its loss and its backward run as they are.

Legend: T tokens of an answer, V vocabulary, D hidden size, B rows, L columns.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from benchmarks.against_trl.meter import give, level_before, measure, peak_bytes, timer, wait
from benchmarks.against_trl.ratios import enough
from benchmarks.against_trl.work import Row, rows_of

Case = dict[str, Any]
CUDA = torch.cuda.is_available()
MODES = {"topk": "topk_logits", "full": "full_logits"}
PAD = 0


class FixedCompletion(nn.Module):
    """Stands for the layers of a model: whatever is read, these hidden states [1, L, D] come out."""

    def __init__(self, hidden_BLD: Tensor) -> None:
        super().__init__()
        self.hidden_BLD = hidden_BLD

    def forward(self, **_: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden_BLD)


def trainer_for(
    case: Case,
    folder: str,
    dataset: Dataset,
    reward: Callable[..., list[float]],
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> SDPOTrainer:
    """TRL's trainer with the settings both sides share: no reward term, no importance weights, no checkpoints."""
    mode, dtype = MODES[case["mode"]], case.get("dtype", "bfloat16" if CUDA else "float32")
    lora = case.get("lora", 0)
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": not CUDA,
        "bf16": dtype == "bfloat16",
        "gradient_checkpointing": False,
        "learning_rate": case.get("lr", 1e-4),
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "seed": case["seed"],
        "model_init_kwargs": {"dtype": dtype if lora else "float32"},
        "distillation_mode": mode,
        "distillation_alpha": case["alpha"],
        "distillation_is_clip": None,
        "teacher_model_kind": "live" if case.get("teacher") == "live" else "base",
    }
    if mode == "topk_logits":
        arguments |= {"distillation_topk": case["top_k"], "distillation_add_tail": True}
    config, adapter = SDPOConfig(**arguments | options), None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(
            r=lora, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
        )
    return SDPOTrainer(case["model"], reward, config, dataset, callbacks=list(callbacks), peft_config=adapter)


def nothing(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that is never looked at."""
    return [0.0] * len(completions)


def given_hidden(case: Case, size: int) -> tuple[Tensor, Tensor]:
    """Hidden states [T, D] of student and teacher: the same numbers on both sides."""
    generator = torch.Generator().manual_seed(case["seed"])
    student_TD = torch.randn(case["tokens"], size, generator=generator)
    teacher_TD = student_TD + 0.5 * torch.randn(case["tokens"], size, generator=generator)
    device = "cuda" if CUDA else "cpu"
    return student_TD.to(device), teacher_TD.to(device)


def loss_case(case: Case) -> dict[str, Any]:
    """The loss section of TRL's SDPO: `compute_loss` and backward on given hidden states."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Dataset.from_dict({"prompt": ["?", "?"]})
        sizes = {"per_device_train_batch_size": 2, "num_generations": 2}
        trainer = trainer_for(case, folder, rows, nothing, **sizes)
    model, teacher = trainer.accelerator.prepare_model(trainer.model).eval(), trainer.teacher_model
    student_TD, teacher_TD = given_hidden(case, trainer.model.config.hidden_size)
    student_TD.requires_grad_(True)
    last_1D = torch.zeros_like(student_TD[:1]).detach()  # read after the answer, and cut off by TRL
    trainer.accelerator.unwrap_model(teacher).model = FixedCompletion(torch.cat([teacher_TD, last_1D])[None])
    head = trainer.model.lm_head.weight
    inputs = one_row(case["tokens"], student_TD.device)

    def work() -> dict[str, float]:
        student_TD.grad = head.grad = None
        trainer.model.model = FixedCompletion(torch.cat([student_TD, last_1D])[None])
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        return norms(loss, student_TD.grad, head.grad)

    return measure(work, warm=case["warm"], repeats=case["repeats"])


def one_row(tokens: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of one rollout with a prompt of one token, as TRL's trainer hands it to its loss."""
    said_1T = torch.arange(tokens, device=device)[None]
    one_11, ones_1T = torch.ones(1, 1, dtype=torch.long, device=device), torch.ones_like(said_1T)
    whole_1L = torch.cat([one_11, said_1T], 1)
    return {
        "prompt_ids": one_11,
        "prompt_mask": one_11,
        "completion_ids": said_1T,
        "completion_mask": ones_1T,
        "teacher_input_ids": whole_1L,
        "teacher_attention_mask": torch.ones_like(whole_1L),
        "self_distillation_mask": torch.ones(1, device=device),
    }


def norms(loss: Tensor, hidden_grad: Tensor, weight_grad: Tensor) -> dict[str, float]:
    """What both sides must agree on."""
    return {
        "loss": float(loss.detach()),
        "hidden_grad": float(hidden_grad.norm()),
        "weight_grad": float(weight_grad.norm()),
    }


def chunked_case(case: Case) -> dict[str, Any]:
    """The kernel of TRL's stable `DistillationTrainer`: full vocabulary only. Triton on a GPU, its own torch code on a
    CPU."""
    from transformers import AutoModelForCausalLM
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32).to("cuda" if CUDA else "cpu")
    weight_VD, other_VD = model.lm_head.weight, model.lm_head.weight.detach().clone()
    student_TD, teacher_TD = given_hidden(case, weight_VD.shape[1])
    student_TD.requires_grad_(True)

    def work() -> dict[str, float]:
        student_TD.grad = weight_VD.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
            found_T, _ = ChunkedDivergenceFunction.apply(
                student_TD, weight_VD, None, teacher_TD, other_VD, None, case["alpha"]
            )
        loss = found_T.mean()
        loss.backward()
        return norms(loss, student_TD.grad, weight_VD.grad)

    return measure(work, warm=case["warm"], repeats=case["repeats"])


class StepTimes(TrainerCallback):
    """Seconds, peak, loss and norm of every step of TRL's trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.history: list[dict[str, float]] = []
        self._before, self._start = 0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._before, self._start = level_before(), timer()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait()
        self.seconds.append(timer() - self._start)
        self.peaks.append(peak_bytes() - self._before)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if logs and "grad_norm" in logs:
            self.history.append({"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])})


def update_case(case: Case) -> dict[str, Any]:
    """A whole update of TRL's SDPO: its own training loop on given rollouts, with nothing sampled."""
    steps, micro, times = case["warm"] + case["repeats"], case["micro_rows"], StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(case, AutoConfig.from_pretrained(case["model"]).vocab_size)
        count = len(rows)
        sizes = {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": count // micro,
            "num_generations": 2,
            "max_steps": steps,
        }
        prompts = Dataset.from_dict({"prompt": ["?"] * count})
        trainer = trainer_for(case, folder, prompts, nothing, [times], **sizes)
        given = padded(rows, trainer.accelerator.device)
        trainer._prepare_training_batch = lambda _: dict(given)
        trainer.train()
    kept = slice(case["warm"], None)
    seconds = sorted(times.seconds[kept])
    return {
        "seconds": seconds[len(seconds) // 2],
        "all_seconds": times.seconds[kept],
        "peak": times.peaks[kept][0],
        "value": times.history,
    }


def padded(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
    """The rollouts as TRL's trainer pads them: prompts on the left, answers on the right, to the longest of all."""
    prompt_ids, prompt_mask = rectangle([row.prompt for row in rows], left=True)
    told_ids, told_mask = rectangle([row.teacher or row.prompt for row in rows], left=True)
    said_ids, said_mask = rectangle([row.completion for row in rows], left=False)
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": said_ids,
        "completion_mask": said_mask,
        "teacher_input_ids": torch.cat([told_ids, said_ids], 1),
        "teacher_attention_mask": torch.cat([told_mask, said_mask], 1),
        "self_distillation_mask": torch.tensor([float(row.teacher is not None) for row in rows]),
    }
    return {name: value.to(device) for name, value in batch.items()}


def rectangle(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """ids_BL and mask_BL."""
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        pad, seen = [PAD] * (longest - len(row)), [1] * len(row)
        ids.append([*pad, *row] if left else [*row, *pad])
        mask.append([*([0] * len(pad)), *seen] if left else [*seen, *([0] * len(pad))])
    return torch.tensor(ids), torch.tensor(mask)


class Curve(TrainerCallback):
    """Keeps (seconds, accuracy) of every step, counted from the first batch that is sampled."""

    def __init__(self, limit_s: float, goal: float) -> None:
        self.limit_s, self.goal, self.began = limit_s, goal, 0.0
        self.points: list[tuple[float, float]] = []
        self.rewards: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.began or time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.points.append((time.monotonic() - self.began, self.rewards[-1]))
        control.should_training_stop = enough(self.points, self.limit_s, self.goal)


def learn_case(case: Case) -> dict[str, Any]:
    """Coined verbs until enough is learned or the time is up, scored by the same sandbox as ours."""
    from selfdistill.envs.base import required
    from selfdistill.envs.verbs.env import VerbsEnvironment
    from selfdistill.prompts.context import Templates
    from selfdistill.types import Completion

    settings, curve = case["settings"], Curve(case["limit_s"], case["goal"])
    env = VerbsEnvironment(seed=settings["seed"])
    tasks = {task.id: task for task in env.tasks("train")}
    asked = [[{"role": m.role, "content": m.content} for m in task.messages] for task in tasks.values()]

    def solved(completions: Sequence[Any], name: Sequence[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        pairs = [(tasks[i], Completion(f"{n}", text)) for n, (i, text) in enumerate(zip(name, texts, strict=True))]
        rewards = [required(judged).reward for judged in env.score_batch(pairs)]
        curve.rewards.append(sum(reward >= 0.5 for reward in rewards) / len(rewards))
        return rewards

    group = settings["rollouts_per_task"]
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "per_device_train_batch_size": len(tasks) * group,
            "num_generations": group,
            "max_completion_length": settings["sampling"]["max_new_tokens"],
            "max_steps": settings["steps"],
            "use_successful_as_teacher": False,
            "include_environment_feedback": True,
            "reprompt_template": Templates().message.replace("{question}\n\n{context}", "{prompt}{feedback}"),
            "feedback_template": "\n\n" + Templates().document.replace("{document}", "{feedback_raw}"),
        }
        told = [task.document for task in tasks.values()]
        data = Dataset.from_dict({"prompt": asked, "name": list(tasks), "privileged_context": told})
        trainer_for(case, folder, data, solved, [curve], **sizes).train()
    return {"points": curve.points}


CASES = {"loss": loss_case, "chunked": chunked_case, "update": update_case, "learn": learn_case}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    give(CASES[given["kind"]](given))
