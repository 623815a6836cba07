"""A training is the same however it is run: killed and resumed, in batches of any size, by many processes."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import main as trainer_program
from ldm.training.saving import newest_checkpoint
from ldm.training.stream import ExampleStream, SeededExamples, ShareOfExamples, collate
from ldm.util import UserError
from tiny_training import write_dataset
from training_runs import Project, call, loss_curve, program, saved, signal_at

STEPS = 9
CSV = "lightning.logger=csv"


def words(project: Project, run: str, *more: object) -> list[object]:
    """A training of STEPS steps that saves every second one, on half of 8 pairs, two a batch."""
    base = ["-n", run, "-l", project.logs, "-b", project.config("edit"), "--train"]
    base += [CSV, "--max_steps", STEPS, "lightning.modelcheckpoint.params.every_n_train_steps=2"]
    base += ["lightning.trainer.limit_val_batches=0", "lightning.callbacks.image_logger.params.max_images=1"]
    return [*base, "data.params.batch_size=2", *more]


def weights(project: Project, run: str) -> dict[str, Tensor]:
    return saved(project.last(f"edit_{run}"))["state_dict"]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of any weight."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def uninterrupted(project: Project) -> dict[int, float]:
    """The loss of every step of a training that nothing disturbs."""
    assert call(trainer_program.main, *words(project, "whole")) == 0
    curve = loss_curve(project.logs / "edit_whole")
    assert list(curve) == list(range(STEPS)) and len(set(curve.values())) == STEPS
    return curve


@pytest.mark.slow
def test_killed_and_run_again(project: Project, uninterrupted: dict[int, float]) -> None:
    """kill -9 in mid-epoch; the same command then trains on, value for value as if nothing had happened."""
    killed = program(*words(project, "killed", *signal_at(5, "SIGKILL")))
    assert killed.returncode == -signal.SIGKILL
    assert saved(project.last("edit_killed"))["global_step"] == 4
    assert call(trainer_program.main, *words(project, "killed")) == 0
    resumed = loss_curve(project.logs / "edit_killed")
    assert {step: resumed[step] for step in range(4, STEPS)} == {
        step: uninterrupted[step] for step in range(4, STEPS)
    }
    assert furthest(weights(project, "whole"), weights(project, "killed")) == 0


@pytest.mark.slow
def test_stopped_and_told_to_save(
    project: Project, uninterrupted: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    """SIGUSR1 saves and goes on, Ctrl-C saves and leaves with 130; the same command goes on exactly."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        assert call(trainer_program.main, *words(project, "stopped", *signal_at(2, "SIGINT"))) == 130
    finally:
        for number, handler in handlers.items():  # Lightning leaves SIGINT ignored after an interrupt
            signal.signal(number, handler)
    assert "stopped at step 3: the same command goes on" in caplog.text
    assert saved(project.last("edit_stopped"))["global_step"] == 3
    assert call(trainer_program.main, *words(project, "stopped", *signal_at(6, "SIGUSR1"))) == 0
    assert "saved step 7 to" in caplog.text
    assert loss_curve(project.logs / "edit_stopped") == uninterrupted
    assert furthest(weights(project, "whole"), weights(project, "stopped")) == 0


@pytest.mark.slow
def test_terminated(project: Project, uninterrupted: dict[int, float]) -> None:
    """SIGTERM, as cluster managers send it, saves and leaves; the same command goes on exactly."""
    done = program(*words(project, "terminated", *signal_at(3, "SIGTERM")))
    assert "Traceback" not in done.stderr
    assert "terminated at step" in done.stderr and done.returncode != 0
    step = saved(project.last("edit_terminated"))["global_step"]
    assert step in (3, 4)
    assert call(trainer_program.main, *words(project, "terminated")) == 0
    resumed = loss_curve(project.logs / "edit_terminated")
    assert {s: resumed[s] for s in range(step, STEPS)} == {s: uninterrupted[s] for s in range(step, STEPS)}
    assert furthest(weights(project, "whole"), weights(project, "terminated")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["accumulation", "ddp", "torchrun"])
def test_the_same_global_batch(project: Project, how: str) -> None:
    """Two batches of two accumulated, or two processes (gloo) of two each, train as one batch of four."""
    steps = ("--max_steps", 3, "lightning.modelcheckpoint.params.every_n_train_steps=3")
    if not project.last("edit_four").exists():
        four = words(project, "four", *steps, "data.params.batch_size=4")
        assert call(trainer_program.main, *four) == 0
    if how == "accumulation":
        more = words(project, how, *steps, "lightning.trainer.accumulate_grad_batches=2")
        assert call(trainer_program.main, *more) == 0
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        two = words(project, how, *steps, "lightning.trainer.devices=2", "--strategy", "ddp")
        done = program(*two, launcher=torchrun if how == "torchrun" else ())
        assert done.returncode == 0, done.stderr
    one, other = weights(project, "four"), weights(project, how)
    assert one["model_ema.num_updates"] == other["model_ema.num_updates"] == 3
    # Sums of gradients in another order: rounding, which Adam's first steps magnify where gradients are tiny.
    assert furthest(one, other) < 2e-4
    moved = furthest(one, weights(project, "whole")) if project.last("edit_whole").exists() else 1.0
    assert moved > 2e-3, "another training is further away than that"


# --- The stream ---------------------------------------------------------------------------------------------


def positions(sampler: ExampleStream) -> list[int]:
    return [p for _, p in sampler]


def test_processes_share_each_batch() -> None:
    whole = list(ExampleStream(20, batch_size=6, seed=1))
    parts = [list(ExampleStream(20, 3, 1, rank, world_size=2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 9 and len(whole) == 18
    for batch in range(3):
        shared = [pair for part in parts for pair in part[3 * batch : 3 * batch + 3]]
        assert shared == whole[6 * batch : 6 * batch + 6]


def test_the_stream_is_permutation_after_permutation() -> None:
    stream = [pair for start in (0, 18, 36) for pair in ExampleStream(20, 6, 1, position=lambda: start)]  # noqa: B023
    assert [p for _, p in stream] == list(range(54))
    first, second = ([i for i, p in stream if p // 20 == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert [i for i, _ in ExampleStream(20, 6, 2)] != first[:18], "another seed, another order"
    assert positions(ExampleStream(20, 6, 1, position=lambda: 25)) == list(range(25, 43))


def test_a_dataset_smaller_than_a_batch_fills_it() -> None:
    assert [i for i, _ in ExampleStream(2, 5, 0)].count(0) in (2, 3)


def test_evaluation_sees_every_example_once() -> None:
    shares = [[i for i, _ in ShareOfExamples(7, rank, 3)] for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(7))


class Draws(torch.utils.data.Dataset):
    """Examples that are random numbers; some are broken."""

    def __init__(self, size: int = 4, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self.broken:
            raise UserError(f"picture {i} is broken")
        return {"x": torch.rand(()), "i": i}


def test_an_example_depends_on_its_position_alone() -> None:
    state = torch.get_rng_state()
    one, other = SeededExamples(Draws(), seed=3), SeededExamples(Draws(), seed=3)
    assert one[0, 5] == other[0, 5] and one[0, 5]["x"] != one[0, 6]["x"]
    assert SeededExamples(Draws(), seed=4)[0, 5]["noise_seed"] != one[0, 5]["noise_seed"]
    assert torch.equal(state, torch.get_rng_state())


def test_broken_examples_are_replaced_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    examples = SeededExamples(Draws(broken=(1, 2)), seed=0)
    batch = collate([examples[i, i] for i in (0, 1, 1)])
    assert batch["i"].tolist() == [0, 3, 3] and batch["skipped"] == 4 and len(batch["noise_seed"]) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped example {i}: picture {i} is broken" for i in (1, 2)
    ], "each is named once"
    with pytest.raises(UserError, match="no example from 0 on can be read; .* picture 3 is broken"):
        SeededExamples(Draws(broken=(0, 1, 2, 3)), seed=0)[0, 0]


@pytest.mark.slow
def test_a_training_passes_over_broken_pictures(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One broken picture of four is named and counted; none but broken ones is one line and exit code 2."""
    path = write_dataset(tmp_path / "dataset", count=8)
    (path / "0000002" / "100_1.jpg").write_bytes(b"no picture")
    config = OmegaConf.load(project.config("edit"))
    for part in ("train", "validation"):
        config.data.params[part].params.path = str(path)
    OmegaConf.save(config, tmp_path / "edit.yaml")
    command = ["-l", tmp_path, "-b", tmp_path / "edit.yaml", "--train", "--max_steps", 2, CSV]
    command += ["lightning.trainer.limit_val_batches=0", "data.params.num_workers=2"]
    done = program(*command, "-n", "one")
    assert done.returncode == 0, done.stderr
    assert "WARNING: skipped example 2: dataset: cannot read the picture" in done.stderr
    (metrics,) = (tmp_path / "edit_one" / "metrics").glob("*/metrics.csv")
    assert "train/skipped_examples" in metrics.read_text()
    for file in path.glob("*/*_1.jpg"):
        file.write_bytes(b"no picture")
    assert call(trainer_program.main, *command, "-n", "all") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: data: no example from ")


def test_newest_checkpoint_survives_a_missing_link(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "step=2.ckpt").write_bytes(b"2")
    (tmp_path / "last.ckpt").symlink_to("step=0.ckpt")  # removed before the link was made anew
    assert newest_checkpoint(tmp_path) == tmp_path / "step=2.ckpt"
    shutil.copy(tmp_path / "step=2.ckpt", tmp_path / "step=0.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
