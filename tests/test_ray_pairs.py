"""Image pairs by actors on a real Ray cluster of this machine, one of which is killed in mid-run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dataset_creation import generate_img_dataset
from local_cluster import Cluster, running_cluster
from pair_runs import PROMPTS, content, start, words_of, write_models, write_prompts
from training_runs import call
from waiting import DEADLINE, wait_until

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
MANY = [{**prompt, "edit": f"{prompt['edit']} {i}"} for i in range(2) for prompt in PROMPTS]
FILTERED = {"clip_dir_threshold": 0.0001, "max_out_samples": 1, "batch_size": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.mark.slow
def test_two_actors_of_which_one_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    """The prompts of the dead one are done by others; the dataset is the one of a single process."""
    write_models(tmp_path)
    prompts = write_prompts(tmp_path / "prompts.jsonl", MANY)
    alone = words_of(tmp_path, tmp_path / "alone", prompts, **FILTERED)
    assert call(generate_img_dataset.main, *alone) == 0

    killed: list[int] = []

    def kill_one() -> None:
        wait_until(lambda: list((tmp_path / "ray").glob("[0-9]*")), "the first prompt")
        killed.extend(cluster.workers("PairActor")[:1])
        os.kill(killed[0], signal.SIGKILL)

    words = words_of(
        tmp_path, tmp_path / "ray", prompts, **FILTERED, ray=cluster.address, ray_workers=2, steps=3
    )
    killer = threading.Thread(target=kill_one)
    killer.start()
    process = start(words, env=cluster.env)
    output, errors = process.communicate(timeout=DEADLINE)
    killer.join()
    assert process.returncode == 0, errors
    assert len(killed) == 1
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert not list((tmp_path / "ray").glob(".*"))
    assert output.splitlines()[-1].startswith(f"{len(MANY)} prompts, {3 * len(MANY)} samples, ")


@pytest.mark.slow
def test_mistakes_of_an_actor_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    write_models(tmp_path)
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    words = words_of(tmp_path, tmp_path / "out", prompts, ray=cluster.address, resolution=100)
    process = start(words, env=cluster.env)
    errors = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 2, errors
    assert "error: resolution: expected a multiple of 32 pixels, got 100" in errors.splitlines()


def test_workers_without_ray_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(generate_img_dataset.main, "out", "prompts", "--ray-workers", "2") == 2
    assert capsys.readouterr().err == "error: --ray-workers goes with --ray\n"
