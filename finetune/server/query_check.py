"""Query parameters that a route does not have, which a client would believe to be obeyed."""

from fastapi import Request

from finetune.lookup import suggest_name
from finetune.server.intake.rejection import RejectionError


def check_query(request: Request) -> None:
    """Check that the route of a request has its query parameters, each given once.

    Raises:
        RejectionError: A parameter is unknown or given twice.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            hint = suggest_name(name, known) if known else f" {request.url.path} takes none."
            raise RejectionError(422, "invalid_parameter", f"{name}: unknown parameter.{hint}")
        if given.count(name) > 1:
            raise RejectionError(422, "invalid_parameter", f"{name}: given more than once.")
