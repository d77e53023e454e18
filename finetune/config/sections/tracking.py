"""Config section on experiment tracking."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from finetune.config.section import Section, coerce_on_off

_REGISTRY_EXAMPLE = "wandb-registry-model/insects"


class TrackingConfig(Section):
    """Experiment tracking in addition to metrics.csv: W&B, TensorBoard and MLflow."""

    wandb: Annotated[
        Literal["off", "offline", "online"],
        BeforeValidator(coerce_on_off),
    ] = Field("off", description="Weights & Biases: off, offline or online")
    tensorboard: bool = Field(
        False, description="write event files for TensorBoard to the run folder, in tensorboard/"
    )
    mlflow: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="URI of an MLflow server or store, such as sqlite:///mlflow.db; user, password "
        "and token belong into MLflow's environment variables; null: none",
    )
    project: str = Field(
        "finetune", min_length=1, description="W&B project, and name of the MLflow experiment"
    )
    entity: str | None = Field(None, description="W&B user or team; null: your default")
    name: str | None = Field(None, description="name of the run; null: the run folder's name")
    group: str | None = Field(
        None,
        description="W&B group of runs that belong together; null: the run folder's name for "
        "the folds of a cross-validation, slurm-<job> for the jobs of a SLURM array, else none",
    )
    job_type: str | None = Field(
        None,
        description="W&B job type; null: fold or refit of a cross-validation, trial of a search, "
        "sweep, else train",
    )
    tags: list[str] = Field(default_factory=list, description="tags of the run")
    registry: str | None = Field(
        None,
        description="collection of the W&B registry to which the model is linked, such as "
        f"{_REGISTRY_EXAMPLE}; only online; null: none",
    )
    images: Annotated[Literal["on", "off"], BeforeValidator(coerce_on_off)] = Field(
        "on",
        description="log photos: a sheet of augmented training images and the worst mistakes, at "
        "most 32 at a time, and report.html, which holds some; off: log none of them",
    )

    @field_validator("mlflow")
    @classmethod
    def _check_credentials(cls, uri: str | None) -> str | None:
        """Reject a URI with a password, which would be written to config.yaml and to trackers."""
        if uri is None:
            return None
        try:
            has_credentials = "@" in urlsplit(uri).netloc
        except ValueError as error:
            raise ValueError(
                f"not a valid URI ({error}), for example sqlite:///mlflow.db"
            ) from None
        if has_credentials:
            raise ValueError(
                "found a user or password in the URI, which would be written to the run folder. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return uri

    @field_validator("entity", "name", "group", "job_type", "registry")
    @classmethod
    def _check_text(cls, text: str | None) -> str | None:
        if text == "":
            raise ValueError("found '', expected text, or null for none")
        return text

    @model_validator(mode="after")
    def _check_registry(self) -> "TrackingConfig":
        if self.registry is not None and self.wandb != "online":
            raise ValueError(
                f"registry={self.registry} cannot apply to tracking.wandb={self.wandb}: W&B links "
                f"models only online. Set --wandb online, or leave tracking.registry out."
            )
        return self
