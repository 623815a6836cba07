"""The paper in miniature, each part for seconds: captioned pictures, CLIP, the start of editing, the plan."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from benchmarks import paper_in_miniature
from dataset_creation.avatars import train_clip
from ldm.training.captioned import CachedCaptionDataset
from ldm.training.stream import SeededExamples
from ldm.util import UserError, instantiate_from_config
from ldm.weights.loading import load_for_training
from ldm.weights.single_file import save_safetensors
from metrics.clip_similarity import ClipSimilarity, build_network
from tiny_training import draw
from training_runs import Project, call

ALL = (1.0, 0.0, 0.0)
CONFIGS = Path(__file__).resolve().parents[1] / "configs/avatars"


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_distinct_picture_comes_once_with_its_caption(project: Project) -> None:
    dataset = CachedCaptionDataset(str(project.dataset), splits=ALL, uncond_share=0)
    captions = [dataset[i]["caption"] for i in range(len(dataset))]
    images = torch.stack([dataset[i]["image"] for i in range(len(dataset))])  # [N, 8, h, w]
    assert len(images.flatten(1).unique(dim=0)) == len(images) == 16
    assert captions.count("a grey disc") == 8 and captions.count("a red disc") == 1


def test_captions_are_emptied_by_the_position_in_the_stream(project: Project) -> None:
    dataset = CachedCaptionDataset(str(project.dataset), splits=ALL, uncond_share=0.25)
    first, again, other = (SeededExamples(dataset, seed) for seed in (3, 3, 4))

    def emptied(examples: SeededExamples) -> list[bool]:
        return [examples[p % len(dataset), p]["caption"] == "" for p in range(160)]

    assert emptied(first) == emptied(again) != emptied(other)
    assert 0.15 < sum(emptied(first)) / 160 < 0.35
    with pytest.raises(UserError, match="expected uncond_share from 0 to 1, got 2"):
        CachedCaptionDataset(str(project.dataset), uncond_share=2)


def write_people(root: Path, count: int) -> Path:
    """People with two edits each, whose seed is the person, as `avatars/build.py` writes them."""
    rows = []
    for i, colour in [(i, colour) for i in range(count) for colour in ("red", "blue")]:
        folder = root / f"{len(rows):07}"
        folder.mkdir(parents=True)
        prompt = {"input": f"grey disc {i}", "edit": f"make it {colour}", "output": f"{colour} disc {i}"}
        (folder / "prompt.json").write_text(json.dumps(prompt))
        for side, name in enumerate(("grey", colour)):
            draw(name, i).save(folder / f"{i}_{side}.jpg", quality=100)
        rows.append([folder.name, [str(i)]])
    (root / "seeds.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def clip_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small CLIP's configuration, smaller still."""
    config = json.loads((CONFIGS / "clip.json").read_text())
    config["model_cfg"]["embed_dim"] = 16
    config["model_cfg"]["vision_cfg"] |= {"image_size": 32, "width": 32, "layers": 1}
    config["model_cfg"]["text_cfg"] |= {"context_length": 16, "width": 32, "layers": 1}
    config["preprocess_cfg"]["size"] = 32
    file = tmp_path_factory.mktemp("clip") / "clip.json"
    file.write_text(json.dumps(config))
    return file


def train(dataset: Path, config: Path, out: Path, *words: object) -> int:
    options = {"--out": out, "--config": config, "--people": 3}
    return call(train_clip.main, dataset, *chain(*options.items()), *words)


def test_clip_goes_on_as_if_never_stopped(
    tmp_path: Path, clip_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    people = write_people(tmp_path / "people", 10)
    assert train(people, clip_config, tmp_path / "whole.safetensors", "--steps", 6) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"pictures", "among_100", "among_edits"}

    steps = train_clip.Trainer.train_step

    def stop_at_four(trainer: train_clip.Trainer) -> float:
        if trainer.step == 4:
            raise KeyboardInterrupt
        return steps(trainer)

    monkeypatch.setattr(train_clip, "SAVE_EVERY", 3)
    stopped = tmp_path / "stopped.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(train_clip.Trainer, "train_step", stop_at_four)
        assert train(people, clip_config, stopped, "--steps", 6) == 130
    assert not stopped.exists() and train(people, clip_config, stopped, "--steps", 6) == 0
    whole = load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(stopped).items())
    assert ClipSimilarity(str(clip_config), weights=stopped).encode_text(["a red disc"]).shape == (1, 16)
    assert train(people, clip_config, stopped, "--steps", 9) == 2  # another schedule
    assert "is of another run" in capsys.readouterr().err


def test_clip_learns_and_holds_people_out(tmp_path: Path, clip_config: Path) -> None:
    examples = train_clip.read_examples(write_people(tmp_path / "people", 20))
    known, strangers = map(train_clip.read_pictures, train_clip.split_people(examples))
    assert len(known.people) == 18 and len(strangers.people) == 2 and len(known.captions) == 54
    torch.manual_seed(0)
    network, tokenize = build_network(str(clip_config), "", download=False)
    trainer = train_clip.Trainer(network, tokenize, known, steps=40, people=3, seed=0)
    losses = [trainer.train_step() for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_edit_model_starts_as_the_text_to_image_model(tmp_path: Path) -> None:
    """The pair of configurations fits: the file of the one starts the other, with four channels of zeros."""
    text = instantiate_from_config(OmegaConf.load(CONFIGS / "text_to_image.yaml").model)
    save_safetensors(text.state_dict(), tmp_path / "text.safetensors")
    merged = OmegaConf.merge(*(OmegaConf.load(CONFIGS / f"{name}.yaml") for name in ("edit", "miniature")))
    edit = instantiate_from_config(merged.model)
    load_for_training(edit, tmp_path / "text.safetensors", load_ema=edit.load_ema)
    name = "diffusion_model.input_blocks.0.0.weight"
    ours, theirs = edit.model.state_dict(), text.model.state_dict()
    assert torch.equal(ours[name][:, :4], theirs[name]) and not ours[name][:, 4:].any()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items() if key != name)


def plan_of(*words: str) -> list[paper_in_miniature.Stage]:
    args = paper_in_miniature.make_parser().parse_args(words)
    paper_in_miniature.check_arguments(args)
    return paper_in_miniature.plan(args)


def test_plan_makes_before_it_uses(tmp_path: Path) -> None:
    names = [stage.name for stage in plan_of("--out", str(tmp_path))]
    assert len(set(names)) == len(names)
    first = ["avatars", "encode avatars", "train miniature", "text to image", "clip", "triples"]
    then = ["pairs filtered", "prepare filtered", "tenth", "encode tenth", "train tenth", "measure tenth"]
    order = first + then
    assert [name for name in names if name in order] == order
    tenth = [stage.name for stage in plan_of("--arms", "tenth")]
    assert "prepare filtered" in tenth and "train filtered" not in tenth


def test_a_stage_that_is_done_is_skipped_and_other_settings_are_refused(tmp_path: Path) -> None:
    args = paper_in_miniature.make_parser().parse_args(["--out", str(tmp_path)])
    done = []
    stage = paper_in_miniature.Stage("a stage", ("one",), lambda: done.append(1))
    for _ in range(2):
        paper_in_miniature.run(stage, args)
    assert done == [1]
    other = paper_in_miniature.Stage("a stage", ("two",), lambda: done.append(2))
    with pytest.raises(UserError, match="expected one, got two"):
        paper_in_miniature.run(other, args)
    broken = paper_in_miniature.command("broken", "no_such_program.py")
    with pytest.raises(UserError, match="stage broken ended with exit code"):
        paper_in_miniature.run(broken, args)


def test_triples_and_the_tenth_are_drawn_from_what_is_there(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--avatars", str(tmp_path / "avatars"), "--prompts", "12"]
    args = paper_in_miniature.make_parser().parse_args(words)
    write_people(tmp_path / "avatars/train", 10)
    paper_in_miniature.write_triples(args)
    lines = (tmp_path / "triples.jsonl").read_text().splitlines()
    assert len(set(lines)) == 12 and set(json.loads(lines[0])) == {"input", "edit", "output"}
    write_people(tmp_path / "filtered", 105)
    paper_in_miniature.write_tenth(args)
    tenth = paper_in_miniature.read_examples(tmp_path / "tenth")
    assert len(tenth) == 21 and paper_in_miniature.count_pairs(tmp_path / "tenth") == 21
