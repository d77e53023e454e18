"""Bodies of responses, for the OpenAPI description."""

from pydantic import BaseModel, ConfigDict, Field


class ErrorBody(BaseModel):
    """Reason why a request, or an image of one, is rejected."""

    reason: str = Field(description="Name of the reason for programs, such as damaged_image.")
    detail: str = Field(description="Sentence for people: what was found and what to do.")


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str = Field(description="Name of the class.")
    probability: float = Field(description="Its probability, 0 to 1.")


class ImagePrediction(BaseModel):
    """Prediction of an image; of several images, those that cannot be read have an error."""

    name: str = Field(description="Name of the file in the form; image for a body without one.")
    label: str | None = Field(
        None, description="Most probable class; absent from a multi-label model."
    )
    probability: float | None = Field(None, description="Probability of this class, 0 to 1.")
    top: list[ClassProbability] | None = Field(
        None, description="The top_k most probable classes, the most probable first."
    )
    labels: list[ClassProbability] | None = Field(
        None, description="Only of a multi-label model: labels that reach their thresholds."
    )
    probabilities: dict[str, float] | None = Field(
        None,
        description="Probability by class, with all=true or of a multi-label model.",
    )
    error: ErrorBody | None = Field(
        None, description="Only of an image that cannot be read, in place of its classes."
    )


class PredictResponse(BaseModel):
    """Predictions in the order of the images."""

    predictions: list[ImagePrediction] = Field(
        description="One for each image, in their order; keys that do not apply are absent."
    )


class HealthResponse(BaseModel):
    """State of the server."""

    status: str = Field(description="ok, or failed with status 503.")


class SaliencyResponse(BaseModel):
    """Picture of what the predicted class depends on, if it can be trusted."""

    label: str = Field(
        description="Predicted class, also without a picture; empty where the model has no "
        "saliency maps at all (has_saliency of /metadata)."
    )
    picture: str | None = Field(
        description="PNG as a data URL (data:image/png;base64,...): the photo as the network sees "
        "it beside the map; null if no map can be trusted."
    )
    reason: str = Field(description="Why there is no picture; empty if there is one.")


class SampleEntry(BaseModel):
    """Photo that the page offers."""

    name: str = Field(description="Name of the file.")
    label: str = Field(description="Its class, or its labels.")


class LimitsBody(BaseModel):
    """Limits of what a client may send."""

    max_bytes: int = Field(description="Bytes of a request.")
    max_pixels: int = Field(description="Pixels of an image.")
    max_files: int = Field(description="Images of a request.")
    timeout_seconds: float = Field(description="Time to send a request, and again for its answer.")


class PreprocessingBody(BaseModel):
    """Preprocessing from pixels to the network's input."""

    input_size: list[int] = Field(description="Channels, height and width.")
    mean: list[float] = Field(description="Mean by channel, for pixels in 0 to 1.")
    std: list[float] = Field(description="Standard deviation by channel.")
    interpolation: str = Field(description="Kernel of the resizing.")
    crop_pct: float = Field(description="Fraction of the resized side that the crop keeps.")
    crop_mode: str = Field(description="center, squash or border, as in timm.")


class FigureBody(BaseModel):
    """Number that stands out on the page."""

    label: str = Field(description="What it is.")
    value: str = Field(description="Its text.")
    remark: str = Field(description="What it was measured on; may be empty.")


class MetadataResponse(BaseModel):
    """Description of the model and of the server's limits."""

    model_config = ConfigDict(extra="allow")

    title: str = Field(description="Classes in short, the title of the page.")
    data: str = Field(description="Name of the images that the model was trained on, or empty.")
    classes: list[str] = Field(description="Classes, in the order of the network's outputs.")
    is_multi_label: bool = Field(description="Whether an image can have several labels.")
    thresholds: dict[str, float] | None = Field(
        description="Of a multi-label model: probability from which a label is given."
    )
    backbone: str = Field(description="Name of the architecture.")
    preprocessing: PreprocessingBody = Field(description="From pixels to the network's input.")
    temperature: float = Field(description="Divisor of the logits; 1 without calibration.")
    metrics: dict[str, dict[str, float | None]] = Field(
        description="Metrics by split of the images that they were measured on."
    )
    train_images: dict[str, float] = Field(description="Training images by class.")
    license: str | None = Field(description="Licence of the weights that training began with.")
    versions: dict[str, str] = Field(description="Versions of the libraries of this server.")
    runtime: str = Field(description="Library that computes the network: torch or onnx.")
    device: str = Field(description="Device that it computes on.")
    limits: LimitsBody = Field(description="What a client may send.")
    has_saliency: bool = Field(description="Whether /saliency draws maps of this model.")
    figures: list[FigureBody] = Field(description="Numbers of the page.")
    notes: list[str] = Field(description="What the model is for, and its limits, in sentences.")
