"""Fixtures shared by all tests: a tiny transformer with random weights behind the real pipeline."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers side by side, one core each; before torch looks
# The profiler of dask's workers reads the frames of all threads, in which Python 3.11 can lock up (cpython#106883).
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hypothesis import HealthCheck, settings

from tapstudy.models.pipeline import LabelPipeline, flow_matching_scheduler

# the one profile: the same examples every time, few of them, and no clock
settings.register_profile(
    "tests",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


def make_tiny_pipe(seed: int = 0, dtype: torch.dtype = torch.float32) -> LabelPipeline:
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    pipe = LabelPipeline(model.to(dtype).eval(), flow_matching_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_pipe() -> LabelPipeline:
    return make_tiny_pipe()


@pytest.fixture
def sample(tiny_pipe):
    """Sample latents from the tiny pipeline: `sample(labels, steps=20, seed=0)`."""

    def run(labels=(1, 2), *, steps=20, seed=0, pipe=tiny_pipe, guidance_scale=2.0, **kwargs):
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
        return pipe(
            list(labels),
            steps,
            guidance_scale,
            generator=generators,
            output_type="latent",
            **kwargs,
        ).images

    return run
