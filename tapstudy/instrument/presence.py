"""The hooks of one instrument on its transformer: put on, kept in place, taken off."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn

from tapstudy.instrument import hooks
from tapstudy.instrument.call import Host
from tapstudy.instrument.idle import IdleHook, idle_modules
from tapstudy.instrument.module_outputs import WatchedModule
from tapstudy.instrument.parts import Nested, layout_of, part_hooks
from tapstudy.instrument.places import COMPILED, Hook, Place, StandIn, occupied, replaced

# at the end of a run pipelines look for this method; classes without caches of their own lack it
END_OF_RUN = "_reset_stateful_cache"


class Presence:
    """Every hook of an instrument, and whether calls of the transformer come to them.

    The hook on the transformer stands below all others, where no order of putting hooks on and taking them off loses
    it. The other hooks stand on top, so that blocks which a skip step passes over are not brought to the device either;
    before every call they are put back there.

    Attributes:
        probed_list: block list of the probed block.
        deeper: block lists of other blocks whose probes a recording asked for, by depth.
        watched: modules whose outputs one asked for, by name.
        lists: numbers of the block lists in whose sequences image tokens are looked for, for these.
        layout: what the transformer can be cut into.
    """

    def __init__(self, instrument: Host) -> None:
        self.instrument, self.model, self.adapter = instrument, instrument.model, instrument.adapter
        self.probed_list, self.layout = 0, layout_of(self.model, self.adapter)
        self.deeper: dict[int, int] = {}
        self.watched: dict[str, WatchedModule] = {}
        self.lists: set[int] = set()
        self._looks: list[Any] = []
        self._root = Place(self.model, instrument, lowest=True)
        self._others: list[Place] = []
        self._missed: tuple[str, Any] | None = None

    def attach(self) -> None:
        """Put the hooks on.

        Raises:
            ValueError: `probe_depth` beyond the last block, or a policy that decides by a probe it does not need.
            RuntimeError: the model already runs under a policy, a cache, or another forward than its own, or in CUDA
                graphs.
        """
        instrument, policy = self.instrument, self.instrument.policy
        blocks, tails = self.adapter.modules(self.model)
        depth = policy.probe_depth
        if depth >= len(blocks):
            raise ValueError(
                f"probe_depth {depth} is beyond the last block: {type(self.model).__name__} has {len(blocks)} blocks"
            )
        if policy.decides_by_probe and not policy.needs_probe:
            raise ValueError(f"{type(policy).__name__} decides by the probe: it must set needs_probe")
        refuse_unless_free(self.model)
        probed, self.probed_list = blocks[depth]
        attention = probed.get_submodule(self.adapter.attention)
        # blocks before a deeper probe run at a skip step, and read everything
        reads_blocks = policy.needs_probe and policy.probe_kind != "latent"
        idle = idle_modules(self.model, self.adapter.idle if depth == 0 or not reads_blocks else ())
        inside = [*part_hooks(instrument, self.layout)]  # what it refuses, it refuses before anything is changed
        for index, (block, block_list) in enumerate(blocks):
            stream = self.adapter.streams[block_list]
            place = (index > depth) - (index < depth)
            self._put(block, hooks.BlockHook(instrument, stream, first=index == 0, place=place), around=True)
        if self._probes_attention:
            self._put(attention, hooks.ProbeHook(instrument))
        for tail in tails:
            self._put(tail, hooks.TailHook(instrument))
        for module, hook in inside:
            self._put(module, hook, inside=True)
        hooked = {place.module for place in self._others}
        for path, module in idle.items():
            if module not in hooked:  # one hook is enough, and the others matter more
                self._put(module, IdleHook(instrument, path))
        if hasattr(self.model, "cache_context"):
            self._put(self.model, hooks.ContextHook(instrument), name="cache_context")
        self._put(self.model, hooks.EndHook(instrument), name=END_OF_RUN)
        self._root.take()

    def watch(self, depths: Collection[int]) -> None:
        """Take along the probes of more blocks. Raises ValueError on a depth beyond the last block."""
        blocks, _ = self.adapter.modules(self.model)
        beyond = [depth for depth in depths if not 0 <= depth < len(blocks)]
        if beyond:
            raise ValueError(f"depth {min(beyond)} is beyond the last block: the model has {len(blocks)} blocks")
        own = {self.instrument.policy.probe_depth} if self._probes_attention else set()
        for depth in sorted({*depths} - own - {*self.deeper}):
            block, self.deeper[depth] = blocks[depth]
            self._put(block.get_submodule(self.adapter.attention), hooks.DepthHook(self.instrument, depth))
            self.lists.add(self.deeper[depth])

    def watch_modules(self, paths: Mapping[str, str]) -> None:
        """Take along the outputs of modules, by name; ValueError on paths of none that runs, and on a name in use."""
        if taken := [name for name, path in paths.items() if name in self.watched and self.watched[name].path != path]:
            raise ValueError(
                f"the name {taken[0]!r} stands for {self.watched[taken[0]].path!r} already: choose another"
            )
        new = {name: path for name, path in paths.items() if name not in self.watched}
        found = {name: WatchedModule.find(self.model, self.adapter, path) for name, path in new.items()}
        for name, watched in found.items():
            # a look at what comes out needs no stand-in: hooks of torch stay whoever replaces the forward
            self._looks.append(watched.module.register_forward_hook(partial(self._look, name)))
            self.lists |= {0, watched.block_list}
        self.watched |= found

    def _look(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if (call := self.instrument.call) is not None:
            call.module_outputs.setdefault(name, []).append(output)

    @property
    def _probes_attention(self) -> bool:
        policy = self.instrument.policy
        return policy.needs_probe and policy.probe_kind == "modulated"

    def _put(
        self, module: nn.Module, hook: Hook, *, name: str = "forward", around: bool = False, inside: bool = False
    ) -> None:
        place = next((one for one in self._others if one.module is module and one.name == name), None)
        if place is None:
            place = Place(module, hook, name=name, around=around)
            self._others.append(place)
        else:
            place.leave()
            place.hook = Nested(place.hook, hook) if inside else Nested(hook, place.hook)
        place.take()

    def detach(self) -> None:
        """Take all hooks off and leave no trace on the modules."""
        for place in (self._root, *self._others):
            place.leave()
        self._others.clear()
        for look in self._looks:
            look.remove()
        self._looks.clear()
        self.watched.clear()
        self.forgive()

    @property
    def complete(self) -> bool:
        """Whether a call of the transformer comes to the policy, and to no other cache before it."""
        return self._root.intact

    @property
    def absence(self) -> str | None:
        """Why the policy has no part in the run in progress, or had none in a call of it; None if all is well."""
        if not self.complete:
            return self._reason()
        reason, timesteps = self._missed or (None, None)
        return reason if timesteps is self.instrument.target_timesteps else None

    def keep(self) -> bool:
        """Put hooks back that others have moved or dropped. Returns whether the call in progress is the policy's."""
        if not self._root.intact:
            return False
        for place in self._others:
            if not place.intact:
                place.take()
        return True

    def miss(self) -> str:
        """Book that the call in progress runs without the policy, and be there at the next one. Returns the reason."""
        reason = self._reason()
        self._missed = reason, self.instrument.target_timesteps
        if replaced(self.model) is None:
            self._root.take()
        return reason

    def forgive(self) -> None:
        """Forget such calls."""
        self._missed = None

    def _reason(self) -> str:
        other = replaced(self.model)
        if other is None:
            return "somebody put back the forward that it had before the policy (the next call has the policy again)"
        return (
            f"its forward was replaced by {other}, as other caches do: take one of the two off, they would predict "
            "from each other's predictions"
        )


def refuse_unless_free(model: nn.Module) -> None:
    """Raise RuntimeError if the model runs under a policy, under a cache, or with another forward than its own."""
    if any(map(occupied, model.modules())):
        raise RuntimeError(
            f"this {type(model).__name__} already runs under a policy: call remove() on its handle first"
        )
    refuse_other_caches(model)
    other = replaced(model)
    if other is not None:
        raise RuntimeError(
            f"the forward of this {type(model).__name__} was replaced by {other}, as other caches do: take that off, "
            "or load the model anew; two caches would predict from each other's predictions"
        )


def refuse_cuda_graphs(model: nn.Module) -> None:
    """Raise RuntimeError if the model, or a part of it, is compiled into CUDA graphs.

    These give what they compute at fixed addresses, and the next call overwrites it: of what a policy takes from inside
    the model, such as the probe, nothing would be left by the time that the last block is through.
    """
    if all(parameter.device.type != "cuda" for parameter in model.parameters()):
        return
    for module in model.modules():
        compiled = getattr(module, COMPILED, None)
        while isinstance(compiled, StandIn):
            compiled = compiled.inner
        for made in (module, compiled):
            config = getattr(made, "get_compiler_config", None)
            if config is not None and (config() or {}).get("triton.cudagraphs"):
                raise RuntimeError(
                    f"{type(module).__name__} is compiled into CUDA graphs (mode='reduce-overhead' or 'max-autotune'), "
                    "whose memory every call overwrites: compile it with mode='max-autotune-no-cudagraphs', or without "
                    "a mode"
                )


def refuse_other_caches(model: nn.Module) -> None:
    """Raise RuntimeError if a diffusers cache is enabled on the model or a part of it, or it makes CUDA graphs."""
    refuse_cuda_graphs(model)
    for module in model.modules():
        others = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        # offloading and casting hooks keep no state from step to step, caches do
        found = next((hook for hook in others.values() if hook._is_stateful), None)
        if found is not None:
            raise RuntimeError(
                f"a diffusers cache is enabled on this {type(model).__name__} (found {type(found).__name__}): "
                "call disable_cache() first; two caches would predict from each other's predictions"
            )
