"""Products of the actual features and the anchors with each other, (K, token), as `losses_from_products` wants them.

Between full steps only the actual features F change. With g = F_0 - F, the difference to the newest anchor, all that is
new follows from the products of g with itself and with the anchors, half of the work of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tapstudy.core.losses import Workspace, pairs_of, vectors_of

Parts = Iterator[tuple[slice, Tensor]]

# Tokens are scored in chunks whose float64 basis is at most this large, which stays in a processor's cache. Smaller
# ones would cost more in starts of threads.
CHUNK_BYTES = 6 << 20

# Where |F|^2 is below this part of |F_0|^2, it is not computed from differences to F_0, nor the other way round.
MUCH_SMALLER = 1e-4


class AnchorWorkspace(Workspace):
    """A workspace that also keeps, on a processor, the products of the anchors with each other.

    They are learned from the products of the first call after other anchors. Call `anchors_changed` whenever these are
    about to come. Accelerators compute all products anew: nothing is then kept in their memory, and nothing waits for
    them.

    Attributes:
        known: products of [F_0, F_1 - F_0, ..] in the order of `pairs_of`, (J (J + 1) / 2, T) in float64, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.anchors_changed()

    def anchors_changed(self) -> None:
        self.known: Tensor | None = None

    def learn(self, products: Tensor, actual: Tensor) -> None:
        """Keep what all products tell of the anchors.

        Nothing is kept on accelerators, of features in float64, whose products are not exact, and where some F_0 is
        so much smaller than F that |F_0|^2 is nothing to compute from differences.

        Args:
            products: of all pairs of [F, F_1 - F_0, .., F_0 - F], (K, T).
            actual: F.
        """
        if actual.device.type != "cpu" or actual.dtype == torch.float64:
            return
        vectors = vectors_of(len(products))
        selecting = _selecting(vectors - 1)
        shape = len(selecting) + vectors, products.shape[1]
        self._parts = self.take(products, shape, torch.float64, name="parts")  # behind is room for what a step adds
        known = torch.mm(selecting, products, out=self._parts[: len(selecting)])
        if not much_smaller(known, products):
            self.known = known

    def products(self, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """`all_products` of [F, F_1, .., F_0], valid until the next call."""
        if self.known is not None:
            self._of_difference(rows, out=self._parts[len(self.known) :])
            mixing = _mixing(len(rows) - 1)
            products = self.take(self.known, (len(mixing), self.known.shape[1]), torch.float64, name="products")
            torch.mm(mixing, self._parts, out=products)
            if not much_smaller(products, self.known):
                return products
        products = all_products(rows, dtype, self)
        if self.known is None:
            self.learn(products, rows[0])
        return products

    def _of_difference(self, rows: Sequence[Tensor], *, out: Tensor) -> None:
        """Products of g with [F_0, F_1, .., g], (J + 1, T)."""
        actual, *others, newest = rows
        gram = self.take(actual, (len(actual), len(rows), 1), torch.float64, name="gram")
        for part, basis in chunks([newest, *others, actual], torch.float64, self):
            torch.sub(basis[0], basis[-1], out=basis[-1])
            vectors = basis.transpose(0, 1)  # (chunk, J + 1, D)
            torch.bmm(vectors, vectors[:, -1:].mT, out=gram[part])
        out.copy_(gram.squeeze(-1).T)


@lru_cache
def _selecting(count: int) -> Tensor:
    """Products of [F_0, F_1 - F_0, ..] from those of [F, F_1 - F_0, .., F_0 - F], (J (J + 1) / 2, K)."""
    vectors = torch.eye(count, count + 1, dtype=torch.float64)
    vectors[0, -1] = 1  # F_0 = F + (F_0 - F)
    one, other = (vectors[index] for index in pairs_of(count))
    first, second = pairs_of(count + 1)
    products = one[:, first] * other[:, second]
    return products + (first != second) * one[:, second] * other[:, first]


@lru_cache
def _mixing(count: int) -> Tensor:
    """`join_products` as one matrix, (K, J (J + 1) / 2 + J + 1), for products of g with [F_0, F_1, .., g]."""
    pairs = count * (count + 1) // 2
    known, new = torch.eye(pairs + count + 1, dtype=torch.float64).split([pairs, count + 1])
    return join_products(known, [new[0], *(new[1:-1] - new[0]), new[-1]])


def join_products(known: Tensor, new: Sequence[Tensor] | Tensor) -> Tensor:
    """Products of all pairs of [F, F_1 - F_0, .., F_0 - F] from those without F and those of g = F_0 - F.

    Args:
        known: of [F_0, F_1 - F_0, ..] with each other, in the order of `pairs_of`, (J (J + 1) / 2, T).
        new: of g with [F_0, F_1 - F_0, .., g], J + 1 of (T,).

    Returns:
        (K, T) in the order of `pairs_of`; exact to rounding unless F is `much_smaller` than F_0.
    """
    first, *differences, last = new
    rows = [known[0] - 2 * first + last]  # |F|^2
    rows += [known[j] - product for j, product in enumerate(differences, start=1)]  # of F with F_j - F_0
    rows.append(first - last)  # of F with g
    place = count = len(differences) + 1
    for j, product in enumerate(differences, start=1):
        rows += [*known[place : place + count - j], product]
        place += count - j
    return torch.stack([*rows, last])


def much_smaller(products: Tensor, others: Tensor) -> Tensor:
    """Whether the first square of some token is nothing to compute from the other's and the difference."""
    return (products[0] < MUCH_SMALLER * others[0]).any()


def all_products(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Tensor:
    """Of all pairs of [F, F_1 - F_0, .., F_0 - F], (K, T).

    Args:
        rows: [F, F_1, .., F_0], (T, D) each.
    """
    gram = workspace.take(rows[0], (len(rows[0]), len(rows), len(rows)), dtype, name="gram")
    for part, basis in differences(rows, dtype, workspace):
        vectors = basis.transpose(0, 1)  # (chunk, J + 1, D)
        torch.bmm(vectors, vectors.mT, out=gram[part])
    first, second = pairs_of(len(rows), gram.device)
    products = workspace.take(rows[0], (len(first), len(gram)), dtype, name="products")
    return torch.index_select(gram.flatten(1).T, 0, len(rows) * first + second, out=products)


def differences(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Parts:
    """[F, F_1 - F_0, .., F_0 - F] of some tokens after the other, (J + 1, chunk, D)."""
    for part, basis in chunks(rows, dtype, workspace):
        basis[1:-1] -= basis[-1]
        basis[-1] -= basis[0]
        yield part, basis


def chunk_size(rows: int, width: int, dtype: torch.dtype = torch.float64) -> int:
    """Tokens in a chunk of so many rows of vectors."""
    return max(1, CHUNK_BYTES // (rows * width * dtype.itemsize))


def chunks(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Parts:
    """`rows`, (T, D) each, of some tokens after the other, (J + 1, chunk, D), in one buffer used again."""
    tokens, width = rows[0].shape
    size = chunk_size(len(rows), width, dtype)
    if rows[0].device.type != "cpu":
        size *= 64  # accelerators want few, large launches
    buffer = workspace.take(rows[0], (len(rows), min(size, tokens), width), dtype, name="basis")
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        basis = buffer[:, : part.stop - start]
        for vector, row in zip(basis, rows, strict=True):
            vector.copy_(row[part])
        yield part, basis
