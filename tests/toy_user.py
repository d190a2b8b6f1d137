"""A tiny model that answers "no" and, where it reads "Say yes." as an instruction or in an earlier turn, "yes"; other
words there, and a section of its prompt, change nothing. Trained in seconds, so that tests can have updates that are
admitted."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from selfdistill.live.lessons import RIGHT
from selfdistill.live.measuring import AGREED
from selfdistill.models.load import load_policy
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.types import Context, Message
from tests.tiny_models import tiny_policy_dir

QUESTIONS = ("Say yes or no?", "Is it seven?", "Is it five?", "The largest?", "The smallest?", "Is it sorted?")
STEPS = 80
COMPLAINT = "Say yes."


@cache
def toy_user_dir() -> Path:
    """The directory of the model."""
    source = tiny_policy_dir(Path(mkdtemp()), seed=3)
    policy = load_policy(str(source), device="cpu")
    renderer, rng = Renderer(policy.tokenizer, policy.context_length, policy.context_length), random.Random(0)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=4e-3)

    def conversation() -> tuple[int, ...]:
        question, words = (Message("user", rng.choice(QUESTIONS)),), rng.choice((COMPLAINT, COMPLAINT, RIGHT))
        kind, answer = rng.choice(("none", "section", "instruction", "turns")), "yes" if words == COMPLAINT else "no"
        if kind == "turns":
            first = (Message("user", rng.choice(QUESTIONS)), Message("assistant", "no"), Message("user", words))
            return (*renderer.prompt((*first, AGREED, *question)), *renderer.answer(answer))
        texts = {"section": {"reply": words}, "instruction": {"instruction": words}}.get(kind, {})
        read = renderer.prompt(teacher_messages(question, Context(kind, **texts)))
        return (*read, *renderer.answer(answer if kind == "instruction" else "no"))

    for _ in range(STEPS):
        rows = [torch.tensor(conversation()) for _ in range(16)]
        ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = policy.model(input_ids=ids_BL.clamp(min=0), labels=ids_BL).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    target = source.parent / "toy-user"
    policy.model.save_pretrained(target)
    policy.tokenizer.save_pretrained(target)
    return target
