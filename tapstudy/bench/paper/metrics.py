"""The networks that judge images as the paper does: LPIPS, CLIP score, ImageReward, and VBench for videos."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tapstudy.bench.compare import Metric
from tapstudy.bench.paper import vbench_process
from tapstudy.bench.paper.image_reward import BERT, CHECKPOINT, WORDS, ImageReward
from tapstudy.bench.paper.pixels import normalised_for_clip, rgb, saved
from tapstudy.extras import need
from tapstudy.models.sources import fingerprint_of_files, hub_errors

CLIP = "openai/clip-vit-large-patch14"
REWARD = "THUDM/ImageReward"
ALEXNET = "alexnet-owt-7be5be79.pth"
SMALLEST = 32  # pixels that AlexNet needs
RATE = 24  # frames a second of the videos that VBench sees


class Lpips:
    """Measure the distance of images in the features of a network; a metric, see `load_metrics`.

    Args:
        network: takes images and references, (frame, 3, y, x) in [0, 1], and returns their distances.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], device: str | torch.device = "cpu") -> None:
        self.network, self.device = network, device

    @classmethod
    def load(cls, file: Path, device: str | torch.device = "cpu") -> Lpips:
        """Take torchmetrics' LPIPS on AlexNet, whose weights are the file, as torch hub keeps them."""
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        hub = torch.hub.get_dir()
        torch.hub.set_dir(file.parent.parent)
        try:
            network = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True).to(device)
        finally:
            torch.hub.set_dir(hub)
        return cls(network, device)

    @torch.no_grad()
    def __call__(self, images: Tensor, reference: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return the distance of every image to its reference, (sample,); of videos the mean over frames.

        Raises:
            ValueError: images that are too small for the network.
        """
        if isinstance(self.network, nn.Module) and min(images.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS needs images of {SMALLEST} pixels and more, got {tuple(images.shape[-2:])}")
        return torch.stack([
            self.network(rgb(image).to(self.device), rgb(exact).to(self.device)).float().mean().cpu()
            for image, exact in zip(images, reference, strict=True)
        ])  # fmt: skip


class ClipScore:
    """Measure 100 times the cosine of images and their prompts; a metric, see `load_metrics`.

    Args:
        folder: of a CLIP as transformers saves it, with its tokenizer.
        device: of the network.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        self.model, self.device = model.eval().requires_grad_(False).to(device), device
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def __call__(self, images: Tensor, reference: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return the score of every image, (sample,); of videos the mean over frames."""
        config, found = self.model.config, []
        for image, prompt in zip(images, prompts, strict=True):
            asked = self.tokenizer(
                [prompt], truncation=True, max_length=config.text_config.max_position_embeddings, return_tensors="pt"
            )
            pixels = normalised_for_clip(image, config.vision_config.image_size)
            made = self.model(**asked.to(self.device), pixel_values=pixels.to(self.device))
            cosines = torch.cosine_similarity(made.image_embeds, made.text_embeds, dim=-1)
            found.append(100 * cosines.float().mean().cpu())
        return torch.stack(found)


class VBench:
    """Judge videos by the six dimensions of VBench that take any prompt; a metric, see `load_metrics`.

    Its package (arXiv 2311.17982) asks for older versions than this one's, so it runs in an environment of its own, and
    fetches its weights by itself. The mean of six dimensions is not the total score of tables: that has sixteen, on
    VBench's own prompts.

    Args:
        python: interpreter of that environment.
        device: that it runs on.

    Cost: it loads its six networks anew for every video.
    """

    def __init__(self, python: str | Path, device: str | torch.device = "cpu") -> None:
        self.python, self.device = Path(python), str(device)

    def __call__(self, images: Tensor, reference: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return 100 times the mean of the dimensions for every video, (sample,).

        Raises:
            ValueError: images.
            RuntimeError: VBench failed, with what it said last.
        """
        if images.ndim != 5:
            raise ValueError(f"VBench judges videos, (sample, frame, band, y, x), got {tuple(images.shape)}")
        return torch.stack([self._score(video, str(prompt)) for video, prompt in zip(images, prompts, strict=True)])

    def _score(self, video: Tensor, prompt: str) -> Tensor:
        with TemporaryDirectory() as folder:
            np.save(Path(folder) / "video.npy", saved(video).numpy())
            command = [self.python, vbench_process.__file__, folder, prompt, self.device, RATE]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, check=False)
            result = Path(folder) / "dimensions.json"
            if done.returncode or not result.is_file():
                said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
                raise RuntimeError(f"VBench in {self.python} failed ({done.returncode}); it said last: {said[-1]}")
            return torch.tensor(100 * float(np.mean([*json.loads(result.read_text()).values()])))


@dataclass(frozen=True)
class Kind:
    """Tell how a metric is found and loaded.

    Attributes:
        title: for tables.
        prompts: whether it reads the prompts.
        find: from the folder of weights to the file or folder to load; raises where there is none.
        load: from that, and a device, to the metric.
    """

    title: str
    prompts: bool
    find: Callable[[Path | None], Path]
    load: Callable[..., Metric]


def load_metrics(
    names: Iterable[str], *, device: str | torch.device = "cpu", weights: str | Path | None = None
) -> dict[str, Metric]:
    """Load metrics by name, for `tapstudy.compare(metrics=...)`.

    A metric is called with images and reference images, (sample, [frame,] band, y, x) in [0, 1], and the prompts, and
    returns a value for each, (sample,).

    Args:
        names: "lpips", "clip", "image-reward" or "vbench".
        device: of the networks.
        weights: folder with `lpips/checkpoints`, `clip`, `image-reward` and `vbench`, see docs/paper_protocol.md. None:
            what the caches of torch and the hub hold, fetched where it is missing.

    Raises:
        ValueError: an unknown name, weights of something else.
        FileNotFoundError, ImportError: weights or packages that are not there, with how to get them.
    """
    found = find_metrics(names, weights)
    return {name: METRICS[name].load(place, device) for name, place in found.items()}


def find_metrics(names: Iterable[str], weights: str | Path | None = None) -> dict[str, Path]:
    """Find what `load_metrics` will load, and load nothing; raises as it does."""
    names = list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"no metric {', '.join(unknown)}: there are {', '.join(METRICS)}")
    folder = None if weights is None else Path(weights).expanduser()
    return {name: METRICS[name].find(folder) for name in names}


def metric_fingerprint(place: Path) -> str:
    """Tell the weights that `find_metrics` found apart from others, by digits."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return fingerprint_of_files(files)


def _find_lpips(weights: Path | None) -> Path:
    need("LPIPS", "torchvision")
    file = (Path(torch.hub.get_dir()) if weights is None else weights / "lpips") / "checkpoints" / ALEXNET
    if not file.is_file() and weights is None:
        import torchvision

        try:
            torchvision.models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            raise FileNotFoundError(_get_lpips(file, error)) from error
    if not file.is_file():
        raise FileNotFoundError(_get_lpips(file))
    return file


def _get_lpips(file: Path, error: Exception | None = None) -> str:
    why = f" ({error})" if error else ""
    return (
        f"LPIPS: no weights of AlexNet at {file}{why}; get them: curl --create-dirs -o {file} "
        f"https://download.pytorch.org/models/{ALEXNET}"
    )


def _find_clip(weights: Path | None) -> Path:
    if weights is None:
        return _from_hub("CLIP score", CLIP, ["*.json", "*.txt", "model.safetensors"])
    return _with(weights / "clip", ("config.json",), f"hf download {CLIP} --local-dir {weights / 'clip'}", "CLIP score")


def _find_reward(weights: Path | None) -> Path:
    if weights is None:
        _from_hub("ImageReward", BERT, WORDS)  # where `ImageReward` looks for them
        return _from_hub("ImageReward", REWARD, [CHECKPOINT])
    folder = weights / "image-reward"
    how = (
        f"hf download {REWARD} {CHECKPOINT} --local-dir {folder} && hf download {BERT} {' '.join(WORDS)} --local-dir "
        f"{folder}"
    )
    return _with(folder, (CHECKPOINT, "vocab.txt"), how, "ImageReward")


def _find_vbench(weights: Path | None) -> Path:
    folder = Path("WEIGHTS/vbench") if weights is None else weights / "vbench"
    how = f"python3.10 -m venv {folder} && {folder}/bin/pip install vbench"
    if weights is None:
        raise FileNotFoundError(f"VBench runs in an environment of its own: {how}, and give the folder WEIGHTS")
    return _with(folder, ("bin/python",), how, "VBench") / "bin" / "python"


def _from_hub(what: str, repository: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors(
        f"{what}: the hub gives no {repository}",
        f"run `hf download {repository}` where there is a network, or give a folder of weights, see "
        "docs/paper_protocol.md",
    ):
        return Path(snapshot_download(repository, allow_patterns=files))


def _with(folder: Path, files: tuple[str, ...], how: str, what: str) -> Path:
    """Return the folder if it holds the files."""
    if missing := [name for name in files if not (folder / name).exists()]:
        raise FileNotFoundError(f"{what}: {folder} has no {' and no '.join(missing)}; get it: {how}")
    return folder


METRICS = {
    "lpips": Kind("LPIPS (AlexNet)", False, _find_lpips, Lpips.load),
    "clip": Kind("CLIP score", True, _find_clip, ClipScore),
    "image-reward": Kind("ImageReward", True, _find_reward, ImageReward),
    "vbench": Kind("VBench, 6 dimensions", True, _find_vbench, VBench),
}
