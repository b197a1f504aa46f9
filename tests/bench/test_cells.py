import json
from dataclasses import fields

import pytest
import torch

from tapstudy import TAPConfig
from tapstudy.bench.engine import split
from tapstudy.bench.methods import METHODS, find_method
from tapstudy.bench.sweep.axes import parse_axes
from tapstudy.bench.sweep.cells import SETTINGS, Cell, product_of
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.shuffled import ShuffledPolicy
from tests.table import each_row

NAMES = [*(name for name, method in METHODS.items() if method.fit is None), "fixed0", "fixed2-1", "fixed1-0.5"]


@each_row("method", NAMES)
def test_json_and_back(method):
    config = TAPConfig(
        interval=5, shifts=(0, 0.5), clip="zero", history_dtype=torch.float16, probe_dtype=torch.bfloat16,
        full_steps=(0, 1, 2, 9),
    )  # fmt: skip
    cell = Cell(method=method, seeds=(3, 1), labels=(2,), steps=10, guidance=1, config=config)
    plain = json.loads(json.dumps(cell.to_dict()))
    again = Cell(**{**plain, "config": TAPConfig.from_dict(plain["config"])})
    assert again == cell
    assert hash(again) == hash(cell)
    assert again.name == cell.name
    assert cell.name.startswith(f"{method}-")


def test_a_name_tells_what_makes_a_difference():
    tap = Cell(method="tap", config=TAPConfig(interval=4))
    assert tap.name == Cell(method="tap", guidance=2, config=TAPConfig(interval=4, shifts=(0.0, 1, 2, 3, 4))).name
    others = [
        Cell(method="step", config=TAPConfig(interval=4)),
        Cell(method="tap", config=TAPConfig(interval=5)),
        Cell(method="tap", guidance=3.0, config=TAPConfig(interval=4)),
        Cell(method="tap", smooth_time=40, config=TAPConfig(interval=4)),
        Cell(method="tap", seeds=(1,), config=TAPConfig(interval=4)),
        Cell(method="tap", model="mnist-dit-untrained", config=TAPConfig(interval=4)),
    ]
    assert len({cell.name for cell in [tap, *others]}) == 7
    # settings that a method does not read
    assert len({Cell(method="tap", policy_seed=seed) for seed in (0, 1)}) == 1
    assert len({Cell(method="random", policy_seed=seed) for seed in (0, 1)}) == 2
    assert len({Cell(method="fixed1", config=TAPConfig(probe_depth=d)) for d in (0, 1)}) == 1
    assert len({Cell(method="oracle", config=TAPConfig(distance=d)) for d in ("l2", "l1")}) == 1
    assert len({Cell(method="tap", config=TAPConfig(interval=n, full_steps=(0, 1, 2))) for n in (4, 5)}) == 1
    assert len({Cell(method="reference", config=TAPConfig(interval=n)) for n in (4, 5)}) == 1


def test_a_smoothed_cell_is_compared_with_the_model_as_it_is():
    cell = Cell(method="tap", smooth_time=40)
    assert cell.reference.smooth_time == 0
    assert cell.reference == Cell(method="reference")
    assert cell.setting.text == Cell(method="tap").setting.text + ", smoothed in time by 40"
    assert "smooth_time=40" in str(cell)
    assert "smooth_time" not in str(Cell(method="tap"))
    assert parse_axes(["smooth_time=0,40"]) == {"smooth_time": [0.0, 40.0]}
    with pytest.raises(ValueError, match="smooth_time must be a finite number of at least 0, got -1"):
        Cell(method="tap", smooth_time=-1)


def policy_of(cell):
    make = find_method(cell.method).policy
    return make and make(cell.config, cell.policy_seed)


def test_policies():
    tap = policy_of(Cell(method="tap", config=TAPConfig(interval=4, probe_depth=2)))
    assert (tap.config.interval, tap.probe_depth, tap.config.granularity) == (4, 2, "token")
    assert policy_of(Cell(method="step")).config.granularity == "step"
    # images of a batch that choose together are sampled one by one
    assert [Cell(method=name).setting.alone for name in ("tap", "step", "global")] == [False, False, True]
    fixed = policy_of(Cell(method="fixed2-0.5", config=TAPConfig(interval=4)))
    assert [(label.order, label.shift) for label in fixed.labels] == [(2, 0.5)]
    assert isinstance(policy_of(Cell(method="oracle")), OraclePolicy)
    assert policy_of(Cell(method="oracle-latent")).residual_site == "latent"
    assert isinstance(shuffled := policy_of(Cell(method="shuffled", policy_seed=3)), ShuffledPolicy)
    assert shuffled.seed == 3
    assert policy_of(Cell(method="fewer")) is policy_of(Cell(method="reference")) is None


def test_schedule_of_the_paper():
    """14, 10 and 8 full passes of 50."""
    for interval, passes in ((4, 14), (6, 10), (8, 8)):
        assert len(TAPConfig(interval=interval).schedule.steps(50)) == passes
        assert Cell(method="fewer", config=TAPConfig(interval=interval)).setting.steps == passes
    config = TAPConfig(orders=(0,), full_steps=(0, 7), cooldown_steps=2)
    assert config.schedule.steps(50) == (0, 7, 48, 49)
    assert Cell(method="fewer", config=config).setting.steps == 4


def test_parts_share_their_reference():
    cells = product_of({"method": ["tap", "fixed1"], "interval": [4, 6]}, seeds=(0, 1), labels=(1, 2))
    assert len(cells) == 4
    assert {cell.reference for cell in cells} == {Cell(method="reference", seeds=(0, 1), labels=(1, 2))}
    parts = split([(cell.images, cell.reference.setting) for cell in cells])
    assert [images.seeds for images, _ in parts] == [[0, 0], [1, 1]]


@each_row("method", ["best-fixed", "teacache", "peer-dbcache"])
def test_methods_that_must_be_fitted_say_where(method):
    with pytest.raises(ValueError, match=f"{method} is fitted on held-out images: `tapstudy bench frontier` runs it"):
        Cell(method=method)


def test_product_computes_equal_cells_once():
    cells = product_of({"method": ["tap", "fixed1"], "probe_depth": [0, 1]})
    assert [(cell.method, cell.config.probe_depth) for cell in cells] == [("tap", 0), ("tap", 1), ("fixed1", 0)]
    assert "probe_depth" not in cells[2].read_settings


def test_axes_of_every_setting():
    typed = {
        "method": "tap,fixed1",
        "model": "mnist-dit,mnist-dit-untrained",
        "guidance": "1,2.5",
        "orders": "0+1+2,0",
        "shifts": "0+0.5",
        "full_steps": "none,0+1+2",
        "clip": "none,zero",
        "history_dtype": "float32,bfloat16",
        "probe_dtype": "none,bfloat16",
        "distance": "cosine,l2",
        "residual": "hidden",
        "differences": "divided",
        "basis": "newton",
        "granularity": "step",
    }
    axes = parse_axes(f"{name.replace('_', '-')}={typed.get(name, '1,2')}" for name in SETTINGS)
    assert set(axes) == set(SETTINGS) >= {field.name for field in fields(TAPConfig)} - {"history_device", "num_steps"}
    assert axes["guidance"] == [1.0, 2.5]
    assert axes["orders"] == [(0, 1, 2), (0,)]
    assert axes["full_steps"] == [None, (0, 1, 2)]
    assert axes["clip"] == [None, "zero"]
    assert axes["history_dtype"] == [torch.float32, torch.bfloat16]
    assert axes["probe_dtype"] == [None, torch.bfloat16]
    assert axes["interval"] == axes["policy_seed"] == [1, 2]


@each_row(
    ("text", "error", "message"),
    [
        ("intervall=4", TypeError, "no setting 'intervall'; did you mean 'interval'"),
        ("zzz=4", TypeError, "no setting 'zzz'; there are method, model"),
        ("seeds=1,2", TypeError, "no setting 'seeds'"),
        ("interval", ValueError, "must be name=value"),
        ("interval=", ValueError, "must be name=value"),
        ("interval=4,x", ValueError, "interval: 'x' is not an integer"),
        ("interval=4,4", ValueError, "a value comes twice"),
        ("interval=4 interval=6", ValueError, "interval comes twice"),
        ("guidance=two", ValueError, "guidance: 'two' is not a number"),
        ("orders=0:1", ValueError, r"orders: '0:1' is not orders joined by \+"),
        ("history_dtype=nn", ValueError, "'nn' is not a torch dtype"),
        ("history_dtype=float33", ValueError, "'float33' is not a torch dtype"),
        ("method=tab", ValueError, "no method 'tab'; did you mean 'tap'"),
        ("method=fixed", ValueError, "no method 'fixed'; did you mean 'fixed"),
    ],
)
def test_bad_axes(text, error, message):
    with pytest.raises(error, match=message):
        parse_axes(text.split())


@each_row(
    ("axes", "common", "error", "message"),
    [
        ({"intervall": [4]}, {}, TypeError, "did you mean 'interval'"),
        ({"interval": [0]}, {}, ValueError, "interval must be at least 1"),
        ({"distance": ["cos"]}, {}, ValueError, "distance must be one of"),
        ({"method": ["fixed1"], "probe_depth": [0, 1]}, {}, ValueError, "probe_depth makes no difference here: fixed1"),
        ({"region_size": [2, 4]}, {}, ValueError, "region_size makes no difference"),
        ({"full_steps": [(0, 1, 60)]}, {}, ValueError, "full_steps must be below the 50 steps"),
        ({"steps": [0]}, {}, ValueError, "steps must be an integer of at least 1"),
        ({}, {"seeds": ()}, ValueError, "seeds must be different integers"),
        ({}, {"seeds": (1, 1)}, ValueError, "seeds must be different integers"),
        ({}, {"labels": (-1,)}, ValueError, "labels must be different integers"),
    ],
)
def test_bad_cells(axes, common, error, message):
    with pytest.raises(error, match=message):
        product_of(axes, **common)
