"""FLUX and FLUX.2 with any position ids: every token of the image being made gets a residual."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tapstudy
from tapstudy.instrument.adapters import ADAPTERS
from tests.instrument.replay import Replay, relative_error, steps
from tests.instrument.tiny_models import Tiny, make

ROW = ADAPTERS["FluxTransformer2DModel"]
numbers = st.integers(-40, 40) | st.floats(-300, 300, allow_nan=False, width=32)


def axis(count):
    """Coordinates of so many rows: interpolated, centred, offset, reversed, repeated or any others."""
    return st.one_of(
        st.tuples(numbers, st.sampled_from([1.0, 0.5, 0.37, -1.0, 2.0, 0.0])).map(
            lambda pair: [pair[0] + pair[1] * i for i in range(count)]
        ),
        st.lists(numbers, min_size=count, max_size=count),
    )


@st.composite
def images(draw, number):
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rows, columns = draw(axis(height)), draw(axis(width))
    columns_of = draw(st.sampled_from([3, 4]))
    ids = torch.tensor([[number, row, column, 0][:columns_of] for row in rows for column in columns])
    return ids, (1, height, width), rows, columns


@settings(max_examples=60)
@given(
    image=images(0), references=st.lists(st.integers(1, 9), max_size=2), dtype=st.sampled_from(["float32", "bfloat16"])
)
def test_a_rectangle_of_any_coordinates_is_found(image, references, dtype):
    ids, grid, _, _ = image
    behind = [torch.full((count, ids.shape[1]), 10.0 + count) for count in references]
    ids = torch.cat([ids, *behind]).to(getattr(torch, dtype))
    arguments = {"img_ids": ids}
    found = ROW.grid(None, arguments)
    assert prod(found) == prod(grid)
    assert ROW.references(None, arguments) == sum(references)
    first = ids[:: grid[2], 1][:2]
    if grid[1] == 1 or first[0] != first[1]:  # else nothing tells the first two rows apart
        assert found == grid
    assert ROW.grid(None, {"img_ids": ids[None].repeat(2, 1, 1)}) == found


@settings(max_examples=60)
@given(image=images(0), order=st.randoms(use_true_random=False), more=st.integers(0, 3))
def test_any_other_order_keeps_every_token(image, order, more):
    ids = image[0]
    shuffled = [*range(len(ids))]
    order.shuffle(shuffled)
    ids = torch.cat([ids[shuffled], ids[:more]])
    found = ROW.grid(None, {"img_ids": ids})
    assert prod(found) == len(ids)
    rows, columns = ids[:, 1].view(found[1:]), ids[:, 2].view(found[1:])
    if found[1] > 1:  # a grid that is claimed is one
        assert (rows == rows[:, :1]).all()
        assert (columns == columns[:1]).all()


def test_image_numbers_that_come_back_tell_no_image_from_another():
    ids = make("Flux").inputs["img_ids"].clone()
    ids[3:5, 0] = 7
    assert ROW.grid(None, {"img_ids": ids}) == (1, 4, 6)
    assert ROW.references(None, {"img_ids": ids}) == 0


STRANGE = {
    "interpolated": lambda ids: ids * torch.tensor([1, 0.5, 0.5]),
    "centred": lambda ids: ids - torch.tensor([0, 1.5, 2.5]),
    "other image": lambda ids: ids + torch.tensor([3.0, 0, 0]),
    "permuted": lambda ids: ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))],
    "columns first": lambda ids: ids.view(4, 6, -1).transpose(0, 1).flatten(0, 1),
    "all alike": torch.zeros_like,
    "two images of one number": lambda ids: torch.cat([ids[:12], ids[:12]]),
}


def with_ids(name, change, references=0) -> Tiny:
    tiny = make(name)
    ids = tiny.inputs["img_ids"]
    fourth = ids[:, 3:]
    ids = torch.cat([change(ids[:, :3]), fourth], dim=1)
    inputs = {**tiny.inputs, "img_ids": ids}
    if references:
        behind = ids[:references] + 1.0
        behind[:, 0] = ids[0, 0] + 10
        inputs["img_ids"] = torch.cat([ids, behind])
        inputs["hidden_states"] = torch.cat([tiny.inputs["hidden_states"], torch.randn(2, references, 8)], dim=1)
    return Tiny(tiny.model, inputs, 24, start=1.0, end=0.02)


@pytest.mark.parametrize(
    ("name", "case", "references"),
    [
        *(("Flux", case, 10) for case in ("other image", "columns first", "all alike", "two images of one number")),
        ("Flux", "centred", 0),
        ("Flux2", "interpolated", 0),
        ("Flux2", "permuted", 10),
    ],
)
def test_every_token_gets_its_residual(name, case, references):
    tiny = with_ids(name, STRANGE[case], references)
    plain = tiny()
    for site in ("hidden", "latent"):
        (full, skip), events = steps(tiny, Replay(site=site))
        assert torch.equal(full, plain)
        assert [event.kind for event in events] == ["full", "skip"]
        assert events[0].residual.shape[1] == 24
        assert relative_error(skip[:, :24], plain[:, :24]) < 1e-5
        (_, skip), _ = steps(tiny, Replay(site=site, factor=2.0))
        change = (skip - plain)[:, :24].abs().amax(dim=-1)
        assert (change > 1e-4).all()  # of every token
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert report.ok, report


def test_a_grid_that_does_not_cover_the_tokens_runs_in_full(monkeypatch):
    """A row of somebody's own, say one that knows nothing of references."""
    tiny = with_ids("Flux", STRANGE["centred"], references=10)
    monkeypatch.setitem(ADAPTERS, "FluxTransformer2DModel", replace(ROW, references=lambda model, arguments: 0))
    plain = tiny()
    handle = tapstudy.apply_policy(tiny.model, Replay())
    with pytest.warns(UserWarning, match="taught the policy nothing: .* do not make up the 34 tokens"):
        assert torch.equal(tiny(), plain)
    assert torch.equal(tiny(), plain)
    (context,) = handle.summary().contexts
    assert context.mask == "FF"
    assert list(context.fail_opens) == [
        "the token grid (1, 4, 6) and 0 tokens of reference images do not make up the 34 tokens of hidden_states"
    ]
    with pytest.warns(UserWarning, match="no step of Flux.* was skipped .* hidden_states$"):
        handle.remove()
