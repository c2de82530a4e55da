"""Why a request is refused, with its HTTP status."""

from __future__ import annotations

from omnialpha.errors import InputError

# code -> status; the codes are part of the protocol
STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "insufficient_credits": 402,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict": 409,
    "cancelled": 409,
    "gone": 410,
    "too_large": 413,
    "rate_limit_exceeded": 429,
    "fault": 500,
    "unavailable": 503,
    "too_slow": 504,
}


class Refusal(InputError):
    """A request that is not served: a sentence for the user, a code of `STATUS`, and when it is worth trying again."""

    def __init__(self, code: str, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.code, self.retry_after = code, retry_after

    @property
    def status(self) -> int:
        return STATUS[self.code]

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.code == "unauthorized" else {})


def as_refusal(error: InputError) -> Refusal:
    """Any mistake of a user as a refusal; one without a code of its own is a bad request."""
    return error if isinstance(error, Refusal) else Refusal("bad_request", str(error))
