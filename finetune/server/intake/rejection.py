"""Requests that are rejected: status, a reason that programs read, and a sentence for people."""

import math
import re
from collections.abc import Mapping
from typing import Any

from finetune.data.images.formats import NUM_START_BYTES, find_format, identify_content
from finetune.errors import DataError

_MEGAPIXEL_SETTING = re.compile(r", over (?:data\.max_megapixels=|Pillow's limit of )([\d.e+]*\d)")


class RejectionError(Exception):
    """Request, or image of one, that is rejected.

    Args:
        status: HTTP status, 400 to 599.
        reason: Name for programs and metrics.
        detail: Sentence that says what was found and what to do.
        retry_seconds: Time after which to try again; None if that does not help.
    """

    def __init__(
        self, status: int, reason: str, detail: str, *, retry_seconds: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_seconds = retry_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response."""
        if self.retry_seconds is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_seconds)))}

    def to_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"reason": self.reason, "detail": self.detail}


def reject_image(error: DataError, content: bytes, *, max_pixels: int) -> RejectionError:
    """Return the rejection of an image that cannot be read.

    Content that is no image, or of a kind that is not read, is an unsupported media type (415), a
    bomb is too large (413), and a damaged image cannot be processed (422).

    Args:
        error: Error of reading it, whose message is the reason.
        content: Bytes of the file.
        max_pixels: Most pixels of an image that the server accepts.
    """
    text = str(error)
    found = _MEGAPIXEL_SETTING.search(text)
    if found is not None:  # Pillow refuses some before their size is compared with ours
        limit = min(float(found[1]), max_pixels / 1e6)
        said = f"{text[: found.start()]}; at most {limit:g} are accepted"
    else:
        said = text
    detail = f"{said[:1].upper()}{said[1:]}."
    if text.startswith("too large"):
        return RejectionError(413, "too_many_pixels", detail)
    if text.startswith(("truncated", "damaged")):
        return RejectionError(422, "damaged_image", detail)
    is_known = find_format(identify_content(content[:NUM_START_BYTES])) is not None
    return RejectionError(415, "unsupported_format" if is_known else "no_image", detail)
