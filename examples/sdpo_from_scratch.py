"""SDPO (arXiv 2601.20802) on one page of torch and transformers; it imports nothing of selfdistill.

    python examples/sdpo_from_scratch.py                                a tiny random model, offline, in seconds
    python examples/sdpo_from_scratch.py Qwen/Qwen2.5-0.5B-Instruct 20  a model of the hub or a directory, and steps

A model answers a question several times. A function scores each answer and says what is wrong with it. The teacher, an
average of the model's weights, reads the question with another answer that succeeded, or else with the feedback, and
the model moves to the teacher's next-token probabilities on its own answers. The loss has no reward term.
Legend: T tokens of an answer, V vocabulary, K tokens that are compared one by one.
"""

import copy
import math
import re
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen2Config

ALPHA = 0.5  # 0: KL(teacher‖student), 1: KL(student‖teacher), between: Jensen-Shannon
TOP_K = 100  # the student's likeliest tokens at a position; all others are one more outcome
TEACHER_RATE, LEARNING_RATE, MAX_GRAD_NORM = 0.05, 1e-5, 1.0  # the first is that of the moving average
QUESTIONS_PER_STEP, GROUP, NEW_TOKENS = 4, 4, 64


def question(number):
    """A question, and its result for the score."""
    a, b = 10 + 7 * number % 90, 10 + 31 * number % 90
    return f"What is {a} plus {b}? Answer with the number alone.", a + b


def score(answer, result):
    """A reward, and feedback that does not give the result away."""
    numbers = re.findall(r"-?\d+", answer)
    if not numbers:
        return 0.0, "There is no number in your answer."
    return (1.0, "") if int(numbers[-1]) == result else (0.0, f"{numbers[-1]} is not the sum. Add digit by digit.")


def prompt_ids(tokenizer, text):
    """The tokens of a question and of the header of the answer."""
    turns = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return tokenizer(written, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def sample(model, tokenizer, prompt):
    """`GROUP` answers at temperature 1 from all tokens, as lists of token ids with the end token."""
    options = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=NEW_TOKENS, num_return_sequences=GROUP,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    ids = torch.tensor([prompt], device=model.device)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)[:, len(prompt) :]
    ends = [(row == tokenizer.eos_token_id).nonzero()[:1, 0].tolist() for row in made]
    return [row[: end[0] + 1 if end else len(row)].tolist() for row, end in zip(made, ends, strict=True)]


def teacher_text(asked, answers, scores, index):
    """The question, with another answer that succeeded or the answer's own feedback; None where there is neither."""
    solutions = [answers[i] for i, (reward, _) in enumerate(scores) if reward == 1.0 and i != index]
    heading, text = "The following is feedback from your unsuccessful earlier attempt:", scores[index][1]
    if solutions:
        heading, text = "Correct solution:", solutions[0]
    return f"{asked}\n\n{heading}\n\n{text}\n\nCorrectly solve the original question." if text else None


def log_probs(model, prompt, answer):
    """Next-token log-probabilities [T, V] before each token of the answer."""
    logits_LV = model(torch.tensor([[*prompt, *answer]], device=model.device)).logits[0]
    return logits_LV[len(prompt) - 1 : -1].log_softmax(-1)


def with_tail(log_TV, ids_TK):
    """Log-probabilities [T, K + 1] of the chosen tokens and of all others together."""
    log_TK = log_TV.gather(-1, ids_TK)
    tail_T1 = torch.log(-torch.expm1(log_TK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))
    return torch.cat([log_TK, tail_T1], dim=-1)


def divergence(log_p, log_q):
    """At each position [T], from student to teacher: KL(q‖p), KL(p‖q) or Jensen-Shannon."""
    if ALPHA in (0.0, 1.0):
        first, second = (log_p, log_q) if ALPHA else (log_q, log_p)
        return (first.exp() * (first - second)).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(1 - ALPHA), log_q + math.log(ALPHA))
    to_student, to_teacher = ((log.exp() * (log - log_m)).sum(-1) for log in (log_p, log_q))
    return (1 - ALPHA) * to_student + ALPHA * to_teacher


def backward(student, teacher, tokenizer, asked, answers, scores, total):
    """Adds the gradient of one group and returns its loss: the mean divergence over the tokens of each answer, over
    `total` answers. Sampler and trainer are one model before its update, so that all importance weights are 1."""
    texts, loss = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers], 0.0
    for index, answer in enumerate(answers):
        read = teacher_text(asked, texts, scores, index)
        if read is None:
            continue  # it still counts in `total`
        log_p_TV = log_probs(student, prompt_ids(tokenizer, asked), answer)
        with torch.no_grad():
            log_q_TV = log_probs(teacher, prompt_ids(tokenizer, read), answer)
            ids_TK = log_p_TV.topk(min(TOP_K, log_p_TV.shape[-1] - 1)).indices
        share = divergence(with_tail(log_p_TV, ids_TK), with_tail(log_q_TV, ids_TK)).mean() / total
        share.backward()
        loss += share.item()
    return loss


def load(name):
    """A model in float32 (steps of 1e-5 vanish in bfloat16) and its tokenizer; without a name a random one of bytes."""
    if name:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    signs = ["<|im_start|>", "<|im_end|>"]
    words = [*signs, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=signs[1], additional_special_tokens=signs)
    turn = "<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
    tokenizer.chat_template = f"{{% for turn in messages %}}{turn}{{% endfor %}}<|im_start|>assistant\n"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = Qwen2Config(vocab_size=len(words), num_hidden_layers=2, initializer_range=0.3, **size)
    return AutoModelForCausalLM.from_config(shape), tokenizer


def main(name="", steps="3"):
    torch.manual_seed(0)
    student, tokenizer = load(name)
    student, teacher = student.eval(), copy.deepcopy(student).eval()  # without dropout equal prompts give a loss of 0
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(int(steps)):
        loss, rewards = 0.0, []
        for number in range(QUESTIONS_PER_STEP):
            asked, result = question(step * QUESTIONS_PER_STEP + number)
            answers = sample(student, tokenizer, prompt_ids(tokenizer, asked))
            scores = [score(tokenizer.decode(ids, skip_special_tokens=True), result) for ids in answers]
            rewards += [reward for reward, _ in scores]
            loss += backward(student, teacher, tokenizer, asked, answers, scores, QUESTIONS_PER_STEP * GROUP)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, moved in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(moved, TEACHER_RATE)
        print(f"step {step + 1}: reward {sum(rewards) / len(rewards):.2f}, loss {loss:.5f}, gradient {norm:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
