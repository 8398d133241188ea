"""Errors of the server package.

ServerError
|- ConfigError    the configuration file or the command line is wrong; change the named key
|- StartError     the server cannot start on this machine or address; the text names the remedy
`- ApiError       a request is refused; carries the contract's code and becomes a problem document
"""

from __future__ import annotations

STATUS_OF_CODE = {
    "bad_request": 400,
    "bad_sdp": 400,
    "unsupported_media": 415,
    "too_large": 413,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "precondition_required": 428,
    "precondition_failed": 412,
    "capacity": 503,
    "not_live": 409,
    "rate_limited": 429,
    "engine_down": 503,
    "unsupported_rate": 422,
    "out_of_domain": 422,
    "internal": 500,
}
"""Every `code` a problem document may carry, with the HTTP status that goes with it unless the error says another."""


class ServerError(Exception):
    """Base of all server errors; its text is one sentence that says what to do."""


class ConfigError(ServerError, ValueError):
    """Change the key that the text names."""


class StartError(ServerError):
    """Follow the remedy in the text and start again."""


class ApiError(ServerError):
    """A refused request.

    Args:
        code: a key of `STATUS_OF_CODE`.
        detail: one sentence for the client: field, value, remedy.
        status: HTTP status, where it differs from the code's own (bad_sdp is 400, or 422 when it is SDP that we
            cannot take).
        retry_after_s: when to come back; becomes `Retry-After`.
    """

    def __init__(self, code: str, detail: str, *, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = STATUS_OF_CODE[code] if status is None else status
        self.retry_after_s = retry_after_s
