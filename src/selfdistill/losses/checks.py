"""What the kernel refuses: shapes that disagree, terms without what they need, teachers that cannot be formed.

Legend: N answer positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from selfdistill.losses.clipping import Relative, unresolved
from selfdistill.losses.refusal import refusal
from selfdistill.losses.teacher_mixture import TeacherStates
from selfdistill.losses.terms import Inputs, TokenWeights


def check(inputs: Inputs) -> None:
    """Raises `ValueError`: see the top of the file."""
    _check_shapes(inputs)
    check_views(inputs.views, inputs.positions, inputs.head.vocabulary)
    reference = [] if inputs.reference is None else [inputs.reference]
    check_views(reference, inputs.positions, inputs.head.vocabulary)
    _check_needs(inputs)
    if any(view.against or view.present_N is not None for view in reference):
        raise refusal(
            "the reference reads every position, by hidden states",
            got="a reference with `against` or `present_N`",
            why="it is compared with the student everywhere",
            do="pass TeacherStates(hidden_ND, head)",
        )
    if inputs.distils and isinstance(inputs.loss_spec.clipping, Relative):
        raise unresolved(inputs.loss_spec.clipping)


def _check_shapes(inputs: Inputs) -> None:
    per_token = {f.name: getattr(inputs.weights, f.name) for f in fields(TokenWeights)}
    per_token |= {
        name: getattr(inputs, name) for name in ("tokens_N", "old_logprobs_N", "sampler_logprobs_N", "given_N")
    }
    per_token |= {f"views[{index}].present_N": view.present_N for index, view in enumerate(inputs.views)}
    wrong = {name: tuple(x.shape) for name, x in per_token.items() if x is not None and x.shape != (inputs.positions,)}
    if wrong:
        raise refusal(
            f"one number per answer position is needed: shape ({inputs.positions},)",
            got=wrong,
            why="a shift by one token trains on nonsense without an error",
            do="concatenate the answers in the order of their hidden states",
        )


def check_views(views: Sequence[TeacherStates], positions: int, vocabulary: int) -> None:
    """Raises `ValueError` unless the views read the same positions, speak the same vocabulary and can be weighed."""
    for view in views:
        if view.hidden_ND.shape[0] != positions or view.head.vocabulary != vocabulary:
            raise refusal(
                "a teacher view must cover the student's positions and vocabulary",
                got=f"{view.hidden_ND.shape[0]} positions of {view.head.vocabulary} tokens",
                why=f"they are compared one by one with {positions} positions of {vocabulary} tokens",
                do="pass the hidden states that predict the same answer tokens, from a model with the same tokenizer",
            )
    wanted = [view for view in views if not view.against]
    total = sum(view.weight for view in wanted)
    if wanted and all(view.present_N is None for view in wanted) and abs(total - 1.0) > 1e-6:
        raise refusal(
            "the weights of the teacher's views must sum to 1",
            got=[view.weight for view in wanted],
            why=f"a sum of {total:g} would act as a hidden temperature of {1 / total if total else float('inf'):g}",
            do="use (1 - rate, rate) for a trust region, 1.0 for a single view; with present_N they are normalised",
        )
    against = [view for view in views if view.against]
    _check_relative(against)
    if any(view.present_N is not None for view in wanted):
        _check_relative(wanted)


def _check_relative(views: Sequence[TeacherStates]) -> None:
    """Weights that are normalised at each position can only be positive."""
    if any(not view.weight > 0 for view in views):
        raise refusal(
            "weights that are normalised where a view is present must be positive",
            got=[view.weight for view in views],
            why="the sum they are divided by could be 0",
            do="leave out views that weigh nothing",
        )


def _check_needs(inputs: Inputs) -> None:
    loss_spec, leashed = inputs.loss_spec, inputs.loss_spec.reference.coefficient > 0
    wanted = [view for view in inputs.views if not view.against]
    missing = {
        "views": not wanted and inputs.distils,
        "reference": leashed and inputs.reference is None,
        "weights.reference_N": leashed and inputs.weights.reference_N is None,
    }
    if any(missing.values()):
        raise refusal(
            "a term has weight but not what it needs",
            got=", ".join(f"no {name}" for name, is_missing in missing.items() if is_missing),
            why="it would silently do nothing",
            do="pass what is missing, or set the weight or coefficient to 0",
        )
    if len(wanted) < len(inputs.views) and not loss_spec.mixture.reads_against:
        raise refusal(
            "only a contrast reads views against",
            got=loss_spec.mixture,
            why="the view would be left out, or worse, taken for what is wanted",
            do="use Contrast(), or leave those views out",
        )
    if inputs.distils and wanted:
        _check_present(inputs, wanted)


def _check_present(inputs: Inputs, wanted: Sequence[TeacherStates]) -> None:
    distil_N = inputs.weights.distil_N
    assert distil_N is not None
    absent_N = distil_N != 0
    for view in wanted:
        if view.present_N is None:
            return
        absent_N = absent_N & ~view.present_N
    alone = int(absent_N.sum())
    if alone:
        raise refusal(
            "a position has distillation weight but no view read it",
            got=f"{alone} of {inputs.positions} positions",
            why="there is no teacher to learn from",
            do="set distil_N to 0 there",
        )
