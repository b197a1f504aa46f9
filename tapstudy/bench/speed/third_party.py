"""Other people's caches on the same model: diffusers' own, and cache-dit's, each as a context manager.

They are run as they are, with their own schedules and flaws; `ThirdPartyCache.mask` says what they really did. Which
classes they accept is theirs to say. With diffusers 0.42: First-Block Cache and MagCache know blocks by class and
refuse Lumina2 and Sana; First-Block Cache fails in the first call of Flux2, SD3 and Z-Image, MagCache in that of
Z-Image. TaylorSeer finds attention by the name `attn`, so that it would do nothing where it is called `attn1` or
`attention`; its lite mode needs an output layer `proj_out` (none in DiT, Lumina2 and Z-Image) and fails on SD3.
cache-dit knows pipelines by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers.hooks
import torch
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.hooks import StateManager  # not exported
from torch import nn

from tapstudy.extras import need
from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.driver import StepWatch, Value, find_driver
from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.presence import refuse_unless_free

# the name of the context in calls that are given none
OWN = "tapstudy"


class ThirdPartyCache:
    """Hold a cache in force on one transformer.

    Attributes:
        mask: one letter per call since the last run began: F if the last block's attention ran, else `.`. (The calls of
            several guidance branches come one after the other.)
    """

    def __init__(self, model: nn.Module, adapter: Adapter, target: Any) -> None:
        self.model, self.adapter, self.target = model, adapter, target
        self.mask = ""
        self.managers: list[Any] = []
        self.on_start: Callable[[], Any] = lambda: None
        self._watch = StepWatch()
        self._last_ran = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the mask, and give contexts and new runs to caches whose pipelines give none."""
        blocks, _ = self.adapter.modules(self.model)
        # a cache may answer for the attention itself, but not for a layer inside it
        inside = next(
            layer
            for layer in blocks[-1][0].get_submodule(self.adapter.attention).modules()
            if isinstance(layer, nn.Linear)
        )
        handles = [
            self.model.register_forward_pre_hook(self._enter, with_kwargs=True),
            inside.register_forward_hook(self._ran),
            self.model.register_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        value = Value(kwargs.get(self.adapter.timestep))
        starts = self._watch.look(find_driver(self.target, value), value)
        if starts:
            self.mask = ""
            self.on_start()
        self._last_ran = False
        for manager in self.managers:
            name = _context_name(manager)
            if name is None or name == OWN:
                if starts:
                    manager.reset()
                manager.set_context(diffusers.hooks.hooks.CacheContext(OWN))

    def _ran(self, *_given: Any) -> None:
        self._last_ran = True

    def _leave(self, *_given: Any) -> None:
        self.mask += "F" if self._last_ran else "."


def _context_name(manager: Any) -> str | None:
    try:
        return manager.context.name
    except ValueError:
        return None


@contextmanager
def diffusers_cache(target: Any, config: Any) -> Iterator[ThirdPartyCache]:
    """Run the transformer of `target` (a pipeline, or itself) under one of diffusers' caches.

    With `enable_cache` where the class has it; otherwise through the function behind it, with one context for all
    calls (right for guidance in one batch) and a reset whenever a new run begins.

    Args:
        config: `FirstBlockCacheConfig`, `TaylorSeerCacheConfig` or `MagCacheConfig`.

    Raises:
        TypeError: another config, or no single supported transformer.
        ValueError: diffusers does not know the class's blocks, or the cache would do nothing on it.
        RuntimeError: the transformer runs under a cache or a policy already.
    """
    model, adapter = _only_transformer(target)
    apply = _apply_function(model, config)
    before = {module: set(_hooks(module)) for module in model.modules()}
    cache = ThirdPartyCache(model, adapter, target)
    try:
        apply(config)
        if all(set(_hooks(module)) == names for module, names in before.items()):
            raise ValueError(f"{type(config).__name__} finds nothing to act on in {type(model).__name__}")
        cache.managers = [
            value
            for module in model.modules()
            for name, hook in _hooks(module).items()
            if name not in before[module]
            for value in vars(hook).values()
            if isinstance(value, StateManager)
        ]
        with cache.watching():
            yield cache
    finally:
        if getattr(model, "is_cache_enabled", False):
            model.disable_cache()  # type: ignore[operator]
        for module, names in before.items():
            for name in set(_hooks(module)) - names:
                module._diffusers_hook.remove_hook(name, recurse=False)  # type: ignore[union-attr, operator]
        HookRegistry.check_if_exists_or_initialize(model)._child_registries_cache = None


def _apply_function(model: nn.Module, config: Any) -> Callable[[Any], Any]:
    functions = {
        FirstBlockCacheConfig: diffusers.hooks.apply_first_block_cache,
        TaylorSeerCacheConfig: diffusers.hooks.apply_taylorseer_cache,
        MagCacheConfig: diffusers.hooks.apply_mag_cache,
    }
    if type(config) not in functions:
        raise TypeError(f"diffusers_cache needs one of {[kind.__name__ for kind in functions]}, got {config!r}")
    if getattr(config, "use_lite_mode", False) and not isinstance(getattr(model, "proj_out", None), nn.Module):
        raise ValueError(
            f"TaylorSeer's lite mode predicts the output of a layer named proj_out, which {type(model).__name__} lacks"
        )
    if hasattr(model, "enable_cache"):
        return model.enable_cache  # type: ignore[return-value]
    return lambda given: functions[type(given)](model, given)


def _hooks(module: nn.Module) -> dict[str, Any]:
    return getattr(getattr(module, "_diffusers_hook", None), "hooks", {})


def _only_transformer(target: Any) -> tuple[nn.Module, Adapter]:
    found = find_transformers(target)
    if len(found) > 1:
        raise TypeError(f"{type(target).__name__} has several transformers, pass one of them: {sorted(found)}")
    model, adapter = next(iter(found.values()))
    refuse_unless_free(model)
    return model, adapter


def first_block_cache(target: Any, threshold: float = 0.05) -> Any:
    """Apply diffusers' First-Block Cache; ours is `FirstBlockPolicy`."""
    return diffusers_cache(target, FirstBlockCacheConfig(threshold=threshold))


def taylorseer_cache(target: Any, *, lite: bool = False, order: int = 1, interval: int = 5, before: int = 3) -> Any:
    """Apply diffusers' TaylorSeer, with float32 factors; ours is `DiffusersTaylorPolicy`, for the lite mode."""
    return diffusers_cache(
        target,
        TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=before,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=lite,
        ),
    )


def mag_cache(
    target: Any,
    ratios: tuple[float, ...],
    *,
    num_steps: int,
    threshold: float = 0.06,
    max_skips: int = 3,
    retention: float = 0.2,
) -> Any:
    """Apply diffusers' MagCache; ours is `MagCachePolicy`, whose `magnitude_ratios` gives the ratios."""
    return diffusers_cache(
        target,
        MagCacheConfig(
            threshold=threshold,
            max_skip_steps=max_skips,
            retention_ratio=retention,
            num_inference_steps=num_steps,
            mag_ratios=list(ratios),
        ),
    )


@contextmanager
def dbcache(target: Any, *, taylor_order: int | None = None, **settings: Any) -> Iterator[ThirdPartyCache]:
    """Put cache-dit's DBCache on a pipeline or transformer, with its TaylorSeer calibrator of that order or without.

    Pipelines that cache-dit knows by name it patches as a class: run nothing else of that class meanwhile. Of others it
    gets the transformer alone, and a fresh context whenever a new run begins. What it leaves behind on the transformer
    (a patched forward, and on DiT a second name for a layer, which would enter the state dict) is taken off.

    Args:
        taylor_order: None reuses the residual.
        settings: fields of `cache_dit.DBCacheConfig`, such as Fn_compute_blocks=1 or residual_diff_threshold=0.08.

    Raises:
        ModuleNotFoundError: cache-dit is not installed.
        TypeError: no single supported transformer.
    """
    need("DBCache", "cache_dit")
    import cache_dit  # takes seconds

    model, adapter = _only_transformer(target)
    calibrator = None if taylor_order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=taylor_order)
    configs = {"cache_config": cache_dit.DBCacheConfig(**settings), "calibrator_config": calibrator}
    known = target if cache_dit.BlockAdapterRegister.is_supported(target) else model
    cache = ThirdPartyCache(model, adapter, target)
    with _left_as_it_was(model), ExitStack() as stack:
        stack.callback(cache_dit.disable_cache, known)
        cache_dit.enable_cache(known, **copy.deepcopy(configs))
        if known is model:
            cache.on_start = lambda: cache_dit.refresh_context(model, **copy.deepcopy(configs))
        stack.enter_context(cache.watching())
        yield cache


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Take off the attributes, submodules and patched forwards that the body leaves on the modules of `model`."""
    before = {module: (dict(vars(module)), dict(module._modules)) for module in model.modules()}
    try:
        yield
    finally:
        for module, (attributes, children) in before.items():
            for name in set(vars(module)) - set(attributes):
                del module.__dict__[name]
            module._modules.clear()
            module._modules.update(children)  # in their order: it is that of the state dict
            if "forward" in attributes:
                module.__dict__["forward"] = attributes["forward"]
