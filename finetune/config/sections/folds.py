"""Config section on cross-validation: its folds, and the model that follows from them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.config.section import Section


class CrossValidationConfig(Section):
    """Cross-validation: a run for each fold of the images, and one model from all of them."""

    num_folds: Annotated[int, Field(ge=2, le=100)] | None = Field(
        None,
        description="number of folds, 5 or 10 as a rule; each image is held out by one of them. "
        "null: a single run with a validation split",
    )
    final: Literal["ensemble", "refit"] = Field(
        "ensemble",
        description="model of the run: the mean of the probabilities of all folds (ensemble), or "
        "one network trained on all images with the epochs and rates that the folds found (refit)",
    )
    fold: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="train this fold alone, counted from 1, as one of several jobs; null: all "
        "folds, then the model",
    )

    @model_validator(mode="after")
    def _check_folds(self) -> "CrossValidationConfig":
        if self.num_folds is None:
            for name, is_set in (("fold", self.fold), ("final", self.final != "ensemble")):
                if is_set:
                    raise ValueError(
                        f"{name}={getattr(self, name)} needs folds; set cross_validation.num_folds "
                        f"(--folds)"
                    )
        elif self.fold is not None and self.fold > self.num_folds:
            raise ValueError(f"fold={self.fold} is not one of the {self.num_folds} folds")
        return self
