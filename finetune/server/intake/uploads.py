"""Images in the body of a request, read within the limits while they arrive."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from finetune.server.intake.body_budget import BodyBudget
from finetune.server.intake.limits import ServerLimits
from finetune.server.intake.rejection import RejectionError
from finetune.server.served_model import Upload
from finetune.units import format_bytes, format_count

_MAX_NAME_LENGTH = 255
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 100_000

_HOW_TO_SEND = (
    "Send an image file as the body (curl --data-binary @photo.jpg), or one or several as a form "
    "(curl -F file=@photo.jpg)."
)


class _Body:
    """Body of a request, whose bytes are counted as they arrive.

    Args:
        request: Request.
        limits: Limits of the server.
        budget: Memory of all bodies.
    """

    def __init__(self, request: Request, limits: ServerLimits, budget: BodyBudget) -> None:
        self._request = request
        self._limits = limits
        self._budget = budget
        self.num_bytes = 0

    def check_stated_length(self) -> None:
        """Check the length that the headers state, before anything is received.

        Raises:
            RejectionError: It is too long, or no number.
        """
        text = self._request.headers.get("content-length")
        if text is not None and int(text) > self._limits.max_bytes:  # the HTTP parser checks digits
            raise self._build_rejection(f"has {format_bytes(int(text))}")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body.

        Raises:
            RejectionError: It is longer than allowed, or other requests use the memory.
        """
        async for part in self._request.stream():
            if self.num_bytes + len(part) > self._limits.max_bytes:
                raise self._build_rejection("is longer than allowed")
            self._budget.take(len(part))
            self.num_bytes += len(part)
            yield part

    def _build_rejection(self, found: str) -> RejectionError:
        limit = format_bytes(self._limits.max_bytes)
        return RejectionError(
            413,
            "too_many_bytes",
            f"The body {found}; a request has at most {limit}. Send smaller or fewer images.",
        )


@asynccontextmanager
async def receive_uploads(
    request: Request, *, limits: ServerLimits, budget: BodyBudget
) -> AsyncIterator[list[Upload]]:
    """Receive the images of a request, and hold their memory within the block.

    Args:
        request: Request with an image as its body, or a form with files.
        limits: Limits of the server.
        budget: Memory of all bodies.

    Raises:
        RejectionError: The request exceeds a limit, is too slow, or contains no file.
    """
    body = _Body(request, limits, budget)
    body.check_stated_length()
    try:
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                uploads = await _parse(request, body, limits)
        except TimeoutError as error:
            raise RejectionError(
                408,
                "slow_client",
                f"The request did not arrive within {limits.timeout_seconds:g} s.",
            ) from error
        except ClientDisconnect as error:
            raise RejectionError(400, "disconnected", "The client ended the request.") from error
        yield uploads
    finally:
        budget.give_back(body.num_bytes)


async def _parse(request: Request, body: _Body, limits: ServerLimits) -> list[Upload]:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        return await _parse_form(request, body, limits)
    content = b"".join([part async for part in body.stream()])
    if not content:
        raise RejectionError(422, "no_file", f"The body is empty. {_HOW_TO_SEND}")
    return [Upload("image", content)]


async def _parse_form(request: Request, body: _Body, limits: ServerLimits) -> list[Upload]:
    max_files = limits.max_request_files
    parser = MultiPartParser(
        request.headers,
        body.stream(),
        max_files=max_files,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    parser.spool_max_size = limits.max_bytes + 1  # nothing of a client is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise RejectionError(
                413, "too_many_files", f"The form has more than {format_count(max_files, 'file')}."
            ) from error
        raise RejectionError(
            400, "invalid_form", f"The form is damaged: {error.message}"
        ) from error
    except FormParserError as error:  # passed on by older releases of Starlette
        raise RejectionError(400, "invalid_form", f"The form is damaged: {error}") from error
    except KeyError as error:
        raise RejectionError(
            400, "invalid_form", "The Content-Type of the form has no boundary."
        ) from error
    except UnicodeError as error:
        raise RejectionError(
            400, "invalid_form", "The charset of the form does not decode its names. Use utf-8."
        ) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RejectionError(422, "no_file", f"The form has no file. {_HOW_TO_SEND}")
    uploads = [Upload(_shorten_name(file.filename), await file.read()) for file in files]
    await form.close()
    return uploads


def _shorten_name(name: str | None) -> str:
    """Return a name that a client chose, which is shown and never opened.

    Lone surrogates, which some charsets of a form yield and no answer can hold, become ``?``.
    """
    return (name or "image")[:_MAX_NAME_LENGTH].encode(errors="replace").decode()
