"""Methods side by side on a loaded pipeline, and schedules fitted to it."""

import html
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.analysis.comparison_table import comparison_table
from tapstudy.bench import compare as compare_module
from tapstudy.bench.engine import text_of
from tapstudy.bench.fit.schedule import gram_of, trajectory_of
from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.belongs import weights_digits
from tapstudy.instrument.time_features import time_embedders
from tapstudy.models.sources import name_of
from tapstudy.policies import CalibratedPolicy, FixedPolicy, TAPPolicy
from tests.pipelines import tiny
from tests.table import each_row

QUIET = {"progress": False}


def psnr(one, other):
    return -10 * np.log10(((one - other) ** 2).mean(axis=(-3, -2, -1)))


def test_a_schedule_without_a_clock_needs_no_clock(tiny_pipe):
    """A model whose time layer cannot be smoothed takes it, and so does one that is smoothed already."""

    class Quantised(torch.nn.Linear):
        pass

    schedule = tapstudy.FittedSchedule(pipeline="LabelPipeline", num_steps=4, full_steps=(0, 2))
    with tapstudy.smooth_time(tiny_pipe, 20), tapstudy.tap(tiny_pipe, schedule=schedule) as handle:
        tiny_pipe([3], 4)
    assert handle.summary().mask == "F.F."
    for embedder in time_embedders(tiny_pipe.transformer):
        embedder.linear.__class__ = Quantised
    with tapstudy.tap(tiny_pipe, schedule=schedule) as handle:
        tiny_pipe([3], 4)
    assert handle.summary().mask == "F.F."


def test_compares_names_policies_and_schedules(tiny_pipe, tmp_path):
    on = tapstudy.TAPConfig(full_steps=(0, 1, 4), orders=(0, 1))
    schedule = tapstudy.FittedSchedule(pipeline="LabelPipeline", num_steps=8, full_steps=(0, 2, 5), smooth_time=20.0)
    methods = {"TAP": "tap", "own": FixedPolicy(1, config=on), "schedule": schedule}
    asked = [3, {"class_labels": [4]}]
    common = {"intervals": (3, 4), "steps": 8, "guidance": 2.0, "folder": tmp_path, **QUIET}
    table = tapstudy.compare(tiny_pipe, asked, methods, page=tmp_path / "page.html", **common)
    assert table["method"].values.tolist() == ["reference", "TAP", "TAP", "own", "schedule"]
    assert table["interval"].values.tolist() == [0, 3, 4, 0, 0]
    masks = ["FFFFFFFF", "FFF..F..", "FFF...F.", "FF..F...", "F.F..F.."]
    assert table["mask"].values.tolist() == [[mask] * 2 for mask in masks]
    image = table["image"].values / 255  # calls with more than a label go as any pipeline's do: 8 bits
    np.testing.assert_allclose(table["psnr"].values[1:], psnr(image[1:], image[:1]), rtol=1e-4)
    generator = torch.Generator().manual_seed(ImageSet("", ((0, 3),)).noise_seeds[0])
    with tapstudy.tap(tiny_pipe, schedule=schedule):
        alone = tiny_pipe([3], 8, 2.0, generator=[generator], output_type="np").images
    np.testing.assert_allclose(image[4, 0], alone[0].transpose(2, 0, 1), atol=0.51 / 255)
    assert (table["flops_ratio"].values[1:] > 8 / 5).all()
    assert table["image"].chunks[:2] == ((1,) * 5, (2,))  # a seed at a time, when it is looked at
    assert (tmp_path / "page.html").read_text().count("<img") == 2 * (1 + 2 * 4)

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    more = tapstudy.compare(tiny_pipe, asked, {**methods, "another": TAPPolicy(on)}, **common)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}.items()
    np.testing.assert_array_equal(more["image"].values[:5] / 255, image)
    with torch.no_grad():
        for weight in tiny_pipe.transformer.parameters():
            weight.mul_(0.5)
    other = tapstudy.compare(tiny_pipe, asked, methods, **common)
    assert (other["image"].values[0] / 255 != image[0]).any()


def test_what_fails_is_left_out_and_told(tiny_pipe):
    broken = TAPPolicy(tapstudy.TAPConfig(probe_depth=99))
    with pytest.warns(RuntimeWarning, match="left out, because they failed on LabelPipeline:\n  deep: ValueError"):
        table = tapstudy.compare(tiny_pipe, [1, 2], {"TAP": "tap", "deep": broken}, steps=9, **QUIET)
    assert table["method"].values.tolist() == ["reference", "TAP"]
    assert "beyond the last block" in json.loads(table.attrs["left_out"])["deep"]
    with pytest.raises(ValueError, match="no method ran"), pytest.warns(RuntimeWarning):
        tapstudy.compare(tiny_pipe, [1, 2], [broken], steps=9, **QUIET)
    with pytest.raises(ValueError, match="no method 'tab'"):
        tapstudy.compare(tiny_pipe, [1, 2], ["tab"], **QUIET)
    with pytest.raises(ValueError, match="is fitted on held-out images"):
        tapstudy.compare(tiny_pipe, [1, 2], ["best-fixed"], **QUIET)
    with pytest.raises(TypeError, match="a method is a name, a policy, a fitted schedule or a Setting"):
        tapstudy.compare(tiny_pipe, [1, 2], [3], **QUIET)
    with pytest.raises(ValueError, match="prompts holds no prompts"):
        tapstudy.compare(tiny_pipe, [], **QUIET)


def test_one_image_has_no_interval(tiny_pipe):
    table = tapstudy.compare(tiny_pipe, [1], ["tap"], steps=9, **QUIET)
    mean, low, high = table["psnr_interval"].values[1]
    assert mean == table["psnr"].values[1, 0]
    assert np.isnan([low, high]).all()


def test_inner_products():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 300, 301, generator=generator) for _ in range(3)]
    flat = torch.stack(features).double().flatten(1)
    expected = flat @ flat.T
    np.testing.assert_allclose(gram_of(features), expected / expected.diagonal().mean(), rtol=1e-12)


def test_what_is_read_of_a_trajectory(tiny_pipe):
    found = trajectory_of(tiny_pipe, ImageSet.of(name_of(tiny_pipe), seeds=(0,), labels=(3,), steps=6))
    assert [latent.shape for latent in found.latents] == [(2, 16, 4)] * 6  # both branches
    assert sum(found.lengths) == pytest.approx(-1)  # from noise to the image
    assert found.ratios[0] == 1.0
    for gram in found.grams.values():
        assert np.diagonal(gram).mean() == pytest.approx(1)
        assert np.linalg.eigvalsh(gram).min() > -1e-9


def test_fits_what_it_says(tiny_pipe, tmp_path):
    labels = [0, 1, 2, 3]
    found = tapstudy.fit_schedule(
        tiny_pipe, labels, 4, steps=10, guidance=2.0, tuning=2, sigmas=(30,), folder=tmp_path, **QUIET
    )
    assert (len(found.full_steps), found.full_steps[0], found.num_steps) == (4, 0, 10)
    tuned = ImageSet.of("", seeds=(0,), labels=labels[2:], steps=10)

    def images():
        return (tuned.sample(tiny_pipe).clamp(0, 1)).numpy()

    exact = images()
    with tapstudy.tap(tiny_pipe, schedule=found):
        fast = images()
    assert max(found.quality.values()) == pytest.approx(psnr(fast, exact).mean(), abs=1e-3)
    alone = [f"order {m}, horizon k - {s}" if s else f"order {m}" for m in (1, 2) for s in range(5)]
    assert {name.rpartition(": ")[2] for name in found.quality if "sigma" not in name} == {
        "TAP", "rows, hidden", "rows, output", "order 0", *alone
    }  # fmt: skip
    (single,) = (name for name in found.quality if name.endswith(": order 2, horizon k - 3"))
    config = tapstudy.TAPConfig(full_steps=found.full_steps)
    with tapstudy.apply_policy(tiny_pipe, FixedPolicy(2, 3, config=config)):
        assert found.quality[single] == pytest.approx(psnr(images(), exact).mean(), abs=1e-3)
    assert sum("sigma 30" in name for name in found.quality) == 1
    candidates = len(found.quality)
    assert found.passes_spent == 10 * 2 + 10 * 2 + 4 * 2 * candidates
    assert len(found.erta.full_steps) >= 1
    again = tapstudy.FittedSchedule.load(found.save(tmp_path / "schedule.json"))
    assert again == found
    assert isinstance(again.policy(), CalibratedPolicy if found.rows else TAPPolicy)
    assert "4 full passes of 10 steps" in str(found)
    assert tapstudy.fit_schedule(
        tiny_pipe, labels, 4, steps=10, guidance=2.0, tuning=2, sigmas=(30,), folder=tmp_path, **QUIET
    ) == found  # fmt: skip


@each_row(
    ("changes", "message"),
    [
        ({"prompts": [1]}, "needs a prompt to fit to and another to choose on"),
        ({"tuning": 2}, "2 of them to choose on"),
        ({"full_passes": 50}, "full_passes must be at least 2 and below the 50 steps"),
        ({"full_passes": 1}, "full_passes must be at least 2"),
    ],
)
def test_fits_that_cannot_be(tiny_pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        tapstudy.fit_schedule(tiny_pipe, **{"prompts": [1, 2], **changes}, **QUIET)


def test_methods_of_one_class_are_all_there(tiny_pipe):
    on = tapstudy.TAPConfig(full_steps=(0, 1, 4), orders=(0, 1))
    methods = [FixedPolicy(0, config=on), FixedPolicy(1, config=on), "tap"]
    table = tapstudy.compare(tiny_pipe, [1], methods, intervals=(4,), steps=8, **QUIET)
    assert sorted(table["method"].values) == ["FixedPolicy", "FixedPolicy (2)", "TAP", "reference"]
    assert len(set(table["psnr"].values[:, 0])) == 4


def test_lists_and_types_of_a_policy_tell_its_images_apart():
    class Weighted(FixedPolicy):
        def __init__(self, weights, dtype):
            super().__init__(1)
            self.weights, self.dtype = weights, dtype

    texts = [text_of(Weighted([1, 2], torch.float32)), text_of(Weighted([1, 3], torch.float32)),
             text_of(Weighted([1, 2], torch.float16)), text_of(Weighted(np.array([1, 3]), torch.float64))]  # fmt: skip
    assert len(set(texts)) == 4


def test_what_no_text_can_tell_has_one_of_its_own():
    """Families of somebody's own, functions, modules, and long tensors in lists."""

    class Own(FixedPolicy):
        def __init__(self, what):
            super().__init__(1)
            self.what = what

    class Plain:
        def __init__(self, value):
            self.value = value

    longer = [[torch.zeros(3000).index_fill(0, torch.tensor([1500]), value)] for value in (0.0, 1.0)]
    own = Plain(1.5)
    others = [Plain(9.0), lambda x: x, lambda x: 2 * x, torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), *longer]
    texts = [text_of(Own(what)) for what in (own, *others)]
    assert len(set(texts)) == len(texts)
    assert text_of(Own(own)) == texts[0]
    assert text_of(Own(longer[0])) == text_of(Own([longer[0][0].clone()]))
    assert text_of(FixedPolicy(1)) == text_of(FixedPolicy(1))


def test_an_images_own_guidance_holds_and_so_do_its_flops():
    pipe, call = tiny.stable_diffusion_3()
    size = {name: call[name] for name in ("height", "width", "max_sequence_length")}
    prompts = [{"prompt": "a fox", "guidance_scale": scale, **size} for scale in (7.0, 1.0)]
    table = tapstudy.compare(pipe, prompts, ["tap"], intervals=(3,), steps=4, guidance=5.0, **QUIET)
    flops = table["flops"].values[0]
    assert flops[0] == pytest.approx(2 * flops[1], rel=0.01)  # without guidance a batch of one
    with pytest.raises(ValueError, match="must be of one height x width x num_frames, got 16 x 24 x usual; 24 x 24"):
        tapstudy.compare(pipe, [prompts[0], prompts[1] | {"height": 24}], ["tap"], steps=4, **QUIET)


@each_row(
    ("asked", "changes", "message"),
    [
        ([0, 0], {}, "'0' stands there twice"),
        ([0], {"seeds": (0, 0)}, "a seed or a prompt stands there twice"),
        ([{"class_labels": [1], "num_inference_steps": 3}], {}, "num_inference_steps is the same for all images"),
        (
            [0],
            {"methods": [tapstudy.FittedSchedule(pipeline="x", num_steps=9, full_steps=(0, 1))]},
            "was fitted to 9 steps, and these runs have 8",
        ),
    ],
)
def test_what_is_refused_before_anything_runs(tiny_pipe, monkeypatch, asked, changes, message):
    monkeypatch.setattr(type(tiny_pipe), "__call__", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        tapstudy.compare(tiny_pipe, asked, **{"methods": ["tap"], "steps": 8, **changes}, **QUIET)


def test_a_fit_that_was_cut_short_records_no_image_twice(tiny_pipe, tmp_path, monkeypatch):
    common = {"steps": 8, "guidance": 2.0, "folder": tmp_path, **QUIET}
    whole = tapstudy.fit_schedule(tiny_pipe, [0, 1, 2], 4, tuning=1, sigmas=(20, 40), **common)
    assert not any(name.count("sigma") > 1 for name in whole.quality)
    monkeypatch.setattr("tapstudy.bench.fit.schedule.trajectory_of", lambda *_: pytest.fail("recorded again"))
    assert tapstudy.fit_schedule(tiny_pipe, [0, 1, 2], 4, tuning=1, sigmas=(20, 40), **common) == whole
    with pytest.raises(ValueError, match="sigmas must be finite numbers of at least 0, got -3"):
        tapstudy.fit_schedule(tiny_pipe, [0, 1], 4, sigmas=(-3,), steps=8, **QUIET)


def test_a_schedule_belongs_to_a_class_and_to_weights(tmp_path):
    pipe, call = tiny.stable_diffusion_3()
    found = tapstudy.FittedSchedule(
        pipeline="StableDiffusion3Pipeline", weights=weights_digits(pipe), num_steps=12, full_steps=(0, 1, 2, 5)
    )
    found = tapstudy.FittedSchedule.load(found.save(tmp_path / "schedule.json"))
    with tapstudy.tap(pipe, schedule=found):
        tiny.sample(pipe, call)
    pipe.transformer.to(torch.bfloat16)
    assert weights_digits(pipe) == found.weights
    with tapstudy.tap(pipe.transformer, schedule=found):  # of which class of pipeline nobody knows
        pass
    other = replace(found, pipeline="FluxPipeline")
    refused = "was fitted to a FluxPipeline, and this is a StableDiffusion3Pipeline"
    with pytest.raises(ValueError, match=refused), tapstudy.tap(pipe, schedule=other):
        pass
    with pytest.raises(ValueError, match=refused):
        tapstudy.compare(pipe, ["a fox"], [other], steps=12, **QUIET)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(1.5)
    with pytest.warns(UserWarning, match="was fitted to other weights"), tapstudy.tap(pipe, schedule=found):
        pass


def test_memory_of_a_comparison_does_not_grow_with_its_images(tiny_pipe, tmp_path, monkeypatch):
    """Where images are made one by one, no more are in memory than one of a run, one of the reference, one before."""
    read, held, most = compare_module.kept, [], 0

    def watched(job, results, **options):
        nonlocal most
        found = read(job, results, **options)
        assert found.sizes["sample"] == 1
        held.append(weakref.ref(found))
        most = max(most, sum(one() is not None for one in held))
        return found

    pipe, call = tiny.stable_diffusion_3()
    size = {name: call[name] for name in ("height", "width", "max_sequence_length")}
    monkeypatch.setattr(compare_module, "kept", watched)
    prompts = [{"prompt": f"fox {i}", **size} for i in range(6)]
    table = tapstudy.compare(pipe, prompts, ["order1"], intervals=(3,), steps=4, folder=tmp_path, **QUIET)
    assert most <= 3
    assert table["image"].shape[:2] == (2, 6)
    assert np.isfinite(table["psnr"].values[1]).all()
    image = table["image"].values[:, 5] / 255
    assert psnr(image[1], image[0]) == pytest.approx(float(table["psnr"][1, 5]), rel=1e-4)


def test_the_page_and_the_terminal_show_one_table(tiny_pipe, tmp_path):
    path = tmp_path / "page.html"
    table = tapstudy.compare(tiny_pipe, [1, 2], ["tap"], intervals=(4,), steps=8, page=path, **QUIET)
    heads, rows = comparison_table(table)
    assert heads[-2:] == ["perceptual", "label accuracy"]
    assert rows[1][:4] == ["4", "TAP", "4", "FFF...F."]
    for cell in (*heads, *rows[1]):
        assert f">{html.escape(cell)}</t" in path.read_text()
