"""How far two sets of images of the same noise are apart as distributions, in a classifier's features."""

from __future__ import annotations

from torch import Tensor

from tapstudy.models.quality import frechet_distance


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Compute the squared maximum mean discrepancy, unbiased, kernel (x'y / d + 1)^3, and its jackknife error.

    The kernel is that of the kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401). Row i of both sets
    may belong to the same noise: the estimate is the U-statistic of Gretton et al. 2012 (JMLR 13, lemma 6), the mean
    over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), whose terms never pair an image with its own
    twin. It may be negative.

    Args:
        features, reference: (n, d) each, the same n of at least 3.

    Raises:
        ValueError: other shapes.
    """
    if features.shape != reference.shape or features.ndim != 2 or len(features) < 3:
        raise ValueError(
            f"kernel_distance needs two sets of equally many rows, at least 3, got {tuple(features.shape)} and "
            f"{tuple(reference.shape)}"
        )
    x, y = features.double(), reference.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3  # (n, n)

    cross = kernel(x, y)
    terms = kernel(x, x) + kernel(y, y) - cross - cross.T
    terms.fill_diagonal_(0)
    count, total, of_each = len(x), terms.sum(), terms.sum(dim=1)
    without = (total - 2 * of_each) / ((count - 1) * (count - 2))  # (n,): leaving one image out
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return float(total / (count * (count - 1))), float(error)


def distribution_distance(features: Tensor, reference: Tensor) -> tuple[float, float, str]:
    """Compute the Frechet distance if rows outnumber features, else `kernel_distance`; standard error; its name.

    The Frechet distance comes without an error (NaN).
    """
    if len(features) > features.shape[1]:
        return frechet_distance(features, reference), float("nan"), "Frechet distance"
    return *kernel_distance(features, reference), "kernel distance (squared, unbiased; cubic kernel)"
