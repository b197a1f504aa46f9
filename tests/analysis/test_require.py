import pytest
import xarray as xr

from tapstudy.analysis.require import require
from tests.table import each_row


def test_what_is_there_passes():
    dataset = xr.Dataset({"a": (("step", "token"), [[1.0]])}, coords={"row": ("token", [0])})
    require(dataset, "study", a=("step",), row=("token",))
    require(dataset, "study", a=())


@each_row(
    ("variables", "text"),
    [
        ({"b": ()}, r"study needs the variables \['b'\], but \['b'\] are missing \(there are \['a'\]\)"),
        ({"a": ("step", "sample")}, r"study: a must have .*'sample'.*lacks \['sample'\].*\('step', 'token'\)"),
    ],
)
def test_what_is_missing_is_named(variables, text):
    with pytest.raises(ValueError, match=text):
        require(xr.Dataset({"a": (("step", "token"), [[1.0]])}), "study", **variables)
    with pytest.raises(TypeError, match=r"study needs an xarray\.Dataset, got DataArray"):
        require(xr.DataArray([1.0]), "study")
