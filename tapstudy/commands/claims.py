"""`tapstudy claims`: the hypotheses about TAP, tested on a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapstudy.commands.checks import LABELS, at_least, listed, numbers, out_file, out_folder, seeds_of_noise
from tapstudy.commands.errors import user_errors

if TYPE_CHECKING:
    from tapstudy.analysis.claims.finding import Finding
    from tapstudy.bench.claims.runs import Plan

QUICK = "a quick run, from which nothing follows"
HEADER = "header"  # attribute of a study's table of quality: what the page says of how it was made
PACKAGES = ("tapstudy", "torch", "diffusers", "xarray", "scipy")


def claims(
    work: Annotated[Path, typer.Option(help="folder of the results; the same command resumes")] = Path("claims"),
    out: Annotated[
        Path | None, typer.Option(help="page to write; docs/claims.md by default, of a quick run quick.md in --work")
    ] = None,
    study: Annotated[Path | None, typer.Option(help="folder for the tables that the figures read")] = None,
    beside: Annotated[
        str, typer.Option(help="folders of other studies, separated by commas, whose verdicts the page sets beside")
    ] = "",
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    seeds: Annotated[str, typer.Option(help="test seeds; every label is sampled with each")] = "31,32,33,34,35,36",
    held_out: Annotated[
        str, typer.Option(help="seeds that predictors, tables and masks are fitted to and chosen on")
    ] = ("41,42,43"),
    tuning: Annotated[int, typer.Option(help="held-out images to choose on; the others are fitted to")] = 20,
    labels: Annotated[str, typer.Option(help=LABELS)] = "",
    images: Annotated[int | None, typer.Option(min=2, help="images per seed, one for each of the first labels")] = None,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[float, typer.Option(help="scale of classifier-free guidance; 1: none")] = 2.0,
    fine_steps: Annotated[int, typer.Option(help="of a second, finer reference on some images; 0: none")] = 400,
    untrained: Annotated[int, typer.Option(help="models of random weights, the control of training")] = 5,
    quick: Annotated[bool, typer.Option(help="two images and 20 steps: shows that it works, decides nothing")] = False,
    scheduler: Annotated[str | None, typer.Option(help="dask scheduler whose workers run it: tcp://HOST:PORT")] = None,
) -> None:
    """Test what is claimed of TAP on a model: 30 claims with thresholds, intervals and verdicts, as a page.

    On 60 images, as it stands, the embedded model of digits takes about 80 minutes on one quiet core, and 2 GB in
    --work.
    """
    with user_errors():
        from tapstudy.analysis.claims.all_claims import all_claims
        from tapstudy.analysis.claims.finding import judge
        from tapstudy.analysis.claims.report import claims_page
        from tapstudy.analysis.study import save_study
        from tapstudy.bench.claims.evidence import collect
        from tapstudy.bench.claims.runs import Plan
        from tapstudy.instrument.adapters import find_adapter

        work = out_folder(work, "--work")
        out = out_file(out or (work / "quick.md" if quick else Path("docs/claims.md")), "--out", (".md",))
        study = study and out_folder(study, "--study")
        if quick:
            _keep_published(out, study)
        others = _others(beside)
        at_least(1, steps=steps, untrained=untrained)
        at_least(0, fine_steps=fine_steps)
        test, chosen_on = (
            seeds_of_noise(numbers(text, int, option), option)
            for text, option in ((seeds, "--seeds"), (held_out, "--held-out"))
        )
        pipe, named = listed(model, labels)
        if images is not None and images > len(named):
            raise ValueError(f"--images {images} is more than the {len(named)} labels: name more --labels or --seeds")
        adapter = find_adapter(pipe.transformer)
        assert adapter is not None
        blocks = len(adapter.modules(pipe.transformer)[0])
        if blocks < 2:
            raise ValueError(f"the transformer of {model} has one block: claims compare probes of several depths")
        plan = Plan(
            model=model,
            seeds=test,
            held_out=chosen_on,
            tuning=min(tuning, len(chosen_on) * len(named[:images]) - 1),
            few=min(Plan.few, len(test)),
            labels=named[:images],
            steps=steps,
            guidance=guidance,
            fine_steps=fine_steps,
            untrained=untrained,
            depths=tuple(depth for depth in Plan.depths if depth < blocks),
        )
        if quick:
            plan = replace(
                plan, seeds=plan.seeds[:1], held_out=plan.held_out[:1], few=1, labels=plan.labels[:2], steps=20,
                tuning=1, fine_steps=0, untrained=1,
            )  # fmt: skip
        evidence = collect(plan, work, scheduler=scheduler)
        places = {"out": out, "study": study, "beside": beside}
        header = _header(plan, quick, pipe.config.get("guidance_stop", 0.0), places)
        evidence = replace(evidence, quality=evidence.quality.assign_attrs({HEADER: json.dumps(header)}))
        if study is not None:
            save_study(evidence, study)
        findings = judge(all_claims(evidence))
        _write(out, claims_page(findings, evidence, header, others), findings)
        typer.echo(f"{out}, from the results in {work}")


def verdicts(
    study: Annotated[Path, typer.Argument(help="folder that `tapstudy claims --study` wrote")],
    out: Annotated[Path, typer.Option(help="page to write; one that is there is replaced")],
    beside: Annotated[str, typer.Option(help="folders of other studies, as of `tapstudy claims`")] = "",
) -> None:
    """Judge a saved study of `tapstudy claims` again, beside others, and write its page: nothing is run."""
    with user_errors():
        from tapstudy.analysis.claims.report import claims_page
        from tapstudy.analysis.claims.studies import judged

        out = out_file(out, "--out", (".md",))
        (*_, evidence, findings), others = judged(study), _others(beside)
        if HEADER not in evidence.quality.attrs:
            raise ValueError(f"{study} does not tell how it was made: make it anew with `tapstudy claims --study`")
        options = ["--out", str(out), *(["--beside", beside] if beside else [])]
        command = shlex.join(["tapstudy", "bench", "verdicts", str(study), *options])
        header = {**json.loads(evidence.quality.attrs[HEADER]), "Judged again by": f"`{command}`"}
        _write(out, claims_page(findings, evidence, header, others), findings)
        typer.echo(f"{out}, from the study in {study}")


def _others(beside: str) -> dict[str, list[Finding]]:
    """Judge other studies, each by what it is: model, steps, guidance and images."""
    from tapstudy.analysis.claims.studies import by_title, judged

    return by_title(judged(folder) for folder in filter(None, beside.split(",")))


def _write(out: Path, page: str, findings: list[Finding]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    for finding in findings:
        typer.echo(f"{finding.claim.name:<4} {finding.verdict:<10} {finding.claim.statement}")


def _header(plan: Plan, quick: bool, guidance_stop: float, places: Mapping[str, object]) -> dict[str, str]:
    """Say how a page was made, so that the same command makes it again, where it is."""
    from importlib.metadata import version

    few = len(plan.few_images)
    options = {"model": plan.model, "seeds": _join(plan.seeds), "held-out": _join(plan.held_out),
               "tuning": plan.tuning, "labels": _join(plan.labels), "steps": plan.steps,
               "guidance": f"{plan.guidance:g}", "fine-steps": plan.fine_steps,
               "untrained": plan.untrained, **{name: value for name, value in places.items() if value}}  # fmt: skip
    command = "tapstudy claims " + " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
    found = {
        "Made by": f"`{command}{' --quick' if quick else ''}`",
        "Model": f"{plan.model}, {plan.steps} steps, guidance {plan.guidance:g} down to noise level {guidance_stop:g}",
        "Test images": f"{len(plan.seeds) * len(plan.labels)} (seeds {_join(plan.seeds)} x labels "
        f"{_join(plan.labels)}); recordings, oracles and ablations on the first {few}",
        "Held-out images": f"seeds {_join(plan.held_out)}: {len(plan.fitted_to)} that tables and masks are fitted to, "
        f"{len(plan.tuned_on)} that predictors and the best mask are chosen on",
        "Versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    return {**found, "Warning": QUICK} if quick else found


def _keep_published(page: Path, study: Path | None) -> None:
    """Raises ValueError when a quick run would replace the page or the tables of a whole one."""
    from tapstudy.analysis.study import CHOSEN

    if page.is_file() and QUICK not in page.read_text(errors="replace"):
        raise ValueError(f"--quick would replace {page}, which is no quick run's: name another file with --out")
    if study is not None and (study / CHOSEN).exists():
        raise ValueError(f"--quick would replace the tables in {study}: name another folder with --study")


def _join(values: Iterable[object]) -> str:
    """Return numbers between commas, prompts between semicolons."""
    found = list(map(str, values))
    return (";" if any(" " in one for one in found) else ",").join(found)
