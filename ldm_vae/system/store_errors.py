"""What is wrong with a storage at an address, in one line and without anything secret."""

from __future__ import annotations

import re

from ldm_vae.system.text import one_line

_FINAL = (
    PermissionError,
    NotImplementedError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    TypeError,
    MemoryError,
)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidRegionError",
                "DefaultCredentialsError", "ClientAuthenticationError", "TokenRetrievalError", "ParamValidationError",
                "RepositoryNotFoundError", "GatedRepoError", "InvalidBucketName")  # fmt: skip
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_FINAL_CODES = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "ExpiredToken",
                "InvalidBucketName", "AccountProblem", "MethodNotAllowed")  # fmt: skip
_SECRETS = (
    (re.compile(r"(://)([^\s/@]+|[^\s@]+:[^\s@]+)@"), r"\1"),
    (re.compile(r"\?[^\s'\"]+"), "?…"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{8,}\b"), "…"),
    (re.compile(r"(?i)((secret|token|password|signature|access_key\w*|sig)\W{1,4})[^\s,;)}]+"), r"\1…"),
)  # fmt: skip
_LONGEST = 300


def is_final(error: BaseException) -> bool:
    """Whether a call that failed with this error would fail again."""
    return any(
        isinstance(link, _FINAL) or type(link).__name__ in _FINAL_NAMES or _code(link) in _FINAL_CODES
        for link in _chain(error)
    )


def says_exists(error: BaseException) -> bool:
    """Whether a call failed because the object that it was to create is there."""
    return any(_code(link) in ("PreconditionFailed", "412") for link in _chain(error))


def reason_of(error: BaseException) -> str:
    """Return what went wrong."""
    links = _chain(error)
    if any(type(link).__name__ in _CREDENTIALS for link in links):
        return "no credentials were found; set them as the provider's tools do, in the environment or a profile"
    if any(isinstance(link, PermissionError) or _code(link) == "AccessDenied" for link in links):
        return f"access is denied ({redacted(one_line(error))})"
    return redacted(one_line(error))


def redacted(text: str) -> str:
    """Return a message without what may be a credential: of addresses the user and the query, of words the secrets."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error with those that it came of."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
