"""What the download scripts share, and those of the weights, against a real server that goes wrong."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import shutil
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from file_server import (
    HTML,
    SCRIPTS,
    Fault,
    FileServer,
    copy_scripts,
    environment,
    names,
    run,
    script,
    serving,
    start,
    wait_until,
)

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ONE, TWO = "/one/x.bin", "/two/x.bin"
FETCH = f'set -euo pipefail; source "{SCRIPTS}/fetch.sh"; end_together; fetch "$@" || exit 1'


def fetch_command(server: FileServer, check: str = SHA256, size: int = len(CONTENT)) -> list[str]:
    return ["bash", "-c", FETCH, "x", "x.bin", str(size), check, environment(server)["HUB_HOSTS"], "x.bin"]


# --- fetch ---


@pytest.mark.parametrize(
    ("plan", "asked"),
    [
        ([Fault()], [(ONE, 0)]),
        ([Fault(cut=100_000), Fault(cut=150_000), Fault()], [(ONE, 0), (ONE, 100_000), (ONE, 250_000)]),
        ([Fault(stall=500), Fault()], [(ONE, 0), (ONE, 500)]),
        (
            [Fault(status=503), Fault(cut=9), Fault(status=500), Fault()],
            [(ONE, 0), (ONE, 0), (ONE, 9), (ONE, 9)],
        ),
        ([Fault(status=503)], [(ONE, 0)] * 3 + [(TWO, 0)]),
        ([Fault(status=404)], [(ONE, 0), (TWO, 0)]),
        ([Fault(cut=70_000), Fault(status=404)], [(ONE, 0), (ONE, 70_000), (TWO, 70_000)]),
        ([Fault(body=HTML)], [(ONE, 0), (TWO, 0)]),
        ([Fault(cut=70_000), Fault(body=HTML)], [(ONE, 0), (ONE, 70_000), (TWO, 70_000)]),
        ([Fault(body=CONTENT[:-1] + b"x")], [(ONE, 0), (TWO, 0)]),
        ([Fault(body=CONTENT + b"x")], [(ONE, 0), (TWO, 0)]),
        ([Fault(redirect="/three")], [(ONE, 0), ("/three", 0)]),
        ([Fault(redirect="/none")], [(ONE, 0), ("/none", 0), (TWO, 0)]),
    ],
)
def test_what_servers_do(tmp_path: Path, plan: list[Fault], asked: list[tuple[str, int]]) -> None:
    with serving({ONE: CONTENT, TWO: CONTENT, "/three": CONTENT}, {ONE: plan}) as server:
        said = run(fetch_command(server), tmp_path, server)
        assert server.asked == asked
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT
    assert said.splitlines()[-1] == "x.bin: complete, 300.0 kB"


def test_no_host_has_it(tmp_path: Path) -> None:
    faults = {ONE: [Fault(status=404)], TWO: [Fault(cut=1000), Fault(status=503)]}
    with serving({TWO: CONTENT}, faults) as server:
        said = run(fetch_command(server), tmp_path, server, code=1)
    assert said.splitlines()[-1] == "error: x.bin: no host gave it; the same command again goes on"
    assert names(tmp_path) == ["x.bin.part"] and (tmp_path / "x.bin.part").read_bytes() == CONTENT[:1000]
    with serving({ONE: CONTENT[:-1] + b"x", TWO: HTML}) as server:
        said = run(fetch_command(server), tmp_path, server, code=1)
    assert said.count(f"expected 300000 bytes of SHA-256 {SHA256}, got another file; it was removed") == 3
    assert names(tmp_path) == []
    run(fetch_command(server), tmp_path, server, code=1)  # nobody listens any more


def test_going_on(tmp_path: Path) -> None:
    part = tmp_path / "x.bin.part"
    with serving({ONE: CONTENT}) as server:
        part.write_bytes(CONTENT[:200_000])
        run(fetch_command(server), tmp_path, server)
        assert server.asked == [(ONE, 200_000)]
        (tmp_path / "x.bin").rename(part)  # complete, but not checked yet
        run(fetch_command(server), tmp_path, server)
        assert len(server.asked) == 1
        assert run(fetch_command(server), tmp_path, server) == "x.bin: there already\n"
        assert len(server.asked) == 1
        (tmp_path / "x.bin").unlink()
        part.write_bytes(b"of something else")
        assert "removed" in run(fetch_command(server), tmp_path, server)
        assert server.asked[1:] == [(ONE, 17), (ONE, 0)]
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_server_without_ranges(tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:200_000])
    with serving({}, {ONE: [Fault(body=CONTENT)]}) as server:
        run(fetch_command(server), tmp_path, server)
        assert server.asked == [(ONE, 200_000), (TWO, 200_000), (ONE, 0)]
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_shorter_file_elsewhere_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:200_000])
    with serving({ONE: b"short", TWO: CONTENT}) as server:
        run(fetch_command(server), tmp_path, server)
        assert server.asked == [(ONE, 200_000), (TWO, 200_000)]


def test_another_file_of_that_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"mine")
    with serving({ONE: CONTENT}) as server:
        assert "kept as x.bin.bad" in run(fetch_command(server), tmp_path, server)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and (tmp_path / "x.bin.bad").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_run_again(tmp_path: Path, number: signal.Signals) -> None:
    part = tmp_path / "x.bin.part"
    with serving({ONE: CONTENT}, {ONE: [Fault(rate=200_000), Fault()]}) as server:
        with start(fetch_command(server), tmp_path, server, STALL_SECONDS="9") as process:
            wait_until(lambda: part.exists() and part.stat().st_size > 20_000)
            process.send_signal(number)
            process.wait(timeout=5)
            assert names(tmp_path)[0] == "x.bin.part"
            if number == signal.SIGTERM:  # curl has gone, too
                reached = part.stat().st_size
                time.sleep(0.3)
                assert part.stat().st_size == reached < len(CONTENT)
            said = run(fetch_command(server), tmp_path, server)
        assert ("another download of it is at" in said) == (number == signal.SIGKILL)
        assert len(server.asked) == (2 if number == signal.SIGTERM else 1)
    assert names(tmp_path) == ["x.bin"] and (tmp_path / "x.bin").read_bytes() == CONTENT


def test_too_little_disk(tmp_path: Path) -> None:
    with serving({ONE: CONTENT}) as server:
        said = run(fetch_command(server, size=10**18), tmp_path, server, code=1)
        assert server.asked == [] and names(tmp_path) == []
    assert said.startswith("error: expected 1.0 EB of free disk in ., got ")


def test_nothing_but_the_tools_of_macos(tmp_path: Path) -> None:
    """No sha256sum, and none of the programs of GNU that are not named here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    tools = "awk bash cat curl cut df dirname grep head mkdir mv perl rm shasum sleep tail tr wc"
    for name in tools.split():
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or pytest.fail(f"there is no {name}"))
    with serving({ONE: CONTENT}, {ONE: [Fault(cut=9), Fault()]}) as server:
        run(fetch_command(server), tmp_path / "out", server, PATH=str(tmp_path / "bin"))
    assert (tmp_path / "out/x.bin").read_bytes() == CONTENT


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with serving({ONE: CONTENT}) as server:
        command, env = fetch_command(server), environment(server)
        subprocess.run(command, cwd=tmp_path, env=env, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert b"#" in shown and b"100.0%" in shown


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_no_step_back_from_https(tmp_path: Path) -> None:
    pair = ("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost")
    kind = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    name = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([*kind, *pair, *name], cwd=tmp_path, check=True, capture_output=True)
    with serving({ONE: CONTENT}) as plain:
        secure = FileServer({ONE: CONTENT}, {ONE: [Fault(redirect=plain.url + ONE), Fault()]})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, daemon=True).start()
        command = [
            part.replace(plain.url, f"https://127.0.0.1:{secure.server_port}")
            for part in fetch_command(plain)
        ]
        said = run(command, tmp_path, plain, CURL_CA_BUNDLE=str(tmp_path / "cert.pem"))
        secure.shutdown()
        secure.server_close()
        assert plain.asked == [] and len(secure.asked) == 2
    assert 'Protocol "http"' in said


# --- the scripts ---


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_scripts(tmp_path)


SD = "stable_diffusion/models/ldm/stable-diffusion-v1"
SD_HUB, VAE_HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/sd-vae-ft-mse-original"
PUBLISHED = """\
instruct-pix2pix-00-22000.ckpt 7703927910 ffd280ddcfc8234e4d28b93641cb83169cebcb4d70998df9ee2eabb4d705374a
instruct-pix2pix-00-22000.safetensors 7703416451 \
fbc31a67aab29ad38eef622a252d3fa4b0a81d4a4dc65da416cf45b13aa67688
v1-5-pruned-emaonly.ckpt 4265380512 cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516
v1-5-pruned-emaonly.safetensors 4265146304 6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa
vae-ft-mse-840000-ema-pruned.ckpt 334695179 c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab
vae-ft-mse-840000-ema-pruned.safetensors 334641190 \
735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75
"""


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "download_checkpoints",
            {"checkpoints/instruct-pix2pix-00-22000.{}": "timbrooks/instruct-pix2pix"},
        ),
        (
            "download_pretrained_sd",
            {f"{SD}/v1-5-pruned-emaonly.{{}}": SD_HUB, f"{SD}/vae-ft-mse-840000-ema-pruned.{{}}": VAE_HUB},
        ),
    ],
)
def test_published_weights(checkout: Path, name: str, files: dict[str, str], suffix: str) -> None:
    """With the size and SHA-256 of small files in place of the published ones."""
    text = (checkout / f"scripts/{name}.sh").read_text()
    served = {}
    for file, hub in files.items():
        file = file.format(suffix)
        published = next(line.split() for line in PUBLISHED.splitlines() if line.startswith(Path(file).name))
        content = CONTENT + file.encode()
        assert text.count(published[1]) == text.count(published[2]) == 1
        text = text.replace(published[1], str(len(content)))
        text = text.replace(published[2], hashlib.sha256(content).hexdigest())
        served[file] = (f"/one/{hub}/resolve/main/{Path(file).name}", content)
    (checkout / f"scripts/{name}.sh").write_text(text)
    words = ["--ckpt"] if suffix == "ckpt" else []
    with serving(dict(served.values())) as server:
        run(script(name, *words), checkout / "scripts/..", server)
        run(["bash", f"../scripts/{name}.sh", *words], checkout / "scripts", server)
        assert server.asked == [(path, 0) for path, _ in served.values()]
    for file, (_, content) in served.items():
        assert (checkout / file).read_bytes() == content
        assert names((checkout / file).parent) == sorted(Path(file).name for file in served)


@pytest.mark.parametrize("name", ["download_checkpoints", "download_pretrained_sd", "download_data"])
def test_help_and_wrong_usage(checkout: Path, name: str) -> None:
    said = run(script(name, "--help"), checkout, None)
    assert said.startswith(f"usage: bash scripts/{name}.sh") and "HUB_HOSTS" in said
    said = run(script(name, "--bogus"), checkout, None, code=2)
    assert said.startswith("error: expected ") and "got --bogus" in said and said.count("\n") == 1
    assert names(checkout) == ["scripts"]
