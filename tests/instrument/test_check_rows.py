"""Every field of every row, changed in every way that one gets wrong: `tapstudy.check` objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from torch import Tensor

import tapstudy
from tapstudy.instrument.adapters import ADAPTERS, Adapter
from tests.instrument.tiny import Tiny
from tests.instrument.tiny_models import CLASSES, make


def mutations(name: str, row: Adapter, tiny: Tiny) -> Iterator[tuple[str, Any]]:
    """Pairs of a field and a wrong value."""
    latent = tiny.inputs[row.latent]
    packed = isinstance(latent, Tensor) and latent.ndim == 3
    grid = row.grid

    def other_grid(change):
        return lambda model, arguments: change(*grid(model, arguments))

    # modules and arguments that are not there
    for field in ("attention", "tail", "key", "latent", "timestep"):
        yield field, "nonsense"
    for field in ("idle", "refiners"):
        yield field, (*getattr(row, field), "nonsense")
    yield "blocks", ("nonsense", *row.blocks[1:])

    # lists of blocks
    for index in range(len(row.blocks)):
        kept = [i for i in range(len(row.blocks)) if i != index]
        if kept:
            yield "blocks", {field: tuple(getattr(row, field)[i] for i in kept) for field in PER_LIST}
    if len(row.blocks) > 1:
        yield "blocks", {field: getattr(row, field)[::-1] for field in PER_LIST}
    yield "blocks", {field: getattr(row, field) * 2 for field in PER_LIST}
    for index, stream in enumerate(row.streams):
        for wrong in {None, 0, 1, 2} - {stream}:
            yield "streams", tuple(wrong if i == index else one for i, one in enumerate(row.streams))
    for index, start in enumerate(row.image_start):
        for shift in (-1, 1, 2):

            def moved(arguments, start=start, shift=shift):
                first = 0 if start is None else start(arguments)
                if first is None:  # at the end
                    return abs(shift) - 1
                return [one + shift for one in first] if isinstance(first, list) else first + shift

            if start is not None or shift > 0:
                yield "image_start", tuple(moved if i == index else one for i, one in enumerate(row.image_start))
        if start is not None and name != "ZImage":  # there it is 0 but in omni mode
            yield "image_start", tuple(None if i == index else one for i, one in enumerate(row.image_start))

    yield "tail_start", lambda arguments: 1
    if row.tail_start is not None:
        yield "tail_start", None

    # attention and tail
    for wrong in ("attn", "attn1", "attn2", "ff", "feed_forward", "norm1", "norm2", "img_norm1", "attention_norm1"):
        if wrong != row.attention:
            yield "attention", wrong
    for wrong in (
        "proj_out",
        "proj_out_2",
        row.blocks[0],
        row.blocks[-1] + ".1",
        row.blocks[0] + f".0.{row.attention}",
    ):
        yield "tail", wrong

    # tokens
    for change in (
        lambda f, h, w: (f, h, max(w // 2, 1)), lambda f, h, w: (f, h // 2, w), lambda f, h, w: (f, h, w + 1),
        lambda f, h, w: (f + 1, h, w), lambda f, h, w: (f, h - 1, w), lambda f, h, w: (1, 1, 1),
        lambda f, h, w: (f, h, 0), lambda f, h, w: (h, w), lambda f, h, w: (f, h, 1.0 * w),
    ):  # fmt: skip
        yield "grid", other_grid(change)
    yield "grid", lambda model, arguments: arguments["nonsense"]
    yield "grid", lambda model, arguments: model.nonsense
    if not packed:  # whose tokens have no other order than that of the latent
        yield "grid", other_grid(lambda f, h, w: (1, 1, f * h * w))
        yield "grid", other_grid(lambda f, h, w: (h, f, w))
        yield "grid", other_grid(lambda f, h, w: (f, w, h)) if name != "DiT" else other_grid(lambda f, h, w: (w, f, h))
        one_frame = {2} if name in ("ZImage", "JoyImage") else set()
        for wrong in {1, 2, 3} - {row.channel_dim} - one_frame:
            yield "channel_dim", wrong
    else:
        yield "references", lambda model, arguments: 1
        yield "references", lambda model, arguments: -1

    # arguments of another meaning
    for wrong in (row.latent, row.timestep, "return_dict", "attention_kwargs", "num_frames", "guidance", "txt_ids"):
        yield "key", wrong
    for wrong in (row.key, row.timestep, "return_dict", "guidance", "pooled_projections", "encoder_attention_mask"):
        yield "latent", wrong
    for wrong in (
        row.key,
        row.latent,
        "encoder_attention_mask",
        "guidance",
        "pooled_projections",
        "num_frames",
        "img_ids",
    ):
        yield "timestep", wrong
    yield "bypass", lambda arguments: "never"
    yield "bypass", lambda arguments: arguments["nonsense"]

    # modules that are read, or run after all
    yield "idle", (*row.idle, row.tail)
    yield "idle", (*row.idle, row.blocks[0])
    yield "idle", (*row.idle, f"{row.blocks[0]}.0.{row.attention}")
    for path in row.refiners:
        yield "refiners", ()
        yield "idle", (*row.idle, path)
    if name == "HunyuanVideo":
        yield "idle", tuple(one for one in row.idle if one != "context_embedder")


PER_LIST = ("blocks", "streams", "image_start")


def grid_of(row, tiny):
    try:
        return row.grid(tiny.model, tiny.inputs)
    except Exception as error:
        return error


# between them every field in each of its forms; with the others, all classes are built like one of these
BASIC = {"CogVideoX", "Flux2", "HiDream", "Kandinsky5", "Krea2", "Lumina2", "ZImage"} & {*CLASSES}
MORE = {
    "AuraFlow", "ConsisID", "DiT", "FramePack", "GlmImage", "HunyuanDiT", "HunyuanVideo", "JoyImage", "LTX",
    "QwenImage", "Wan",
} & {*CLASSES}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*sorted(BASIC), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(MORE))]
)
def test_objects_to_every_wrong_row(monkeypatch, name):
    tiny = make(name)
    cls = type(tiny.model).__name__
    right, missed, tried = ADAPTERS[cls], [], set()
    for field, value in mutations(name, right, tiny):
        wrong = replace(right, **(value if isinstance(value, dict) else {field: value}))
        if wrong == right or (field == "grid" and grid_of(wrong, tiny) == grid_of(right, tiny)):
            continue
        tried.add(field)
        monkeypatch.setitem(ADAPTERS, cls, wrong)
        report = tapstudy.check(tiny.model, tiny.inputs)
        assert "does NOT work" in str(report) or report.ok
        if report.ok:
            missed.append((field, value))
        if not all("no history yet" not in problem for problem in report.problems):
            missed.append((field, value, "no reason"))
    assert not missed
    assert tried >= {field.name for field in fields(Adapter)} - {
        "branches",
        "references",
        "channel_dim",
    }  # `branches` are names for people
    assert not hasattr(tiny.model, "_diffusers_hook")
