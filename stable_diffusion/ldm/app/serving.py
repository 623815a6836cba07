"""Serving a Gradio page: who may see it, where it can be served, and what it must not do."""

from __future__ import annotations

import argparse
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.arguments import whole_number
from ldm.util import UserError

if TYPE_CHECKING:
    import gradio as gr


def add_page_options(group: argparse._ArgumentGroup) -> None:
    """Options for `check_address`, `user_and_password` and `launch`."""
    add = group.add_argument
    add(
        "--server-name",
        default="127.0.0.1",
        metavar="HOST",
        help="address to serve at; 0.0.0.0 for all of this machine's (default: %(default)s)",
    )
    add(
        "--server-port",
        type=whole_number(1, 65535),
        metavar="PORT",
        help="port to serve at (default: the first free one from 7860)",
    )
    add(
        "--share",
        action="store_true",
        help="also serve at a public link, through Gradio's servers (default: no)",
    )
    add(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD",
        help="name and password to log in with; may be given several times (default: open to all)",
    )


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
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if sys.platform != "win32":  # there it would give ports that are taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = name if port is None else f"{name}, port {port}"
        raise UserError(f"cannot serve at {where}: {getattr(error, 'strerror', None) or error}") from None


def launch(
    page: gr.Blocks, args: argparse.Namespace, auth: list[tuple[str, str]], style: str, **options: Any
) -> tuple[str, str | None]:
    """Serve a page in the background; its address here, and its public one with --share.

    Args:
        args: server_name, server_port and share.
        auth: of `user_and_password`; empty for a page that is open to all.
        style: CSS.
        options: more of Gradio's.
    """
    import gradio as gr

    # The file of Gradio's own font at weight 600 lacks most letters; that at 700 has them.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    _, address, link = page.launch(
        server_name=args.server_name,
        server_port=args.server_port,
        share=args.share,
        auth=auth or None,
        theme=gr.themes.Default(font=(font, "system-ui", "sans-serif")),
        css=style,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        quiet=True,
        **options,
    )
    return address, link


def forbid_fetching() -> None:
    """Keep Gradio from fetching addresses that visitors send in place of a file, or ask it to pass on."""
    from fastapi import HTTPException
    from gradio import Error, processing_utils, routes

    async def refuse_download(url: str, *_: Any, **__: Any) -> NoReturn:
        raise Error(f"expected an uploaded file, got an address: {url}", print_exception=False)

    async def refuse_stream(url: str, *_: Any) -> NoReturn:
        raise HTTPException(403, f"File not allowed: {url}.")

    downloads: Any = processing_utils  # whose functions others have declared as they are
    streams: Any = routes
    downloads.async_ssrf_protected_download = refuse_download
    streams.secure_url_stream_response = refuse_stream
