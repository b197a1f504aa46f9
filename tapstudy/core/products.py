"""Products of the actual features and the anchors with each other, (K, token), as `losses_from_products` wants them.

Between full steps only the actual features F change. With g = F_0 - F, the difference to the newest anchor, all that is
new follows from the products of g with itself and with the anchors, half of the work of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tapstudy.core.losses import Workspace, pairs_of

Parts = Iterator[tuple[slice, Tensor]]

# Tokens are scored in chunks whose float64 basis is at most this large, which stays in a processor's cache. Smaller
# ones would cost more in starts of threads.
CHUNK_BYTES = 4 << 20

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
        self._known: tuple[Tensor, Tensor] | None = None

    def products(self, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """`all_products` of [F, F_1, .., F_0], valid until the next call."""
        if rows[0].device.type != "cpu" or rows[0].dtype == torch.float64:  # narrower products are exact in float64
            return all_products(rows, dtype, self)
        if self._known is not None:
            products, newest = self._known
            if self._update(products, newest, rows):
                return products
        count = len(rows) - 1
        pairs = (count + 1) * (count + 2) // 2
        products = self.take(rows[0], (pairs, len(rows[0])), dtype, name="products")
        products.copy_(all_products(rows, dtype, self))
        newest = self.take(rows[0], (count, len(rows[0])), dtype, name="newest")
        torch.add(products[1:count], products[_with_last(count)[:-1]], out=newest[1:])  # of F_0 with F_j - F_0
        torch.add(products[0], products[count], alpha=2, out=newest[0]).add_(products[-1])  # |F_0|^2
        self._known = products, newest
        return products

    def _update(self, products: Tensor, newest: Tensor, rows: Sequence[Tensor]) -> bool:
        """Bring `products` up to date with the actual features; whether that was possible with full precision."""
        count = len(rows) - 1
        new = self._of_difference(rows)  # of g with F_0, F_1, .., g, (J + 1, T)
        actual = newest[0] - 2 * new[0] + new[count]
        if (actual < MUCH_SMALLER * newest[0]).any():
            return False
        across = new[1:count] - new[0]  # of g with F_j - F_0, (J - 1, T)
        products[0] = actual
        torch.sub(newest[1:], across, out=products[1:count])
        torch.sub(new[0], new[count], out=products[count])
        for k, row in zip(_with_last(count), (*across, new[count]), strict=True):
            products[k] = row
        return True

    def _of_difference(self, rows: Sequence[Tensor]) -> Tensor:
        actual, *others, newest = rows
        gram = self.take(actual, (len(actual), len(rows), 1), torch.float64, name="gram")
        for part, basis in chunks([newest, *others, actual], torch.float64, self):
            torch.sub(basis[0], basis[-1], out=basis[-1])
            vectors = basis.transpose(0, 1)  # (chunk, J + 1, D)
            torch.bmm(vectors, vectors[:, -1:].mT, out=gram[part])
        return gram.squeeze(-1).T.contiguous()


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
    return gram.permute(1, 2, 0)[first, second]


def differences(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Parts:
    """[F, F_1 - F_0, .., F_0 - F] of some tokens after the other, (J + 1, chunk, D)."""
    for part, basis in chunks(rows, dtype, workspace):
        basis[1:-1] -= basis[-1]
        basis[-1] -= basis[0]
        yield part, basis


def chunks(rows: Sequence[Tensor], dtype: torch.dtype, workspace: Workspace) -> Parts:
    """`rows`, (T, D) each, of some tokens after the other, (J + 1, chunk, D), in one buffer used again."""
    tokens, width = rows[0].shape
    size = max(1, CHUNK_BYTES // (len(rows) * width * dtype.itemsize))
    if rows[0].device.type != "cpu":
        size *= 64  # accelerators want few, large launches
    buffer = workspace.take(rows[0], (len(rows), min(size, tokens), width), dtype, name="basis")
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        basis = buffer[:, : part.stop - start]
        for vector, row in zip(basis, rows, strict=True):
            vector.copy_(row[part])
        yield part, basis


def _with_last(count: int) -> list[int]:
    """Where the products of vectors 1 to `count` with the last one, number `count`, are in `pairs_of(count + 1)`."""
    ends = [count]
    for row in range(1, count + 1):
        ends.append(ends[-1] + count + 1 - row)
    return ends[1:]
