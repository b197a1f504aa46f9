"""Commands on pipelines of diffusers in folders: tiny random parts, saved and loaded as users' own are."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster, get_worker
from PIL import Image

import tapstudy
from tapstudy.bench import engine
from tapstudy.cli import app
from tests.command_line import invoke
from tests.pipelines import tiny

FEW = ("--steps", 6, "--interval", 3, "--warmup-steps", 1)


def run(*arguments: object) -> Any:
    return invoke(app, [*map(str, arguments)])


def saved(name: str, folder: Path) -> tuple[str, str]:
    """Save a pipeline of the table, and a CSV with two prompts and the other arguments of its call."""
    pipe, call = getattr(tiny, name)()
    pipe.save_pretrained(folder / name)
    del call["output_type"], call["num_inference_steps"]
    call = {key: value[0] if isinstance(value, list) else value for key, value in call.items()}
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(call))
        writer.writeheader()
        writer.writerows([call, call | {"prompt": "two small boats at dawn"}])
    return str(folder / name), str(folder / f"{name}.csv")


@pytest.fixture(
    scope="module", params=["flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wan", "qwen_image"))]
)
def asked(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("pipelines"))


def test_a_pipeline_in_a_folder(asked, tmp_path):
    folder, prompts = asked
    common = ("--pipeline", folder, "--prompts", prompts)
    done = run("sample", *common, *FEW, "--out", tmp_path / "two.png")
    assert done.exit_code == 0, done.output
    video = folder.endswith("wan")
    width, height = (64, 32) if video else (24, 16)
    with Image.open(tmp_path / "two.png") as image:
        assert image.size == ((5 * width, 2 * height) if video else (2 * width, height))
    assert "F..F.." in done.stdout

    done = run("record", tmp_path / "run.zarr", *common, *FEW)
    assert done.exit_code == 0, done.output
    recording = tapstudy.open_recording(tmp_path / "run.zarr")
    assert recording.sizes["sample"] == 2
    assert recording["choice"].sizes["step"] == 6
    assert np.isfinite(recording["true_error"].sel(step=1)).all()
    done = run("explore", tmp_path / "run.zarr", "--out", tmp_path / "maps.html")
    assert done.exit_code == 0, done.output
    assert "two small boats at dawn" in (tmp_path / "maps.html").read_text()

    done = run("ablate", *common, "--steps", 6, "--axis", "method=tap,order0,fewer", "--axis", "interval=3",
               "--axis", "warmup_steps=1", "--out", tmp_path / "sweep")  # fmt: skip
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "sweep" / "sweep.nc") as table:
        assert table["mask"].sel(cell=table["method"] == "tap").values.tolist() == [["F..F..", "F..F.."]]
        assert (table["flops_ratio"].sel(cell=table["method"] == "tap") > 1).all()
        assert np.isfinite(table["psnr"]).all()
        assert table["correct"].isnull().all()
        assert table["label"].values[1].startswith("two small boats at dawn")

    done = run("roughness", *common, "--steps", "8", "--prompts", one_row(prompts, tmp_path))
    assert done.exit_code == 0, done.output
    assert "Cost:" in done.stdout


def one_row(prompts: str, folder: Path) -> Path:
    lines = Path(prompts).read_text().splitlines()
    (folder / "one.csv").write_text("\n".join(lines[:2]))
    return folder / "one.csv"


def test_fits_a_schedule_and_compares_with_it(asked, tmp_path):
    folder, prompts = asked
    common = ("--pipeline", folder, "--prompts", prompts, "--steps", 8)
    done = run(
        "fit-schedule", *common, "--full-passes", 4, "--out", tmp_path / "fitted.json", "--work", tmp_path / "fit"
    )
    assert done.exit_code == 0, done.output
    found = tapstudy.FittedSchedule.load(tmp_path / "fitted.json")
    assert found.num_steps == 8
    assert len(found.full_steps) == 4
    assert found.full_steps[0] == 0
    assert "start dense: TAP" in found.quality
    assert len(found.magnitude_ratios) == 8
    again = run(
        "fit-schedule", *common, "--full-passes", 4, "--out", tmp_path / "again.json", "--work", tmp_path / "fit"
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.json").read_text() == (tmp_path / "fitted.json").read_text()

    done = run("compare", *common, "--methods", "order1,tap", "--intervals", 4, "--schedule", tmp_path / "fitted.json",
               "--out", tmp_path / "page.html", "--table", tmp_path / "table.nc")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "fitted schedule (fitted)" in done.stdout
    with xr.open_dataset(tmp_path / "table.nc") as table:
        assert table["method"].values.tolist() == ["reference", "Taylor order 1", "TAP", "fitted schedule (fitted)"]
        expected = "".join("F" if step in found.full_steps else "." for step in range(8))
        assert table["mask"].values[3].tolist() == [expected] * 2
        assert np.isinf(table["psnr"].values[0]).all()
        assert np.isfinite(table["psnr"].values[1:]).all()
        assert (table["flops_ratio"].values[1:] > 1).all()
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2 * (1 + 3 * 2)  # images, and differences but for the reference


def test_a_schedule_for_other_steps_is_refused(tmp_path):
    pipe, call = tiny.stable_diffusion_3()
    found = tapstudy.FittedSchedule(pipeline="StableDiffusion3Pipeline", num_steps=8, full_steps=(0, 1, 2, 5))
    path = found.save(tmp_path / "schedule.json")
    with tapstudy.tap(pipe, schedule=path) as handle:
        tiny.sample(pipe, call, num_inference_steps=8)
    assert {context.mask for context in handle.summary().contexts} == {"FFF..F.."}
    with (
        tapstudy.tap(pipe, schedule=path),
        pytest.raises(ValueError, match="made for 8 steps, and this run has 12"),
    ):
        tiny.sample(pipe, call)
    with pytest.raises(ValueError, match="leave out interval"), tapstudy.tap(pipe, schedule=path, interval=4):
        pass
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="does not hold a fitted schedule"):
        tapstudy.FittedSchedule.load(tmp_path / "other.json")


@pytest.mark.slow
def test_a_killed_recording_of_given_images_resumes(tmp_path):
    """The image that the prompts edit is in the recording: its file need not be there any more."""
    folder, prompts = saved_with_image("flux_kontext", tmp_path)
    program = (
        "import tests.pipelines.text; from tapstudy.cli import app; app()"  # its tokenizer is a class of the tests
    )
    command = [sys.executable, "-c", program, "record", "run.zarr", "--model", folder, "--prompts", prompts,
               "--steps", "8", "--interval", "3", "--seeds", "0,1,2"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not finished(tmp_path / "run.zarr"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= finished(tmp_path / "run.zarr") < 12
    (tmp_path / "picture.png").unlink()
    done = run("record", "--resume", tmp_path / "run.zarr")
    assert done.exit_code == 0, done.output
    recording = tapstudy.open_recording(tmp_path / "run.zarr")
    assert recording.sizes["sample"] == 12
    assert recording["choice"].sizes["step"] == 8
    assert np.isfinite(recording["image"]).all()


def finished(path: Path) -> int:
    try:
        return tapstudy.open_recording(path, verify=False).sizes["sample"]
    except tapstudy.RecordingError:
        return 0


def saved_with_image(name: str, folder: Path) -> tuple[str, str]:
    pipe, call = getattr(tiny, name)()
    pipe.save_pretrained(folder / name)
    pixels = (255 * call["image"][0].clamp(0, 1)).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "picture.png")
    given = {key: value for key, value in call.items() if key not in ("output_type", "num_inference_steps", "image")}
    prompts = ("a fox in the snow", "two small boats at dawn", "a fox at dawn", "small boats in the snow")
    rows = [given | {"prompt": prompt, "image": "picture.png"} for prompt in prompts]
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / name), str(folder / "prompts.csv")


def test_an_image_to_image_pipeline_and_one_of_two_transformers(tmp_path):
    """One runs fewer steps than it is told, the other splits them: masks and FLOPs are of the steps that there are."""
    pipe, call = tiny.flux_img2img()
    given = {name: call[name] for name in ("prompt", "height", "width", "max_sequence_length", "strength")}
    given = {name: value[0] if isinstance(value, list) else value for name, value in given.items()}
    Image.fromarray((255 * call["image"][0].clamp(0, 1)).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    prompts = [given | {"image": str(tmp_path / "a.png")}]
    table = tapstudy.compare(pipe, prompts, ["tap"], intervals=(3,), steps=12, progress=False)
    assert table["mask"].values[:, 0].tolist() == ["F" * 9, "FFF..F..F"]  # strength 0.75
    assert 9 / 5 - 0.2 < table["flops_ratio"].values[1, 0] < 9 / 5

    pipe, call = tiny.wan22()
    names = ("prompt", "negative_prompt", "height", "width", "num_frames", "max_sequence_length")
    given = {name: call[name][0] if isinstance(call[name], list) else call[name] for name in names}
    table = tapstudy.compare(pipe, [given], ["tap"], intervals=(3,), steps=12, progress=False)
    assert {len(mask) for mask in table["mask"].values[:, 0]} == {12}
    assert (table["flops_ratio"].values[1] > 1.2).all()
    with pytest.raises(TypeError, match="one transformer, WanPipeline has several"):
        tapstudy.fit_schedule(pipe, [given, given | {"prompt": "a fox"}])


def test_on_workers(tmp_path, monkeypatch):
    """Every run comes from a worker, is the same as here, and is not made twice."""
    folder, prompts = saved("stable_diffusion_3", tmp_path)
    common = ("--pipeline", folder, "--prompts", prompts, "--steps", 4)
    compared = ("compare", *common, "--methods", "order1", "--intervals", 4, "--out", tmp_path / "page.html")
    fitted = ("fit-schedule", *common, "--full-passes", 2)
    judged = (
        "bench",
        "paper",
        *common,
        "--prompts",
        one_row(prompts, tmp_path),
        "--protocol",
        "flux",
        "--out",
        tmp_path / "paper.md",
    )
    assert run(*compared, "--table", tmp_path / "here.nc").exit_code == 0
    on_worker = engine.run

    def only_there(*arguments: Any) -> Any:
        get_worker()
        return on_worker(*arguments)

    monkeypatch.setattr(engine, "run", only_there)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        there = ("--scheduler", cluster.scheduler_address)
        done = run(*compared, *there, "--work", tmp_path / "compared", "--table", tmp_path / "there.nc")
        assert done.exit_code == 0, done.output
        done = run(*fitted, *there, "--work", tmp_path / "fitted", "--out", tmp_path / "there.json")
        assert done.exit_code == 0, done.output
        done = run(*judged, *there, "--work", tmp_path / "judged")
        assert done.exit_code == 0, done.output
    for command in ((*fitted, "--work", tmp_path / "fitted", "--out", tmp_path / "again.json"),
                    (*judged, "--work", tmp_path / "judged")):  # fmt: skip
        done = run(*command)  # needs no worker any more
        assert done.exit_code == 0, done.output
    assert (tmp_path / "again.json").read_text() == (tmp_path / "there.json").read_text()
    with xr.open_dataset(tmp_path / "here.nc") as here, xr.open_dataset(tmp_path / "there.nc") as there:
        np.testing.assert_array_equal(here["image"], there["image"])
        np.testing.assert_array_equal(here["psnr"], there["psnr"])
    assert "TAP (N=8) | here" in (tmp_path / "paper.md").read_text()


def test_prompts_that_a_pipeline_does_not_take_are_refused_before_it_is_loaded(tmp_path, monkeypatch):
    folder, prompts = saved("stable_diffusion_3", tmp_path)
    monkeypatch.setattr("tapstudy.bench.image_set.pipe_of", lambda _: pytest.fail("loaded"))
    lines = Path(prompts).read_text().splitlines()
    Path(prompts).write_text("\n".join([lines[0] + ",hight", *(line + ",3" for line in lines[1:])]))
    for command in ("sample", "compare", "fit-schedule", "roughness", "ablate"):
        done = run(command, "--pipeline", folder, "--prompts", prompts)
        assert done.exit_code == 2, done.output
        assert "StableDiffusion3Pipeline takes no argument hight: it takes" in " ".join(done.output.split())
    done = run("sample", "--model", "mnist-dit", "--labels", "1", "--negative", "blurry")
    assert "LabelPipeline does not: leave it out" in " ".join(done.output.split())


def test_several_sizes(tmp_path):
    """`sample` writes a file each; what needs one call says so."""
    folder, prompts = saved("stable_diffusion_3", tmp_path)
    header, first, second = Path(prompts).read_text().splitlines()
    Path(prompts).write_text("\n".join([header, first, second.replace("16,24", "24,16")]))
    assert "24,16" in Path(prompts).read_text()
    common = ("--pipeline", folder, "--prompts", prompts)
    done = run("sample", *common, *FEW, "--out", tmp_path / "two.png")
    assert done.exit_code == 0, done.output
    for name, size in (("two-0.png", (24, 16)), ("two-1.png", (16, 24))):
        with Image.open(tmp_path / name) as image:
            assert image.size == size
        assert name in "".join(done.output.split())
    assert not (tmp_path / "two.png").exists()
    done = run("roughness", *common)
    assert done.exit_code == 2
    assert "roughness runs one call, and 2 prompts with arguments of their own need as many" in " ".join(
        done.output.split()
    )
