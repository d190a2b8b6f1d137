"""A tiny model with a user in it: it answers "no" or "yes" alike and, where it reads "Say yes.", "yes"; its user
complains about "no" and thanks for "yes". Trained in seconds, so that tests can have updates that are admitted."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from selfdistill.models.load import load_policy
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.types import Context, Message
from tests.tiny_models import tiny_policy_dir

QUESTIONS = ("Say yes or no?", "Is it seven?", "Is it five?", "The largest?", "The smallest?", "Is it sorted?")
STEPS = 120
COMPLAINT, THANKS = "Say yes.", "Great, thanks!"


@cache
def toy_user_dir() -> Path:
    """The directory of the model."""
    source = tiny_policy_dir(Path(mkdtemp()), seed=3)
    policy = load_policy(str(source), device="cpu")
    renderer, rng = Renderer(policy.tokenizer, policy.context_length, policy.context_length), random.Random(0)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=4e-3)

    def conversation() -> tuple[int, ...]:
        question = (Message("user", rng.choice(QUESTIONS)),)
        if rng.random() < 0.4:
            told = Context("instruction", instruction=COMPLAINT)
            return (*renderer.prompt(teacher_messages(question, told)), *renderer.answer("yes"))
        answer = rng.choice(("yes", "no"))
        reply = COMPLAINT if answer == "no" else rng.choice((THANKS, "Thank you, that is just what I needed."))
        return renderer.prompt((*question, Message("assistant", answer), Message("user", reply)))

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
