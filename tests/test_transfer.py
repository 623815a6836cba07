"""The transfer of one file from a real server that goes wrong."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from file_server import HTML, Fault, FileServer, names, serving
from ldm.transfer import PAGE_BYTES, Failed, Remote, fetch, read_page
from ldm.util import UserError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
WEB = "text/html; charset=utf-8"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STALL_SECONDS", "0.4")
    monkeypatch.setenv("RETRY_SECONDS", "0")


def remote(server: FileServer, folder: Path, cached: Path | None = None) -> Remote:
    return Remote(server.url + "/x", folder / "x.bin", len(CONTENT), SHA256, cached=cached)


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        ([Fault()], [0]),
        ([Fault(cut=100_000), Fault(cut=150_000), Fault()], [0, 100_000, 250_000]),
        ([Fault(stall=500), Fault()], [0, 500]),
        ([Fault(status=503), Fault(cut=9), Fault(status=500), Fault(status=429), Fault()], [0, 0, 9, 9, 9]),
        ([Fault(cut=7), Fault(body=CONTENT)], [0, 7]),  # it knows no ranges
        ([Fault(redirect="/three")], [0, 0]),
    ],
)
def test_what_a_server_may_do(tmp_path: Path, plan: list[Fault], asked: list[int]) -> None:
    with serving({"/x": CONTENT, "/three": CONTENT}, {"/x": plan}) as server:
        fetch(remote(server, tmp_path))
        assert [first for _, first in server.asked] == asked
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("plan", "asked", "said"),
    [
        ([Fault(status=503)], 3, "HTTP 503"),
        ([Fault(stall=0)], 3, "timed out"),
        ([Fault(status=404)], 1, "HTTP 404"),
        ([Fault(status=401)], 1, "HTTP 401"),
        ([Fault(body=HTML)], 1, "expected 300000 bytes, got a file of 56"),
        ([Fault(body=CONTENT, kind=WEB)], 1, "got a web page"),
        ([Fault(body=CONTENT + b"x")], 1, "expected 300000 bytes, got a file of 300001"),
        ([Fault(body=CONTENT, told=4)], 1, "expected 300000 bytes, got a file of 4"),
        ([Fault(redirect="/none")], 2, "HTTP 404"),
        ([Fault(redirect="/x")], 21, "redirects"),
    ],
)
def test_what_fails_keeps_the_part(tmp_path: Path, plan: list[Fault], asked: int, said: str) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:70_000])
    with serving({"/x": CONTENT}, {"/x": plan}) as server:
        with pytest.raises(Failed, match=said) as error:
            fetch(remote(server, tmp_path))
        assert len(server.asked) == asked and "\n" not in str(error.value)
        assert names(tmp_path) == ["x.bin.part"]
        assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[:70_000]
        server.faults.clear()
        fetch(remote(server, tmp_path))  # and goes on
        assert server.asked[-1] == ("/x", 70_000)


def test_another_content_never_takes_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = f"expected 300000 bytes of SHA-256 {SHA256}, got SHA-256 {hashlib.sha256(OTHER).hexdigest()}"
    with serving({"/x": OTHER}) as server:
        with pytest.raises(Failed, match=got):
            fetch(remote(server, tmp_path))
        assert len(server.asked) == 1 and names(tmp_path) == []
        assert f"{got}; it was removed" in capsys.readouterr().out
    with serving({"/x": CONTENT}) as server:  # a part that began as another file
        (tmp_path / "x.bin.part").write_bytes(b"of something else")
        fetch(remote(server, tmp_path))
        assert [first for _, first in server.asked] == [17, 0]
        (tmp_path / "x.bin").write_bytes(b"mine")
        fetch(remote(server, tmp_path))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and names(tmp_path) == ["x.bin", "x.bin.bad"]
    assert (tmp_path / "x.bin.bad").read_bytes() == b"mine"


def test_nobody_listens(tmp_path: Path) -> None:
    with serving({}) as server:
        wanted = remote(server, tmp_path)
    with pytest.raises(Failed, match="x: .*refused"):
        fetch(wanted)
    assert names(tmp_path) == []
    with pytest.raises(Failed, match="'http://' or 'https://'"):
        fetch(Remote("no-address/x", tmp_path / "x.bin", 9, SHA256))


def test_a_complete_part_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    with serving({}) as server:
        fetch(remote(server, tmp_path))
        fetch(remote(server, tmp_path))
        assert server.asked == []
    assert names(tmp_path) == ["x.bin"]


def test_two_downloads_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second waits for the first, and finds its file."""
    with serving({"/x": CONTENT}, {"/x": [Fault(rate=300_000)]}) as server:
        both = [threading.Thread(target=fetch, args=[remote(server, tmp_path)]) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert len(server.asked) == 1
    said = capsys.readouterr().out
    assert "another download writes it" in said and "there already" in said
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("same_disk", [True, False])
def test_what_the_cache_has_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool
) -> None:
    cached, folder = tmp_path / "cached", tmp_path / "to"
    if not same_disk:
        monkeypatch.setattr(os, "link", lambda *_: os.listdir(tmp_path / "no such folder"))
    with serving({"/x": CONTENT}) as server:
        cached.write_bytes(OTHER)
        fetch(remote(server, folder, cached))
        assert len(server.asked) == 1
        (folder / "x.bin").unlink()
        cached.write_bytes(CONTENT)
        fetch(remote(server, folder, cached))
        assert len(server.asked) == 1
    assert names(folder) == ["x.bin"] and (folder / "x.bin").read_bytes() == CONTENT
    assert cached.samefile(folder / "x.bin") == same_disk


def test_too_little_disk(tmp_path: Path) -> None:
    with serving({"/x": CONTENT}) as server:
        with pytest.raises(Failed, match=r"expected 1\.00EB of free disk in .*, got "):
            fetch(Remote(server.url + "/x", tmp_path / "x.bin", 10**18, SHA256))
        assert server.asked == [] and names(tmp_path) == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        serving({"/x": CONTENT}) as server,
        pytest.raises(Failed, match=r"file.*: (Not a directory|File ex)"),
    ):
        fetch(remote(server, tmp_path / "file"))


def test_a_page_without_end(tmp_path: Path) -> None:
    with serving({"/": b""}, {"/": [Fault(body=b"<" * (PAGE_BYTES + 1))]}) as server:
        with pytest.raises(Failed, match="expected a page of at most 10.0MB"):
            read_page(server.url + "/")


def test_a_wrong_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STALL_SECONDS", "long")
    with serving({}) as server, pytest.raises(UserError, match="STALL_SECONDS: expected seconds, got 'long'"):
        fetch(remote(server, tmp_path))


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_no_step_back_from_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost")
    kind = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    name = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([*kind, *pair, *name], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with serving({"/x": CONTENT}) as plain:
        secure = FileServer({"/x": CONTENT}, {"/x": [Fault(redirect=plain.url + "/x"), Fault()]})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        thread = threading.Thread(target=secure.serve_forever, args=[0.05], daemon=True)
        thread.start()
        wanted = Remote(f"https://127.0.0.1:{secure.server_port}/x", tmp_path / "x.bin", len(CONTENT), SHA256)
        with pytest.raises(Failed, match="expected https all the way, got a redirect to http://127"):
            fetch(wanted)
        fetch(wanted)
        secure.shutdown()
        secure.server_close()
        assert plain.asked == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "SOCKS proxy"),
        ("ALL_PROXY", "gopher://127.0.0.1:9", "Unknown scheme for proxy"),
        ("SSL_CERT_FILE", "no-such-file", "No such file"),
    ],
)
def test_settings_that_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Failed, match=said):
        fetch(Remote("http://192.0.2.1/x", tmp_path / "x.bin", len(CONTENT), SHA256))
