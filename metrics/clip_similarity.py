"""The four CLIP similarities that the paper filters pairs and measures edits by (Brooks et al. 2022, sections
3.1 and 4.2), with any model of open_clip.

Not here: which pairs are kept (`dataset_creation.pairs.clip_filter`).

B examples, D width of CLIP's embedding, H W pixels, L tokens.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.util import UserError, one_line
from ldm.weights.opening import open_weights
from ldm.weights.single_file import Weights

MODEL = "ViT-L-14"
PRETRAINED = "openai"

Tokenizer = Callable[[list[str]], Tensor]

# The scale and offset of logits: no cosine depends on them, and old and new files shape them differently.
_UNUSED = frozenset({"logit_scale", "logit_bias"})


class ClipSimilarity(nn.Module):
    """Embeds pictures and texts with one CLIP model, frozen and in float32, and compares them.

    Args:
        model: name of one of open_clip's models, also as OpenAI writes it ("ViT-L/14"); or the path of a JSON
            file with open_clip's configuration of a model, bare or under ``model_cfg`` beside a
            ``preprocess_cfg``.
        pretrained: which published weights of the named model to take, one of open_clip's tags. With
            `weights` it says which ones the file holds: whether they need QuickGELU, as all of OpenAI's do,
            and the mean and deviation of their pixels are known of the tag alone. Not used with a JSON file,
            where ``quick_gelu`` says so.
        weights: safetensors or PyTorch file with the weights under open_clip's names. Nothing is downloaded
            then, and no code of the file runs.
        device: where the model goes.

    Raises:
        UserError: no such model or weights, a download that failed, a file that cannot be read, or one that
            does not fit the model.
    """

    mean: Tensor
    std: Tensor
    network: Any  # open_clip's, of several classes

    def __init__(
        self,
        model: str = MODEL,
        pretrained: str = PRETRAINED,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        if weights is None and _is_file(model):
            raise UserError(f"--clip-model {model}: expected --clip-weights with it, got none")
        # First, so that a wrong file is told of before a large model is made.
        file = open_weights(weights) if weights is not None else None
        self.network, self.tokenize = build_network(model, pretrained, download=file is None)
        if file is not None:
            _fill(self.network, file)
        pixels = self.network.visual.preprocess_cfg
        self.size: int | tuple[int, int] = pixels["size"]
        for name in ("mean", "std"):
            numbers = torch.tensor(pixels[name], dtype=torch.float32)
            self.register_buffer(name, numbers.view(3, 1, 1), persistent=False)
        self.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed B texts, [B, D] of length 1.

        A text that is too long for the model is cut and still ends in the end marker, as by OpenAI's
        `clip.tokenize` with ``truncate``.
        """
        tokens = self.tokenize(texts)  # [B, L]
        return self.network.encode_text(tokens.to(self.mean.device), normalize=True)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Embed pictures [B, 3, H, W] in [0, 1], [B, D] of length 1.

        They are resized as a whole, of whatever shape they are, without the smoothing that other resizing
        does before it: so the published thresholds and figures were made.
        """
        images = images.to(self.mean)
        images = F.interpolate(images, size=self.size, mode="bicubic", align_corners=False)
        return self.network.encode_image((images - self.mean) / self.std, normalize=True)

    @torch.no_grad()
    def forward(
        self, image_0: Tensor, image_1: Tensor, text_0: list[str], text_1: list[str]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compare B pairs.

        Args:
            image_0, image_1: pictures before and after, [B, 3, H, W] in [0, 1].
            text_0, text_1: their captions, B of each, or one of each for all pairs.

        Returns:
            Cosines, each [B]: first picture and caption, second picture and caption, change of the pictures
            and change of the captions (0 where either is none), first and second picture.
        """
        images_0, images_1 = self.encode_image(image_0), self.encode_image(image_1)  # [B, D]
        texts_0, texts_1 = self.encode_text(text_0), self.encode_text(text_1)  # [B, D] or [1, D]
        return (
            F.cosine_similarity(images_0, texts_0),
            F.cosine_similarity(images_1, texts_1),
            F.cosine_similarity(images_1 - images_0, texts_1 - texts_0),
            F.cosine_similarity(images_0, images_1),
        )


def build_network(
    model: str, pretrained: str, *, download: bool, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Tokenizer]:
    """A CLIP model and its tokenizer; arguments and errors as of `ClipSimilarity`.

    Args:
        model: name, or path of a JSON file.
        pretrained: tag of the weights.
        download: fetch these weights; else the model has random ones.
        device: where the model goes.
    """
    options: dict[str, Any] = {"pretrained_text": False}  # no download of a text tower by itself
    if not _is_file(model):
        model = model.replace("/", "-").replace("@336px", "-336")
        tag = _published_weights(model, pretrained)
        pixels = {key: tag[key] for key in ("mean", "std") if key in tag}
        options |= {"force_quick_gelu": tag.get("quick_gelu", False), "force_preprocess_cfg": pixels}
        options |= {"pretrained": pretrained if download else None}
    with _quiet_log(), _source(model) as source:
        try:
            network = open_clip.create_model(source, device=device, **options)
            tokenizer = open_clip.get_tokenizer(source)
        except Exception as error:  # a configuration or a download fails in any way there is
            hint = " (weights that you have: --clip-weights FILE)" if download else ""
            raise UserError(f"cannot load CLIP model {model}: {one_line(error)}{hint}") from error
    vocabulary = getattr(network, "text", network).vocab_size
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and vocabulary < tokenizer.vocab_size:
        raise UserError(f"{model}: expected a vocab_size of {tokenizer.vocab_size}, got {vocabulary}")
    return network, tokenizer


def _is_file(model: str) -> bool:
    return model.endswith(".json")


def _published_weights(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of the weights with this tag."""
    names = open_clip.list_models()
    if name not in names:
        close = ", ".join(difflib.get_close_matches(name, names)) or "a name of open_clip.list_models()"
        raise UserError(f"CLIP model: expected {close}, or a JSON file, got {name!r}")
    found = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "a JSON file, as it has none"
        raise UserError(f"weights of CLIP model {name}: expected {tags}, got {tag!r}")
    return found


@contextmanager
def _source(model: str) -> Iterator[str]:
    """What open_clip knows a model by: its name, or a folder with its configuration."""
    if not _is_file(model):
        yield model
        return
    try:
        config = json.loads(Path(model).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read CLIP model {model}: {one_line(error)}") from error
    if isinstance(config, dict) and "model_cfg" not in config:
        config = {"model_cfg": config}
    parts = config["model_cfg"] if isinstance(config, dict) else None
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(parts, dict) or any(name not in parts for name in needed):
        raise UserError(f"CLIP model {model}: expected a mapping with {', '.join(needed)}")
    # Not open_clip.add_model_config: that would take the name of one of its own models away.
    with TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
        yield f"local-dir:{folder}"


@contextmanager
def _quiet_log() -> Iterator[None]:
    """No log: open_clip warns of weights that are still to come, and says what we say in an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _fill(network: nn.Module, weights: Weights) -> None:
    """Copy the weights of a file, which must fit the model."""
    # The second spelling is that of open_clip's training on several devices.
    stored = {name.removeprefix("module."): name for name in weights.shapes}
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in _UNUSED}
    problems = {
        "missing": [name for name in state if name not in stored],
        "unknown to the model": [name for name in stored if name not in state and name not in _UNUSED],
        "of another shape": [
            f"{name}: expected {list(tensor.shape)}, got {list(weights.shapes[stored[name]])}"
            for name, tensor in state.items()
            if name in stored and tensor.shape != weights.shapes[stored[name]]
        ],
    }
    for what, names in problems.items():
        if names:
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise UserError(
                f"{weights.path} does not fit the CLIP model: {len(names)} weights are {what}: {some}"
            )
    for name, tensor in state.items():
        tensor.copy_(weights.read(stored[name]))
    weights.release()
