"""Serving a Gradio page: who may see it, where it can be served, and what it must not do."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

from ldm.util import UserError


def user_and_password(text: str) -> tuple[str, str]:
    """The two parts of --auth.

    Raises:
        UserError: one is missing; the message does not repeat them.
    """
    user, _, password = text.partition(":")
    if not user or not password:
        raise UserError("--auth: expected USER:PASSWORD, got one without a user or without a password")
    return user, password


def check_address(name: str, port: int | None) -> None:
    """Raise `UserError` where nothing can be served there; Gradio would try for long and say little."""
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--server-port: expected 1 to 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = name if port is None else f"{name}, port {port}"
        raise UserError(f"cannot serve at {where}: {getattr(error, 'strerror', None) or error}") from None


def forbid_fetching() -> None:
    """Keep Gradio from fetching addresses that visitors send in place of a file, or ask it to pass on."""
    from fastapi import HTTPException
    from gradio import Error, processing_utils, routes

    async def refuse_download(url: str, *_: Any, **__: Any) -> NoReturn:
        raise Error(f"expected an uploaded file, got an address: {url}", print_exception=False)

    async def refuse_stream(url: str, *_: Any) -> NoReturn:
        raise HTTPException(403, f"File not allowed: {url}.")

    processing_utils.async_ssrf_protected_download = refuse_download
    routes.secure_url_stream_response = refuse_stream
