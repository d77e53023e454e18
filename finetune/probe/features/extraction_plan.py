"""Settings of the extraction of features and of the stores that keep them."""

from dataclasses import dataclass
from pathlib import Path

from finetune.types import PreprocessSpec, ReadOptions


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """Settings of feature extraction and of the feature stores.

    Attributes:
        model_args_json: Arguments that build the network, for what its weights do not determine.
        spec: Preprocessing of the network.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        root: Folder of all stores.
        owner: The dataset, by its folder.
        limit_bytes: Size limit of all stores together.
        num_workers: Loader processes of each rank.
        options: How image files are read.
        with_stages: Whether to extract the means of earlier stages in the same pass.
    """

    model_args_json: str
    spec: PreprocessSpec
    precision: str
    root: Path
    owner: str
    limit_bytes: int
    num_workers: int
    options: ReadOptions
    with_stages: bool = False
