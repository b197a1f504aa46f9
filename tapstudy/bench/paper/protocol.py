"""What the paper (arXiv 2603.03792) ran on which model, at which settings, and the numbers it reports.

The numbers come from public notes on the paper, not from its tables, so a digit may be off; what the notes leave out is
not filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tapstudy.bench.engine import Setting
from tapstudy.bench.plan import WARMUP
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.teacache import FLUX_COEFFICIENTS, TeaCachePolicy

SOURCE = "arXiv 2603.03792, as public notes on it give the numbers; not checked against its tables"
STEPS = 50
NO_POLYNOMIAL = "no polynomial of TeaCache is known for this model: give one with --teacache"
UNKNOWN = (
    "resolution, guidance and seeds: the pipeline's usual ones and seed 0 are taken here",
    "the network of the CLIP score (here ViT-L/14 of OpenAI) and of LPIPS (here AlexNet)",
    "how many steps run in full before the first window: 1 of FORA and 3 of TaylorSeer and TAP fit the ratios reported",
    "whether TAP clips horizons below 0 (here not), and how it fills order 2 in the first window",
    "what the latency was measured on",
)
DIFFERENCES = (
    "FORA and TaylorSeer cache the output of every module there, and the residual of the whole stack of blocks here",
    "TeaCache decides for every guidance branch by itself here",
    "FLOPs ratios are counted here; the published ones may come from the number of full passes",
)


@dataclass(frozen=True)
class Row:
    """Hold a line of the paper's table.

    Attributes:
        title: method and settings, as in the paper.
        setting: how it samples here; None: it does not run, see `why`.
        published: numbers of the paper by measure, "speed" among them (the ratio of FLOPs).
        why: it does not run.
    """

    title: str
    setting: Setting | None
    published: Mapping[str, float]
    why: str = ""


@dataclass(frozen=True)
class Protocol:
    """Hold what the paper did with one model.

    Attributes:
        model: its name there.
        pipeline: class of its pipeline in diffusers.
        fora, taylor: N of FORA, and of TaylorSeer and TAP.
        threshold: of TeaCache.
        published: numbers by row: reference, fora, teacache, taylorseer, tap.
        coefficients: TeaCache's polynomial for the model, where it is known.
        video: the prompts are VBench's, not DrawBench's.
    """

    model: str
    pipeline: str
    fora: int
    taylor: int
    threshold: float
    published: Mapping[str, Mapping[str, float]]
    coefficients: tuple[float, ...] = ()
    video: bool = field(default=False)

    def rows(self, steps: int, coefficients: Sequence[float] = ()) -> list[Row]:
        """Return the lines of the table, the pipeline without acceleration first.

        Args:
            steps: T.
            coefficients: of TeaCache's polynomial, in place of the known ones; highest power first.
        """
        fitted = tuple(coefficients) or self.coefficients
        window = TAPConfig(interval=self.taylor, warmup_steps=WARMUP)
        made = (
            ("reference", "original", Setting.plain(steps)),
            ("fora", f"FORA (N={self.fora})", _fixed(0, TAPConfig(interval=self.fora, warmup_steps=1))),
            (
                "teacache",
                f"TeaCache (l={self.threshold:g})",
                Setting.of(TeaCachePolicy(self.threshold, coefficients=fitted)) if fitted else None,
            ),
            ("taylorseer", f"TaylorSeer (N={self.taylor}, O=2)", _fixed(2, window)),
            ("tap", f"TAP (N={self.taylor})", Setting.of(TAPPolicy(window))),
        )
        return [
            Row(title, setting, self.published[name], "" if setting else NO_POLYNOMIAL) for name, title, setting in made
        ]


def _fixed(order: int, config: TAPConfig) -> Setting:
    return Setting.of(FixedPolicy(order, config=config))


def _numbers(**values: float) -> dict[str, float]:
    return {name.replace("_", "-"): value for name, value in values.items()}


PROTOCOLS = {
    "flux": Protocol(
        "FLUX.1-dev", "FluxPipeline", fora=7, taylor=8, threshold=2.0, coefficients=FLUX_COEFFICIENTS,
        published={
            "reference": _numbers(speed=1, image_reward=0.95, clip=30.63),
            "fora": _numbers(speed=6.24, image_reward=0.80, psnr=13.43, ssim=0.60, lpips=0.55),
            "teacache": _numbers(speed=6.17, image_reward=0.66, psnr=14.23, ssim=0.60, lpips=0.58),
            "taylorseer": _numbers(speed=6.24, image_reward=0.91, psnr=14.72, ssim=0.61, lpips=0.50),
            "tap": _numbers(speed=6.24, image_reward=0.99, clip=31.19, psnr=16.11, ssim=0.64, lpips=0.44),
        },
    ),
    "qwen-image": Protocol(
        "Qwen-Image", "QwenImagePipeline", fora=3, taylor=4, threshold=0.8,
        published={
            "reference": _numbers(speed=1, image_reward=1.23, clip=33.74),
            "fora": _numbers(speed=2.94, image_reward=0.92, psnr=14.12, lpips=0.50),
            "teacache": _numbers(speed=3.57, image_reward=1.18, psnr=19.07, lpips=0.27),
            "taylorseer": _numbers(speed=3.57, image_reward=1.18, psnr=18.02, lpips=0.30),
            "tap": _numbers(speed=3.57, image_reward=1.23, clip=33.80, psnr=20.13, lpips=0.22),
        },
    ),
    "hunyuan-video": Protocol(
        "HunyuanVideo", "HunyuanVideoPipeline", fora=5, taylor=6, threshold=0.4, video=True,
        published={
            "reference": _numbers(speed=1, vbench=66.61),
            "fora": _numbers(speed=4.98, vbench=63.87),
            "teacache": _numbers(speed=4.55, vbench=65.13),
            "taylorseer": _numbers(speed=4.98, vbench=64.89),
            "tap": _numbers(speed=4.98, vbench=65.46),
        },
    ),
}  # fmt: skip


def find_protocol(name: str, pipe: Any) -> Protocol:
    """Return the protocol of that name, or, where there is no name, the one of the pipeline.

    Raises:
        ValueError: no such protocol; a pipeline that the paper has not, and no name.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if name:
        raise ValueError(f"no protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    kind = type(pipe).__name__
    if found := [protocol for protocol in PROTOCOLS.values() if protocol.pipeline == kind]:
        return found[0]
    raise ValueError(
        f"the paper has no {kind}, it has {', '.join(one.pipeline for one in PROTOCOLS.values())}: say with --protocol "
        f"whose settings to take ({', '.join(PROTOCOLS)})"
    )
