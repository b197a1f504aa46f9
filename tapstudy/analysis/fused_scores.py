"""Loops of rescoring that numba compiles: each number is read once, and what lies between goes to no memory.

What they find, `window_scores`, `core.scoring` and `selection` find without numba; formulas and names are those of
`core.scoring`. Measured on one core, a value takes 0.7 ns in place of 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
Selected = tuple[Array, Array, Array, Array, Array, Array, Array]

# Numbers that a processor takes at once, at most.
LANES = 16

# Tokens whose scaled products stay in a processor's first cache.
BLOCK = 7 * LANES

# Sums in any order, which makes them vectors; what is not a number stays so.
FAST = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[..., Any]) -> Any:
    """By numba at the first call with new types, and kept on disk where there is a folder that can be written."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:
        return njit(function, **options)


@compiled
def products(stored: Array, anchors: Array, actual: Array, start: int, out: Array) -> None:
    """Of [F_s, A_1 - A_0, .., A_0 - F_s] in the order of `pairs_of`, summed in float64.

    Args:
        stored: features that hold the anchors, (any, N, D).
        anchors: where they are in `stored`, newest first, (J,).
        actual: F_s, (S, N, D).
        start: where the tokens go in `out`.
        out: (S, K, T), float64.
    """
    count = len(anchors)
    steps, tokens, width = actual.shape
    now, error, change = np.empty(width), np.empty(width), np.empty((count, width))  # F, A_0 - F, A_j - A_0
    between = np.empty((count, count))
    found = np.empty((steps, out.shape[1], LANES))  # of a few tokens, which fill cache lines of `out`
    for token in range(tokens):
        newest = stored[anchors[0], token]
        for j in range(1, count):
            older = stored[anchors[j], token]
            for d in range(width):
                change[j, d] = np.float64(older[d]) - np.float64(newest[d])
            for i in range(1, j + 1):
                total = 0.0
                for d in range(width):
                    total += change[i, d] * change[j, d]
                between[i, j] = total
        lane = token % LANES
        for step in range(steps):
            values = actual[step, token]
            norm, along, square = 0.0, 0.0, 0.0
            for d in range(width):
                f = np.float64(values[d])
                e = np.float64(newest[d]) - f
                now[d], error[d] = f, e
                norm += f * f
                along += f * e
                square += e * e
            found[step, 0, lane] = norm
            found[step, count, lane] = along
            k = count + 1
            for j in range(1, count):
                ahead, aside = 0.0, 0.0
                for d in range(width):
                    ahead += now[d] * change[j, d]
                    aside += error[d] * change[j, d]
                found[step, j, lane] = ahead
                for i in range(j, count):
                    found[step, k, lane] = between[j, i]
                    k += 1
                found[step, k, lane] = aside
                k += 1
            found[step, k, lane] = square
        if lane == LANES - 1 or token == tokens - 1:
            first = start + token - lane
            for step in range(steps):
                for k in range(out.shape[1]):
                    for i in range(lane + 1):
                        out[step, k, first + i] = found[step, k, i]


@compiled
def scale_for_l2(products: Array, scaled: Array) -> None:
    """The last products (K, n) in units of |F| = 1, or as they are if F = 0, (terms, n)."""
    first = len(products) - len(scaled)
    for t in range(products.shape[1]):
        norm = products[0, t] if products[0, t] > 0 else 1.0
        for k in range(len(scaled)):
            scaled[k, t] = products[first + k, t] / norm


@compiled
def scale_for_cosine(products: Array, across: Array, ahead: Array) -> None:
    """Products (K, n) in units of |F| = 1: those beside F (pairs, n), and A_j - A_0 and A_0 along F (J, n)."""
    count = len(ahead)
    for t in range(products.shape[1]):
        norm = products[0, t]
        k = 0
        for i in range(count):
            along = products[1 + i, t] / norm
            ahead[i, t] = along if i < count - 1 else 1 + along
            for j in range(i, count):
                across[k, t] = products[count + 1 + k, t] / norm - along * (products[1 + j, t] / norm)
                k += 1


@cache
def selection(count: int, cosine: bool, sums_are_one: bool) -> Callable[..., Selected]:
    """A function for one kind of predictors: that the compiler knows these numbers makes it several times faster.

    Args:
        count: number of anchors, J.
        cosine: the distance of the proxy losses is cosine, not l2.
        sums_are_one: the weights of every predictor sum to 1, which leaves no F in its error.
    """
    pairs = count * (count + 1) // 2
    terms = pairs if sums_are_one else count + 1 + pairs
    proxy_terms = pairs if cosine else terms
    zero, one, limit = np.float32(0), np.float32(1), np.float32(3)

    @compiled
    def select(probe: Array, residual: Array, blocks: Array, error: Array, proxy_form: Array, form: Array) -> Selected:
        """Finds both losses of every predictor, and keeps what `Selection` holds, in its order, with sums for means.

        Args:
            probe: products, (S, K, T).
            residual: likewise.
            blocks: of tokens: row, start and stop, (any, 3).
            error: weights of the differences in the error, (S, P, J), float32.
            proxy_form: weights of the products in the square of the proxy's error, (S, P, proxy_terms).
            form: in that of the true error, (S, P, terms).
        """
        steps, predictors, rows = len(error), error.shape[1], blocks[-1, 0] + 1
        shape = (steps, probe.shape[2])
        least, paid, lowest = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
        chosen, best = np.empty(shape, np.int32), np.empty(shape, np.int32)
        sums, true_sums = np.zeros((steps, predictors, rows)), np.zeros((steps, predictors, rows))
        across, ahead = np.empty((proxy_terms, BLOCK)), np.empty((count, BLOCK), np.float32)
        scaled = np.empty((terms, BLOCK))
        for step in range(steps):
            for row, start, stop in blocks:
                if cosine:
                    scale_for_cosine(probe[step, :, start:stop], across, ahead)
                else:
                    scale_for_l2(probe[step, :, start:stop], across)
                scale_for_l2(residual[step, :, start:stop], scaled)
                a, i, b = least[step, start:stop], chosen[step, start:stop], paid[step, start:stop]
                c, j = lowest[step, start:stop], best[step, start:stop]
                for p in range(predictors):
                    total, true_total = zero, zero
                    index, is_first = np.int32(p), p == 0
                    for t in range(stop - start):
                        square, true_square = 0.0, 0.0
                        for k in range(proxy_terms):
                            square += proxy_form[step, p, k] * across[k, t]
                        for k in range(terms):
                            true_square += form[step, p, k] * scaled[k, t]
                        s2, e2 = np.float32(square), np.float32(true_square)
                        s2, e2 = zero if s2 < zero else s2, zero if e2 < zero else e2
                        if cosine:
                            u = zero
                            for m in range(count):
                                u += error[step, p, m] * ahead[m, t]
                            q = np.sqrt(s2 + u * u)
                            v = q + abs(u)
                            loss = (v * v if u < zero else s2) / (q * v)  # 1 + |cos| where it points away
                            loss = loss if loss < limit else one  # no direction leaves 0 / 0
                        else:
                            loss = np.sqrt(s2)
                        true_loss = np.sqrt(e2)
                        total += loss
                        true_total += true_loss
                        better = is_first or loss < a[t]
                        a[t] = loss if better else a[t]
                        i[t] = index if better else i[t]
                        b[t] = true_loss if better else b[t]
                        better = is_first or true_loss < c[t]
                        c[t] = true_loss if better else c[t]
                        j[t] = index if better else j[t]
                    sums[step, p, row] += total
                    true_sums[step, p, row] += true_total
        return least, chosen, paid, lowest, best, sums, true_sums

    return select


def blocks_of(tokens: int, rows: int) -> Array:
    """Of every row of tokens: row, start and stop, (any, 3); whole vectors but for the end of a row."""
    count = -(-tokens // BLOCK)
    size = -(-tokens // (LANES * count)) * LANES
    starts = np.arange(0, tokens, size)
    one = np.stack([0 * starts, starts, np.minimum(starts + size, tokens)], axis=1)
    return (one + np.arange(rows)[:, None, None] * np.array([1, tokens, tokens])).reshape(-1, 3)
