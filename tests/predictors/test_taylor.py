from tapstudy.predictors.family import candidates
from tapstudy.predictors.taylor import TaylorFamily
from tests.table import each_row


@each_row(("distance", "distinct"), [(1, 9), (4, 9), (5, 11), (7, 11)])
def test_distinct_members(distance, distinct):
    """Order 0 counts once; while a horizon is 0, orders 1 and 2 there equal order 0."""
    found = candidates(TaylorFamily(), (18, 10, 2), 18 + distance)
    assert len(found.first) == distinct
    assert found.weights.shape == (distinct, 3)
    assert found.inverse[:5].tolist() == [0] * 5


def test_few_anchors_cap_the_order():
    one = candidates(TaylorFamily(), (0,), 2)
    assert one.weights.tolist() == [[1.0]]
    two = candidates(TaylorFamily(), (1, 0), 3)
    # order 2 falls back to order 1, so only order 0 and the four other horizons of order 1 are left
    assert len(two.first) == 5


def test_clip_and_fractions():
    family = TaylorFamily(orders=(1,), shifts=(0, 3), clip="zero")
    assert family.rows((1, 0), 2) == [(2.0, -1.0), (1.0, 0.0)]
    family = TaylorFamily(orders=(1,), shifts=(0, 3), clip="one")
    assert family.rows((1, 0), 2) == [(2.0, -1.0), (2.0, -1.0)]
    family = TaylorFamily(orders=(1,), shifts=(0, 3))
    assert family.rows((1, 0), 2) == [(2.0, -1.0), (-1.0, 2.0)]
    assert TaylorFamily(orders=(1,), shifts=(0.5,)).rows((1, 0), 2) == [(1.5, -0.5)]
