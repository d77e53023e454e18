"""Rules of the check: what hinders a network from learning a few images, as pure functions."""

from collections.abc import Callable

from finetune.commands.fit.check.check_evidence import CheckEvidence
from finetune.commands.fit.check.learning_trace import LearningTrace, describe_errors
from finetune.diagnosis.finding import SEVERITIES, Finding
from finetune.units import format_count, format_duration, format_scientific

_INPUT_STD_RANGE = (0.02, 20.0)
_MAX_INPUT_MEAN = 20.0
"""Normalized inputs have a mean near 0 and a deviation near 1; dark or pale images are within a
factor of 10 of it, pixels in another unit (0 to 255 for 0 to 1) are not."""

_CHANCE_P_VALUE = 0.05
_MIN_HELD_OUT = 16

_MIN_PASSES = 3
"""Passes after which a loss that has risen without exploding is held against the rate."""

Rule = Callable[[CheckEvidence], Finding | None]


def find_hindrances(evidence: CheckEvidence) -> tuple[Finding, ...]:
    """Return what hinders the images from being learned, or that nothing does, the worst first."""
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    if not evidence.is_learned and not any(one.severity == "problem" for one in found):
        found.append(_describe_failure(evidence))
    if evidence.is_learned:
        found.append(_describe_success(evidence))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def find_equal_inputs(evidence: CheckEvidence) -> Finding | None:
    """Find images that are all alike as the network sees them."""
    if evidence.num_distinct > 1:
        return None
    return Finding(
        rule="equal_inputs",
        severity="problem",
        title="All images are equal",
        sentence=f"The {format_count(evidence.num_images, 'image')} have the same pixels after "
        f"resizing and cropping (deviation {evidence.pixel_std:.3g} of the range), so that no "
        f"network can tell them apart.",
        numbers={"num_images": evidence.num_images, "pixel_std": evidence.pixel_std},
        remedy="Look at the files; finetune inspect lists blank images and duplicates.",
    )


def find_contradicting_labels(evidence: CheckEvidence) -> Finding | None:
    """Find the same image under two labels; near duplicates are a problem if nothing is learned."""
    if not evidence.contradictions or evidence.num_distinct <= 1:
        return None
    exact = [one for one in evidence.contradictions if one.is_exact]
    shown = (exact or evidence.contradictions)[0]
    others = len(evidence.contradictions) - 1
    more = f"; so are {format_count(others, 'further pair')} of training images" if others else ""
    is_hindrance = bool(exact) or not evidence.is_learned
    meaning = "no network can be right on both" if exact else "they differ by little"
    return Finding(
        rule="contradicting_labels",
        severity="problem" if is_hindrance else "warning",
        title=f"{'The same' if exact else 'Nearly the same'} image has two labels",
        sentence=f"{shown.paths[0]} ({shown.labels[0]}) and {shown.paths[1]} ({shown.labels[1]}) "
        f"are {'the same image' if exact else 'near duplicates'}: {meaning}{more}.",
        numbers={
            "num_pairs": len(evidence.contradictions),
            "num_exact": len(exact),
            "first": shown.paths[0],
            "second": shown.paths[1],
        },
        remedy="Keep the file with the right label; finetune inspect lists all duplicates.",
    )


def find_wrong_normalization(evidence: CheckEvidence) -> Finding | None:
    """Find inputs in another scale than a network expects."""
    low, high = _INPUT_STD_RANGE
    std = max(evidence.input_std)
    mean = max(evidence.input_mean, key=abs)
    is_usual = low <= std <= high and abs(mean) <= _MAX_INPUT_MEAN
    if is_usual or evidence.num_distinct <= 1:
        return None
    return Finding(
        rule="normalization",
        severity="problem" if evidence.is_pretrained or not evidence.is_learned else "warning",
        title="The inputs are not normalized",
        sentence=f"As the network sees them, the pixels have a mean of up to {mean:.3g} and a "
        f"deviation of up to {std:.3g} in a channel, where about 0 and 1 are usual.",
        numbers={"input_mean": mean, "input_std": std, "pixel_std": evidence.pixel_std},
        remedy="Give mean and std for pixels from 0 to 1 in model.pretrained_cfg, or measure them:",
        option="data.normalize=dataset",
    )


def find_no_gradient(evidence: CheckEvidence) -> Finding | None:
    """Find a loss whose gradient is 0 although images are wrong."""
    main = evidence.main
    if main is None or main.gradient_norm != 0 or main.start_loss == 0:
        return None
    return Finding(
        rule="no_gradient",
        severity="problem",
        title="The loss has no gradient",
        sentence=f"The loss is {main.start_loss:.3g} and "
        f"{describe_errors(main, main.start_errors)}, but the gradient by the logits is 0.",
        numbers={"start_loss": main.start_loss, "gradient_norm": 0.0},
        remedy="Compute the loss of the logits with functions of torch, without detach, argmax or "
        "numpy; loss.name=cross_entropy is one that trains.",
        option="loss.name=cross_entropy",
    )


def find_high_rate(evidence: CheckEvidence) -> Finding | None:
    """Find a learning rate at which the loss explodes, or a lower one learns where it does not."""
    main = evidence.main
    if main is None or main.lr is None or main.is_learned or main.gradient_norm == 0:
        return None
    rate = main.lr
    better = _find_better(evidence, lambda lr: lr < rate)
    if better is None and (not main.is_exploded or _is_better_deeper(evidence)):
        return None
    if not main.is_exploded and len(main.losses) < _MIN_PASSES:
        return None
    peak = max((*main.losses, main.end_loss), key=lambda loss: (loss != loss, loss))
    return Finding(
        rule="rate_too_high",
        severity="problem",
        title="The learning rate is too high",
        sentence=f"At a rate of {format_scientific(main.lr)} the loss went from "
        f"{main.start_loss:.3g} to {peak:.3g} within {format_count(main.num_steps, 'step')}, and "
        f"{describe_errors(main, main.num_errors)} in the end.{_describe_rate(better)}",
        numbers={"lr": main.lr, "start_loss": main.start_loss, "peak_loss": peak},
        **_suggest_rate(evidence, better, "Lower", 0.1),
    )


def find_low_rate(evidence: CheckEvidence) -> Finding | None:
    """Find a learning rate at which the loss does not move, or a higher one learns."""
    main = evidence.main
    if main is None or main.lr is None or main.is_learned or main.gradient_norm == 0:
        return None
    rate = main.lr
    better = _find_better(evidence, lambda lr: lr > rate)
    is_explained = _is_better_deeper(evidence) or _find_better(evidence, lambda lr: lr < rate)
    if main.is_exploded or (better is None and (is_explained or not main.is_still)):
        return None
    return Finding(
        rule="rate_too_low",
        severity="problem",
        title="The learning rate is too low",
        sentence=f"At a rate of {format_scientific(main.lr)} the loss went from "
        f"{main.start_loss:.4g} to {main.end_loss:.4g} in {format_count(main.num_steps, 'step')}, "
        f"and {describe_errors(main, main.num_errors)} in the end.{_describe_rate(better)}",
        numbers={"lr": main.lr, "start_loss": main.start_loss, "end_loss": main.end_loss},
        **_suggest_rate(evidence, better, "Raise", 10.0),
    )


def find_deep_freezing(evidence: CheckEvidence) -> Finding | None:
    """Find frozen layers without which the images are learned."""
    main, deeper = evidence.main, evidence.deeper
    if main is None or deeper is None or main.is_learned or not _is_better(deeper, main):
        return None
    frozen = evidence.num_groups - main.depth
    return Finding(
        rule="frozen_too_deep",
        severity="problem",
        title="Too many layers are frozen",
        sentence=f"With {frozen} of {evidence.num_groups} layer groups frozen, "
        f"{describe_errors(main, main.num_errors)} in the end, at a loss of {main.end_loss:.3g}; "
        f"with all of them trained, {describe_errors(deeper, deeper.num_errors)}, at "
        f"{deeper.end_loss:.3g}.",
        numbers={
            "depth": main.depth,
            "num_groups": evidence.num_groups,
            "num_errors": main.num_errors,
            "num_errors_unfrozen": deeper.num_errors,
        },
        remedy="Train more layers:",
        option="unfreeze.name=all",
    )


def find_unfollowed_labels(evidence: CheckEvidence) -> Finding | None:
    """Find other images that are no better than chance after some were learned."""
    result = evidence.held_out
    if result is None or result.num_images < _MIN_HELD_OUT or result.p_value <= _CHANCE_P_VALUE:
        return None
    of = "" if result.num_predictions == result.num_images else "labels of "
    return Finding(
        rule="labels_not_followed",
        severity="problem" if evidence.is_pretrained else "info",
        title="The images were learned by heart only",
        sentence=f"Of {of}other training images, {result.num_right} of {result.num_predictions} "
        f"are then right; with their labels exchanged at random, {result.chance:.1f} are "
        f"(p = {result.p_value:.2f}). "
        + (
            "Either the labels are shuffled, or what the backbone sees does not tell the classes "
            "apart from so few images."
            if evidence.is_pretrained
            else "Without pretrained weights, so few images do not show whether labels are right."
        ),
        numbers={
            "num_right": result.num_right,
            "num_predictions": result.num_predictions,
            "chance": result.chance,
            "p_value": result.p_value,
        },
        remedy="Compare some images of each class with their labels." * evidence.is_pretrained,
    )


RULES: tuple[Rule, ...] = (
    find_equal_inputs,
    find_contradicting_labels,
    find_wrong_normalization,
    find_no_gradient,
    find_high_rate,
    find_low_rate,
    find_deep_freezing,
    find_unfollowed_labels,
)
"""All rules, in the order in which findings of the same severity are shown."""


def _find_better(
    evidence: CheckEvidence, is_chosen: Callable[[float], bool]
) -> LearningTrace | None:
    """Return the first attempt with a chosen rate that does better than that of the run."""
    assert evidence.main is not None, "compared with the attempt of the run"
    for trace in evidence.other_rates:
        if trace.lr is not None and is_chosen(trace.lr) and _is_better(trace, evidence.main):
            return trace
    return None


def _is_better_deeper(evidence: CheckEvidence) -> bool:
    """Return whether training all layers does better than the settings of the run."""
    deeper, main = evidence.deeper, evidence.main
    return deeper is not None and main is not None and _is_better(deeper, main)


def _is_better(trace: LearningTrace, main: LearningTrace) -> bool:
    """Return whether an attempt learned the images, or has half of the loss and fewer errors."""
    if trace.is_learned:
        return True
    return (
        not trace.is_exploded
        and trace.end_loss < 0.5 * main.end_loss
        and trace.num_errors < main.num_errors
    )


def _describe_rate(better: LearningTrace | None) -> str:
    if better is None or better.lr is None:
        return ""
    return (
        f" At {format_scientific(better.lr)}, {describe_errors(better, better.num_errors)} after "
        f"{format_count(better.num_steps, 'step')}, at a loss of {better.end_loss:.3g}."
    )


def _suggest_rate(
    evidence: CheckEvidence, better: LearningTrace | None, verb: str, factor: float
) -> dict[str, str]:
    """Return remedy and option: a rate that did better, the recipe's, or another than that."""
    rate = better.lr if better is not None else None
    if rate is None and evidence.is_rate_chosen and evidence.main and evidence.main.lr:
        rate = factor * evidence.main.lr
    option = "optim.lr=auto" if rate is None else f"optim.lr={rate:.2g}"
    choice = "" if evidence.is_rate_chosen else ", or leave it out to have it chosen"
    return {"remedy": f"{verb} the rate{choice}:", "option": option}


def _describe_failure(evidence: CheckEvidence) -> Finding:
    main = evidence.main
    assert main is not None, "only equal inputs are not learned, and these are a finding"
    reason = (
        f"The time limit of {format_duration(evidence.time_limit_seconds)} ended it."
        if main.is_timed_out
        else "More passes over them did not help."
    )
    remedy = (
        "The machine may be too slow for this network: a smaller --image-size or --backbone shows "
        "more in the same time."
        if main.is_timed_out and main.end_loss < main.start_loss
        else "Neither another rate nor more layers did better. Check loss.name and the labels."
    )
    return Finding(
        rule="not_learned",
        severity="problem",
        title="The images were not learned",
        sentence=f"After {format_count(main.num_steps, 'step')} "
        f"{describe_errors(main, main.num_errors)}; the loss went from {main.start_loss:.4g} to "
        f"{main.end_loss:.4g}. {reason}",
        numbers={"num_errors": main.num_errors, "end_loss": main.end_loss},
        remedy=remedy,
    )


def _describe_success(evidence: CheckEvidence) -> Finding:
    main, held_out = evidence.main, evidence.held_out
    assert main is not None, "images were learned"
    other = ""
    if held_out is not None and held_out.p_value <= _CHANCE_P_VALUE:
        of = "" if held_out.num_predictions == held_out.num_images else "labels of "
        other = (
            f" Of {of}other training images, {held_out.num_right} of {held_out.num_predictions} "
            f"are right, where {held_out.chance:.1f} would be by chance."
        )
    return Finding(
        rule="learned",
        severity="good",
        title="The images were learned",
        sentence=f"{describe_errors(main, main.num_errors).capitalize()} after "
        f"{format_count(main.num_steps, 'step')}; the loss went from {main.start_loss:.3g} to "
        f"{main.end_loss:.3g}.{other}",
        numbers={"num_steps": main.num_steps, "end_loss": main.end_loss},
    )
