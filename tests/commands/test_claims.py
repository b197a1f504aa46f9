import pytest

from tapstudy.bench.claims import evidence
from tapstudy.cli import app
from tests.analysis.synthetic_claims import make_evidence, remember_statistics
from tests.command_line import invoke as run
from tests.table import each_row


@pytest.fixture
def collected(monkeypatch):
    """The plans that evidence was asked for; what is found is planted."""
    remember_statistics(monkeypatch)
    plans = []

    def collect(plan, folder, *, scheduler=None):
        plans.append((plan, str(folder), scheduler))
        return make_evidence(psnr={"step N=6": -2})

    monkeypatch.setattr(evidence, "collect", collect)
    return plans


def test_page_and_options(model, tmp_path, collected):
    out = tmp_path / "pages" / "claims.md"
    options = ["--seeds", "5,6,7", "--held-out", "8", "--images", "4", "--steps", "30", "--guidance", "1",
               "--scheduler", "tcp://a:1"]  # fmt: skip
    result = run(app, ["claims", "--model", model, "--work", str(tmp_path / "w"), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    ((plan, folder, scheduler),) = collected
    assert (plan.seeds, plan.held_out, plan.labels, plan.steps) == ((5, 6, 7), (8,), (0, 1, 2, 3), 30)
    assert (plan.guidance, plan.tuning) == (1.0, 3)  # one held-out image is left to fit to
    assert plan.depths == (1, 2)  # the tiny model has three blocks
    assert (folder, scheduler) == (str(tmp_path / "w"), "tcp://a:1")
    page = out.read_text()
    command = f"tapstudy claims --model {model} --seeds 5,6,7 --held-out 8 --tuning 3 --labels 0,1,2,3 --steps 30"
    for text in (
        f"`{command} --guidance 1 --fine-steps 400 --untrained 5 --out {out}`",
        "12 (seeds 5,6,7 x labels 0,1,2,3)",
        "torch 2",
        "## H15: fails",
        "## P3: holds",
    ):
        assert text in page
    assert "H15  fails" in result.output
    assert "Warning" not in page
    first = page
    run(app, ["claims", "--model", model, "--work", str(tmp_path / "w"), "--out", str(out), *options])
    assert out.read_text() == first


def test_a_saved_study_is_judged_again_as_it_was(model, tmp_path, collected):
    first, again, beside, study = (tmp_path / name for name in ("first.md", "again.md", "beside.md", "study"))
    assert run(app, ["claims", "--model", model, "--out", str(first), "--study", str(study)]).exit_code == 0
    assert run(app, ["bench", "verdicts", str(study), "--out", str(again)]).exit_code == 0
    command = f"* Judged again by: `tapstudy bench verdicts {study} --out {again}`\n"
    assert again.read_text().replace(command, "") == first.read_text() != again.read_text()
    assert f" --study {study}`" in first.read_text()
    assert run(app, ["bench", "verdicts", str(study), "--beside", str(study), "--out", str(beside)]).exit_code == 0
    assert "|  | here | study, 30 images |" in beside.read_text()
    assert len(collected) == 1
    refused = run(app, ["bench", "verdicts", str(tmp_path), "--out", str(again)])
    assert refused.exit_code == 2
    assert "no study in" in refused.stderr


def test_quick_is_small_and_says_so(model, tmp_path, collected):
    out = tmp_path / "claims.md"
    assert run(app, ["claims", "--model", model, "--quick", "--out", str(out)]).exit_code == 0
    plan = collected[0][0]
    assert len(plan.seeds) * len(plan.labels) == 2
    assert plan.steps == 20
    assert "from which nothing follows" in out.read_text()


def test_quick_keeps_the_published_page_and_tables(model, tmp_path, collected, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "claims.md"
    assert run(app, ["claims", "--model", model, "--study", "study"]).exit_code == 0
    kept = {path: path.read_bytes() for path in (page, *(tmp_path / "study").iterdir())}
    assert len(kept) == 7
    assert run(app, ["claims", "--model", model, "--quick"]).exit_code == 0
    assert "from which nothing follows" in (tmp_path / "claims" / "quick.md").read_text()
    assert run(app, ["claims", "--model", model, "--quick"]).exit_code == 0  # over its own page
    for option, where in (("--out", "docs/claims.md"), ("--study", "study")):
        result = run(app, ["claims", "--model", model, "--quick", option, where])
        assert result.exit_code == 2
        assert "--quick would replace" in result.stderr
        assert where in result.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(collected) == 3


@each_row(
    ("arguments", "message"),
    [
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--seeds", "41"], "both tested and held out"),
        (["--model", "nothing"], "no model 'nothing'"),
        (["--labels", "3", "--tuning", "1"], "at least two labels"),
        (["--labels", "3,4", "--images", "3"], "--images 3 is more than the 2 labels"),
        (["--steps", "5"], "5 steps leave 2 to skip on S(8, 3)"),
    ],
)
def test_bad_input_ends_with_one_line(model, tmp_path, collected, arguments, message):
    result = run(app, ["claims", "--model", model, "--out", str(tmp_path / "c.md"), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert not collected
