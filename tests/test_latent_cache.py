"""The latent cache: what is in it, that training on it is training on pictures, and that it is not stale.

Written by cache_latents.py with the golden networks, whose text encoder is frozen.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from dataset_creation import cache_latents
from edit_dataset import EditDataset
from golden import small_config
from ldm.data.formats import read_picture
from ldm.data.mixed import MixedDataset
from ldm.models.autoencoder import AutoencoderKL
from ldm.pictures.fitting import to_tensor
from ldm.training.latent_cache import CachedEditDataset, ShardedRows, check_caches
from ldm.training.stream import SeededExamples, collate
from ldm.util import UserError
from ldm.weights.single_file import save_safetensors
from networks import edit_network
from tiny_training import draw, write_dataset
from training_runs import call
from waiting import DEADLINE

ALL = (1.0, 0.0, 0.0)
RESOLUTION = 64

KILLED_AT_THIRD_FILE = """
import os, signal, sys
from dataset_creation import cache_latents
from ldm.training import cache_writer
save, files = cache_writer.save_safetensors, []
def save_safetensors(state, file, *args, **kwargs):
    files.append(file)
    if len(files) == 3:  # what a kill while writing leaves
        file.with_name(f".{file.name}.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file, *args, **kwargs)
cache_writer.save_safetensors = save_safetensors
cache_latents.main()
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a whole model and of its autoencoder alone, and configs of both kinds."""
    folder = tmp_path_factory.mktemp("model")
    network = edit_network()
    save_safetensors(network.state_dict(), folder / "model.safetensors")
    save_safetensors(network.first_stage_model.state_dict(), folder / "autoencoder.safetensors")
    for trainable in (True, False):
        config = {"model": OmegaConf.merge(small_config(), {"params": {"cond_stage_trainable": trainable}})}
        OmegaConf.save(OmegaConf.create(config), folder / ("trained.yaml" if trainable else "frozen.yaml"))
    return folder


def words(model: Path, dataset: Path, *more: object, config: str = "frozen") -> list[str]:
    """A command line of cache_latents.py."""
    ckpt = model / "model.safetensors"
    return [str(w) for w in (dataset, "--config", model / f"{config}.yaml", "--ckpt", ckpt, *more)]


def cached(
    model: Path, dataset: Path, *more: object, config: str = "frozen", flip_prob: float = 0.0
) -> CachedEditDataset:
    """Write the cache of a dataset and open it."""
    assert call(cache_latents.main, *words(model, dataset, *more, config=config)) == 0
    return CachedEditDataset(str(dataset), splits=ALL, flip_prob=flip_prob)


@pytest.fixture(scope="module")
def ready(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of four examples with two pairs each and its cache in fp32 at twice the pictures' size."""
    dataset = write_dataset(tmp_path_factory.mktemp("data") / "dataset", count=4, seeds=2)
    cached(model, dataset, "--resolution", RESOLUTION, "--precision", "fp32", "--shard-size", 3)
    return dataset


def moments(file: Path, mirrored: bool = False) -> torch.Tensor:
    """Posterior parameters [8, h, w] of a picture resized to `RESOLUTION`."""
    image = read_picture(file).resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)
    x = to_tensor(image)
    return edit_network().first_stage_model.encode(x.flip(3) if mirrored else x).parameters[0]


def losses(dataset: Dataset) -> list[float]:
    """Losses of training steps of four examples each, every random number decided by their position."""
    examples = SeededExamples(dataset, seed=3)
    batches = [collate([examples[p % 4, p] for p in range(first, first + 4)]) for first in (0, 4, 8, 12)]
    with torch.no_grad():
        return [edit_network().training_loss(batch)[0].item() for batch in batches]


# --- What is in it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_loss_is_that_of_pictures(
    model: Path, ready: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """The same noise, drops, seeds and flips; fp32 to rounding, fp16 to two parts in a thousand."""
    sizes = dict.fromkeys(("min_resize_res", "max_resize_res", "crop_res"), RESOLUTION)
    expected = losses(EditDataset(str(ready), splits=ALL, flip_prob=0.5, **sizes))
    dataset = write_dataset(tmp_path / "dataset", count=4, seeds=2)
    more = ("--resolution", RESOLUTION, "--precision", precision)
    cache = cached(model, dataset, *more, flip_prob=0.5)
    assert losses(cache) == pytest.approx(expected, rel=tolerance)
    cache.flip_prob = 0.0
    assert losses(cache) != pytest.approx(expected, rel=tolerance), "flips matter"


def test_both_flips_are_encoded(ready: Path) -> None:
    """A mirrored picture's latents are not its latents mirrored."""
    seed = 100 + int(torch.randint(2, (), generator=torch.Generator().manual_seed(0)))
    files = [ready / "0000002" / f"{seed}_{side}.jpg" for side in (0, 1)]
    for mirrored in (False, True):
        dataset = CachedEditDataset(str(ready), splits=ALL, flip_prob=float(mirrored))
        torch.manual_seed(0)
        item = dataset[2]
        torch.testing.assert_close(
            item["edit"]["c_concat"], moments(files[0], mirrored), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(item["edited"], moments(files[1], mirrored), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moments(files[1]).flip(2), moments(files[1], mirrored=True), atol=0.01)


def test_texts_of_a_frozen_encoder(ready: Path) -> None:
    dataset = CachedEditDataset(str(ready), splits=ALL)
    texts = ["", "make it red", "make it green", "make it blue", "make it yellow"]
    expected = edit_network().get_learned_conditioning(texts)  # [5, L, D]
    for row in range(5):
        stored = dataset._embeddings.read("values", row)
        torch.testing.assert_close(stored, expected[row], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dataset[3]["edit"]["c_crossattn"], expected[4], rtol=1e-4, atol=1e-4)
    assert isinstance(dataset[3]["edit"]["instruction"], str)  # for the image grids


def test_a_trained_encoder_gets_the_text(model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=2)
    cached(model, dataset)
    assert list((dataset / "latents").glob("texts-*"))
    again = cached(model, dataset, config="trained")
    assert again[1]["edit"]["c_crossattn"] == "make it green"
    assert not list((dataset / "latents").glob("texts-*"))


def test_equal_pictures_and_texts_are_stored_once(model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=3)
    for name in ("100_0.jpg", "prompt.json"):
        for i in (1, 2):
            (dataset / f"{i:07}" / name).write_bytes((dataset / "0000000" / name).read_bytes())
    cached(model, dataset)
    pictures = load_file(dataset / "latents" / "pictures-00000.safetensors")["values"]
    assert pictures.shape == (4, 2, 8, 4, 4) and pictures.dtype == torch.float16
    index = load_file(dataset / "latents" / "index.safetensors")
    assert index["rows"].tolist() == [[0, 1], [0, 2], [0, 3]]
    assert index["texts"].tolist() == [1, 1, 1]
    assert len(load_file(dataset / "latents" / "texts-00000.safetensors")["values"]) == 2


def test_a_broken_picture_is_left_out(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named while writing, and a training on the cache skips that example as one on pictures does."""
    dataset = write_dataset(tmp_path / "dataset", count=3)
    broken = dataset / "0000001" / "100_1.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    (dataset / "0000002" / "100_0.jpg").unlink()
    cache = cached(model, dataset)
    assert str(broken) in caplog.text
    with pytest.raises(UserError, match="0000001/100_1.jpg could not be read"):
        cache[1]
    with pytest.raises(UserError, match="0000002/100_0.jpg could not be read"):
        cache[2]
    assert cache[0]["edited"].shape == (8, 4, 4)
    assert SeededExamples(cache, seed=0)[1, 0]["skipped"] == 2


# --- Writing ------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, dict[str, list]]:
    """Every number in a cache's files, which must all be complete ones."""
    files = {file.name: load_file(file) for file in folder.iterdir()}
    return {name: {k: tensor.tolist() for k, tensor in file.items()} for name, file in files.items()}


@pytest.mark.slow
def test_killed_and_run_again(model: Path, tmp_path: Path) -> None:
    """kill -9 costs the shard in flight; the same command keeps the others and ends with the same files."""
    dataset = write_dataset(tmp_path / "dataset", count=4, seeds=2)
    line = words(model, dataset, "--shard-size", 4, "--batch-size", 3)
    root = Path(__file__).parents[1]
    path = os.pathsep.join((str(root), str(root / "stable_diffusion")))
    run = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THIRD_FILE, *line],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=DEADLINE,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    folder = dataset / "latents"
    kept = [folder / f"pictures-0000{i}.safetensors" for i in (0, 1)]
    assert {file for file in folder.glob("[!.]*")} == set(kept)
    with pytest.raises(UserError, match="index.safetensors, which is not there; write it: python dataset_cr"):
        CachedEditDataset(str(dataset), splits=ALL)

    before = [file.stat().st_mtime_ns for file in kept]
    assert call(cache_latents.main, *line) == 0
    assert [file.stat().st_mtime_ns for file in kept] == before
    whole = write_dataset(tmp_path / "whole", count=4, seeds=2)
    cached(model, whole, "--shard-size", 4, "--batch-size", 3)
    assert content(folder) == content(whole / "latents")


def test_a_grown_dataset_costs_its_new_shards(model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=4)
    cached(model, dataset, "--shard-size", 4)
    shards = sorted((dataset / "latents").glob("pictures-*"))
    before = {file: file.stat().st_mtime_ns for file in shards}
    assert len(before) == 2
    folder = dataset / "0000004"
    folder.mkdir()
    for name in ("prompt.json", "100_0.jpg", "100_1.jpg"):
        (folder / name).write_bytes((dataset / "0000003" / name).read_bytes())
    draw("orange", 9).save(folder / "100_1.jpg")
    rows = json.loads((dataset / "seeds.json").read_text())
    (dataset / "seeds.json").write_text(json.dumps([*rows, ["0000004", ["100"]]]))
    assert len(cached(model, dataset, "--shard-size", 4)) == 5
    assert {file: file.stat().st_mtime_ns for file in shards} == before
    assert (dataset / "latents" / "pictures-00002.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resolution", 60), "a resolution that is a multiple of 8, got 60"),
        ((), "pictures of one size, got 32x32 .* and 40x40 .*--resolution resizes"),
        (("--shard-size", 0), "a shard size of at least 1, got 0"),
    ],
)
def test_mistakes_of_the_command(
    model: Path, tmp_path: Path, more: Sequence[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=2)
    draw("red", 0, side=40).save(dataset / "0000001" / "100_1.jpg")
    assert call(cache_latents.main, *words(model, dataset, *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error)


def test_texts_need_the_weights_of_their_encoder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the autoencoder alone does where the text encoder is trained; a frozen one must be in."""
    dataset = write_dataset(tmp_path / "dataset", count=2)
    autoencoder = ("--ckpt", model / "autoencoder.safetensors")
    assert call(cache_latents.main, *words(model, dataset, *autoencoder)) == 2
    assert "text encoder is frozen" in capsys.readouterr().err
    assert call(cache_latents.main, *words(model, dataset, *autoencoder, config="trained")) == 0


# --- Reading ------------------------------------------------------------------------------------------------


def test_workers_read_what_the_process_reads(ready: Path) -> None:
    """Forked after the shards were opened, and through pickle, as where processes are spawned."""
    dataset = CachedEditDataset(str(ready), splits=ALL)
    expected = [SeededExamples(dataset, seed=1)[i, i] for i in range(4)]
    keys = [(i, i) for i in range(4)]
    travelled = pickle.loads(pickle.dumps(dataset))
    for source, workers in ((dataset, 2), (travelled, 0)):
        loader = DataLoader(SeededExamples(source, seed=1), None, sampler=keys, num_workers=workers)
        for item, other in zip(loader, expected, strict=True):
            assert torch.equal(item["edited"], other["edited"])
            assert torch.equal(item["edit"]["c_concat"], other["edit"]["c_concat"])
            assert torch.equal(item["edit"]["c_crossattn"], other["edit"]["c_crossattn"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shards_stay_on_disk(tmp_path: Path) -> None:
    """Reading rows of a file of 128 MB takes less than 8 MB of memory."""
    values = torch.arange(2048).half()[:, None, None].expand(-1, 2, 16384).contiguous()
    save_file({"values": values}, tmp_path / "pictures-00000.safetensors")
    del values

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    rows = ShardedRows(tmp_path, "pictures", 2048, 2048)
    before = resident()
    assert [rows.read("values", i, 1).unique().tolist() for i in (0, 1000, 2047)] == [[0], [1000], [2047]]
    assert resident() - before < 8 * 2**20


# --- Stale caches -------------------------------------------------------------------------------------------


def rename(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("seeds.json", "of other data: .*seeds.json has changed"),
        ("0000001/100_1.jpg", "of other data: .*0000001/100_1.jpg has changed"),
        ("0000002/prompt.json", "of other data: .*0000002/prompt.json has changed"),
    ],
)
def test_other_data_is_refused(model: Path, tmp_path: Path, file: str, message: str) -> None:
    """With the command that renews the cache, after which it is accepted."""
    dataset = write_dataset(tmp_path / "dataset", count=3, seeds=2)
    cached(model, dataset, "--resolution", RESOLUTION)
    if file.endswith(".jpg"):
        draw("orange", 5).save(dataset / file, quality=90)
    else:
        rename(dataset / file, *(('"101"', '"100"') if file == "seeds.json" else ("blue", "violet")))
    command = f"renew it: python dataset_creation/cache_latents.py {dataset} .*--resolution {RESOLUTION}"
    with pytest.raises(UserError, match=f"{message}; {command}"):
        CachedEditDataset(str(dataset), splits=ALL)
    assert len(cached(model, dataset, "--resolution", RESOLUTION)) == 3


def test_other_resolution_and_version_are_refused(model: Path, ready: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at 64x64 pixels, expected 32x32; renew it: .* --resolution 32 --pr"):
        CachedEditDataset(str(ready), splits=ALL, resolution=32)
    assert CachedEditDataset(str(ready), splits=ALL, resolution=RESOLUTION).crop_res == (64, 64)

    dataset = write_dataset(tmp_path / "dataset", count=2)
    with pytest.raises(UserError, match="which is not there; write it: python dataset_creation/cache_lat"):
        CachedEditDataset(str(dataset))
    cached(model, dataset)
    index = dataset / "latents" / "index.safetensors"
    save_file(load_file(index), index, {"cache": json.dumps({"version": 99})})
    with pytest.raises(UserError, match="expected version 1, got 99: .* renew it: python"):
        CachedEditDataset(str(dataset))
    cached(model, dataset)
    (dataset / "latents" / "texts-00000.safetensors").unlink()
    with pytest.raises(UserError, match="texts-00000.safetensors is missing; write it: python"):
        CachedEditDataset(str(dataset))


@torch.no_grad()
def test_other_weights_are_refused(ready: Path) -> None:
    """Those of the encoders; another decoder, as of a fine-tuned autoencoder, makes the same latents."""
    dataset = CachedEditDataset(str(ready), splits=ALL)
    network = deepcopy(edit_network())
    check_caches([dataset, EditDataset(str(ready), splits=ALL)], network)
    network.first_stage_model.decoder.conv_in.weight += 1
    check_caches([dataset], network)

    network.first_stage_model.quant_conv.bias[0] += 1e-4
    network.ckpt_path, network.first_stage_model.ckpt_path = "new.ckpt", "vae.ckpt"
    config = {
        "target": "ldm.training.latent_cache.CachedEditDataset",
        "params": {"path": str(ready), "splits": ALL},
    }
    message = "of other weights of the autoencoder; renew it .* --ckpt new.ckpt --vae-ckpt vae.ckpt --resol"
    for given in (dataset, MixedDataset([config])):
        with pytest.raises(UserError, match=message):
            check_caches([given], network)
    network.first_stage_model.quant_conv.bias.copy_(edit_network().first_stage_model.quant_conv.bias)
    network.cond_stage_model.transformer.text_model.final_layer_norm.bias[0] += 1e-4
    with pytest.raises(UserError, match="of other weights of the text encoder; renew it"):
        check_caches([dataset], network)
    network.cond_stage_model.requires_grad_(True)
    with pytest.raises(UserError, match="texts of a frozen text encoder, but this training trains it"):
        check_caches([dataset], network)
    autoencoder: AutoencoderKL = network.first_stage_model
    with pytest.raises(UserError, match="expected a diffusion model"):
        check_caches([dataset], autoencoder)
    check_caches([EditDataset(str(ready), splits=ALL)], autoencoder)
