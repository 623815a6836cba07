"""A language model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, Ollama.

Only asks for text; what is asked and what becomes of the answer is in `instructions`. Repeating requests that
failed, with growing pauses or those that the server asks for (``Retry-After``), is the work of the library
`openai`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dataset_creation.text.instructions import (
    EXAMPLES_FILE,
    SCHEMA,
    STOP,
    Rejected,
    chat_messages,
    draw_shots,
    prompt_of,
    read_examples,
)
from ldm.data.formats import Triple
from ldm.util import UserError

if TYPE_CHECKING:
    import openai

APIS = ("auto", "completions", "chat")
# Sampling as published.
MAX_TOKENS = 256
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "frequency_penalty": 0.1, "presence_penalty": 0.0}
# Models that only complete: OpenAI's base models and what was fine-tuned from them.
COMPLETION_MODELS = re.compile(
    r"(ft:)?(ada|babbage|curie|davinci|gpt-3\.5-turbo-instruct)\b.*", re.IGNORECASE
)
SHOTS = 8
TIMEOUT = 120.0  # seconds for one answer
RETRIES = 5  # by the client, before the run hears of an error


class Unavailable(Exception):
    """A request that the server did not answer, however often it was repeated; it may later."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds that the server asked for


class RateLimited(Unavailable):
    """The server has too much to do, which says nothing about this request."""


class Refused(Exception):
    """A request that the server objects to; `param` is the option that it names, if it names one."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class NoSuchPlace(UserError):
    """The server has no such model, or no such API."""


@dataclass
class Usage:
    """What was asked of the server since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, usage: Any) -> None:
        """Count an answer by its field ``usage``, which some servers leave out."""
        self.requests += 1
        self.prompt_tokens += getattr(usage, "prompt_tokens", None) or 0
        self.completion_tokens += getattr(usage, "completion_tokens", None) or 0


class LanguageModel:
    """A model on a server, asked by one of the two ways of `instructions`.

    Args:
        model: name by which the server knows it.
        api: "completions", "chat", or "auto", by the name of the model.
        base_url: of the server, with its ``/v1``; OpenAI's when None, or what OPENAI_BASE_URL says.
        api_key: OPENAI_API_KEY when None. A server of one's own mostly needs none.
        examples: triples to show a chat model, `shots` of them for each caption.
        seed: of the choice of examples.

    Raises:
        UserError: an API of another name, or no key for OpenAI's server.
    """

    def __init__(
        self,
        model: str,
        *,
        api: str = "auto",
        base_url: str | None = None,
        api_key: str | None = None,
        examples: Sequence[Triple] = (),
        shots: int = SHOTS,
        seed: int = 0,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
    ) -> None:
        import openai  # late: it takes time, and not every installation has it

        if api not in APIS:
            raise UserError(f"API: expected one of {', '.join(APIS)}, got {api!r}")
        if api == "auto":
            api = "completions" if COMPLETION_MODELS.fullmatch(model) else "chat"
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        # Keys read from a file often end with a line end, which no HTTP header takes.
        api_key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (api_key.isascii() and api_key.isprintable()):
            raise UserError("expected a key of printable ASCII characters, got others in it")
        if not api_key and not base_url:
            raise UserError(
                "expected a key in the environment variable OPENAI_API_KEY, or a server by its base URL"
            )
        try:
            self.client = openai.AsyncOpenAI(
                api_key=api_key or "none", base_url=base_url, max_retries=retries, timeout=timeout
            )
        except Exception as error:  # an address that is none, of whatever type the HTTP library has for it
            raise UserError(
                f"language model: expected the address of a server, got {base_url!r}: {error}"
            ) from None
        self.model, self.api, self._key = model, api, api_key
        self.examples, self.shots, self.seed = examples, shots, seed
        self.usage = Usage()
        # Sent with every request until the server refuses one: newer models take no temperature, smaller
        # servers cannot hold an answer to a schema.
        self._options: dict[str, Any] = {**SAMPLING, "max_tokens": MAX_TOKENS}
        if self.api == "chat":
            self._options["response_format"] = {"type": "json_schema", "json_schema": SCHEMA}

    @property
    def server(self) -> str:
        """Address of the server, without the name and password that may stand in it."""
        return str(self.client.base_url.copy_with(userinfo=b"")).rstrip("/")

    async def ask(self, caption: str) -> str:
        """The model's answer to a caption, in one of the formats of `instructions`.

        Raises:
            Rejected: the answer was cut off or withheld, or there is none.
            Unavailable: no answer now; the same request may work later.
            Refused: the server objects to this request.
            UserError: the server cannot be used at all.
        """
        choice = None
        while choice is None:
            choice = await self._first_choice(caption)
        if choice.finish_reason == "length":
            raise Rejected("over-long", f"the answer was cut off after {MAX_TOKENS} tokens")
        if choice.finish_reason == "content_filter":
            raise Rejected("flagged", "by the server's content filter")
        text = choice.text if self.api == "completions" else choice.message.content
        if not text:
            raise Rejected("empty", "the answer is empty")
        return text

    async def flagged(self, texts: Sequence[str]) -> bool:
        """Whether the server's moderation objects to one of the texts.

        Raises:
            Unavailable: no answer now.
            Refused: the server objects to this request.
            NoSuchPlace: the server has no moderation.
            UserError: it cannot be used at all.
        """
        with self._errors():
            answer = await self.client.moderations.create(input=list(texts))
            verdicts = [result.flagged for result in answer.results]
            if len(verdicts) != len(texts) or not all(isinstance(verdict, bool) for verdict in verdicts):
                raise ValueError(f"{verdicts!r:.80} about {len(texts)} texts")
        return any(verdicts)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    # --- Requests -------------------------------------------------------------------------------------------

    def _request(self, caption: str) -> dict[str, Any]:
        if self.api == "completions":
            return {"prompt": prompt_of(caption), "stop": [STOP]}
        shots = draw_shots(self.examples, self.shots, caption, self.seed)
        return {"messages": chat_messages(caption, shots, as_json="response_format" in self._options)}

    async def _first_choice(self, caption: str) -> Any | None:
        """The first choice of an answer, or None where an option was refused and now is left out."""
        options = dict(self._options)
        create = (self.client if self.api == "completions" else self.client.chat).completions.create
        try:
            with self._errors():
                answer = await create(model=self.model, **self._request(caption), **options)
                choice = answer.choices[0]
        except Refused as refusal:
            name = refused_option(refusal, options)
            if name is None:
                raise
            if name in self._options:  # else another request, sent at the same time, was told before
                value = self._options.pop(name)
                tqdm.write(f"warning: {self.server} takes no {name}: {refusal}", file=sys.stderr)
                if name == "max_tokens" and self.api == "chat":  # what newer models of OpenAI call it
                    self._options["max_completion_tokens"] = value
            return None
        self.usage.add(answer.usage)
        return choice

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Sort what goes wrong in a request by what is to be done about it."""
        import openai

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{self.server} refuses the key: {self._reason(error)}") from None
        except openai.NotFoundError as error:
            raise NoSuchPlace(
                f"{self.server} knows no model {self.model!r} or no such API: {self._reason(error)}"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if error.code == "content_filter":
                raise Rejected("flagged", "by the server's content filter") from None
            raise Refused(self._reason(error), str(error.param or "")) from None
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise UserError(f"{self.server}: {self._reason(error)}") from None
            raise RateLimited(self._reason(error), retry_after(error.response.headers)) from None
        except openai.APIStatusError as error:
            if error.status_code in (405, 501):  # what some servers say in place of 404
                raise NoSuchPlace(f"{self.server} has no such API: {self._reason(error)}") from None
            raise Unavailable(self._reason(error), retry_after(error.response.headers)) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Unavailable(f"{error} {cause}".strip()) from None
        except (ValueError, TypeError, AttributeError, LookupError, openai.OpenAIError) as error:
            # JSON that is none, or of another shape than that of the API
            raise Unavailable(f"expected an answer in the API's JSON, got: {error}") from None

    def _reason(self, error: openai.APIStatusError) -> str:
        """What the server says, in one line and without the key, which some servers repeat."""
        body = error.body if isinstance(error.body, dict) else {}
        said = " ".join(str(body.get("message") or error.response.text or error.message).split())
        if self._key:
            said = said.replace(self._key, "<key>")
        return f"HTTP {error.status_code}, {said[:300]}"


def refused_option(refusal: Refused, options: Iterable[str]) -> str | None:
    """Which of the options a server objects to, by its field `param` or else by its words."""
    if refusal.param.split(".")[0] in options:
        return refusal.param.split(".")[0]
    words = re.sub("json[ _]schema", "response_format", str(refusal), flags=re.IGNORECASE)
    return next((name for name in options if name in words), None)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a ``Retry-After`` header (the client waits for short ones itself); 0 where there is none."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


# --- Options of programs ------------------------------------------------------------------------------------


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """The options that say which model is asked, and how."""
    add = group.add_argument
    add("model", nargs="?", metavar="MODEL", help="as --openai-model, by which it may also be given")
    add("--openai-model", metavar="MODEL", help="name by which the server knows the model (default: MODEL)")
    add(
        "--openai-base-url",
        metavar="URL",
        help="server, with its /v1 (default: the environment variable OPENAI_BASE_URL, else OpenAI's)",
    )
    add(
        "--openai-api-key",
        metavar="KEY",
        help="for the server; the process list shows it, the environment does not (default: the environment "
        "variable OPENAI_API_KEY)",
    )
    add(
        "--api",
        choices=APIS,
        default="auto",
        help="completions for fine-tuned completion models, chat for others, auto: by the name of the model "
        "(default: %(default)s)",
    )
    add(
        "--examples",
        metavar="FILE",
        default=str(EXAMPLES_FILE),
        help="triples to show a chat model, JSON lines with input, edit, output (default: some of our own)",
    )
    add(
        "--shots",
        type=int,
        default=SHOTS,
        metavar="N",
        help="how many of them for each caption (default: %(default)s)",
    )


def model_arguments(args: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """The arguments of `LanguageModel` that the options name.

    Raises:
        UserError: no model, two models, or examples that cannot be read.
    """
    if args.model and args.openai_model and args.model != args.openai_model:
        raise UserError(f"expected one model, got {args.model} and --openai-model {args.openai_model}")
    model = args.openai_model or args.model
    if not model:
        raise UserError("expected the name of a language model: --openai-model MODEL")
    if args.shots < 0:
        raise UserError(f"--shots: expected at least 0, got {args.shots}")
    if args.openai_api_key:
        print(
            "warning: the process list shows a key given by --openai-api-key; set OPENAI_API_KEY instead",
            file=sys.stderr,
        )
    return {
        "model": model,
        "api": args.api,
        "base_url": args.openai_base_url,
        "api_key": args.openai_api_key,
        "examples": read_examples(args.examples) if args.shots else (),
        "shots": args.shots,
        "seed": seed,
    }
