# SPDX-License-Identifier: Apache-2.0
"""Refusals in the form in which OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

__all__ = ["Refused", "install_handlers", "refusal"]


class Refused(HTTPException):
    """A request that is not served: status, one sentence, and a word for programs."""

    def __init__(
        self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.code = code


def refusal(
    status: int, message: str, code: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return a response that says no."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": None}
    return JSONResponse({"error": error}, status, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Give every error of an app this form."""

    @app.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        code = error.code if isinstance(error, Refused) else "error"
        return refusal(error.status_code, str(error.detail), code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return refusal(422, f"{place}: {first['msg']}", "invalid_request")
