import math
import os
import shutil
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr

from tapstudy import TAPConfig
from tapstudy.analysis import cluster
from tapstudy.bench import engine
from tapstudy.bench.engine import Setting, run
from tapstudy.bench.image_error import psnr, ssim
from tapstudy.bench.image_set import ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.results import Results
from tapstudy.bench.sweep.cells import Cell, product_of
from tapstudy.bench.sweep.run import sweep
from tapstudy.bench.sweep.table import table_rows
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.teacache import TeaCachePolicy

TINY = {"seeds": (0, 1), "labels": (3,), "steps": 6, "guidance": 1.5}
CONFIG = TAPConfig(interval=2, warmup_steps=2)  # FF.F.F


@pytest.fixture(scope="module")
def cells():
    methods = ["reference", "fewer", "fixed1", "tap", "shuffled", "oracle"]
    return product_of({"method": methods}, interval=2, warmup_steps=2, **TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cells):
    """A finished sweep and its folder; do not change it."""
    folder = tmp_path_factory.mktemp("sweep")
    return sweep(cells, folder, progress=False), folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "sweep")


@pytest.fixture
def computed(finished, cells, monkeypatch):
    """The jobs that are run, in order. What the finished sweep holds is taken from there, to save time."""
    jobs, results = [], Results(finished[1])
    held = engine.split([(cell.images, cell.setting) for cell in cells])

    def watched(job):
        jobs.append(job)
        return engine.kept(job, results) if job in held else engine.run(engine.pipe_of(job[0].model), *job)

    monkeypatch.setattr(engine, "run_job", watched)
    return jobs


def files(folder, kind=""):
    return sorted((folder / "runs").glob(f"{kind}*.nc"))


def by_method(dataset, name):
    return dataset.isel(cell=dataset["method"].values.tolist().index(name))


def same(a, b):
    """Equal but for the times."""
    xr.testing.assert_identical(a.drop_vars("seconds"), b.drop_vars("seconds"))


def test_values_by_hand(finished):
    dataset, _ = finished
    assert dict(dataset.sizes) == {"cell": 6, "sample": 2}
    assert dataset["seed"].values.tolist() == [0, 1]
    assert dataset["label"].values.tolist() == [3, 3]
    from tapstudy import apply_tap, load

    pipe = load("mnist-dit")
    pipe.set_progress_bar_config(disable=True)
    images = Cell(method="tap", seeds=(1,), labels=(3,), steps=6, guidance=1.5).images
    reference = images.sample(pipe).clamp(0, 1)
    with apply_tap(pipe, CONFIG):
        image = images.sample(pipe).clamp(0, 1)
    tap = by_method(dataset, "tap").sel(sample=1)
    assert tap["psnr"].item() == pytest.approx(psnr(image, reference).item(), rel=1e-6)
    assert tap["ssim"].item() == pytest.approx(ssim(image, reference).item(), rel=1e-6)
    assert tap["mask"].item() == "FF.F.F"
    assert tap["full_passes"].item() == 4
    fewer = by_method(dataset, "fewer")
    plain = images.sample(pipe, steps=4).clamp(0, 1)
    assert fewer["psnr"].values[1] == pytest.approx(psnr(plain, reference).item(), rel=1e-6)
    assert fewer["mask"].values.tolist() == ["FFFF", "FFFF"]
    assert fewer["flops_ratio"].values.tolist() == [1.5, 1.5]
    exact = by_method(dataset, "reference")
    assert all(map(math.isinf, exact["psnr"].values))
    assert exact["ssim"].values.tolist() == pytest.approx([1, 1])
    assert by_method(dataset, "oracle")["mask"].values[0] == "FFsFsF"


def test_flops_of_the_methods(finished):
    """A skip step costs something; the probe costs more; a shadow pass costs at least a pass."""
    ratio = {name: by_method(finished[0], name)["flops_ratio"].values[0] for name in ("fixed1", "tap", "oracle")}
    assert 1.5 > ratio["fixed1"] > ratio["tap"] > 1.3
    assert ratio["oracle"] < 1


def test_settings_are_coordinates(finished):
    dataset, folder = finished
    tap, fixed, reference = (by_method(dataset, name) for name in ("tap", "fixed1", "reference"))
    assert (tap["interval"], tap["warmup_steps"], tap["probe_depth"], tap["steps"]) == (2, 2, 0, 6)
    assert (tap["orders"].item(), tap["shifts"].item(), tap["distance"].item()) == ("0,1,2", "0,1,2,3,4", "cosine")
    assert (fixed["orders"].item(), fixed["distance"].item(), fixed["history_dtype"].item()) == ("1", "", "float32")
    assert np.isnan(reference["interval"])
    assert np.isnan(fixed["probe_depth"])
    assert set(dataset["error"].values) == {""}
    with xr.open_dataset(folder / "sweep.nc") as written:
        same(written.load(), dataset)


def test_resume_computes_only_what_is_missing(copied, cells, finished, computed):
    same(sweep(cells, copied, progress=False), finished[0])
    assert computed == []
    stored = files(copied, "TAPPolicy")
    stored[0].unlink()
    stored[1].write_bytes(stored[1].read_bytes()[:3000])  # half written
    flipped = files(copied, "FixedPolicy")[0]
    with xr.open_dataset(flipped) as file:
        other = file.load()
    other["image"][0, 0, 14, 14] += 0.25  # damaged, and readable
    flipped.unlink()
    other.to_netcdf(flipped)
    (copied / "runs" / "OraclePolicy-0.nc.partial").write_bytes(b"a write cut short")
    same(sweep(cells, copied, progress=False), finished[0])
    assert sorted(setting.text.split("(")[0] for _, setting in computed) == ["FixedPolicy", "TAPPolicy", "TAPPolicy"]
    more = [Cell(**{**vars(cells[3]), "seeds": (0, 1, 2)})]
    computed.clear()
    assert sweep(more, copied, progress=False).sizes["sample"] == 3
    assert [(setting.name.split("-")[0], images.seeds) for images, setting in computed] == [
        ("plain", [2]), ("TAPPolicy", [2]),
    ]  # fmt: skip


def test_a_kill_loses_nothing(tmp_path, cells, finished, computed, monkeypatch):
    watched = engine.run_job

    def killed(job):
        if len(computed) == 5:
            raise KeyboardInterrupt
        return watched(job)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_job", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(cells, tmp_path, progress=False)
    assert len(files(tmp_path)) == 5
    first = list(computed)
    same(sweep(cells, tmp_path, progress=False), finished[0])
    assert len(computed) == 12
    assert not {*first} & {*computed[5:]}


def test_equal_settings_are_run_once(tmp_path, cells, computed):
    """One predictor under two names, and its reference."""
    same_again = product_of({"method": ["fixed1", "order1"]}, interval=2, warmup_steps=2, **TINY)
    found = sweep(same_again, tmp_path, progress=False)
    assert len(computed) == 4
    assert found["psnr"].values[0].tolist() == found["psnr"].values[1].tolist()


def test_other_weights_count_as_missing(copied, cells, finished, computed, monkeypatch):
    watched = engine.run_job
    monkeypatch.setattr(engine, "run_job", lambda job: watched(job).assign_attrs(weights="worker's"))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "weights_fingerprint", lambda model: "new")
        with pytest.warns(RuntimeWarning, match="12 runs of the sweep failed"):
            found = sweep(cells, copied, progress=False)
    assert len(computed) == 12
    assert found["psnr"].isnull().all()
    assert "other weights of mnist-dit" in found["error"].values[0]


def test_a_failing_cell_is_named_and_alone(copied, cells):
    bad = product_of({"probe_depth": [99]}, interval=2, warmup_steps=2, **TINY)
    missing = product_of({"method": ["fixed0"]}, **{**TINY, "model": "nothing"})
    with pytest.warns(
        RuntimeWarning, match=r"6 runs of the sweep .*\n.*nothing.*\n(.*\n)*.*probe_depth=99.* beyond the last"
    ):
        found = sweep([*missing, *bad, cells[1]], copied, progress=False)
    assert found["psnr"].isnull().values.tolist() == [[True, True], [True, True], [False, False]]
    assert "no model 'nothing'" in found["error"].values[0]
    assert "probe_depth 99 is beyond the last block" in found["error"].values[1]
    assert found["error"].values[2] == ""
    rows = table_rows(found, ["method", "probe_depth"], lambda values: (values.mean(), values.min(), values.max()))
    assert rows[0][:2] == ["fixed0", "-"]
    assert rows[1][:2] == ["tap", "99"]
    assert len(rows[1]) == 3
    assert rows[2][2:4] == ["4", "1.50"]
    assert rows[2][4].startswith(f"{found['psnr'].values[2].mean():.2f} [")


def test_images_that_a_cell_does_not_have(copied, cells):
    one = Cell(**{**vars(cells[3]), "seeds": (1,)})
    found = sweep([one, cells[2]], copied, progress=False)
    assert found["seed"].values.tolist() == [1, 0]
    assert found["psnr"].isnull().values.tolist() == [[False, True], [False, False]]
    assert found["mask"].values[0].tolist() == ["FF.F.F", ""]


def test_untrained_control(tmp_path):
    cell = product_of({"model": ["mnist-dit-untrained"]}, interval=2, warmup_steps=2, **{**TINY, "seeds": (0,)})
    found = sweep(cell, tmp_path, progress=False)
    assert 3 < found["psnr"].item() < 40
    assert found["model"].item() == "mnist-dit-untrained"


def test_nothing_to_do(tmp_path):
    with pytest.raises(ValueError, match="no cells"):
        sweep([], tmp_path)


def test_nobody_at_the_address(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(cluster, "scheduler", partial(cluster.scheduler, timeout=0.5))
    with pytest.raises(ConnectionError, match=r"no dask scheduler answers at 'tcp://127.0.0.1:1'.*dask scheduler"):
        sweep(cells, tmp_path, scheduler="tcp://127.0.0.1:1", progress=False)


@pytest.mark.slow
def test_cluster_with_a_killed_worker(tmp_path, cells, finished):
    """Two worker processes, one killed in mid-run: every value as computed here."""
    from distributed import Client, LocalCluster

    assert torch.get_num_threads() == 1, "threads change the last digits; run with OMP_NUM_THREADS=1"
    victims = []

    def kill_one(client):
        deadline = time.monotonic() + 300
        while not files(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        for address, keys in client.processing().items():
            if keys and not victims:
                pid = client.run(os.getpid, workers=[address])[address]
                os.kill(pid, signal.SIGKILL)
                victims.append(pid)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        before = set(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_one, args=(client,), daemon=True)
        killer.start()
        found = sweep(cells[1:4], tmp_path, scheduler=cluster.scheduler_address, progress=False)
        killer.join()
        assert len(victims) == 1
        assert victims[0] in before
    same(found, finished[0].isel(cell=slice(1, 4)))


def test_settings_told_apart_by_six_digits():
    """What is fitted differs in the last bits from run to run, and is the same setting all the same."""
    near, other = (TeaCachePolicy(threshold=0.1 * (1 + change)) for change in (1e-9, 1e-3))
    assert Setting.of(near) == Setting.of(TeaCachePolicy(threshold=0.1))
    assert Setting.of(near).name == Setting.of(TeaCachePolicy(threshold=0.1)).name
    assert Setting.of(near) != Setting.of(other)


@pytest.mark.parametrize(("alone", "sizes"), [(True, [1, 1, 1]), (False, [3])])
def test_what_decides_for_a_batch_samples_image_by_image(monkeypatch, alone, sizes):
    pipe, seen, sample_images = pipe_of("mnist-dit"), [], ImageSet.sample
    weights_fingerprint("mnist-dit")  # is made once, of a sample

    def sample(self, *arguments, **named):
        seen.append(len(self))
        return sample_images(self, *arguments, **named)

    monkeypatch.setattr(ImageSet, "sample", sample)
    images = ImageSet("mnist-dit", pairs=((0, 1), (0, 2), (0, 3)), steps=2, guidance=2.0)
    run(pipe, images, Setting.of(FullPolicy(), alone=alone))
    assert seen == sizes
