"""The probe is Modulate(Norm1(x), shift, scale) of the probed block, written out here class by class."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tapstudy import apply_policy
from tapstudy.instrument.adapters import find_adapter
from tests.instrument.replay import Replay, steps
from tests.instrument.tiny_models import VARIANTS, make


def layer_norm(x, eps=1e-6):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def rms_norm(x, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


def ada_layer_norm_zero(norm, x, embedding):
    """(shift, scale, ...) = Linear(SiLU(embedding))"""
    width = x.shape[-1]
    values = norm.linear(F.silu(embedding))[:, None]  # (B, 1, 3 D or 6 D or 9 D)
    return modulate(layer_norm(x), values[..., :width], values[..., width : 2 * width])


def dit(block, seen):
    embedding = block.norm1.emb(seen["timestep"], seen["class_labels"], hidden_dtype=torch.float32)
    return ada_layer_norm_zero(block.norm1, seen["x"], embedding)


def table_and_timestep(block, seen):
    timestep = seen["timestep"] if "timestep" in seen else seen["temb"]
    values = block.scale_shift_table + timestep.reshape(2, 6, -1)  # (B, 6, D)
    return modulate(layer_norm(seen["x"]), values[:, 0:1], values[:, 1:2])


def joint(block, seen):
    return ada_layer_norm_zero(block.norm1, seen["x"], seen["temb"])


def text_then_image(block, seen):
    return ada_layer_norm_zero(block.norm, seen["x"], seen["temb"])  # each token for itself: text need not be there


def flux2(block, seen):
    modulation = "double_stream_modulation_img" if hasattr(block, "norm1") else "single_stream_modulation"
    width = seen["x"].shape[-1]
    values = getattr(seen["model"], modulation).linear(F.silu(seen["embedding"]))[:, None]
    image = seen["x"] if hasattr(block, "norm1") else seen["x"][:, 5:]  # single blocks: 5 text tokens first
    return modulate(layer_norm(image), values[..., :width], values[..., width : 2 * width])


def qwen(block, seen):
    width = seen["x"].shape[-1]
    values = block.img_mod[1](F.silu(seen["temb"]))[:, None]  # (B, 1, 6 D)
    return modulate(layer_norm(seen["x"]), values[..., :width], values[..., width : 2 * width])


def wan(block, seen):
    values = block.scale_shift_table + seen["temb"]  # (B, 6, D), or (B, N, 6, D) with a timestep per token
    shift, scale = values[..., 0, :], values[..., 1, :]
    if values.ndim == 3:
        shift, scale = shift[:, None], scale[:, None]
    return modulate(layer_norm(seen["x"]), shift, scale)


def cogvideox(block, seen):
    norm, width = block.norm1, seen["x"].shape[-1]
    values = norm.linear(F.silu(seen["temb"]))[:, None]
    return modulate(
        layer_norm(seen["x"], 1e-5) * norm.norm.weight + norm.norm.bias,
        values[..., :width],
        values[..., width : 2 * width],
    )


def ltx(block, seen):
    values = block.scale_shift_table + seen["temb"].reshape(2, -1, 6, seen["x"].shape[-1])  # (B, 1, 6, D)
    return modulate(rms_norm(seen["x"], 1e-6), values[:, :, 0], values[:, :, 1])


def lumina2(block, seen):
    norm, width = block.norm1, seen["x"].shape[-1]
    scale = norm.linear(F.silu(seen["temb"]))[:, None, :width]  # no shift
    whole = rms_norm(seen["x"], 1e-5) * norm.norm.weight * (1 + scale)
    return torch.stack([whole[0, 5:29], whole[1, 3:27]])  # captions of 5 and 3 tokens first


def z_image(block, seen):
    scale = block.adaLN_modulation(seen["adaln_input"])[:, None, : seen["x"].shape[-1]]  # no shift
    whole = rms_norm(seen["x"], 1e-5) * block.attention_norm1.weight * (1 + scale)
    return whole[:, :24]  # padding and caption follow


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def shift_first(layer, x, seen, *, eps=1e-6, silu=True, order=(0, 1)):
    """(shift, scale, ...) of a linear layer that reads the embedding; `order`: at which place of them those two are."""
    embedding = seen["emb"] if "emb" in seen else seen["temb"]
    values, width = linear(layer, F.silu(embedding) if silu else embedding)[:, None], x.shape[-1]
    shift, scale = (values[..., place * width : (place + 1) * width] for place in order)
    return modulate(layer_norm(x, eps), shift, scale)


def auraflow(block, seen):
    return shift_first(block.norm1.linear, seen["x"], seen, eps=1e-5)


def chroma(block, seen):
    return modulate(layer_norm(seen["x"]), seen["temb"][:, 0:1], seen["temb"][:, 1:2])  # a slice of a long table


def cogview3plus(block, seen):
    return shift_first(block.norm1.linear, seen["x"], seen, eps=1e-5)


def cogview4(block, seen):
    """Image and text take turns."""
    return shift_first(block.norm1.linear, seen["x"], seen, eps=1e-5, silu=False, order=(0, 2))


def easyanimate(block, seen):
    norm, values = block.norm1.norm, linear(block.norm1.linear, F.silu(seen["temb"]))[:, None]
    width = seen["x"].shape[-1]
    return modulate(
        layer_norm(seen["x"], 1e-5) * norm.weight + norm.bias, values[..., :width], values[..., width : 2 * width]
    )


def mochi(block, seen):
    scale = linear(block.norm1.linear, F.silu(seen["temb"]))[:, None, : seen["x"].shape[-1]]
    return rms_norm(seen["x"], 1e-6) * (1 + scale)


def hidream(block, seen):
    return shift_first(block.block.adaLN_modulation[1], seen["x"], seen)[:, : seen["tokens"]]


def hunyuan_dit(block, seen):
    norm = block.norm1.norm  # no scale
    return layer_norm(seen["x"]) * norm.weight + norm.bias + linear(block.norm1.linear, F.silu(seen["temb"]))[:, None]


def lumina_next(block, seen):
    scale = linear(block.norm1.linear, F.silu(seen["temb"]))[:, None, : seen["x"].shape[-1]]
    return rms_norm(seen["x"], 1e-5) * block.norm1.norm.weight * (1 + scale)


def nucleus(block, seen):
    scale = linear(block.img_mod[1], F.silu(seen["temb"]))[:, None, : seen["x"].shape[-1]]
    return layer_norm(seen["x"]) * (1 + scale)


def joyimage(block, seen):
    values = block.img_mod.modulate_table + seen["temb"]
    return modulate(layer_norm(seen["x"]), values[:, 0:1], values[:, 1:2])[:, : seen["tokens"]]


def prx(block, seen):
    return shift_first(block.modulation.lin, seen["x"], seen)


def krea2(block, seen):
    values = seen["temb"].unflatten(-1, (6, -1)) + block.scale_shift_table
    normed = rms_norm(seen["x"], 1e-5) * (1 + block.norm1.weight)
    return modulate(normed, values[..., 1, :], values[..., 0, :])[:, 5:]  # 5 text tokens first


def cosmos(block, seen):
    norm, width = block.norm1, seen["x"].shape[-1]
    values = norm.linear_2(norm.linear_1(F.silu(seen["embedded_timestep"]))) + seen["temb"]
    values = values[:, None]
    return modulate(layer_norm(seen["x"] + seen["extra_pos_emb"]), values[..., :width], values[..., width : 2 * width])


def framepack(block, seen):
    return joint(block, seen)[:, -seen["tokens"] :]  # earlier frames first


def helios(block, seen):
    return wan(block, seen)[:, -seen["tokens"] :]


def kandinsky5(block, seen):
    width = seen["x"].shape[-1]
    values = linear(block.visual_modulation.out_layer, F.silu(seen["time_embed"]))[:, None]
    return modulate(layer_norm(seen["x"], 1e-5), values[..., :width], values[..., width : 2 * width])


FORMULAS = {
    "AnyFlow": wan, "ConsisID": cogvideox, "ConsisID-faceless": cogvideox, "Cosmos": cosmos, "FramePack": framepack,
    "Helios": helios, "Kandinsky5": kandinsky5, "Krea2": krea2,
    "Allegro": table_and_timestep, "AuraFlow": auraflow, "Bria": joint, "BriaFibo": joint, "Chroma": chroma,
    "ChronoEdit": wan, "CogView3Plus": cogview3plus, "CogView4": cogview4, "EasyAnimate": easyanimate,
    "GlmImage": cogview4, "HiDream": hidream, "HiDream-wide": hidream, "HunyuanDiT": hunyuan_dit,
    "HunyuanVideo1.5": joint, "HunyuanVideo1.5-text": joint, "JoyImage": joyimage, "JoyImage-edit": joyimage,
    "LongCat": joint, "LuminaNext": lumina_next, "Mochi": mochi, "MotifVideo": joint, "MotifVideo-decoder": joint,
    "NucleusMoE": nucleus, "Ovis": joint, "PRX": prx, "SanaVideo": table_and_timestep, "SkyReelsV2": wan,
    "WanAnimate": wan, "WanVACE": wan,
    "CogVideoX": cogvideox, "CogVideoX1.5": cogvideox, "DiT": dit, "Flux": joint, "Flux-schnell": joint,
    "Flux2": flux2, "HunyuanVideo": joint, "LTX": ltx, "Lumina2": lumina2, "PixArt": table_and_timestep,
    "PixArt-1024": table_and_timestep, "QwenImage": qwen, "SD3": joint, "SD3.5": joint, "Sana": table_and_timestep,
    "Sana-Sprint": table_and_timestep, "Wan": wan, "Wan2.2": wan, "ZImage": z_image,
}  # fmt: skip


def observed(name, depth, *, calls=1):
    """The probe that the policy saw at last, the probed block, and what that block was called with."""
    tiny = make(name)
    model, seen = tiny.model, {"model": tiny.model, "tokens": tiny.tokens}
    block = [b for part in find_adapter(model).blocks for b in model.get_submodule(part)][depth]
    names = list(type(block).forward.__code__.co_varnames)[1:]

    def keep(module, args, kwargs):
        seen.update({**dict(zip(names, args, strict=False)), **kwargs})
        seen["x"] = args[0] if args else kwargs["hidden_states"]

    block.register_forward_pre_hook(keep, with_kwargs=True)
    if name == "Flux2":
        model.time_guidance_embed.register_forward_hook(lambda *given: seen.update(embedding=given[-1]))
    _, events = steps(tiny, Replay(probe_depth=depth), calls=calls)
    return events[-1].probe, block, seen


def test_every_class_has_a_formula():
    assert FORMULAS.keys() == VARIANTS.keys()


# of every formula the first class; and a timestep per token
@pytest.mark.parametrize("name", [*{FORMULAS[name]: name for name in reversed(VARIANTS)}.values(), "Wan2.2"])
def test_probe_is_the_modulated_input(name):
    """At a skip step, and in the second block at a full step, too."""
    for depth, calls in ((0, 2), (1, 1)):
        probe, block, seen = observed(name, depth, calls=calls)
        with torch.no_grad():
            expected = FORMULAS[name](block, seen)
        torch.testing.assert_close(probe, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "formula"), [("HunyuanVideo", text_then_image), ("Flux2", flux2)])
def test_probe_of_a_single_stream_block_is_its_image_part(name, formula):
    """Also where a recording asks for it beside one of the first stack."""
    probe, block, seen = observed(name, 3)
    with torch.no_grad():
        expected = formula(block, seen)
    torch.testing.assert_close(probe, expected, rtol=1e-5, atol=2e-6)
    tiny, events = make(name), []
    with apply_policy(tiny.model, Replay()) as handle:
        handle.record(events.append, depths=(1, 3))
        tiny()
    torch.testing.assert_close(events[0].probes[3], probe)
