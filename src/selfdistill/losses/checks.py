"""The inputs that the kernel rejects: shapes that disagree, terms without an input, teachers that cannot be formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from selfdistill.errors import ConfigError
from selfdistill.losses.spec import Inputs, TokenWeights
from selfdistill.losses.teacher_mixture import TeacherStates


def check(inputs: Inputs) -> None:
    """Raises `ConfigError`: see the top of the file."""
    spec, weights, positions = inputs.loss_spec, inputs.weights, len(inputs.hidden_ND)
    per_token = {f.name: getattr(weights, f.name) for f in fields(TokenWeights)}
    per_token |= {
        name: getattr(inputs, name) for name in ("tokens_N", "old_logprobs_N", "sampler_logprobs_N", "given_N")
    }
    per_token |= {f"views[{index}].present_N": view.present_N for index, view in enumerate(inputs.views)}
    wrong = {name: tuple(x.shape) for name, x in per_token.items() if x is not None and x.shape != (positions,)}
    if wrong:
        raise ConfigError(
            f"one number per answer position is needed: shape ({positions},)",
            got=wrong,
            why="a shift by one token trains on nonsense without an error",
            do="concatenate the answers in the order of their hidden states",
        )
    reference = [] if inputs.reference is None else [inputs.reference]
    for passes in (inputs.views, reference):
        _check_passes(passes, positions, inputs.head.vocabulary)
    if any(view.against or view.present_N is not None for view in reference):
        raise ConfigError(
            "the reference must cover every position",
            got="a reference with `against` or `present_N`",
            why="it is compared with the student everywhere",
            do="pass TeacherStates(hidden_ND, head)",
        )
    wanted = [view for view in inputs.views if not view.against]
    distils = weights.distil_N is not None and bool((weights.distil_N != 0).any())
    has_reference = spec.reference.coefficient > 0
    missing = {
        "views": distils and not wanted,
        "reference": has_reference and not reference,
        "weights.reference_N": has_reference and weights.reference_N is None,
    }
    if any(missing.values()):
        raise ConfigError(
            "a term has weight but lacks an input",
            got=", ".join(f"no {name}" for name, is_missing in missing.items() if is_missing),
            why="it would silently do nothing",
            do="pass what is missing, or set the weight or coefficient to 0",
        )
    if len(wanted) < len(inputs.views) and not spec.mixture.reads_against:
        why, do = "the pass would be left out, or mixed in as if for the answer", "use Contrast(), or leave it out"
        raise ConfigError("only a contrast reads passes against the answer", got=spec.mixture, why=why, do=do)
    if weights.distil_N is not None and distils and all(view.present_N is not None for view in wanted):
        absent_N = weights.distil_N != 0
        for view in wanted:
            absent_N = absent_N & ~view.present_N  # type: ignore[operator]
        if absent := int(absent_N.sum()):
            raise ConfigError(
                "a position has distillation weight but no teacher",
                got=f"{absent} of {positions} positions",
                why="no pass covers it, so there is no log-ratio",
                do="set distil_N to 0 there",
            )


def _check_passes(passes: Sequence[TeacherStates], positions: int, vocabulary: int) -> None:
    for view in passes:
        if view.hidden_ND.shape[0] != positions or view.head.vocabulary != vocabulary:
            raise ConfigError(
                "a teacher's pass must have the student's positions and vocabulary",
                got=f"{view.hidden_ND.shape[0]} positions of {view.head.vocabulary} tokens",
                why=f"they are compared one by one with {positions} positions of {vocabulary} tokens",
                do="pass the hidden states that predict the same answer tokens, from a model with the same tokenizer",
            )
    against, wanted = ([view for view in passes if view.against == side] for side in (True, False))
    shared = any(view.present_N is not None for view in wanted)
    total = sum(view.weight for view in wanted)
    if wanted and not shared and abs(total - 1.0) > 1e-6:
        raise ConfigError(
            "the weights of the teacher's passes must sum to 1",
            got=[view.weight for view in wanted],
            why=f"a sum of {total:g} would act as a hidden temperature of {1 / total if total else float('inf'):g}",
            do="use (1 - rate, rate) for a trust region, 1.0 for a single pass; with present_N they are normalised",
        )
    for side in (against, wanted if shared else []):
        if any(not view.weight > 0 for view in side):
            raise ConfigError(
                "weights that are normalised where a pass is present must be positive",
                got=[view.weight for view in side],
                why="the sum they are divided by could be 0",
                do="leave out passes that weigh nothing",
            )
