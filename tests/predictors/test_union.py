import pytest

from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.family import Label, candidates
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.least_squares import LeastSquares
from tapstudy.predictors.reuse import Reuse
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.union import Union
from tests.table import each_row


def test_members_keep_their_order_names_and_rows():
    taylor, squares = TaylorFamily(shifts=(0, 1)), LeastSquares((1,), window=4)
    union = Union(taylor, squares)
    assert [str(label) for label in union.labels] == [
        "taylor m=0 s=0", "taylor m=0 s=1", "taylor m=1 s=0", "taylor m=1 s=1", "taylor m=2 s=0", "taylor m=2 s=1",
        "least-squares m=1 s=0",
    ]  # fmt: skip
    assert union.num_anchors == 4
    anchors = (20, 12, 4, 2)
    rows = union.rows(anchors, 23)
    assert rows[:6] == [row + (0.0,) for row in taylor.rows(anchors[:3], 23)]
    assert rows[6] == squares.rows(anchors, 23)[0]
    # each family sees its own window alone
    narrow = LeastSquares((1,), window=3)
    wider = Union(narrow, LeastSquares((1,), window=5)).rows((20, 12, 4, 2, 1), 23)
    assert wider[0] == narrow.rows((20, 12, 4), 23)[0] + (0.0, 0.0)


def test_equal_predictors_of_different_families_count_once():
    union = Union(TaylorFamily(shifts=(0,)), Reuse(), AdamsBashforth(history="anchors"))
    found = candidates(union, (2, 1, 0), 3)
    assert found.inverse.tolist() == [0, 1, 2, 0, 1]  # one step after neighbours, 2 f_0 - f_1 is Taylor's order 1
    assert found.first.tolist() == [0, 1, 2]


def test_names_and_hash():
    union = Union(TaylorFamily(), TaylorFamily(differences="divided"), names=("taylor", "divided"))
    assert {label.family for label in union.labels} == {"taylor", "divided"}
    assert len(set(union.labels)) == 30
    assert hash(union) == hash(Union(TaylorFamily(), TaylorFamily(differences="divided"), names=["taylor", "divided"]))
    nested = Union(Union(HermiteFamily(), Chebyshev()), Reuse())
    assert [label.family for label in nested.labels] == ["hermite", "chebyshev", "reuse"]
    assert Label(1, 0.5) == Label(1, 0.5, "")
    assert str(Label(1, 0.5)) == "m=1 s=0.5"


@each_row(
    ("arguments", "message"),
    [(((), ()), "at least one family"), (((Reuse(),), ("a", "b")), "got 2 names for 1 families")],
)
def test_bad_input(arguments, message):
    families, names = arguments
    with pytest.raises(ValueError, match=message):
        Union(*families, names=names)
