"""Bodies of responses, for the OpenAPI description."""

from pydantic import BaseModel, ConfigDict, Field


class ErrorBody(BaseModel):
    """Reason why a request, or an image of one, is rejected."""

    reason: str = Field(description="Name of the reason, such as damaged_image.")
    detail: str = Field(description="Sentence that says what was found and what to do.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class ImagePrediction(BaseModel):
    """Prediction of an image; of several images, those that cannot be read have an error."""

    name: str = Field(description="Name of the file in the form.")
    label: str | None = Field(None, description="Most probable class.")
    probability: float | None = None
    top: list[ClassProbability] | None = Field(None, description="Most probable classes.")
    labels: list[ClassProbability] | None = Field(
        None, description="Of a multi-label model: labels that reach their thresholds."
    )
    probabilities: dict[str, float] | None = Field(
        None, description="Probability of each class, with all=true or of a multi-label model."
    )
    error: ErrorBody | None = None


class PredictResponse(BaseModel):
    """Predictions in the order of the images."""

    predictions: list[ImagePrediction]


class HealthResponse(BaseModel):
    """State of the server."""

    status: str


class SaliencyResponse(BaseModel):
    """Picture of what the predicted class depends on, if it can be trusted."""

    label: str = Field(description="Class that the picture is about.")
    picture: str | None = Field(description="PNG as a data URL; null if none can be trusted.")
    reason: str = Field(description="Why there is no picture.")


class SampleEntry(BaseModel):
    """Photo that the page offers."""

    name: str
    label: str


class LimitsBody(BaseModel):
    """Limits of what a client may send."""

    max_bytes: int
    max_pixels: int
    max_files: int
    timeout_seconds: float


class MetadataResponse(BaseModel):
    """Description of the model and of the server's limits."""

    model_config = ConfigDict(extra="allow")

    title: str
    classes: list[str]
    is_multi_label: bool
    limits: LimitsBody
