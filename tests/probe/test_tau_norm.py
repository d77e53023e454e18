"""Norms are evened out, and nothing else changes."""

import pytest
import torch

from finetune.probe.tau_norm import apply_tau_normalisation


@pytest.fixture
def head() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 9, generator=generator) * torch.tensor([[8.0], [4.0], [1.0], [0.2]])
    return weight, torch.randn(4, generator=generator)


def test_tau_of_0_changes_nothing(head: tuple[torch.Tensor, torch.Tensor]) -> None:
    for before, after in zip(head, apply_tau_normalisation(*head, 0.0), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_tau_of_1_makes_all_norms_alike(head: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, bias = apply_tau_normalisation(*head, 1.0)
    norms = weight.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(4))
    # as the paper divides, w / |w| ** tau, up to one factor for all classes
    scale = norms[0]
    torch.testing.assert_close(weight / scale, head[0] / head[0].norm(dim=1, keepdim=True))
    torch.testing.assert_close(bias / scale, head[1] / head[0].norm(dim=1))


def test_a_class_without_weights_is_left_out_of_no_sum() -> None:
    weight, bias = apply_tau_normalisation(
        torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2), 0.5
    )
    assert bool(torch.isfinite(weight).all())
    assert bool((bias == 0).all())
