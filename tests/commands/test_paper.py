"""`tapstudy bench paper` end to end on tiny pipelines with small metrics, and killed on the way."""

import csv
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import xarray as xr

from tapstudy.bench.image_set import forget_pipelines
from tapstudy.bench.paper import run as running
from tapstudy.bench.paper.prompts import read_drawbench
from tapstudy.bench.paper.protocol import PROTOCOLS, find_protocol
from tapstudy.cli import app
from tests.bench import tiny_metrics
from tests.command_line import invoke
from tests.commands.test_any_pipeline import saved

STEPS = ("--steps", 10)


def run(*arguments: object):
    return invoke(app, ["bench", "paper", *map(str, arguments)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_metrics.clip(folder / "clip")
    tiny_metrics.image_reward(folder / "image-reward")
    return folder


@pytest.fixture(scope="module", params=["flux", pytest.param("stable_diffusion_3", marks=pytest.mark.slow)])
def asked(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("pipelines"))


def pipelines() -> int:
    """Count those in memory."""
    gc.collect()
    return sum(issubclass(type(one), diffusers.DiffusionPipeline) for one in gc.get_objects())


def test_the_table_of_the_paper(asked, weights, tmp_path, monkeypatch):
    folder, prompts = asked
    forget_pipelines()  # of other tests
    before, held = pipelines(), []

    def load(names, **options):
        held.append((tuple(names), pipelines() - before))
        return real(names, **options)

    real = running.load_metrics
    monkeypatch.setattr(running, "load_metrics", load)
    flux = folder.endswith("flux")
    other = () if flux else ("--protocol", "flux")
    given = ("--pipeline", folder, "--prompts", prompts, *STEPS, *other, "--work", tmp_path / "work",
             "--metrics", "clip,image-reward", "--weights", weights,
             "--out", tmp_path / "paper.md", "--table", tmp_path / "paper.nc")  # fmt: skip
    done = run(*given)
    assert done.exit_code == 0, done.output
    assert held == [(("clip",), 0), (("image-reward",), 0)]  # one at a time, and no pipeline beside it
    with xr.open_dataset(tmp_path / "paper.nc") as table:
        assert table["title"].values.tolist() == [
            "original", "FORA (N=7)", "TeaCache (l=2)", "TaylorSeer (N=8, O=2)", "TAP (N=8)"
        ]  # fmt: skip
        assert [masks[0] for masks in table["mask"].values[[0, 1, 3, 4]]] == [
            "FFFFFFFFFF", "F......F..", "FFF.......", "FFF......."
        ]  # fmt: skip
        assert np.isfinite(table["clip"]).all()
        assert np.isfinite(table["image-reward"]).all()
        assert np.isfinite(table["psnr"].values[1:]).all()
        assert (table["flops_ratio"].values[1:] > 1).all()
        assert float(table["published"].sel(run=4, measure="image-reward")) == 0.99
        assert np.isnan(table["published"].sel(run=1, measure="clip"))
        first = table["clip"].values
    page = (tmp_path / "paper.md").read_text()
    assert "| TAP (N=8) | here | 3 | FFF....... |" in page
    assert "| published | unknown | unknown | 6.24 | unknown | 0.99 | 31.19 | 16.11 | 0.64 | 0.44 |" in page
    assert "TAP (N=8)" in done.stdout
    assert "10 steps are sampled here, 50 in the paper" in page
    assert "2 images here; DrawBench has 200 prompts" in page
    assert "Not measured here: LPIPS" in page

    again = run(*given)  # nothing is computed again
    assert again.exit_code == 0, again.output
    assert len(held) == 2
    with xr.open_dataset(tmp_path / "paper.nc") as table:
        assert np.array_equal(table["clip"].values, first)


def test_lpips_in_the_table(weights, tmp_path, monkeypatch):
    """Its network is stood in for: torchvision has the real one."""
    from tapstudy.bench.paper import metrics
    from tapstudy.bench.paper.metrics import Kind, Lpips

    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    kind = Kind("LPIPS", False, lambda _: file, lambda *_: Lpips(lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))))
    monkeypatch.setitem(metrics.METRICS, "lpips", kind)
    folder, prompts = saved("flux", tmp_path)
    done = run("--pipeline", folder, "--prompts", prompts, *STEPS, "--protocol", "qwen-image", "--metrics", "lpips",
               "--work", tmp_path / "work", "--out", tmp_path / "paper.md")  # fmt: skip
    assert done.exit_code == 0, done.output
    page = (tmp_path / "paper.md").read_text()
    assert "Left out: TeaCache (l=0.8): no polynomial of TeaCache is known for this model" in page
    assert "LPIPS" in page
    done = invoke(app, [
        "compare", "--pipeline", folder, "--prompts", prompts, "--steps", "8", "--methods", "order1", "--metrics",
        "lpips,clip", "--weights", str(weights), "--out", str(tmp_path / "page.html"), "--table",
        str(tmp_path / "table.nc"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "table.nc") as table:
        assert np.array_equal(table["lpips"].values[0], [0, 0])
        assert (table["lpips"].values[1] > 0).all()
        assert np.isfinite(table["clip"]).all()
    assert "lpips" in (tmp_path / "page.html").read_text()


def test_a_video_model(weights, tmp_path):
    folder, prompts = saved("wan", tmp_path)
    done = run("--pipeline", folder, "--prompts", prompts, "--steps", 8, "--metrics", "clip", "--weights", weights,
               "--protocol", "hunyuan-video", "--teacache", "1,0", "--work", tmp_path / "work",
               "--out", tmp_path / "paper.md")  # fmt: skip
    assert done.exit_code == 0, done.output
    page = (tmp_path / "paper.md").read_text()
    assert "TeaCache (l=0.4) | here" in page
    assert "65.46" in page
    assert "not measured" in page


@pytest.mark.slow
def test_killed_and_resumed(weights, tmp_path):
    folder, prompts = saved("stable_diffusion_3", tmp_path)
    work = tmp_path / "work"
    program = "import tests.pipelines.text; from tapstudy.cli import app; app()"  # it has the tokenizers' class
    command = [sys.executable, "-c", program, "bench", "paper", "--pipeline", folder, "--prompts", prompts,
               "--steps", "20", "--protocol", "flux", "--metrics", "clip", "--weights", str(weights),
               "--work", str(work), "--out", str(tmp_path / "paper.md")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < 300 and len([*(work / "runs").glob("*.nc")]) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (work / "runs").glob("*.nc")}
    assert 3 <= len(kept) < 10
    arguments = command[5:]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((work / "runs").glob("*.nc"))) == 10
    whole = run(*arguments[:-4], "--work", tmp_path / "whole", "--out", tmp_path / "whole.md")
    assert whole.exit_code == 0, whole.output

    def quality(name):
        lines = [line.split("|") for line in (tmp_path / name).read_text().splitlines() if line.startswith("| ")]
        return [line[:6] + line[7:] for line in lines]  # all but the latency

    assert quality("paper.md") == quality("whole.md")


def table_of(folder: Path, rows, header=("Prompts", "Category"), name="drawbench.csv") -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows([header, *rows])
    return folder / name


def test_reads_drawbench_as_it_is_published(tmp_path):
    rows = [(" a fox in the snow.", "Colors"), ('A sign that says "Hi", twice.', "Text"), ("", "")]
    expected = ["a fox in the snow.", 'A sign that says "Hi", twice.']
    file = table_of(tmp_path / "one", rows)
    assert read_drawbench(file) == expected
    assert read_drawbench(tmp_path / "one") == expected
    assert read_drawbench(table_of(tmp_path / "two", rows, ("category", "prompts"), "d.tsv").parent) == [
        "Colors",
        "Text",
    ]
    table_of(tmp_path / "one", rows, name="other.csv")
    with pytest.raises(FileNotFoundError, match=r"holds 2 files of prompts .* should hold one"):
        read_drawbench(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="DrawBench is not part of this package"):
        read_drawbench(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="stands there twice"):
        read_drawbench(table_of(tmp_path / "three", [rows[0], rows[0]]))


def test_faults_are_found_before_anything_is_sampled(weights, tmp_path):
    folder, prompts = saved("flux", tmp_path)
    common = ("--pipeline", folder, "--out", tmp_path / "paper.md", "--work", tmp_path / "work")
    for arguments, message in (
        ((), "DrawBench is not part of this package"),
        (("--prompts", prompts, "--metrics", "vbench,clip"), "VBench runs in an environment of its own"),
        (("--prompts", prompts, "--metrics", "fid"), "no metric fid"),
        (("--prompts", prompts, "--protocol", "sora"), "no protocol 'sora': there are flux, qwen-image, hunyuan-video"),
        (("--prompts", prompts, "--teacache", "1,x"), "--teacache must be numbers"),
    ):
        done = run(*common, *arguments)
        assert done.exit_code == 2
        assert message in done.output
    assert not (tmp_path / "work").exists()
    with pytest.raises(ValueError, match="the paper has no Linear, it has FluxPipeline"):
        find_protocol("", torch.nn.Linear(1, 1))
    done = run("--model", "mnist-dit", "--labels", "1", "--protocol", "flux", "--metrics", "clip", "--weights", weights,
               "--work", tmp_path / "work", "--out", tmp_path / "paper.md")  # fmt: skip
    assert "clip read prompts, and mnist-dit samples labels" in done.output
    assert not (tmp_path / "work").exists()


def test_the_schedules_have_the_published_numbers_of_full_passes():
    """At 50 steps the published ratios are those of 8, 14 and 10 full passes, and of 17 and 10 for FORA."""
    for protocol, fora, taylor in (("flux", 8, 8), ("qwen-image", 17, 14), ("hunyuan-video", 10, 10)):
        rows = PROTOCOLS[protocol].rows(50)
        for row, passes in ((rows[1], fora), (rows[3], taylor), (rows[4], taylor)):
            assert f"interval={PROTOCOLS[protocol].fora if row is rows[1] else PROTOCOLS[protocol].taylor}" in (
                row.setting.text
            )
            assert abs(50 / passes - row.published["speed"]) < 0.05
