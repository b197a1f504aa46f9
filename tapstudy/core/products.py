"""Products of the actual features and the anchors with each other, (K, token), as `losses_from_products` wants them.

Between full steps only the actual features F change. With g = F_0 - F, the difference to the newest anchor, all that is
new follows from the products of g with itself and with the anchors, half of the work of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tapstudy.core.losses import Workspace, pairs_of

Parts = Iterator[tuple[slice, Tensor]]

# Tokens are scored in chunks whose float64 basis is at most this large, which stays in a processor's cache. Smaller
# ones would cost more in starts of threads.
CHUNK_BYTES = 6 << 20

# Where |F|^2 is below this part of |F_0|^2, it is not computed from differences to F_0.
MUCH_SMALLER = 1e-4


class AnchorWorkspace(Workspace):
    """A workspace that also keeps, on a processor, the products of the anchors with each other.

    Call `anchors_changed` whenever other anchors are about to come. Accelerators compute all products anew: nothing is
    then kept in their memory, and nothing waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.anchors_changed()

    def anchors_changed(self) -> None:
        self._parts: Tensor | None = None

    def known(self, anchors: Sequence[Tensor]) -> Tensor | None:
        """Products of [F_0, F_1 - F_0, ..] in the order of `pairs_of`, (J (J + 1) / 2, T) in float64.

        Args:
            anchors: [F_0, F_1, ..], (T, D) each; those of the first call since `anchors_changed`.

        Returns:
            None where all products are computed anew: on accelerators, and of float64, whose products are not exact.
        """
        newest, count = anchors[0], len(anchors)
        if newest.device.type != "cpu" or newest.dtype == torch.float64:
            return None
        pairs = count * (count + 1) // 2
        if self._parts is None:
            gram = self.take(newest, (len(newest), count, count), torch.float64, name="gram")
            for part, basis in chunks(anchors, torch.float64, self):
                basis[1:] -= basis[0]
                _gram(basis, out=gram[part])
            first, second = pairs_of(count)
            self._parts = self.take(newest, (pairs + count + 1, len(newest)), torch.float64, name="parts")
            self._parts[:pairs] = gram.permute(1, 2, 0)[first, second]
        return self._parts[:pairs]

    def products(self, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """`all_products` of [F, F_1, .., F_0], valid until the next call."""
        known = self.known([rows[-1], *rows[1:-1]])
        if known is not None:
            assert self._parts is not None
            self._of_difference(rows, out=self._parts[len(known) :])
            mixing = _mixing(len(rows) - 1)
            products = self.take(known, (len(mixing), known.shape[1]), torch.float64, name="products")
            torch.mm(mixing, self._parts, out=products)
            if not much_smaller(products, known):
                return products
        return all_products(rows, dtype, self)

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


def much_smaller(products: Tensor, known: Tensor) -> Tensor:
    """Whether the F of some token is so much smaller than its F_0 that |F|^2 is nothing to compute from differences."""
    return (products[0] < MUCH_SMALLER * known[0]).any()


def all_products(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Tensor:
    """Of all pairs of [F, F_1 - F_0, .., F_0 - F], (K, T).

    Args:
        rows: [F, F_1, .., F_0], (T, D) each.
    """
    gram = workspace.take(rows[0], (len(rows[0]), len(rows), len(rows)), dtype, name="gram")
    for part, basis in differences(rows, dtype, workspace):
        _gram(basis, out=gram[part])
    first, second = pairs_of(len(rows), gram.device)
    return gram.permute(1, 2, 0)[first, second]


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


def _gram(basis: Tensor, *, out: Tensor) -> None:
    """Products of all vectors of a token: (vector, chunk, D) -> (chunk, vector, vector)."""
    vectors = basis.transpose(0, 1)
    torch.bmm(vectors, vectors.mT, out=out)
