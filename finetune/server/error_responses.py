"""Responses of errors by status, for the OpenAPI description."""

from typing import Any

from finetune.server import response_models

Responses = dict[int | str, dict[str, Any]]

EVERYWHERE = (
    (401, "The token is missing or wrong; only a server with a token answers so."),
    (403, "Another web page sent a POST; only a server without a token answers so."),
    (404, "There is nothing at this address."),
    (405, "The address has another method; see the header Allow."),
    (421, "The Host header names another machine; only a server without a token answers so."),
    (422, "A query parameter is unknown or invalid."),
    (500, "The server has an error; its messages say more."),
)
"""Statuses that do not depend on the address, and what they mean."""

_OF_READING = (401, 421, 422, 500)

_OF_IMAGES = (
    (400, "The form is damaged."),
    (408, "The request did not arrive in time."),
    (413, "Too many bytes, pixels or files."),
    (415, "Not an image, or of a format that is not read."),
    (422, "A damaged image, no file, or an invalid or unknown parameter."),
    (429, "Too much work in progress; see the header Retry-After."),
    (503, "The answer took too long; see the header Retry-After."),
)


def _describe(texts: tuple[tuple[int, str], ...]) -> Responses:
    return {
        status: {"model": response_models.ErrorBody, "description": text} for status, text in texts
    }


READING_ERRORS = _describe(tuple(one for one in EVERYWHERE if one[0] in _OF_READING))
"""Errors of requests without a body."""

SAMPLE_ERRORS = READING_ERRORS | _describe(((404, "There is no photo of this number."),))
"""Errors of requests for a sample photo."""

HEALTH_ERRORS = {status: text for status, text in READING_ERRORS.items() if status != 401} | {
    503: {"model": response_models.HealthResponse, "description": "The network has failed."}
}
"""Errors of the request for the state of the server, which needs no token."""

IMAGE_ERRORS = dict(
    sorted(
        (
            READING_ERRORS
            | _describe(tuple(one for one in EVERYWHERE if one[0] == 403))
            | _describe(_OF_IMAGES)
        ).items(),
        key=lambda pair: int(pair[0]),
    )
)
"""Errors of requests with images."""


def describe_interface() -> str:
    """Return what holds for every address, as Markdown for the OpenAPI description."""
    statuses = "".join(f"\n- {status}: {text}" for status, text in EVERYWHERE)
    return (
        f"Classes of images by one model.\n\nEvery error has a `reason` for programs and a "
        f"`detail` for people. Whatever the address, a request may be answered by:\n{statuses}"
    )
