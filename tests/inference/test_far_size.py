"""Tests of the note on images of a size far from that of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.inference.input_checks import describe_far_size
from finetune.types import PreprocessSpec


@pytest.mark.parametrize(("factor", "is_far"), [(0.4, True), (0.5, False), (2, False), (2.1, True)])
def test_size_far_from_training_is_noted(factor: float, is_far: bool) -> None:
    own = 100
    spec = PreprocessSpec((3, own, own), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
    card = ModelCard("resnet18", {}, ("ant", "bee"), spec, {})
    bundle = ModelBundle(nn.Identity(), card, Path("model"))
    note = describe_far_size(bundle, round(own * factor))
    assert (note is not None) == is_far
    assert note is None or f"{own} px" in note
    assert describe_far_size(bundle, None) is None
