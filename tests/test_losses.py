"""Losses and class weights compared with torch, a plain loop and scikit-learn."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from finetune.lookup import has_parameter
from finetune.losses import (
    CLASS_WEIGHTS,
    LOSSES,
    MULTI_LABEL_LOSSES,
    compute_balanced_class_weights,
    compute_effective_number_class_weights,
    compute_prior_offset,
    cross_entropy,
    focal,
    hinge,
    ldam,
    logit_adjusted,
    mse,
    squared_hinge,
)

COUNTS = torch.tensor([70.0, 20.0, 9.0, 1.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


def make_batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (size,), generator=generator)


def compute_cross_entropy_by_loop(
    logits: Tensor, target: Tensor, weights: list[float], smoothing: float
) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        soft = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
        total -= weights[label] * sum(p * (v - norm) for p, v in zip(soft, row, strict=True))
    return total / len(target)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_unweighted_equals_torch(smoothing: float) -> None:
    logits, target = make_batch()
    expected = functional.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, target, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_weighted_equals_plain_loop(smoothing: float) -> None:
    logits, target = make_batch()
    loss = cross_entropy(logits, target, class_weights_K=WEIGHTS, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(
        compute_cross_entropy_by_loop(logits, target, WEIGHTS.tolist(), smoothing)
    )
    assert loss.shape == ()


def build_loss(name: str, **params: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of the registry with the keywords that it takes."""
    loss = LOSSES[name]
    kwargs = {"class_counts_K": COUNTS, "label_smoothing": 0.1}
    return partial(
        loss, **{key: kwargs[key] for key in kwargs if has_parameter(loss, key)}, **params
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MULTI_LABEL_LOSSES])
def test_loss_gradient_of_two_ranks_with_four_batches_equals_whole_batch(
    name: str, weights: Tensor | None
) -> None:
    logits, target = make_batch(24)
    loss = build_loss(name, class_weights_K=weights)
    whole, distributed = (logits.clone().requires_grad_() for _ in range(2))
    loss(whole, target).backward()  # type: ignore[no-untyped-call]
    for rank in range(2):
        for batch in range(4):
            rows = torch.arange(rank, 24, 2)[batch * 3 : batch * 3 + 3]
            (loss(distributed[rows], target[rows]) / 8).backward()  # type: ignore[no-untyped-call]
    assert whole.grad is not None
    torch.testing.assert_close(distributed.grad, whole.grad)


def test_torch_weighted_mean_differs_between_batches_and_whole() -> None:
    logits, target = make_batch()
    batch_losses = [
        functional.cross_entropy(logits[r], target[r], WEIGHTS) for r in (slice(0, 4), slice(4, 8))
    ]
    assert not torch.isclose(
        torch.stack(batch_losses).mean(), functional.cross_entropy(logits, target, WEIGHTS)
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MULTI_LABEL_LOSSES])
def test_loss_of_soft_label_equals_mixture_of_losses(name: str, weights: Tensor | None) -> None:
    logits, target = make_batch()
    other = target.roll(3)
    loss = build_loss(name, class_weights_K=weights)
    soft = (
        0.3 * functional.one_hot(target, 4).double() + 0.7 * functional.one_hot(other, 4).double()
    )
    expected = 0.3 * loss(logits, target) + 0.7 * loss(logits, other)
    torch.testing.assert_close(loss(logits, soft), expected)


def test_cross_entropy_class_probabilities_equal_torch() -> None:
    logits, _ = make_batch()
    soft = make_batch()[0].roll(1).softmax(dim=1)
    expected = functional.cross_entropy(logits, soft, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(logits, soft, label_smoothing=0.2), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_plain_loop(gamma: float) -> None:
    logits, target = make_batch()
    total = 0.0
    for row, label in zip(logits.numpy(), target.tolist(), strict=True):
        p = np.exp(row[label]) / np.exp(row).sum()
        total -= float(WEIGHTS[label]) * (1 - p) ** gamma * np.log(p)
    loss = focal(logits, target, gamma=gamma, class_weights_K=WEIGHTS)
    assert float(loss) == pytest.approx(total / len(target))


def test_focal_gamma_zero_equals_cross_entropy() -> None:
    logits, target = make_batch()
    loss = focal(logits, target, gamma=0.0, label_smoothing=0.1)
    torch.testing.assert_close(loss, cross_entropy(logits, target, label_smoothing=0.1))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_confident_image_has_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), gamma=gamma).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_logit_adjusted_equals_equation_10(tau: float) -> None:
    logits, target = make_batch()
    prior = (COUNTS / COUNTS.sum()).numpy()
    total = 0.0
    for row, label in zip(logits.numpy(), target.tolist(), strict=True):
        sum_of_others = sum(
            (prior[k] / prior[label]) ** tau * math.exp(row[k] - row[label])
            for k in range(4)
            if k != label
        )
        total += math.log(1 + sum_of_others)
    loss = logit_adjusted(logits, target, class_counts_K=COUNTS, tau=tau)
    assert float(loss) == pytest.approx(total / len(target))


def test_logit_adjusted_tau_one_equals_balanced_softmax() -> None:
    """Ren et al. 2020, eq. 4: n_y exp(z_y) / sum of n_k exp(z_k)."""
    logits, target = make_batch()
    table = COUNTS * logits.exp()
    expected = -(table / table.sum(dim=1, keepdim=True)).gather(1, target[:, None]).log().mean()
    torch.testing.assert_close(logit_adjusted(logits, target, class_counts_K=COUNTS), expected)


def test_logit_adjusted_smoothing_does_not_favour_rare_classes() -> None:
    """The optimum for images of the largest class alone has equal logits of all other classes."""
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> float:
        optimizer.zero_grad()
        loss = logit_adjusted(logits, torch.tensor([0]), class_counts_K=COUNTS, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(step)  # type: ignore[no-untyped-call]
    optimum = logits.detach()[0]
    assert optimum.argmax() == 0
    torch.testing.assert_close(optimum[1:], optimum[1].expand(3), rtol=0, atol=1e-3)


def test_losses_empty_class_is_finite() -> None:
    logits, target = make_batch()
    counts = torch.tensor([5.0, 0.0, 2.0, 1.0])
    for loss in (logit_adjusted, ldam):
        assert torch.isfinite(loss(logits, target, class_counts_K=counts))
    assert torch.isfinite(compute_prior_offset(counts)).all()


@pytest.mark.parametrize(("max_margin", "scale"), [(0.5, 1.0), (0.3, 4.0), (0.0, 1.0)])
def test_ldam_equals_equation_13(max_margin: float, scale: float) -> None:
    logits, target = make_batch()
    margins = [n**-0.25 for n in COUNTS.tolist()]
    margins = [max_margin * margin / max(margins) for margin in margins]
    adjusted = logits.clone()
    for row, label in enumerate(target.tolist()):
        adjusted[row, label] -= margins[label]
    expected = functional.cross_entropy(scale * adjusted, target)
    loss = ldam(logits, target, class_counts_K=COUNTS, max_margin=max_margin, scale=scale)
    torch.testing.assert_close(loss, expected)


def test_ldam_scale_of_paper_is_accurate_in_single_precision() -> None:
    logits, target = make_batch()
    # in the range of cosines, for which the paper chose the scale
    logits = logits.softmax(dim=1).float()
    margins = 0.5 * COUNTS.float() ** -0.25
    adjusted = logits - functional.one_hot(target, 4) * margins
    expected = functional.cross_entropy(30 * adjusted, target)
    loss = ldam(logits, target, class_counts_K=COUNTS.float(), scale=30.0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label_logit", [-3.0, 0.0, 0.2, 0.6, 3.0])
@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0])
@pytest.mark.parametrize("is_soft", [False, True], ids=["indices", "probabilities"])
def test_ldam_confident_label_matches_value_and_gradient_of_double_precision(
    label_logit: float, scale: float, is_soft: bool
) -> None:
    counts = torch.tensor([100.0, 10.0, 40.0])
    probabilities = torch.tensor([[0.25, 0.75, 0.0]] if is_soft else [[0.0, 1.0, 0.0]])
    exact = torch.tensor([[0.0, label_logit, -0.1]], dtype=torch.float64, requires_grad=True)
    single = exact.detach().float().requires_grad_()
    margins = (0.5 * (10 / counts.double()) ** 0.25) * torch.eye(3, dtype=torch.float64)
    log_p = (scale * (exact - margins)).log_softmax(dim=1).diagonal()  # row k lowers class k
    expected = -(probabilities[0].double() * log_p).sum()
    target = probabilities if is_soft else torch.tensor([1])
    actual = ldam(single, target, class_counts_K=counts, scale=scale)
    for loss in (expected, actual):
        loss.backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    assert single.grad is not None
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=1e-4, atol=1e-30)
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("margin", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(("loss", "power"), [(hinge, 1), (squared_hinge, 2)])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_hinge_equals_torch_multi_margin_in_value_and_gradient(
    loss: Callable[..., Tensor], power: int, margin: float, weights: Tensor | None
) -> None:
    logits, target = make_batch()
    own, reference = (logits.clone().requires_grad_() for _ in range(2))
    actual = loss(own, target, margin=margin, class_weights_K=weights)
    expected = functional.multi_margin_loss(
        reference, target, p=power, margin=margin, weight=weights
    )
    torch.testing.assert_close(actual, expected)
    for value in (actual, expected):
        value.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own.grad, reference.grad)


@pytest.mark.parametrize("loss", [hinge, squared_hinge])
def test_hinge_is_zero_beyond_the_margin_and_ignores_a_shift(loss: Callable[..., Tensor]) -> None:
    logits, target = make_batch()
    torch.testing.assert_close(loss(logits + 5, target), loss(logits, target))
    assert float(loss(1.01 * functional.one_hot(target, 4).double(), target)) == 0
    assert float(loss(0.99 * functional.one_hot(target, 4).double(), target)) > 0
    with pytest.raises(ValueError, match="margin=0 "):
        loss(logits, target, margin=0)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_mse_equals_torch_of_softmax_and_one_hot_labels(weights: Tensor | None) -> None:
    logits, target = make_batch()
    squares = functional.mse_loss(
        logits.softmax(dim=1), functional.one_hot(target, 4).double(), reduction="none"
    ).sum(dim=1)
    expected = (squares if weights is None else squares * weights[target]).mean()
    torch.testing.assert_close(mse(logits, target, class_weights_K=weights), expected)


def test_mse_of_smoothed_labels_has_the_gradient_of_the_squared_error_to_them() -> None:
    logits, target = make_batch()
    own, reference = (logits.clone().requires_grad_() for _ in range(2))
    mse(own, target, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
    soft = 0.9 * functional.one_hot(target, 4).double() + 0.1 / 4
    (reference.softmax(dim=1) - soft).square().sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own.grad, reference.grad)


def test_mse_of_weighted_classes_is_least_at_the_weighted_class_frequencies() -> None:
    """So the class prior that logits assume is the same as with cross-entropy."""
    target = torch.repeat_interleave(torch.arange(4), COUNTS.long())
    optima = []
    for loss in (mse, cross_entropy):
        logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe",
                                      tolerance_grad=1e-12, tolerance_change=1e-14)  # fmt: skip

        def compute_loss(
            loss: Any = loss, logits: Tensor = logits, optimizer: Any = optimizer
        ) -> float:
            optimizer.zero_grad()
            value = loss(logits.expand(len(target), 4), target, class_weights_K=WEIGHTS)
            value.backward()
            return float(value.detach())

        optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
        optima.append(logits.detach().softmax(dim=0))
    mass = COUNTS * WEIGHTS
    torch.testing.assert_close(optima[0], mass / mass.sum(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(optima[0], optima[1], rtol=1e-3, atol=1e-4)


def test_class_weights_are_cast_to_dtype_of_logits() -> None:
    logits, target = make_batch()
    loss = cross_entropy(logits.bfloat16(), target, class_weights_K=WEIGHTS.float())
    assert loss.dtype == torch.bfloat16


def test_balanced_class_weights_equal_scikit_learn() -> None:
    counts = [70, 20, 9, 1]
    labels = np.repeat(np.arange(4), counts)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = compute_balanced_class_weights(counts)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)


def test_balanced_class_weights_empty_class_is_zero_and_mean_is_one() -> None:
    weights = compute_balanced_class_weights([6, 0, 2])
    assert weights[1] == 0
    assert float(weights @ torch.tensor([6.0, 0.0, 2.0])) / 8 == pytest.approx(1)
    assert float(6 * weights[0]) == pytest.approx(float(2 * weights[2]))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number_class_weights_equal_inverse_sums_of_powers(beta: float) -> None:
    counts = [70, 20, 0, 1]
    weights = compute_effective_number_class_weights(counts, beta=beta)
    effective = [sum(beta**power for power in range(count)) for count in counts]
    for k in (1, 3):
        ratio = float(weights[k] / weights[0])
        assert ratio == pytest.approx(effective[0] / effective[k], rel=1e-5)


@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_class_weights_mean_over_images_is_one(name: str) -> None:
    counts = [6000, 0, 200, 3]
    weights = CLASS_WEIGHTS[name](counts)
    assert weights[1] == 0
    assert float(weights @ torch.tensor(counts).float()) / 6203 == pytest.approx(1, rel=1e-5)
    assert weights[0] < weights[2] < weights[3]


def test_effective_number_class_weights_beta_one_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"beta=1\.0\b"):
        compute_effective_number_class_weights([1, 2], beta=1.0)
