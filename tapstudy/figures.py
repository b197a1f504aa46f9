"""All figures of the study: recordings and tables in, figures out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tapstudy.analysis.ablation import ablate, grid
from tapstudy.analysis.caption import caption
from tapstudy.analysis.choice_maps import choice_statistics
from tapstudy.analysis.claims.report import verdict_table, verdicts_by_study
from tapstudy.analysis.claims.studies import by_title
from tapstudy.analysis.clean_image import clean_images
from tapstudy.analysis.error_propagation import teacher_forced_error
from tapstudy.analysis.heterogeneity import token_dynamics
from tapstudy.analysis.image_content import image_content
from tapstudy.analysis.proxy_correlation import proxy_correlation, shuffled_proxy
from tapstudy.analysis.quantised import additivity
from tapstudy.analysis.run_tables import (
    METHODS,
    at_fewest_passes,
    cost_and_quality,
    fixed_quality,
    frontier,
    gains,
    placements,
    published_table,
    rank_by_depth,
)
from tapstudy.analysis.stats import with_interval
from tapstudy.analysis.summaries import summarise
from tapstudy.analysis.token_classes import by_class, shares_by_class
from tapstudy.analysis.variance_shares import variance_shares
from tapstudy.bench.fit.held_out import SCHEDULE_TITLES
from tapstudy.bench.methods import find_method
from tapstudy.bench.speed.table import quartiles
from tapstudy.plots.ablation_errors import plot_ablation_errors
from tapstudy.plots.choice_entropy import plot_choice_entropy
from tapstudy.plots.choice_maps import plot_choice_maps
from tapstudy.plots.choice_shares import plot_choice_shares
from tapstudy.plots.choices_over_images import plot_choices_over_images
from tapstudy.plots.claims import plot_claims
from tapstudy.plots.claims_by_study import plot_claims_by_study
from tapstudy.plots.correlation import plot_correlation
from tapstudy.plots.depths import plot_depths
from tapstudy.plots.error_buildup import plot_error_buildup
from tapstudy.plots.fixed_predictors import plot_fixed_predictors
from tapstudy.plots.frontier import plot_frontier
from tapstudy.plots.gains import plot_gains
from tapstudy.plots.heterogeneity import plot_heterogeneity
from tapstudy.plots.proxy_vs_truth import plot_proxy_vs_truth
from tapstudy.plots.published import plot_published
from tapstudy.plots.quantised import plot_quantised
from tapstudy.plots.regret import plot_regret
from tapstudy.plots.rivals import plot_rivals
from tapstudy.plots.speed import plot_speed
from tapstudy.plots.style import save, small_print
from tapstudy.sources import MODEL, SHARED, MissingData, Sources, folder_of

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # the modules above say what brings these two
    import xarray as xr
    from matplotlib.figure import Figure

    Drawn = tuple[Figure, str]  # and what its small print says

# group -> what to call a run -> its name
ABLATIONS = {
    "orders (TAP: 0, 1 and 2)": {
        **{f"order {m} only": f"tap N=8 orders={m}" for m in (1, 2)},
        "orders 0 and 1": "tap N=8 orders=0+1",
        "orders 0 and 2": "tap N=8 orders=0+2",
        "orders 1 and 2": "tap N=8 orders=1+2",
    },
    "horizons k - s (TAP: s up to 4)": {
        "k only": "tap N=8 lambda=0", "s up to 2": "tap N=8 lambda=2", "s up to 6": "tap N=8 lambda=6",
    },
    "stride of s (TAP: 1)": {"0.5": "tap N=8 delta=0.5", "0.1": "tap N=8 delta=0.1"},
    "distance of the probes (TAP: cosine)": {"relative L2": "tap N=8 l2", "relative L1": "tap N=8 l1"},
    "further predictors in the family": {
        name.replace("-", " "): f"tap N=8 +{name}" for name in ("least-squares", "hermite", "chebyshev", "dmd")
    },
}  # fmt: skip
CONTROLS = {
    "fewer plain steps": "fewer",
    "order 0 (FORA)": "order0",
    "Taylor order 1": "order1",
    "Taylor order 2": "order2",
    "best fixed predictor (held out)": "best-fixed",
    "table: one predictor per step (held out)": "step-table",
    "random choice": "random",
    "losses shuffled over tokens": "shuffled",
    "one choice per step": "step",
    "oracle per token": "oracle",
}
# masks with as many full steps as N = 8 has
MASKS = {"even": "even mask", "start-dense": "start-dense mask", "best": "mask chosen on held-out images"}


def draw(name: str, sources: Sources) -> Figure:
    """Make a figure, with its small print.

    Raises:
        MissingData: a recording or table that it needs is not there.
    """
    figure, told = FIGURES[name](sources)
    small_print(figure, told)
    return figure


def draw_all(
    sources: Sources, out: str | Path, *, names: Iterable[str] = ()
) -> Iterator[tuple[str, list[Path] | MissingData]]:
    """Make figures one by one, and save each as PNG and SVG: (name, its files, or what is missing).

    Args:
        names: which; by default all, of a model other than `sources.MODEL` those that depend on it.

    Raises:
        ValueError: no such figure.
    """
    names = list(names) or [name for name in FIGURES if sources.model == MODEL or name not in SHARED]
    if unknown := [name for name in names if name not in FIGURES]:
        raise ValueError(f"no figure {', '.join(map(repr, unknown))}: there are {', '.join(FIGURES)}")
    for name in names:
        try:
            figure = draw(name, sources)
        except MissingData as missing:
            yield name, missing
            continue
        yield name, save(figure, out, name)


def show(name: str, sources: Sources, out: str | Path = "../figures") -> Figure | None:
    """For notebooks: make a figure, save it and return it; without its data, log what is missing."""
    try:
        figure = draw(name, sources)
    except MissingData as missing:
        logger.warning("%s left out: %s", name, missing)
        return None
    save(figure, folder_of(sources.model, out), name)
    return figure


def heterogeneity(sources: Sources) -> Drawn:
    """Speed and effective order by token class, and whose the variance is."""
    one = sources.features.sel(context="cond")
    dynamics = token_dynamics(one)[["relative_velocity", "effective_order"]].load()
    content = image_content(one).load()
    speed, order = dynamics["relative_velocity"], dynamics["effective_order"]
    shares = {"log relative speed": variance_shares(speed, log=True), "effective order": variance_shares(order)}
    figure = plot_heterogeneity(by_class(speed, content), shares_by_class(order, content), shares)
    return figure, f"{caption(sources.features)} · conditional branch of guidance"


def proxy_vs_truth(sources: Sources) -> Drawn:
    """The probe's loss against the true error, and what is left when losses are shuffled over tokens."""
    scores = sources.scores
    own, other = (
        summarise(proxy_correlation(which, measures=("spearman",)), "distance")["spearman"]
        for which in (scores, shuffled_proxy(scores, seed=0))
    )
    return plot_proxy_vs_truth(scores, own, other), _teacher_forced(scores)


def correlation(sources: Sources) -> Drawn:
    """Agreement of probe and truth by depth and by distance."""
    ranking = sources.table("ranking")
    return plot_correlation(rank_by_depth(ranking)), f"{caption(ranking, sources.model)} · N = 8, exact trajectories"


def choice_maps(sources: Sources) -> Drawn:
    """Images as they end, with and without TAP, and the predictors that their tokens took at some steps."""
    run = sources.recording("gallery").load()
    full = ", ".join(map(str, _full_steps(run)))
    told = f"{caption(run)} · TAP with full steps {full} · maps: conditional branch of guidance"
    return plot_choices_over_images(run, sources.recording("gallery_exact")["image"].load()), told


def choice_windows(sources: Sources) -> Drawn:
    """Choices over the image as it forms."""
    scores = sources.scores
    if "latent" in scores:
        scores = scores.assign(clean_image=clean_images(scores))
    sample = min(3, scores.sizes["sample"] - 1)
    return plot_choice_maps(scores, sample=sample), _teacher_forced(scores.isel(sample=[sample]))


def choice_shares(sources: Sources) -> Drawn:
    """Orders and horizons over the steps."""
    statistics = choice_statistics(sources.scores)[["order_share", "shift_share"]]
    means = statistics.mean([dim for dim in ("sample", "context") if dim in statistics.dims]).compute()
    return plot_choice_shares(means, full_steps=_full_steps(sources.scores)), _teacher_forced(sources.scores)


def choice_entropy(sources: Sources) -> Drawn:
    """Entropy, spatial order and switching over the steps."""
    names = ["entropy", "moran_order", "switch_within", "switch_across"]
    curves = summarise(choice_statistics(sources.scores)[names], "step")
    figure = plot_choice_entropy(curves, full_steps=_full_steps(sources.scores), images=sources.scores.sizes["sample"])
    return figure, _teacher_forced(sources.scores)


def regret(sources: Sources) -> Drawn:
    """What choosing by the probe costs beside the oracle."""
    measures = ("regret", "normalised_regret", "top1")
    own, other = (
        summarise(proxy_correlation(which, measures=measures), "distance")
        for which in (sources.scores, shuffled_proxy(sources.scores, seed=0))
    )
    return plot_regret(own, other, images=sources.scores.sizes["sample"]), _teacher_forced(sources.scores)


def fixed_predictors_error(sources: Sources) -> Drawn:
    """True error of every fixed predictor along exact trajectories, with TAP and the oracle."""
    scores = sources.scores
    labels = [
        (int(order), float(shift))
        for order, shift in zip(scores["order"].values, scores["shift"].values, strict=True)
        if order > 0 or shift == scores["shift"].values.min()
    ]
    members = {f"{order}-{shift:g}": (order, shift) for order, shift in labels}
    errors = teacher_forced_error(scores, {**members, "tap": "choice", "oracle": "oracle"})
    bounds = with_interval(errors.mean([dim for dim in errors.dims if dim not in ("policy", "sample")]))
    fixed = bounds.sel(policy=list(members)).rename(policy="predictor").drop_vars("predictor")
    fixed = fixed.assign_coords(
        order=("predictor", [order for order, _ in labels]), shift=("predictor", [shift for _, shift in labels])
    )
    levels = {name: bounds.sel(policy=name) for name in ("tap", "oracle")}
    figure = plot_fixed_predictors(
        fixed, levels, label="true error of the residual (relative)", images=scores.sizes["sample"]
    )
    return figure, _teacher_forced(scores)


def fixed_predictors_psnr(sources: Sources) -> Drawn:
    """PSNR of the images that every fixed predictor makes, with TAP."""
    table = sources.table("fixed")
    fixed, levels, images = fixed_quality(table)
    figure = plot_fixed_predictors(fixed, levels, label="PSNR to the reference (dB)", images=images)
    return figure, f"{caption(table, sources.model)} · S(8, 3)"


def ablations(sources: Sources) -> Drawn:
    """PSNR with other orders, horizons, strides, distances and families, minus that of TAP at N = 8."""
    quality = sources.table("quality")
    groups = {title: gains(quality, runs, "tap N=8") for title, runs in ABLATIONS.items()}
    told = _told(quality, sources, ABLATIONS["horizons k - s (TAP: s up to 4)"]["k only"])
    return plot_gains(groups, baseline="TAP at N = 8"), f"{told} · S(8, 3)"


def ablation_errors(sources: Sources) -> Drawn:
    """True error with other orders and horizons at several N, rescored from recorded features."""
    settings = grid(orders=((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)), shifts=((0,), (0, 1, 2, 3, 4)),
                    interval=(2, 3, 4, 5, 6, 8, 10))  # fmt: skip
    features, why = sources.features, " · features are large: one image has them here, so there are no intervals"
    told = _teacher_forced(features) + why * (features.sizes["sample"] == 1)
    return plot_ablation_errors(ablate(features, settings).load()), told


def controls(sources: Sources) -> Drawn:
    """PSNR of TAP's controls minus that of TAP, at every N and on every other mask."""
    quality = sources.table("quality")
    at = {one: MASKS.get(one, one.replace("=", " = ")) for one in placements(quality)}
    if "best" in at:  # which may be one of the others
        schedule = sources.chosen["best mask"].split(":")[0]
        at["best"] += f": {SCHEDULE_TITLES.get(schedule, schedule)}"
    groups = {
        title: gains(quality, {text: f"{name} {one}" for text, name in CONTROLS.items()}, f"tap {one}")
        for one, title in at.items()
    }
    return plot_gains(groups, baseline="TAP on the same full steps", columns=2), _told(quality, sources)


def low_pass(sources: Sources) -> Drawn:
    """PSNR to the unedited model's images with a low-pass of the clock, minus that without."""
    quality = sources.table("quality")
    places = {"S(4, 3)": "N=4", "S(6, 3)": "N=6", "S(8, 3)": "N=8", "even": "even", "start-dense": "start-dense",
              "best on held-out images": "best"}  # fmt: skip
    groups = {
        title: gains(quality, {text: (f"{run} {on} smooth", f"{run} {on}") for text, on in places.items()})
        for title, run in (("TAP", "tap"), ("order 0", "order0"), ("order 1", "order1"), ("order 2", "order2"))
    }
    told = f"{_told(quality, sources)} · {sources.chosen['smooth']} of 1000, chosen on held-out images"
    return plot_gains(groups, baseline="the same without the low-pass"), told


def depth_ablation(sources: Sources) -> Drawn:
    """Deeper probes against smaller intervals, at equal FLOPs."""
    quality = sources.table("quality")
    first, deeper = [f"tap N={n}" for n in (8, 6, 4)], [f"tap N=8 depth={depth}" for depth in range(1, 8)]
    both = cost_and_quality(quality, [*first, *deeper])
    shallow = both["run"].isin(first)
    figure = plot_depths(both.isel(run=shallow.values), both.isel(run=~shallow.values))
    return figure, _told(quality, sources, deeper[0])


def speed_quality(sources: Sources) -> Drawn:
    """PSNR and label accuracy against cost, for every method and control."""
    quality = sources.table("quality")
    return plot_frontier(frontier(quality)), _told(quality, sources, "oracle N=8")  # which has the fewest images


def speed_quality_timed(sources: Sources) -> Drawn:
    """PSNR and label accuracy against FLOPs and measured wall time, for the methods that were timed."""
    found, timed = sources.table("frontier"), [one for one in METHODS if one != "oracle"]  # whose truth costs a pass
    return plot_frontier(frontier(found, timed)), _told(found, sources)


def rivals(sources: Sources) -> Drawn:
    """All methods, rivals and schedules at the fewest full passes."""
    found = sources.table("frontier")
    best = at_fewest_passes(found, best=25)
    titles = [find_method(name).title or name for name in best["method"].values.tolist()]
    on = [SCHEDULE_TITLES.get(name, name) for name in best["schedule"].values.tolist()]
    named = best.assign_coords(method=("cell", titles), schedule=("cell", on))
    return plot_rivals(named, steps=int(found["passes"].values[0])), _told(found, sources)


def error_buildup(sources: Sources) -> Drawn:
    """Local errors, their coherence, the model's feedback and the deviation."""
    import xarray as xr

    table = sources.table("errors")
    shown = table[["local_error", "coherence", "feedback_cosine", "deviation"]]
    each = [summarise(shown.sel(policy=policy, drop=True), "step") for policy in shown["policy"].values]
    curves = xr.concat(each, dim=shown["policy"], join="outer")
    figure = plot_error_buildup(curves, full_steps=_full_steps(table), images=table.sizes["sample"])
    return figure, f"{caption(table, sources.model)} · S({table.attrs.get('interval', 8)}, 3)"


def quantised(sources: Sources) -> Drawn:
    """Errors of caching, of rounded weights and of both, whether they add, and what corrections leave."""
    table = sources.table("quantised")
    errors = table[["caching", "rounding", "both"]].map(with_interval)
    return plot_quantised(errors, additivity(table), images=table.sizes["sample"]), caption(table, sources.model)


def speed(sources: Sources) -> Drawn:
    """The parts of a skip step, and latency ratios against their bounds."""
    table = sources.table("speed")
    told = "{steps} steps, S({interval}, {warmup_steps}) · {device}, threads: {threads}"
    told += " · torch {torch}, diffusers {diffusers}"
    return plot_speed(quartiles(table)), told.format_map(table.attrs)


def published(sources: Sources) -> Drawn:
    """TAP's published numbers beside ours."""
    path = sources.data / "published" / "tap.csv"
    if not path.is_file():
        raise MissingData(f"no table {path}: it comes with the repository")
    quality = sources.table("quality")
    ours = frontier(quality, ("order0", "order1", "order2", "tap"))
    ours = ours.isel(run=ours["interval"].isin([4, 8]).values)
    return plot_published(published_table(path), ours, model=sources.model), f"measured: {_told(quality, sources)}"


def claims(sources: Sources) -> Drawn:
    """The verdicts on all claims."""
    study = sources.study
    return plot_claims(verdict_table(study.findings)), _told(study.evidence.quality, sources)


def claims_by_study(sources: Sources) -> Drawn:
    """The verdicts of all studies: other models, numbers of steps, guidance."""
    verdicts = verdicts_by_study(by_title(sources.studies))
    return plot_claims_by_study(verdicts), "tapstudy claims; held, failed, undecided below each study"


def _told(table: xr.Dataset, sources: Sources, run: str = "") -> str:
    """Return the small print of a table, or of the images that a run has."""
    if run in table["cell"].values:
        table = table.isel(sample=table["psnr"].sel(cell=run).notnull().values)
    return caption(table, sources.model)


def _teacher_forced(recording: xr.Dataset) -> str:
    return f"{caption(recording)} · exact trajectories"


def _full_steps(dataset: xr.Dataset) -> list[int]:
    """Of the first image, context and policy."""
    full = dataset["is_full"].isel({dim: 0 for dim in dataset["is_full"].dims if dim != "step"})
    return [int(step) for step in full["step"].values[full.values == 1]]


FIGURES: dict[str, Callable[[Sources], Drawn]] = {
    make.__name__: make
    for make in (
        heterogeneity, proxy_vs_truth, correlation, choice_maps, choice_windows, choice_shares, choice_entropy, regret,
        fixed_predictors_error, fixed_predictors_psnr, ablations, ablation_errors, controls, low_pass, depth_ablation,
        speed_quality, speed_quality_timed, rivals, error_buildup, quantised, speed, published,
        claims, claims_by_study,
    )
}  # fmt: skip
