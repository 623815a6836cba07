"""The client through a real server and a small model: what it says varies, what is made of it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from dataset_creation.text import language_model
from dataset_creation.text.instructions import (
    EDIT_END,
    EXAMPLES_FILE,
    STOP,
    Rejected,
    completion_of,
    prompt_of,
    propose_edit,
    read_examples,
    triple_of,
)
from dataset_creation.text.language_model import LanguageModel, NoSuchPlace, Unavailable, Usage
from language_model_server import MODEL, free_port, language_model_server
from ldm.data.formats import Triple
from ldm.util import UserError

T = TypeVar("T")
KEY = "key-of-the-test"
WRONG_KEY = "sk-wrong-0123456789"
EXAMPLES = read_examples(EXAMPLES_FILE)
SHOTS = 2
CAPTIONS = (
    "a red car parked on a street",
    "a dog running on a beach",
    "a cup of coffee on a desk",
    "a wooden boat on a lake",
    "a woman reading in a park",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that wants `KEY`."""
    with language_model_server(tmp_path_factory.mktemp("server") / "log", KEY) as address:
        yield address


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def model_at(address: str, name: str = MODEL, **options: Any) -> LanguageModel:
    return LanguageModel(
        name,
        **{
            "base_url": address,
            "api_key": KEY,
            "examples": EXAMPLES,
            "shots": SHOTS,
            "retries": 0,
            **options,
        },
    )


class Recorder:
    """A client that remembers what the model said, and that puts a beginning before each caption."""

    def __init__(self, model: LanguageModel, beginning: str = "") -> None:
        self.model, self.beginning = model, beginning
        self.answers: dict[str, str] = {}

    def kept(self, captions: tuple[str, ...] = CAPTIONS) -> list[Triple | None]:
        """What is to become of the answers; one that was cut off is none."""
        return [_kept(caption, self.answers.get(caption, "")) for caption in captions]

    async def ask(self, caption: str) -> str:
        self.answers[caption] = await self.model.ask(self.beginning + caption)
        return self.answers[caption]


def run(model: LanguageModel, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and close the model's connections while there is a loop to do it in."""

    async def work_and_close() -> T:
        try:
            return await work
        finally:
            await model.close()

    return asyncio.run(work_and_close())


def asked(
    client: Recorder, captions: tuple[str, ...] = CAPTIONS, at_once: int = len(CAPTIONS)
) -> list[Triple | None]:
    """What becomes of the model's answers to several captions, so many of them asked at once."""

    async def ask_all() -> list[Triple | None]:
        places = asyncio.Semaphore(at_once)

        async def ask(caption: str) -> Triple | None:
            async with places:
                return await propose_edit(client, caption)

        return await asyncio.gather(*map(ask, captions))

    return run(client.model, ask_all())


def _kept(caption: str, answer: str) -> Triple | None:
    try:
        return triple_of(caption, answer)
    except Rejected:
        return None


@pytest.mark.slow
def test_chat_is_held_to_the_schema_and_what_is_kept_is_what_was_said(server: str) -> None:
    client = Recorder(model_at(server))
    triples = asked(client)
    assert triples == client.kept()
    assert any(triples), client.answers
    for answer in client.answers.values():
        said = json.loads(answer)
        assert list(said) == ["edit", "output"]
        assert all(isinstance(text, str) for text in said.values())
    usage = client.model.usage
    assert usage.requests == len(CAPTIONS)
    assert usage.prompt_tokens > 200 * len(CAPTIONS)  # what is to be done, and the examples
    assert usage.completion_tokens > 10 * len(CAPTIONS)


@pytest.mark.slow
def test_completions_go_on_with_the_published_format_to_its_stop(server: str) -> None:
    """Triples in the published format stand before each caption, in place of fine-tuning on them."""
    beginning = "\n\n".join(prompt_of(e.caption) + completion_of(e) for e in EXAMPLES[:4]) + "\n\n"
    client = Recorder(model_at(server, "davinci:ft-edits"), beginning)
    assert client.model.api == "completions"
    triples = asked(client)
    assert triples == client.kept()
    assert any(triples), client.answers
    assert not any(STOP in answer for answer in client.answers.values())
    assert client.model.usage.requests == len(CAPTIONS)
    assert 0 < client.model.usage.completion_tokens < len(CAPTIONS) * language_model.MAX_TOKENS


@pytest.mark.slow
def test_a_schema_that_the_server_cannot_hold_to_is_asked_for_once(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": "object", "properties": {"edit": {"type": "poem"}}}
    monkeypatch.setattr(language_model, "SCHEMA", {"name": "edit", "schema": schema})
    client = Recorder(model_at(server, shots=6))
    captions = CAPTIONS[:3]
    # One after the other, so that those after the first go without from the start.
    assert asked(client, captions, at_once=1) == client.kept(captions)
    warning = capsys.readouterr().err
    assert warning.count("takes no response_format: HTTP 400") == 1, warning
    assert client.model.usage.requests == len(captions)
    # What it was shown is in the published format, so that is what it answers in.
    assert any(EDIT_END in answer for answer in client.answers.values()), client.answers


@pytest.mark.slow
def test_an_answer_that_is_cut_off_is_rejected(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "MAX_TOKENS", 4)  # too few for the keys of the JSON alone
    model = model_at(server)
    with pytest.raises(Rejected, match="over-long: the answer was cut off after 4 tokens"):
        run(model, model.ask(CAPTIONS[0]))
    assert model.usage.completion_tokens == 4
    assert asked(Recorder(model_at(server)), CAPTIONS[:1]) == [None]


@pytest.mark.slow
def test_an_unfit_caption_is_not_sent(server: str) -> None:
    client = Recorder(model_at(server))
    assert asked(client, ("", " \n ", "very " * 100 + "long", "a cat %% a dog")) == [None] * 4
    assert client.model.usage == Usage()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "key", "error", "expected"),
    [
        ("/v1", WRONG_KEY, UserError, "refuses the key: HTTP 401, Invalid API Key"),
        ("/v2", KEY, NoSuchPlace, f"/v2 knows no model {MODEL!r} or no such API: HTTP 404, File Not Found"),
        (None, KEY, Unavailable, "Connection error. All connection attempts failed"),
    ],
    ids=["wrong key", "wrong path", "dead port"],
)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_what_is_wrong_is_said_in_one_line_without_the_key(
    server: str, api: str, path: str | None, key: str, error: type[Exception], expected: str
) -> None:
    address = server.replace("/v1", path) if path else f"http://127.0.0.1:{free_port()}/v1"
    model = model_at(address, api=api, api_key=key)
    with pytest.raises(error) as raised:
        run(model, propose_edit(model, CAPTIONS[0]))
    message = str(raised.value)
    assert expected in message
    assert "\n" not in message
    assert key not in message
    assert model.usage == Usage()


@pytest.mark.slow
def test_a_server_without_moderation_says_so(server: str) -> None:
    model, stranger = model_at(server), model_at(server, api_key=WRONG_KEY)
    with pytest.raises(NoSuchPlace, match="no such API: HTTP 404"):
        run(model, model.flagged(CAPTIONS))
    with pytest.raises(UserError, match="refuses the key"):
        run(stranger, stranger.flagged(CAPTIONS))


@pytest.mark.slow
def test_a_name_and_password_in_the_address_are_not_shown(server: str) -> None:
    model = model_at(server.replace("//", "//user:secret-word@"))
    with pytest.raises(UserError, match=f"^{server} refuses the key: HTTP 401"):  # they go before the key
        run(model, model.ask(CAPTIONS[0]))
    assert model.server == server
