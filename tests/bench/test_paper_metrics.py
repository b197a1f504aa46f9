"""Metrics of the paper's protocol, with small weights."""

import sys

import pytest
import torch

from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.paper.metrics import Lpips, VBench, find_metrics, load_metrics, metric_fingerprint
from tapstudy.bench.paper.pixels import normalised_for_clip
from tests.bench import tiny_metrics
from tests.table import each_row


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_image_reward_is_that_of_the_authors_package(tmp_path):
    """The expected values are of image-reward 1.5 with the same weights, read from the same file."""
    tiny_metrics.image_reward(tmp_path / "image-reward")
    metric = load_metrics(["image-reward"], weights=tmp_path)["image-reward"]
    tall, wide = (
        (torch.arange(3 * y * x).view(y, x, 3) * step % below).movedim(-1, 0).float() / 255
        for y, x, step, below in ((48, 40, 7, 256), (40, 77, 11, 251))
    )
    assert float(metric(tall[None], tall[None], ["a red dog on grass ."])) == pytest.approx(-38.114182, abs=2e-4)
    assert float(metric(wide[None], wide[None], ["dogs " * 50])) == pytest.approx(-43.705318, abs=2e-4)
    video = torch.stack([tall, tall])
    assert float(metric(video[None], video[None], ["a red dog on grass ."])) == pytest.approx(-38.114182, abs=2e-4)


def test_another_checkpoint_is_no_image_reward(tmp_path):
    folder = tiny_metrics.image_reward(tmp_path / "image-reward")
    state = torch.load(folder / "ImageReward.pt")
    del state["blip.text_encoder.encoder.layer.0.output.dense.weight"]
    torch.save(state, folder / "ImageReward.pt")
    with pytest.raises(ValueError, match=r"ImageReward\.pt is no checkpoint of ImageReward.*output\.dense\.weight"):
        load_metrics(["image-reward"], weights=tmp_path)


def test_clip_score(tmp_path):
    from transformers import CLIPModel

    folder = tiny_metrics.clip(tmp_path / "clip")
    metric = load_metrics(["clip"], weights=tmp_path)["clip"]
    shown, prompts = images(2, 3, 32, 32), ["a fox in the snow", "two small boats at dawn " * 9]
    shown = (shown * 255).round() / 255
    score = metric(shown, shown, prompts)
    assert score.shape == (2,)
    assert (score.abs() <= 100).all()
    model = CLIPModel.from_pretrained(folder).eval()
    scale = model.logit_scale.detach().exp()
    tokens = metric.tokenizer(prompts[:1], return_tensors="pt")
    with torch.no_grad():
        made = model(**tokens, pixel_values=normalised_for_clip(shown[0], 32))
    assert float(score[0]) == pytest.approx(100 * float(made.logits_per_image / scale), rel=1e-4)
    alone = metric(shown[1:], shown[1:], prompts[1:])  # whatever else is in the batch
    assert float(alone) == pytest.approx(float(score[1]), rel=1e-5)
    assert metric_fingerprint(folder) == metric_fingerprint(tiny_metrics.clip(tmp_path / "again"))


def test_the_crop_is_the_middle_of_the_shorter_side():
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1
    seen = normalised_for_clip(wide, 8)
    assert seen.shape == (1, 3, 8, 8)
    assert seen.std(dim=(-2, -1)).max() < 1e-6
    assert seen[0, 0, 0, 0] == pytest.approx((1 - 0.48145466) / 0.26862954)
    with pytest.raises(ValueError, match="one band or three, got 2"):
        normalised_for_clip(torch.zeros(2, 8, 8), 8)


def test_lpips_is_a_mean_over_frames_of_what_the_network_says():
    metric = Lpips(lambda own, exact: (own - exact).square().mean(dim=(1, 2, 3)))
    own, exact = images(2, 4, 1, 8, 8), images(2, 4, 1, 8, 8, seed=1)
    assert torch.allclose(metric(own, exact, ["", ""]), (own - exact).square().flatten(1).mean(1))
    with pytest.raises(ValueError, match="LPIPS needs images of 32 pixels and more, got \\(8, 8\\)"):
        Lpips(torch.nn.Identity())(own, exact, ["", ""])


def test_vbench_runs_in_an_environment_of_its_own(tmp_path):
    """Stands in for its package: files, arguments and results are those that vbench 0.1.5 has."""
    library, python = tmp_path / "library", tmp_path / "vbench" / "bin" / "python"
    (library / "vbench").mkdir(parents=True)
    (library / "vbench" / "__init__.py").write_text(VBENCH)
    (library / "cv2.py").write_text(CV2)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{library}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    metric = load_metrics(["vbench"], weights=tmp_path)["vbench"]
    videos = torch.stack([torch.zeros(5, 3, 8, 12), torch.full((5, 3, 8, 12), 0.5)])
    assert metric(videos, videos, ["a fox in the snow", "boats"]).tolist() == pytest.approx([50.0, 50.0])
    with pytest.raises(RuntimeError, match="it said last: KeyError: 'no such prompt'"):
        metric(videos, videos, ["bad", "boats"])
    with pytest.raises(ValueError, match="VBench judges videos"):
        metric(videos[0], videos[0], ["boats"] * 5)
    with pytest.raises(FileNotFoundError, match=r"venv WEIGHTS/vbench && WEIGHTS/vbench/bin/pip install vbench"):
        find_metrics(["vbench"])
    assert isinstance(metric, VBench)


VBENCH = """
import json, os

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.output_path = output_path

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        assert mode == "custom_input" and os.listdir(videos_path) == ["video.mp4"]
        if prompt_list["video.mp4"] == "bad":
            raise KeyError("no such prompt")
        found = {one: [i / 5, [{"video_path": "", "video_results": i}]] for i, one in enumerate(dimension_list)}
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump(found, file)
"""
CV2 = """
COLOR_RGB2BGR = 4

def VideoWriter_fourcc(*letters):
    return 0

def cvtColor(frame, code):
    return frame[..., ::-1]

class VideoWriter:
    def __init__(self, path, code, rate, size):
        assert size == (12, 8) and rate == 24.0
        self.file = open(path, "wb")

    def write(self, frame):
        assert frame.shape == (8, 12, 3)
        self.file.write(frame.tobytes())

    def release(self):
        self.file.close()
"""


@each_row(
    ("name", "message"),
    [
        ("clip", r"CLIP score: .* has no config\.json; get it: hf download openai/clip-vit-large-patch14 --local-dir"),
        ("image-reward", r"ImageReward: .* has no ImageReward\.pt and no vocab\.txt; get it: hf download THUDM"),
        (
            "lpips",
            r"LPIPS: no weights of AlexNet at .*; get them: curl .*https://download\.pytorch\.org/models/alexnet",
        ),
    ],
)
def test_what_is_missing_says_how_to_get_it(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr("tapstudy.extras.find_spec", lambda package: package)
    with pytest.raises(FileNotFoundError, match=message):
        load_metrics([name], weights=tmp_path)


def test_what_the_hub_does_not_give(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="the hub gives no openai/clip-vit-large-patch14"):
        find_metrics(["clip"])
    with pytest.raises(ValueError, match="no metric fid: there are lpips, clip, image-reward, vbench"):
        find_metrics(["fid"])
    monkeypatch.setattr("tapstudy.extras.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"LPIPS needs torchvision: pip install 'tapstudy\[paper\]'"):
        find_metrics(["lpips"])


def test_metrics_read_the_prompt_alone():
    from tapstudy.bench.conditions import Call

    labels = ["a fox", Call.of({"prompt": "boats", "height": 16})]
    assert ImageSet.of("m", seeds=(0,), labels=labels).prompts == ["a fox", "boats"]
