"""HTTP interface of a model, and the page to try it."""

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.server.batching.prediction_pipeline import PredictionPipeline, Result
from finetune.server.batching.saliency_worker import SaliencyWorker
from finetune.server.connections.access_control import AccessControl
from finetune.server.error_responses import describe_interface
from finetune.server.intake.body_budget import BodyBudget
from finetune.server.intake.limits import ServerLimits
from finetune.server.intake.rejection import RejectionError
from finetune.server.intake.uploads import receive_uploads
from finetune.server.routes import PAGE_PATHS, build_api, build_pages
from finetune.server.served_model import ServedModel, Upload
from finetune.server.server_metrics import ServerMetrics
from finetune.server.web_pages import read_assets, render_docs, render_page


class ModelServer:
    """Application with what its handlers share.

    Args:
        model: Model.
        limits: Limits of requests.
        token: Token that clients have to send; None for none.
        version: Version of finetune.
        seconds_per_image: Time of the network for an image, for the first estimates of waiting.
        on_error: Callback with the message of an unexpected error.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        limits: ServerLimits,
        version: str,
        token: str | None = None,
        seconds_per_image: float = 0.05,
        on_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.limits = limits
        self.metrics = ServerMetrics()
        self.on_error = on_error
        self.pipeline = PredictionPipeline(
            model, limits=limits, metrics=self.metrics, seconds_per_image=seconds_per_image
        )
        self.budget = BodyBudget(limits.max_total_bytes)
        self._saliency = SaliencyWorker(model, limits=limits)
        self._assets = read_assets()
        self._page = render_page(version, needs_token=token is not None)
        api = FastAPI(
            title="finetune serve",
            version=version,
            description=describe_interface(),
            docs_url=None,  # FastAPI's own pages load scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,  # would name another address, after the Host header
        )
        api.include_router(build_api(self))
        api.include_router(build_pages(self))
        schema = api.openapi()
        self._docs = render_docs(schema, version)
        api.add_exception_handler(RejectionError, self._handle_rejection)
        api.add_exception_handler(Exception, self._handle_unexpected_error)
        api.add_exception_handler(RequestValidationError, _handle_invalid_parameter)
        api.add_exception_handler(HTTPException, _handle_http_error)
        paths = frozenset(map(_get_first_part, (*schema["paths"], *PAGE_PATHS)))
        self.app: ASGIApp = AccessControl(
            _answer_head(api),
            token=token,
            metrics=self.metrics,
            name_path=partial(_name_path, paths),
        )

    def start(self) -> None:
        """Start the threads."""
        self.pipeline.start()

    def stop(self) -> None:
        """End the threads."""
        self._saliency.stop()
        self.pipeline.stop()

    def get_page(self) -> str:
        """Return the page to try the model."""
        return self._page

    def get_docs(self) -> str:
        """Return the page of the interface."""
        return self._docs

    def get_asset(self, name: str) -> tuple[bytes, str]:
        """Return the content and media type of a file of the pages.

        Raises:
            HTTPException: There is none of this name.
        """
        if name not in self._assets:
            raise HTTPException(404)
        return self._assets[name]

    async def predict(self, request: Request, *, top_k: int, has_all: bool) -> dict[str, Any]:
        """Return the predictions of the images of a request."""
        self.pipeline.check_room()
        async with receive_uploads(request, limits=self.limits, budget=self.budget) as uploads:
            disconnected = asyncio.ensure_future(request.receive())
            try:
                results = await self.pipeline.predict(uploads, disconnected=disconnected)
            except RejectionError as error:
                if error.status == 500:
                    self.on_error(f"{error.detail} {error.__cause__}")
                raise
            finally:
                disconnected.cancel()
        rejections = [result for result in results if isinstance(result, RejectionError)]
        if rejections and len(rejections) == len(results):
            raise rejections[0]
        for rejection in rejections:
            self.metrics.rejected.labels(rejection.reason).inc()
        return {
            "predictions": [
                self._describe(upload, result, top_k=top_k, has_all=has_all)
                for upload, result in zip(uploads, results, strict=True)
            ]
        }

    async def draw_saliency(self, request: Request) -> dict[str, Any]:
        """Return the saliency picture of the image of a request."""
        if self.model.saliency_reason:
            return {"label": "", "picture": None, "reason": self.model.saliency_reason}
        self._saliency.check_room()
        limits = replace(self.limits, max_files=1)
        async with receive_uploads(request, limits=limits, budget=self.budget) as (upload,):
            disconnected = asyncio.ensure_future(request.receive())
            try:
                picture = await self._saliency.draw(upload, disconnected=disconnected)
            finally:
                disconnected.cancel()
        data = picture.picture
        url = None if data is None else f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return {"label": picture.label, "picture": url, "reason": picture.reason}

    def _describe(
        self, upload: Upload, result: Result, *, top_k: int, has_all: bool
    ) -> dict[str, Any]:
        if isinstance(result, RejectionError):
            return {"name": upload.name, "error": result.to_json()}
        return self.model.describe(upload.name, result, top_k=top_k, has_all=has_all)

    def _handle_rejection(self, request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, RejectionError)
        self.metrics.rejected.labels(error.reason).inc()
        return JSONResponse(error.to_json(), error.status, headers=dict(error.headers))

    def _handle_unexpected_error(self, request: Request, error: Exception) -> Response:
        del request
        self.metrics.rejected.labels("internal_error").inc()
        self.on_error(
            f"Unexpected {type(error).__name__}: {error}. Other requests are still answered."
        )
        detail = "The server has an error. Its messages say more."
        return JSONResponse({"reason": "internal_error", "detail": detail}, 500)


def _answer_head(app: ASGIApp) -> ASGIApp:
    """Return an application that answers HEAD as GET; the HTTP server leaves out the content."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await app({**scope, "method": "GET"} if is_head else scope, receive, send)

    return answer


def _get_first_part(path: str) -> str:
    return "/" + path.split("/")[1]


def _name_path(paths: frozenset[str], path: str) -> str:
    """Return the first part of a path for metrics, where those that clients make up are one."""
    first = _get_first_part(path)
    return first if first in paths else "other"


def _handle_invalid_parameter(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"{first['loc'][-1]}: {first['msg']}."
    return JSONResponse({"reason": "invalid_parameter", "detail": detail}, 422)


def _handle_http_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] = error.headers or {}
    reason = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "invalid_request")
    body = {"reason": reason, "detail": f"{error.detail}. See /docs."}
    return JSONResponse(body, error.status_code, headers=dict(headers))
