"""The skip step in two Triton kernels: rank and choose in one, assemble in another.

They compute what `coordinates` and `scoring.assemble` do, in float32, and read every probe and residual once. One
program holds one token, so its vectors stay in registers from the differences to the choice.
"""

# annotations are values here, no strings: triton and torch.library read them
import torch
import triton
import triton.language as tl
from torch import Tensor

from tapstudy.core.coordinates import TINY as SMALLEST

TINY = tl.constexpr(SMALLEST)


@torch.library.custom_op("tapstudy::rank", mutates_args=())
def rank(anchors: list[Tensor], actual: Tensor, coefficients: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """Score predictors and choose one for every token.

    Args:
        anchors: at most 4, (T, D) each, newest first; channels next to each other in memory.
        actual: (T, D), likewise.
        coefficients: (predictor, J + 1), see `coordinates.coefficients_of`.

    Returns:
        Ranking scores (T, predictor), float32, and the first predictor with the least, (T,), int64.
    """
    scores, choice = _ranked(anchors, actual, coefficients, distance)
    (tokens, width), count = actual.shape, len(coefficients)
    first, second, third, fourth = (*anchors, *anchors[:1] * (4 - len(anchors)))
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(actual):
        _rank[(tokens,)](
            actual, first, second, third, fourth,
            actual.stride(0), first.stride(0), second.stride(0), third.stride(0), fourth.stride(0),
            coefficients, scores, choice, width, count,
            J=len(anchors), DISTANCE=distance, WIDTH=block, COUNT=max(16, triton.next_power_of_2(count)),
            num_warps=min(max(block // 512, 4), 16),
        )  # fmt: skip
    return scores, choice


@rank.register_fake
def _ranked(anchors: list[Tensor], actual: Tensor, coefficients: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    tokens = len(actual)
    return (
        actual.new_empty(tokens, len(coefficients), dtype=torch.float32),
        actual.new_empty(tokens, dtype=torch.int64),
    )


@torch.library.custom_op("tapstudy::assemble", mutates_args=())
def assemble(anchors: list[Tensor], weights: Tensor, choice: Tensor) -> Tensor:
    """Apply to every token the predictor it chose.

    Args:
        anchors: at most 4, (T, D) each; channels next to each other in memory.
        weights: (predictor, J), float32, contiguous.
        choice: (T,), rows of `weights`, contiguous.

    Returns:
        (T, D), float32.
    """
    result = _assembled(anchors, weights, choice)
    tokens, width = result.shape
    first, second, third, fourth = (*anchors, *anchors[:1] * (4 - len(anchors)))
    block = min(triton.next_power_of_2(width), 1024)
    with torch.cuda.device_of(result):
        _assemble[(tokens, triton.cdiv(width, block))](
            first, second, third, fourth,
            first.stride(0), second.stride(0), third.stride(0), fourth.stride(0),
            weights, choice, result, width,
            J=len(anchors), WIDTH=block,
        )  # fmt: skip
    return result


@assemble.register_fake
def _assembled(anchors: list[Tensor], weights: Tensor, choice: Tensor) -> Tensor:
    return anchors[0].new_empty(anchors[0].shape, dtype=torch.float32)


@triton.jit(do_not_specialize=["count"])
def _rank(
    F, A0, A1, A2, A3, row_F, row_0, row_1, row_2, row_3, coefficients, scores, choice, width, count,
    J: tl.constexpr, DISTANCE: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    f, newest = _load(F, token * row_F, width, WIDTH), _load(A0, token * row_0, width, WIDTH)
    g = newest - f
    d1, d2, d3 = g, g, g  # where there are fewer anchors, nothing reads them
    if J > 1:
        d1 = _load(A1, token * row_1, width, WIDTH) - newest
    if J > 2:
        d2 = _load(A2, token * row_2, width, WIDTH) - newest
    if J > 3:
        d3 = _load(A3, token * row_3, width, WIDTH) - newest
    scores += token * count
    if DISTANCE == "l1":
        norm = tl.sum(tl.abs(f), axis=0)
        best, chosen = tl.full((), float("inf"), tl.float32), tl.full((), 0, tl.int32)
        for predictor in range(count):
            w0, w1, w2, w3, w4 = _weights(coefficients, predictor, predictor < count, J)
            error = w0 * f + w1 * g
            if J > 1:
                error += w2 * d1
            if J > 2:
                error += w3 * d2
            if J > 3:
                error += w4 * d3
            loss = tl.div_rn(tl.sum(tl.abs(error), axis=0), tl.where(norm > 0, norm, 1.0))
            tl.store(scores + predictor, loss)
            chosen = tl.where(loss < best, predictor, chosen)
            best = tl.where(loss < best, loss, best)
    else:
        predictor = tl.arange(0, COUNT)
        w0, w1, w2, w3, w4 = _weights(coefficients, predictor, predictor < count, J)
        ahead, norm, g, d1, d2, d3 = _turn(f, g, d1, d2, d3, w0, w1, w2, w3, w4, J + 1)
        c, _, d1, d2, d3, _ = _turn(g, d1, d2, d3, d3, w1, w2, w3, w4, w4, J)
        across = c * c
        if J > 1:
            c, _, d2, d3, _, _ = _turn(d1, d2, d3, d3, d3, w2, w3, w4, w4, w4, J - 1)
            across += c * c
        if J > 2:
            c, _, d3, _, _, _ = _turn(d2, d3, d3, d3, d3, w3, w4, w4, w4, w4, J - 2)
            across += c * c
        if J > 3:
            c, _, _, _, _, _ = _turn(d3, d3, d3, d3, d3, w4, w4, w4, w4, w4, 1)
            across += c * c
        if DISTANCE == "l2":
            norm = tl.where(norm > 0, norm, 1.0)
            score = tl.div_rn(ahead * ahead + across, norm * norm)
            ranked = tl.where(score == score, score, float("inf"))
        else:
            cotangent = tl.div_rn(ahead, tl.sqrt_rn(across))
            score = -cotangent * tl.abs(cotangent)
            score = tl.where(score == score, score, 0.0)  # no direction
            ranked = score
        tl.store(scores + predictor, score, mask=predictor < count)
        chosen = tl.argmin(tl.where(predictor < count, ranked, float("inf")), axis=0)  # the first of equals
    tl.store(choice + token, chosen.to(tl.int64))


@triton.jit
def _turn(v0, v1, v2, v3, v4, w0, w1, w2, w3, w4, COUNT: tl.constexpr):
    """Take all predictions' coordinates along v0, of sum_i w_i v_i, and what is left of the other vectors."""
    square = tl.sum(v0 * v0, axis=0)
    length = tl.sqrt_rn(square)
    coordinate = w0 * length
    if COUNT > 1:
        part, v1 = _split(v1, v0, square)
        coordinate += w1 * (part * length)
    if COUNT > 2:
        part, v2 = _split(v2, v0, square)
        coordinate += w2 * (part * length)
    if COUNT > 3:
        part, v3 = _split(v3, v0, square)
        coordinate += w3 * (part * length)
    if COUNT > 4:
        part, v4 = _split(v4, v0, square)
        coordinate += w4 * (part * length)
    return coordinate, length, v1, v2, v3, v4


@triton.jit
def _split(vector, along, square):
    part = tl.div_rn(tl.sum(vector * along, axis=0), tl.maximum(square, TINY))
    return part, vector - part * along


@triton.jit
def _weights(coefficients, predictor, inside, J: tl.constexpr):
    """Load the coefficients of F, g, d_1, .. of predictors."""
    at = coefficients + predictor * (J + 1)
    w0, w1 = tl.load(at, mask=inside, other=0.0), tl.load(at + 1, mask=inside, other=0.0)
    w2, w3, w4 = w1, w1, w1
    if J > 1:
        w2 = tl.load(at + 2, mask=inside, other=0.0)
    if J > 2:
        w3 = tl.load(at + 3, mask=inside, other=0.0)
    if J > 3:
        w4 = tl.load(at + 4, mask=inside, other=0.0)
    return w0, w1, w2, w3, w4


@triton.jit
def _load(rows, start, width, WIDTH: tl.constexpr):
    channel = tl.arange(0, WIDTH)
    return tl.load(rows + start + channel, mask=channel < width, other=0.0).to(tl.float32)


@triton.jit
def _assemble(
    A0, A1, A2, A3, row_0, row_1, row_2, row_3, weights, choice, result, width,
    J: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < width
    at = weights + tl.load(choice + token) * J
    total = tl.load(at) * tl.load(A0 + token * row_0 + channel, mask=inside, other=0.0).to(tl.float32)
    if J > 1:
        total += tl.load(at + 1) * tl.load(A1 + token * row_1 + channel, mask=inside, other=0.0).to(tl.float32)
    if J > 2:
        total += tl.load(at + 2) * tl.load(A2 + token * row_2 + channel, mask=inside, other=0.0).to(tl.float32)
    if J > 3:
        total += tl.load(at + 3) * tl.load(A3 + token * row_3 + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + token * width + channel, total, mask=inside)
