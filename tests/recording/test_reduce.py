import pytest
import torch

from tapstudy.recording.reduce import Norms, PrincipalComponents, RandomProjection


def test_norms():
    features = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert Norms()(features).tolist() == [[[5.0], [0.0]]]
    assert repr(Norms()) == "Norms()"


def test_random_projection_keeps_squared_norms_on_average():
    features = torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(1))
    squares = torch.stack([RandomProjection(4, seed)(features).square().sum() for seed in range(2000)])
    # the mean of chi-squared (4) / 4 over 2000 draws has a standard deviation of 1.6 %
    assert squares.mean() / features.square().sum() == pytest.approx(1, abs=0.08)


def test_random_projection_is_linear_and_seeded():
    a, b = torch.randn(2, 3, 5, 8).unbind()
    project = RandomProjection(4, seed=7)
    torch.testing.assert_close(project(a + 2 * b), project(a) + 2 * project(b))
    assert torch.equal(project(a), RandomProjection(4, seed=7)(a))
    assert not torch.equal(project(a), RandomProjection(4, seed=8)(a))
    assert project(a).shape == (3, 5, 4)
    assert repr(project) == "RandomProjection(size=4, seed=7)"
    with pytest.raises(ValueError, match="size must be at least 1"):
        RandomProjection(0)


def test_principal_components_of_a_known_ellipse():
    """Points at +-3 along (1, 1) / sqrt 2 and +-1 along (1, -1) / sqrt 2 around (10, 0, 0)."""
    u, v = torch.tensor([1.0, 1, 0]) / 2**0.5, torch.tensor([1.0, -1, 0]) / 2**0.5
    centre = torch.tensor([10.0, 0, 0])
    features = torch.stack([centre + 3 * u, centre - 3 * u, centre + v, centre - v]).view(1, 4, 3)
    found = PrincipalComponents.fit(features, 2)
    torch.testing.assert_close(found.mean, centre)
    torch.testing.assert_close(found.variances, torch.tensor([18.0, 2.0]) / 3)
    coordinates = found(features)[0]
    torch.testing.assert_close(coordinates[:2, 0], torch.tensor([3.0, -3.0]))
    torch.testing.assert_close(coordinates[2:, 1].abs(), torch.ones(2))
    torch.testing.assert_close(coordinates @ found.directions.T + found.mean, features[0])
    assert repr(found) == repr(PrincipalComponents.fit(features.clone(), 2))
    assert repr(found) != repr(PrincipalComponents.fit(features * 2, 2))
    with pytest.raises(ValueError, match=r"size must be in 1\.\.3, got 4"):
        PrincipalComponents.fit(features, 4)
