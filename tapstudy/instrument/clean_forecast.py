"""The clean image that a sampler's step expects, from what the pipeline gives its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.driver import Driver
from tapstudy.instrument.places import Method, Place

# schedulers whose samples are clean image + sigma * noise, by class
EXPLODING = (
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
# and those that count no steps, whose samples are alpha * clean image + sigma * noise by the timestep
BY_TIMESTEP = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler", "PNDMScheduler",
)  # fmt: skip
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")


def check_forecast(scheduler: Any) -> None:
    """Raise ValueError, with the reason, for a scheduler whose steps do not tell the clean image."""
    name = type(scheduler).__name__
    known = name in (*FLOW, *EXPLODING, *BY_TIMESTEP) or hasattr(scheduler, "_sigma_to_alpha_sigma_t")
    kind = _prediction(scheduler)
    if not known or kind not in ("flow_prediction", "epsilon", "v_prediction", "sample"):
        reason = f"its prediction type {kind!r} has no formula" if known else "no formula is known for its class"
        raise ValueError(
            f"the preview needs the clean image that every step expects, which {name} does not tell: {reason}; leave "
            "preview out of the fields"
        )


def clean_forecast(scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Return the clean sample that a step expects, of the shape of `sample`, before the scheduler takes the step.

    Args:
        scheduler: one that `check_forecast` lets pass.
        output: of the model, with guidance, as the step gets it; a learned variance behind it is left out.
        sample: noisy, at `timestep`.

    Raises:
        ValueError: the timestep is none of the run's.
    """
    kind, name = _prediction(scheduler), type(scheduler).__name__
    x, given = sample.float(), output.float()
    if given.shape[1] == 2 * x.shape[1]:
        given = given.chunk(2, dim=1)[0]
    if kind == "sample":
        return given
    if name in BY_TIMESTEP:
        kept = scheduler.alphas_cumprod[int(timestep)].float().to(x.device)
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    else:
        level = scheduler.sigmas[_index(scheduler, timestep)].float().to(x.device)
        if kind == "flow_prediction":
            return x - level * given
        if name in EXPLODING:
            x = x / (level**2 + 1).sqrt()  # alpha * clean + sigma * noise, like all others
            alpha, sigma = 1 / (level**2 + 1).sqrt(), level / (level**2 + 1).sqrt()
        else:
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(level)
    return alpha * x - sigma * given if kind == "v_prediction" else (x - sigma * given) / alpha


@contextmanager
def forecasts(scheduler: Any, listener: Callable[[Tensor], None]) -> Iterator[None]:
    """Tell `listener` the clean sample that every step of the scheduler expects; the scheduler is as it was afterwards.

    Raises ValueError as `check_forecast` does.
    """
    check_forecast(scheduler)
    place = Place(scheduler, _StepHook(scheduler, listener), name="step")
    place.take()
    try:
        yield
    finally:
        place.leave()


class _StepHook:
    """On the scheduler's step."""

    def __init__(self, scheduler: Any, listener: Callable[[Tensor], None]) -> None:
        self.scheduler, self.listener = scheduler, listener

    @torch.no_grad()
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
        if given.get("per_token_timesteps") is not None:
            raise ValueError("the preview knows no steps with a timestep per token: leave preview out of the fields")
        self.listener(clean_forecast(self.scheduler, given["model_output"], given["timestep"], given["sample"]))
        return inner(*args, **kwargs)


def _prediction(scheduler: Any) -> str:
    config = getattr(scheduler, "config", None) or {}
    return "flow_prediction" if type(scheduler).__name__ in FLOW else str(config.get("prediction_type"))


def _index(scheduler: Any, timestep: Any) -> int:
    """Find the step that the scheduler is at: it counts from its first one on."""
    for counted in (scheduler.step_index, getattr(scheduler, "begin_index", None)):
        if counted is not None:
            return int(counted)
    timesteps = Driver(scheduler).timesteps
    found = [] if timesteps is None else torch.isclose(timesteps, torch.as_tensor(timestep).to(timesteps)).tolist()
    if True not in found:
        raise ValueError(f"the scheduler's step is given timestep {timestep}, which is none of its run")
    return found.index(True)
