"""Runs one transformer under a policy."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument import hooks
from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.call import Call, StepEvent, observe, predicted
from tapstudy.instrument.caution import Cautions
from tapstudy.instrument.driver import Driver, Value, run_info
from tapstudy.instrument.idle import hand_out, keep_blanks
from tapstudy.instrument.inputs import Inputs
from tapstudy.instrument.latent import Form, from_tokens, latent_residual, latent_sum, misfit, read_latent, to_tokens
from tapstudy.instrument.presence import Presence, refuse_other_caches
from tapstudy.instrument.token_runs import spread, spread_latent
from tapstudy.instrument.tokens import ImageTokens, add_into
from tapstudy.instrument.trajectories import Threads, Trajectories
from tapstudy.instrument.trajectory import ContextRun, taking_part
from tapstudy.policies.base import Policy, RunInfo, apart, check_policy


class Instrument:
    """Hooks on one transformer, and the state of its trajectories.

    Every pipeline that calls the transformer has a trajectory of its own, and so has every thread for the calls that
    no pipeline makes. Passes of several threads take turns.

    Args:
        model: a transformer with an adapter.
        policy: copied for every context; must not have seen anything.
        target: what the policy was put on: its scheduler drives calls that no other is found for; None: nothing does.
        shadow: run a full pass beside every prediction, as policies that need the truth do.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        policy: Policy,
        *,
        target: Any = None,
        shadow: bool = False,
    ) -> None:
        check_policy(policy)
        self.model, self.adapter, self.policy = model, adapter, policy
        self.shadow = shadow or policy.needs_truth
        self.listeners: list[Callable[[StepEvent], None]] = []
        self.call: Call | None = None
        self.threads = Threads()
        self._trajectories = Trajectories(model, target, policy)
        self._signature = inspect.signature(type(model).forward)
        self.presence = Presence(self)
        self._cautions = Cautions(type(model).__name__)
        self._wants_latent = False

    # Attaching and detaching

    def attach(self) -> None:
        """Put the hooks on; raises as `Presence.attach` does."""
        self.presence.attach()

    def also_watch(self, depths: Sequence[int], *, modules: Mapping[str, str], latent: bool) -> None:
        """Let events carry probes of more blocks, outputs of modules, the latent, and its residual beside the hidden.

        Raises ValueError on a depth beyond the last block, and on paths of no module that runs.
        """
        self.presence.watch(depths)
        self.presence.watch_modules(modules)
        self._wants_latent |= latent

    def in_a_pass(self) -> bool:
        """Tell whether this thread is in the middle of a pass; wait for that of another one."""
        with self.threads.turn:
            return self.call is not None

    def detach(self) -> None:
        """Take all hooks off and leave no trace on the modules."""
        self.presence.detach()
        self.reset()

    def passed_by(self) -> None:
        """Take note that the first block is about to run outside a call that came to the policy."""
        if not self.presence.complete:
            self._stand_aside()

    def _stand_aside(self) -> None:
        """Let the call in progress run as it would without the policy, and say so."""
        self._trajectories.clear()
        self._cautions.warn(f"{type(self.model).__name__} ran in full, without its policy: {self.presence.miss()}")

    # The trajectories

    @property
    def runs(self) -> dict[str, ContextRun]:
        """The contexts of the last trajectory that was gone on with, by name."""
        return self._trajectories.latest.runs

    def reset(self) -> None:
        """Forget all trajectories, histories and all."""
        with self.threads.turn:
            self._cautions.about_skips(self.runs)
            self.presence.forgive()
            self._trajectories.clear()

    @property
    def overtaken(self) -> bool:
        """Whether the scheduler has begun another run since this transformer was last called."""
        return self._trajectories.overtaken

    @property
    def target_timesteps(self) -> Any:
        """Timesteps of the scheduler that belongs to what the policy was put on, None if it has none."""
        return self._trajectories.target_timesteps

    def end_trajectory(self) -> None:
        """Free the histories, since the pipeline call is over; keep the counts for the summary."""
        with self.threads.turn:
            self._cautions.about_skips(self._trajectories.end().runs)

    def _start(self, driver: Driver) -> None:
        """Start a new trajectory."""
        trajectory = self._trajectories.latest
        self._cautions.about_skips(trajectory.runs)
        refuse_other_caches(self.model)  # one may have been enabled since
        self._trajectories.start(driver)
        self._cautions.about_sampling(self.policy, driver.scheduler, run_info(trajectory.span))
        if trajectory.watch.misread:
            self._cautions.about_repeats()

    def _begin(self, run: ContextRun, arguments: Mapping[str, Any]) -> RunInfo:
        """Give `run` an empty history; returns what its policy is told."""
        run.grid = self.adapter.grid(self.model, arguments)
        if (notice := self.adapter.notice(run.grid)) is not None:
            self._cautions.warn(f"{type(self.model).__name__}: {notice}")
        run.policy = self.policy.fresh()
        info = replace(self._trajectories.latest.told(run), layout=self.presence.layout)
        run.policy.begin(info)
        run.observed, run.taught_nothing, run.restart = False, None, None
        run.misfit = misfit(self.model, self.adapter, arguments)
        return info

    # One pass. Under torch.compile the bookkeeping before and after it stays in Python; what is compiled lies between,
    # in the transformer's own forward.

    @hooks.in_python(recursive=False)
    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the transformer's forward under the policy."""
        with self.threads.turn:
            prepared = self._prepare(args, kwargs)
            if prepared is None:
                return inner(*args, **kwargs)
            run, self.call, device = prepared
            call = self.call
            if call is not None and call.decision.model is not None:  # another model makes this pass
                inner = run.policy.models[call.decision.model]
            try:
                with run.clock.measure(device) as note:
                    output = None
                    if call is None or not call.stops or not call.latent or call.probe_kind in ("modulated", "stream"):
                        with contextlib.suppress(hooks.StopForward):
                            output = inner(*args, **kwargs)
                        if call is not None and call.blanks and not call.stops:  # it cannot skip after all
                            call.blanks, call.outputs, call.module_outputs = {}, {}, {}
                            output = inner(*args, **kwargs)
                    if call is not None and call.latent:
                        output = self._finish_latent(call, output)
                    elif call is not None and self._wants_latent and call.state == "full":
                        call.latent_residual = self._latent_tokens(call, Form.read(output)[0])
                    note["kind"] = "full" if call is None else call.state
                self.call = None  # the pass is over: a listener may take the policy off
                self._conclude(run, call)
            except BaseException:
                self._trajectories.latest.clear()  # a half-done step has no place in a history
                raise
            finally:
                self.call = None
            return output

    @hooks.in_python
    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[ContextRun, Call | None, torch.device] | None:
        """Tell which context this is, and what happens at this step.

        No call: a pass that the history is not about. None: one that is not the policy's.
        """
        if not self.presence.keep():
            self._stand_aside()
            return None
        arguments = self._signature.bind(self.model, *args, **kwargs).arguments
        timestep = arguments.get(self.adapter.timestep)
        driver, began = self._trajectories.take(Value(timestep))
        if began:
            self._start(driver)
        trajectory = self._trajectories.latest
        if self.adapter.bypass is not None and (reason := self.adapter.bypass(arguments)) is not None:
            run = trajectory.aside(reason)  # such passes have a context of their own
            if not run.inputs:
                run.inputs.append(Inputs.of(run.step, self._signature, arguments))
                run.policy = self.policy.fresh()
                run.policy.begin(replace(run_info(trajectory.span), layout=self.presence.layout))
            if not run.policy.wants_full(run.step):
                run.fail_opens[reason] += 1
            return run, None, next(self.model.parameters()).device
        name = self.threads.names.given or self.threads.names.told
        given = arguments[self.adapter.latent]
        run = trajectory.context(name, None if name else arguments.get(self.adapter.key), given, timestep)
        latent = given if isinstance(given, Tensor) else read_latent(given)
        return run, self._open(run, arguments, latent), latent.device

    def _open(self, run: ContextRun, arguments: Mapping[str, Any], latent: Tensor) -> Call:
        """Decide what this pass does, before any of the model runs."""
        adapter, taking, info = self.adapter, taking_part(arguments), None
        changed = run.change(latent.shape, taking)
        if run.shape is None or changed is not None:
            info = self._begin(run, arguments)
            run.shape, run.taking = latent.shape, taking
        policy, step = run.policy, len(run.kinds)
        full = policy.wants_full(step)
        if not (full or run.observed):
            run.fail_opens[changed or run.taught_nothing or "no history yet"] += 1
            full = True
        count = prod(run.grid)
        kind = policy.probe_kind if policy.needs_probe else None
        first, probe_start = adapter.start(0, arguments), adapter.stream_start if kind == "stream" else adapter.start
        call = Call(
            run,
            step,
            run.timestep,
            state="undecided",
            shadow=self.shadow,
            stops=not self.shadow,
            home=latent.device,
            probe_kind=kind,
            latent=policy.residual_site in ("latent", "output"),
            relative=policy.residual_site in ("latent", "hidden"),
            grid=run.grid,
            hidden_tokens=ImageTokens(count, first),
            tail_tokens=ImageTokens(count, first if adapter.tail_start is None else adapter.tail_start(arguments)),
            probe_tokens=ImageTokens(count, probe_start(self.presence.probed_list, arguments)),
            model_input=latent,
            return_dict=arguments.get("return_dict", True),
            list_starts={index: adapter.start(index, arguments) for index in self.presence.lists},
            conditioning=arguments.get(adapter.key),
        )
        if full or not policy.decides_by_probe:
            call.decide(full=full)
        if kind == "latent":
            call.probed = to_tokens(latent, run.grid, adapter.channel_dim)
            if call.state == "undecided":
                self.decide(call)
        if adapter.idle:
            hand_out(call, adapter, arguments)
        if info is not None:
            starts = call.hidden_tokens.start, call.probe_tokens.start, call.tail_tokens.start
            run.inputs.append(Inputs.of(step, self._signature, arguments, info=info, grid=run.grid, starts=starts))
        return call

    @hooks.in_python
    @apart()
    def _conclude(self, run: ContextRun, call: Call | None) -> None:
        """Book the pass and tell the listeners."""
        if call is None:
            run.finish("full", None)
            return
        if call.state in ("skip", "shadow") and call.prediction is None:
            raise RuntimeError(
                f"{type(self.model).__name__} skipped its blocks, but its tail {self.adapter.tail!r} did not run: "
                "the adapter does not fit this model; tapstudy.check tells more"
            )
        if call.state == "partial":
            run.policy.ran(call.step, call.decision, call.residual)
        run.finish(call.state, call.prediction)
        if call.state == "full":
            keep_blanks(call)
        if self.listeners:
            self._tell(call)
        latest = self._trajectories.latest
        if latest.hands_over_at is not None and latest.watch.index == latest.hands_over_at:
            run.free(self.policy.fresh())  # another transformer makes the steps that are left

    def _tell(self, call: Call) -> None:
        """Tell the listeners of a pass that is over."""
        presence, span = self.presence, self._trajectories.latest.span
        event = StepEvent.of(
            call, self.adapter, lists=presence.deeper, watched=presence.watched, latent=self._wants_latent, span=span
        )
        for listener in self.listeners:
            listener(event)

    def at_tail(self, call: Call, tail: Tensor) -> Tensor:
        """Take the input of the tail, (batch, sequence or frame, row, column, channel); return what it shall see."""
        sequence = tail.flatten(1, -2)
        if call.state == "partial":
            return tail if call.decision.tokens is None else spread(call, sequence, self._predict)
        if call.state != "skip" and (reason := call.incomplete(call.start, tail=sequence)) is not None:
            return self._unobserved(call, reason, tail)
        assert call.start is not None
        start = call.hidden_tokens.take(call.start)  # (B, N, D)
        if call.state != "skip":
            # float32 (or better) keeps start + residual equal to the tail input when the model runs in bf16
            wide = torch.promote_types(tail.dtype, torch.float32)
            call.residual = call.tail_tokens.take(sequence).detach().to(call.home).to(wide)
            if call.relative:
                call.residual = call.residual - start.detach()  # in `wide`, without a copy of start in it
        if call.state == "full":
            call.run.tail_device = None if tail.device == call.home else tail.device
            return self._observe(call, tail)
        residual = predicted(call, self.model, shape=start.shape, device=start.device)  # (B, N, D)
        if call.relative:
            # new memory is dear, and events show the prediction to listeners
            mine = call.prediction is not None and call.prediction.disposable and not self.listeners
            residual = add_into(residual, start) if mine else start + residual
        same = self.adapter.tail_start is None  # what the first block was given is what came through the others
        replaced = call.tail_tokens.put(call.start if same else sequence, residual)
        return replaced.to(tail.device, tail.dtype).view(tail.shape)

    @hooks.in_python
    def _finish_latent(self, call: Call, output: Any) -> Any:
        """With the residual in latent space: the output of this pass. `output` is what the model gave, if it ran."""
        if call.state == "partial" and call.decision.tokens is None:
            return output
        if call.state != "skip":
            sample, call.run.form = Form.read(output)
            if (reason := call.incomplete()) is not None:
                return self._unobserved(call, reason, output)
            try:
                call.residual = self._latent_tokens(call, sample, relative=call.relative)
            except ValueError as error:
                return self._unobserved(call, str(error), output)
            if call.state == "full":
                return self._observe(call, output)
        form = call.run.form
        assert form is not None
        whole = self._predict(call) if call.decision.tokens is None else spread_latent(call, self._predict)
        residual = from_tokens(whole, call.grid, channel_dim=self.adapter.channel_dim, shape=form.shape)
        output = latent_sum(call.model_input, residual) if call.relative else residual
        return form.wrap(output, return_dict=call.return_dict)

    def _latent_tokens(self, call: Call, sample: Tensor, *, relative: bool = True) -> Tensor:
        residual = latent_residual(call.model_input if relative else None, sample.to(call.model_input.device))
        return to_tokens(residual, call.grid, self.adapter.channel_dim)

    def _observe(self, call: Call, unchanged: Any) -> Any:
        observe(call)
        if not self.listeners:
            call.let_go()
        return unchanged

    def _unobserved(self, call: Call, reason: str, unchanged: Any) -> Any:
        """Note a full pass that showed too little to learn from, which the history has made room for."""
        call.run.observed, call.run.taught_nothing = False, reason
        call.give_up(reason)
        call.probed = None
        self._cautions.warn(
            f"a step of {type(self.model).__name__} ran in full and taught the policy nothing: {reason}"
        )
        return unchanged

    def _predict(self, call: Call) -> Tensor:
        if call.start is not None and not call.latent:
            place = call.hidden_tokens.take(call.start)
            return predicted(call, self.model, shape=place.shape, device=place.device)
        assert call.run.form is not None
        output = torch.empty(call.run.form.shape, device="meta")
        shape = to_tokens(output, call.grid, self.adapter.channel_dim).shape
        device = call.model_input.device if call.relative else None  # what it is added to
        return predicted(call, self.model, shape=shape, device=device)

    @hooks.in_python
    def decide(self, call: Call) -> None:
        """Let the policy, which can see the probe now, turn this pass into a full one, which goes on from here."""
        probe = call.probe
        assert probe is not None
        call.decide(full=call.run.policy.wants_full_given(call.step, probe), probe=probe)
