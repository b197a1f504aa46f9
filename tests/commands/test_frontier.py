import xarray as xr

from tapstudy.bench.frontier.table import COLUMNS
from tapstudy.cli import app
from tests.command_line import invoke as run
from tests.table import each_row


def test_table_and_file(model, tmp_path):
    options = ["--seeds", "3", "--held-out", "4", "--labels", "1,2", "--passes", "6,5", "--steps", "12",
               "--tuning", "1", "--repeats", "1", "--methods", "fewer,tap,peer-taylorseer",
               "--schedules", "even"]  # fmt: skip
    out = tmp_path / "out" / "frontier.nc"
    arguments = ["bench", "frontier", "--model", model, "--work", str(tmp_path / "w"), "--out", str(out), *options]
    arguments += ["--page", str(tmp_path / "frontier.md")]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("6 full passes of 12 steps, 2 images", "5 full passes", "does not run", "TaylorSeerCacheConfig finds"):
        assert text in result.output
    page = (tmp_path / "frontier.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| fewer", "| tap"))]
    assert [row[2] for row in rows if row[0] == "| fewer"] == ["6", "5"]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert "## 5 full passes of 12" in page
    assert "* peer-taylorseer does not run" in page
    with xr.open_dataset(out) as found:
        assert found["cell"].values[:3].tolist() == ["reference", "fewer N=3", "tap N=3"]
        assert {"psnr", "ssim", "flops", "seconds", "cache_bytes", "mask", "gain_over_tap"} <= set(found.data_vars)
    again = ["bench", "join", str(out), str(out), "--out", str(tmp_path / "both.nc"), "--page", str(tmp_path / "b.md")]
    result = run(app, again)
    assert result.exit_code == 0, result.output
    assert "5 full passes of 12 steps, 2 images" in result.output
    assert (tmp_path / "b.md").read_text().split("* Model")[1] == page.split("* Model")[1]
    with xr.open_dataset(out) as one, xr.open_dataset(tmp_path / "both.nc") as both:
        xr.testing.assert_equal(one, both)
    result = run(app, ["bench", "join", str(tmp_path / "none.nc")])
    assert result.exit_code == 2
    assert "no table" in result.output


@each_row(
    ("options", "message"),
    [
        (["--seeds", "41"], "both tested and held out"),
        (["--passes", "11"], "makes 11 full passes"),
        (["--methods", "tapp"], "no method tapp"),
        (["--schedules", "even,odd"], "no schedule odd: there are even, start-dense"),
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--model", "nothing"], "no model 'nothing'"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, options, message):
    result = run(app, ["bench", "frontier", "--work", str(tmp_path), "--out", str(tmp_path / "f.nc"), *options])
    assert result.exit_code == 2
    assert message in result.output
