"""Pictures a second of the training's data loader alone, on the CPU.

The loader is that of main.py over EditDataset: 512 px JPEG files of quality 100, as published, become pairs
of 256 px pictures. The benchmark writes the dataset: gradients with noise of every scale, which compress
about as photos do. Files are in the page cache. After an epoch that starts the workers, whole epochs are
timed. The target: eight workers read more than one GPU trains on.

    python benchmarks/data_loading.py                        # needs: pip install -e '.[train]'
    python benchmarks/data_loading.py --workers 8 --samples-per-second 120
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.runner import medians, verdict, work_folder
from ldm.arguments import Parser, add_settings
from ldm.util import UserError, run_main

SIDE = 512
TARGET_WORKERS = 8


def draw_picture(generator: np.random.Generator) -> Image.Image:
    """A picture whose detail falls off toward fine scales as that of photos does."""
    pixels = np.zeros((SIDE, SIDE, 3))
    for cells in (2, 8, 32, 128, 512):
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer) - 127.5) / cells**0.5
    return Image.fromarray((127.5 + pixels / 2).clip(0, 255).astype(np.uint8))


def write_dataset(folder: Path, pairs: int) -> float:
    """Write so many pairs in the published layout; mean size of a picture in kB."""
    generator = np.random.default_rng(0)
    index, size = [], 0
    for i in range(pairs):
        prompt = folder / f"{i:07}"
        prompt.mkdir()
        texts = {"input": "a place", "edit": "make it another place", "output": "another place"}
        (prompt / "prompt.json").write_text(json.dumps(texts), encoding="utf-8")
        for j in range(2):
            file = prompt / f"0_{j}.jpg"
            draw_picture(generator).save(file, quality=100)
            size += file.stat().st_size
        index.append([prompt.name, ["0"]])
    (folder / "seeds.json").write_text(json.dumps(index), encoding="utf-8")
    return size / (2 * pairs) / 1000


def epochs(dataset: Path, workers: int, batch_size: int, runs: int) -> list[float]:
    """Pictures a second in each of `runs` epochs; 0 workers read in this process."""
    from ldm.training.data import DataModuleFromConfig

    sizes = {"min_resize_res": 256, "max_resize_res": 256, "crop_res": 256, "flip_prob": 0.5}
    params = {"path": str(dataset), "splits": [1.0, 0.0, 0.0], **sizes}
    train = {"target": "edit_dataset.EditDataset", "params": params}
    data = DataModuleFromConfig(batch_size=batch_size, num_workers=workers, train=train)
    data.setup()
    loader = data.train_dataloader()
    rates = []
    for epoch in range(runs + 1):
        started, count = time.perf_counter(), 0
        for batch in loader:
            count += 2 * len(batch["edited"])
        if epoch > 0:
            rates.append(count / (time.perf_counter() - started))
    return rates


def report(rates: dict[int, float], samples: float) -> str:
    """Pictures a second, and those of a worker beside what a training of `samples` a second needs of each."""
    needed = 2 * samples / TARGET_WORKERS
    lines = [f"{'workers':>8}{'pictures/s':>12}{'a worker':>10}"]
    lines += [f"{n:8}{rate:12.1f}{rate / max(1, n):10.1f}" for n, rate in rates.items()]
    worst = min(rate / max(1, n) for n, rate in rates.items())
    shown = verdict(worst, needed, at_least=True, form=".1f")
    lines += [
        f"{TARGET_WORKERS} workers for {samples:g} samples/s: pictures/s of each {shown}",
        f"{TARGET_WORKERS} workers as fast as the slowest here: {TARGET_WORKERS * worst / 2:.0f} samples/s",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write a dataset, read it with each number of workers, and print the rates."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="loader processes, one measurement for each; 0 reads in this process (default: 0 1 2)",
    )
    add_settings(
        parser,
        ("--pairs", 200, "of the dataset", "N"),
        ("--batch-size", 16, "of a batch", "PAIRS"),
        ("--runs", 3, "timed epochs of each", "N"),
        ("--samples-per-second", 100.0, "of the training on one GPU, see train_step.py", "RATE"),
    )
    add("--json", action="store_true", help="print all figures as JSON")
    args = parser.parse_args()
    if min(args.workers) < 0 or args.runs < 1 or not 1 <= args.batch_size <= args.pairs:
        raise UserError("expected --workers of at least 0, --runs of at least 1, --batch-size in 1..pairs")
    import torch  # late: it takes seconds

    torch.set_num_threads(1)  # as workers have it, so that 0 workers are one
    with work_folder(None) as folder:
        size = write_dataset(folder, args.pairs)
        print(f"wrote {args.pairs} pairs, {size:.0f} kB a picture", file=sys.stderr)
        runs = {n: epochs(folder, n, args.batch_size, args.runs) for n in args.workers}
    rates = medians(runs)
    if args.json:
        print(json.dumps({"kilobytes": size, "runs": runs, "pictures_per_second": rates}, indent=2))
    else:
        print(report(rates, args.samples_per_second))


if __name__ == "__main__":
    run_main(main)
