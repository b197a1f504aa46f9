"""The site has every page, builds without the network, and the README says what the documentation says."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
import yaml

import tapstudy
import tapstudy.policies
import tapstudy.predictors
from tapstudy.analysis.stats import mean_interval, paired_interval
from tapstudy.analysis.study import load_table
from tapstudy.bench.methods import METHODS
from tests.docs.pages import PAGES, ROOT
from tests.table import each_row

README = PAGES["README.md"]
MADE = {
    "index.md",
    "changelog.md",
    "contributing.md",
    "examples.md",
    "gallery.md",
    "reference/commands.md",
}  # by docs/site_hooks.py
NUMBERS = re.compile(r"-?\d+\.\d+")
# rows that name no method
ALONE = (("tap", "TAP / fitted"), ("fixed1", "Taylor order 1 / fitted"))


def navigation() -> list[str]:
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    entries = [entry for section in sections for entry in section.values()]
    return [page for entry in entries for page in ([entry] if isinstance(entry, str) else [*map(only, entry)])]


def only(entry: dict[str, str]) -> str:
    (page,) = entry.values()
    return page


def test_the_navigation_has_every_page_once() -> None:
    named = navigation()
    written = {page.removeprefix("docs/") for page in PAGES} - {"README.md"}
    assert len(named) == len(set(named))
    assert written | MADE <= set(named)
    later = re.search(r"^LATER = \((.*?)\)", (ROOT / "docs" / "site_hooks.py").read_text(), re.M)
    assert later
    assert set(named) - written - MADE <= set(re.findall(r'"(.+?)"', later[1]))


def test_the_reference_has_every_public_name() -> None:
    """Those of packages are filled in where the site is built."""
    reference = "\n".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    told = [name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", reference, re.M)]
    assert len(told) == len(set(told))
    packages = re.findall(r"^<!-- every public name of (\S+) -->$", reference, re.M)
    assert packages == ["tapstudy.policies", "tapstudy.predictors"]
    assert set(tapstudy.__all__) <= {*told, *tapstudy.policies.__all__, *tapstudy.predictors.__all__}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def rows(text: str) -> dict[str, list[str]]:
    """The numbers of a table's rows, by what stands in their first two cells."""
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {" / ".join(row[:2]): NUMBERS.findall(" ".join(row[2:])) for row in cells if len(row) == 3}


def rounded(numbers: list[str]) -> list[str]:
    return [str(Decimal(number).quantize(Decimal("0.1"), ROUND_HALF_UP)) for number in numbers]


def test_the_readme_has_the_numbers_of_the_documentation() -> None:
    found = rows(PAGES["docs/your_pipeline.md"].split("## An example: emoji-flux")[1])
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.split("## Findings")[1].split("Who wins")[0].splitlines()
        if line.startswith("|")
    ][2:]
    names = {
        "8 plain steps": ("8 plain steps / ", None),
        "Taylor order 1": ("Taylor order 1 / S(8, 3)", "Taylor order 1 / fitted"),
        "Taylor order 1, one step less, as `fit-schedule` chose it": (
            None, "Taylor order 1, one step less (`fixed1-1`), as `fit-schedule` chose it / fitted"
        ),
        "TAP": ("TAP / S(8, 3)", "TAP / fitted"),
        **{
            f"TAP{rest}": (None, f"TAP{rest} (`{method}`) / fitted")
            for rest, method in ((" by the probes of other tokens", "shuffled"),
                                 (", one choice for all tokens of a step", "step"))
        },
    }  # fmt: skip
    assert [row[0] for row in table] == list(names)
    for name, *cells in table:
        for cell, source in zip(cells, names[name], strict=True):
            assert NUMBERS.findall(cell) == (rounded(found[source]) if source else []), (name, source)

    mean = {name: Decimal(numbers[0]) for name, numbers in found.items() if numbers}
    fitted = mean["TAP / fitted"]
    gain = fitted - mean["TAP / S(8, 3)"]
    assert f"ends {rounded([str(gain)])[0]} dB higher than on S(8, 3)" in " ".join(README.split())
    assert f"TAP ends {rounded([str(fitted - mean['Taylor order 1 / fitted'])])[0]} dB above order 1" in README


@each_row(
    ("page", "says"),
    [("claims", r"of 30, .*?, (\d+) hold, (\d+) fail and (\d+) are undecided on `mnist-dit`"),
     ("claims-mnist-dit-rough", r"; (\d+), (\d+) and (\d+) on `mnist-dit-rough`"),
     ("claims-emoji-flux", r"; (\d+), (\d+) and (\d+) on `emoji-flux`")],
)  # fmt: skip
def test_the_readme_counts_verdicts_as_the_claims_do(page: str, says: str) -> None:
    counted = re.search(r"^(\d+) hold, (\d+) fail, (\d+) are undecided", PAGES[f"docs/{page}.md"], re.M)
    told = re.search(says, " ".join(README.split()))
    assert counted
    assert told
    assert told.groups() == counted.groups()


def test_predictors_on_fitted_steps_are_those_of_the_table() -> None:
    told = rows(PAGES["docs/your_pipeline.md"].split("## An example: emoji-flux")[1])
    table = load_table(ROOT / "data" / "study" / "emoji-flux", "fitted_steps")
    psnr = dict(zip(table["method"].values.tolist(), table["psnr"].values, strict=True))
    for method, values in psnr.items():
        row = next(row for name, row in told.items() if f"(`{method}`)" in name or (method, name) in ALONE)
        assert row == [f"{value:.2f}" for value in mean_interval(values)], method
    text = " ".join(PAGES["docs/your_pipeline.md"].split())
    for method, what in (("random", "beats a random one by {:.2f} dB"), ("fixed1-1", "TAP minus it {:.2f}"),
                         ("step", "(TAP minus it: {:.2f}"), ("shuffled", "to within {:.2f} dB")):  # fmt: skip
        mean, low, high = paired_interval(psnr["tap"], psnr[method])
        assert f"{what.format(mean)} [{low:.2f}, {high:.2f}]" in text, method


def test_the_readme_ranks_as_the_claims_do() -> None:
    claims = PAGES["docs/claims.md"]
    told = " ".join(README.split())
    for what, row in (("rank correlation with the truth", "rank correlation, hidden space, tap"),
                      ("which needs no probe, has", "rank correlation, hidden space, table")):  # fmt: skip
        found = re.search(rf"^\| {row} \|  \| (\S+) \[(\S+), (\S+)\]", claims, re.M)
        assert found
        mean, low, high = (f"{Decimal(number):.2f}" for number in found.groups())
        assert f"{what} {mean} [{low}, {high}]" in told


def test_the_readme_names_the_winner_of_the_comparison() -> None:
    told = " ".join(README.split())
    mean, low, high, gain = _winner("comparison")
    assert f"on fitted steps: {mean} dB [{low}, {high}], {gain} above TAP" in told
    assert f"So it is on `emoji-flux` (60 images), but {_winner('comparison-emoji-flux')[-1]} above TAP" in told


def _winner(page: str) -> list[str]:
    """PSNR of the best row, which must be the best fixed predictor, with its bounds, and its gain over TAP there."""
    lines = PAGES[f"docs/{page}.md"].split("\n## ")[-1].splitlines()  # at the fewest passes
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    winner, *others = (row for row in rows if row[0] not in ("method", "---"))  # the best first
    tap = next(row for row in others if row[:2] == ["tap", winner[1]])
    assert winner[0] == "best-fixed"
    gain, most, least = (str(-Decimal(number)) for number in rounded(NUMBERS.findall(tap[-1])))
    return [*rounded(NUMBERS.findall(winner[6])), f"{gain} [{least}, {most}]"]


RIVALS = runpy.run_path(str(ROOT / "docs" / "make_rivals_table.py"))


def test_pages_have_the_rivals_of_the_comparison() -> None:
    """Every method, the best first, and sentences below the table with its differences."""
    pages = {"findings": PAGES["docs/findings.md"], "readme": README}
    assert RIVALS["pages"](pages) == pages, "run python docs/make_rivals_table.py"
    for model, page in (("mnist-dit", "comparison"), ("emoji-flux", "comparison-emoji-flux")):
        table = pages["findings"].split(f"make_rivals_table.py: {model} -->\n\n")[1].split("\n\n")[0].splitlines()[2:]
        last = PAGES[f"docs/{page}.md"].split("\n## ")[-1]
        methods = {row[0] for row in re.findall(r"^\| (\S+) \| (\S+)(?: \*)? \| [\d.]+ \|", last, re.M)}
        assert len(methods) <= len(table)
        titles = [METHODS[method].title or method for method in methods if method != "fewer"]
        assert [title for title in titles if not any(title in line for line in table)] == []
        quality = [float(NUMBERS.findall(line.split("|")[4])[0]) for line in table]
        assert quality == sorted(quality, reverse=True)

    found = load_table(ROOT / "data" / "study", "frontier")
    told = " ".join(pages["findings"].split("make_rivals_table.py: mnist-dit -->")[1].split("## Speed")[0].split())
    for cell, difference, says in (
        (
            "tap window-fitted-hidden N=8",
            "gain_over_best_fixed",
            "TAP ends {1} dB [{0}, {2}] below it on the fitted schedule",
        ),
        ("tap even N=8", "gain_over_best_fixed", "and {1} [{0}, {2}] below on the even one"),
        ("shuffled N=8", "gain_over_tap", "is worth {1} dB [{0}, {2}] against the probes of other tokens"),
        ("oracle N=8", "gain_over_tap", "Knowing the truth would be worth {1} dB there"),
        ("tap N=4", "gain_over_best_fixed", "above the best fixed predictor on the same steps by {1} dB [{0}, {2}]"),
    ):
        bounds = sorted(abs(found[difference].sel(cell=cell).values))  # of one sign
        assert says.format(*(f"{bound:.1f}" for bound in bounds)) in told


@pytest.mark.slow  # half a minute
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    policies = (tmp_path / "reference" / "policies.html").read_text()
    front = PAGES["docs/reference/accelerate.md"].split()
    assert not [name for name in tapstudy.policies.__all__ if f"tapstudy.{name}" not in front
                and f'id="tapstudy.policies.{name}"' not in policies]  # fmt: skip
    for page in navigation():
        path = tmp_path / page.replace(".md", ".html")
        if not path.is_file():  # a page that comes later
            continue
        loaded = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)", path.read_text()
        )
        assert loaded
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page
