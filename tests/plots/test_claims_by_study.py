import json

import pytest

from tapstudy.analysis.claims.report import verdicts_by_study
from tapstudy.analysis.claims.studies import by_title, judged, studies_in
from tapstudy.analysis.study import save_study, save_table
from tapstudy.plots.claims_by_study import plot_claims_by_study
from tests.analysis.synthetic_claims import make_evidence


def test_every_verdict_has_its_mark_in_its_column(tmp_path):
    """Two studies on disk, of which one claim is judged in one of them alone."""
    for name, evidence in (("", make_evidence()), ("other", make_evidence(psnr={"step N=6": -2}))):
        (tmp_path / name).mkdir(exist_ok=True)
        save_study(evidence, tmp_path / name)
    plan = {"model": "mnist-dit", "steps": 28, "guidance": 2.0}
    save_table(make_evidence().quality.assign_attrs(plan=json.dumps(plan)), tmp_path, "quality")
    (tmp_path / "none").mkdir()
    assert studies_in(tmp_path) == [tmp_path, tmp_path / "other"]
    first, second = map(judged, studies_in(tmp_path))
    assert first.title == "mnist-dit, 28 steps, guidance 2, 30 images"
    assert second.title == "other, 30 images"
    assert list(by_title([first, second, second._replace(folder="there")])) == [
        first.title, f"{second.title}, {tmp_path / 'other'}", f"{second.title}, there"]  # fmt: skip
    save_table(make_evidence().quality.drop_sel(cell="tap N=8"), tmp_path / "other", "quality")
    with pytest.raises(ValueError, match=f"study in {tmp_path}/other cannot be judged"):
        judged(tmp_path / "other")
    verdicts = verdicts_by_study({"model, 50 steps": first.findings, second.title: second.findings[1:]})
    assert verdicts.sel(study=second.title, claim="H15") == "fails"
    assert verdicts.sel(study=second.title)[0].item() == ""
    figure = plot_claims_by_study(verdicts)
    (axis,) = figure.axes
    marks = {
        (verdicts["claim"].values[int(y)], verdicts["study"].values[int(x)]): line.get_label()
        for line in axis.lines for x, y in zip(*line.get_data(), strict=True)
    }  # fmt: skip
    assert len(marks) == 2 * len(first.findings) - 1
    assert all(verdicts.sel(claim=claim, study=study) == verdict for (claim, study), verdict in marks.items())
    told = [label.get_text() for label in axis.get_xticklabels()]
    assert told[0].startswith("model\n50 steps\n")
    assert sum(map(int, told[1].split("\n")[-1].split(" · "))) == len(first.findings) - 1
