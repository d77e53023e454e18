"""Routes of a server: paths, parameters and the OpenAPI description."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from finetune.server import response_models
from finetune.server.error_responses import (
    HEALTH_ERRORS,
    IMAGE_ERRORS,
    READING_ERRORS,
    SAMPLE_ERRORS,
)
from finetune.server.query_check import check_query

if TYPE_CHECKING:
    from finetune.server.application import ModelServer

DEFAULT_TOP_K = 5

PAGE_PATHS = ("/", "/docs", "/assets", "/openapi.json")
"""Paths that the OpenAPI description leaves out."""

_FILE: dict[str, Any] = {"type": "string", "format": "binary"}


def _describe_body(file: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body with an image, or a form with a field ``file``."""
    form = {"schema": {"type": "object", "properties": {"file": file}}}
    content = {"image/*": {"schema": _FILE}, "multipart/form-data": form}
    return {"requestBody": {"required": True, "content": content}}


def _describe_file(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of an answer that is no JSON."""
    schema = {"type": "string"} if media_type.startswith("text/") else _FILE
    return {200: {"description": "Success", "content": {media_type: {"schema": schema}}}}


def build_api(server: "ModelServer") -> APIRouter:
    """Return the routes for programs."""
    router = APIRouter(default_response_class=JSONResponse, dependencies=[Depends(check_query)])
    facts = server.model.facts

    @router.post(
        "/predict",
        summary="Predict the classes of one image or several",
        response_model=response_models.PredictResponse,
        responses=IMAGE_ERRORS,
        openapi_extra=_describe_body({"type": "array", "items": _FILE}),
    )
    async def predict(
        request: Request,
        top_k: Annotated[int, Query(ge=1, description="Most probable classes.")] = DEFAULT_TOP_K,
        all_: Annotated[
            bool, Query(alias="all", description="Also the probability of each class.")
        ] = False,
    ) -> Response:
        return JSONResponse(await server.predict(request, top_k=top_k, has_all=all_))

    @router.post(
        "/saliency",
        summary="Draw what the predicted class of an image depends on",
        response_model=response_models.SaliencyResponse,
        responses=IMAGE_ERRORS,
        openapi_extra=_describe_body(_FILE),
    )
    async def saliency(request: Request) -> Response:
        return JSONResponse(await server.draw_saliency(request))

    @router.get(
        "/health",
        summary="Tell whether the server answers",
        response_model=response_models.HealthResponse,
        responses=HEALTH_ERRORS,
    )
    async def health() -> Response:
        is_alive = server.pipeline.is_alive
        return JSONResponse({"status": "ok" if is_alive else "failed"}, 200 if is_alive else 503)

    @router.get(
        "/metadata",
        summary="Describe the model and the limits of the server",
        response_model=response_models.MetadataResponse,
        response_model_exclude_unset=True,
        responses=READING_ERRORS,
    )
    async def metadata() -> Response:
        return JSONResponse(
            {
                "title": facts.title,
                **facts.metadata,
                "limits": server.limits.to_json(),
                "has_saliency": not server.model.saliency_reason,
                "figures": [
                    dict(zip(("label", "value", "remark"), figure, strict=True))
                    for figure in facts.figures
                ],
                "notes": list(facts.notes),
            }
        )

    @router.get(
        "/metrics",
        summary="Return metrics in the format of Prometheus",
        response_class=Response,
        responses=READING_ERRORS | _describe_file("text/plain"),
    )
    async def metrics() -> Response:
        return Response(server.metrics.render(), media_type="text/plain; version=0.0.4")

    @router.get(
        "/samples",
        summary="List photos that the page offers",
        response_model=list[response_models.SampleEntry],
        responses=READING_ERRORS,
    )
    async def samples() -> Response:
        entries = [{"name": s.name, "label": s.label} for s in server.model.samples]
        return JSONResponse(entries)

    @router.get(
        "/samples/{number}",
        summary="Return the file of a photo, numbered from 0",
        response_class=Response,
        responses=SAMPLE_ERRORS | _describe_file("application/octet-stream"),
    )
    async def sample(number: int) -> Response:
        return Response(_get_sample(server, number).content, media_type="application/octet-stream")

    @router.get(
        "/samples/{number}/thumbnail",
        summary="Return a small JPEG of a photo",
        response_class=Response,
        responses=SAMPLE_ERRORS | _describe_file("image/jpeg"),
    )
    async def thumbnail(number: int) -> Response:
        return Response(_get_sample(server, number).thumbnail, media_type="image/jpeg")

    return router


def _get_sample(server: "ModelServer", number: int) -> Any:
    samples = server.model.samples
    if not 0 <= number < len(samples):
        raise HTTPException(404)
    return samples[number]


def build_pages(server: "ModelServer") -> APIRouter:
    """Return the pages and their files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return HTMLResponse(server.get_page())

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(server.get_docs())

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        content, media_type = server.get_asset(name)
        return Response(content, media_type=media_type)

    return router
