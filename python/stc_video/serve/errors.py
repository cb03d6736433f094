# SPDX-License-Identifier: Apache-2.0
"""Refusals in the form in which OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

from stc_video.serve.fields import UNSUPPORTED, shown


class Refused(HTTPException):
    """A request that is not served: status, one sentence, a word for programs, and the field."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.code, self.param = code, param


def refusal(
    status: int,
    message: str,
    code: str,
    headers: Mapping[str, str] | None = None,
    param: str | None = None,
) -> JSONResponse:
    """Return a response that says no."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": param}
    return JSONResponse({"error": error}, status, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Give every error of an app this form."""

    @app.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        code, param = "error", None
        if isinstance(error, Refused):
            code, param = error.code, error.param
        return refusal(error.status_code, str(error.detail), code, error.headers, param)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid_request(error.errors()[0])


def _invalid_request(error: Mapping[str, Any]) -> JSONResponse:
    """Say in a sentence what is wrong with a field; OpenAI's status is 400."""
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return refusal(400, f"the body is no JSON: {error['ctx']['error']}", "invalid_request")
    place = ".".join(str(part) for part in error["loc"] if part != "body")
    code = "invalid_request"
    if kind == "extra_forbidden":
        message, code = "there is no such field", "unknown_parameter"
    elif kind == UNSUPPORTED:
        code = UNSUPPORTED
    elif kind not in ("missing", "value_error"):  # the sentences of others have it
        message += f", got {shown(error['input'])}"
    return refusal(400, f"{place or 'the body'}: {message}", code, param=place or None)
