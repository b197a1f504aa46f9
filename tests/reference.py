"""TAP on a DiT in float64, written out with plain module calls and loops. Shares no code with the package."""

from __future__ import annotations

import math

import torch


def forward_parts(model, x, t, labels):
    """Hidden state entering block 0, and block 0's modulated input."""
    block = model.transformer_blocks[0]
    hidden = model.pos_embed(x)
    embedding = block.norm1.emb(t, labels, hidden_dtype=hidden.dtype)
    shift, scale = block.norm1.linear(block.norm1.silu(embedding)).chunk(6, dim=1)[:2]
    probe = block.norm1.norm(hidden) * (1 + scale[:, None]) + shift[:, None]
    return hidden, probe


def run_blocks(model, hidden, t, labels):
    for block in model.transformer_blocks:
        hidden = block(hidden, timestep=t, class_labels=labels)
    return hidden


def run_tail(model, hidden, t, labels):
    embedding = model.transformer_blocks[0].norm1.emb(t, labels, hidden_dtype=hidden.dtype)
    shift, scale = model.proj_out_1(torch.nn.functional.silu(embedding)).chunk(2, dim=1)
    out = model.proj_out_2(model.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
    side, p, c = math.isqrt(out.shape[1]), model.config.patch_size, model.out_channels
    image = out.new_zeros(len(out), c, side * p, side * p)
    for n in range(side * side):
        row, col = divmod(n, side)
        patch = out[:, n].view(-1, p, p, c).permute(0, 3, 1, 2)
        image[:, :, row * p : row * p + p, col * p : col * p + p] = patch
    return image


def distance(kind, predicted, actual):
    """Over channels: (B, N, D), (B, N, D) -> (B, N)."""
    if kind == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(predicted, actual, dim=-1, eps=0)
    power = 2 if kind == "l2" else 1
    return (predicted - actual).norm(p=power, dim=-1) / actual.norm(p=power, dim=-1)


def predictions(history, order, horizon):
    """Taylor prediction from [(step, feature), ...], newest first, by the recursion over all full steps."""
    tables = []  # tables[f]: differences at the f-th oldest full step
    previous = None
    for step, feature in reversed(history):
        table = [feature]
        if previous is not None:
            gap = step - previous[0]
            for j in range(len(previous[1])):
                table.append((table[j] - previous[1][j]) / gap)
        tables.append(table)
        previous = (step, table)
    newest = tables[-1][: order + 1]
    return sum(d * horizon**j / math.factorial(j) for j, d in enumerate(newest))


def tap(model, labels, noise, *, steps, interval, warmup, guidance, kind="cosine", latent=False):
    """Final latents, and per skip step the choices as (order, shift) with the losses of all 15 candidates."""
    sigmas = (torch.linspace(1000.0, 1.0, steps, dtype=torch.float64) / 1000).float()
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    x, null = noise.double(), model.config.num_embeds_ada_norm
    all_labels = torch.cat([labels, torch.full_like(labels, null)])
    probes, residuals, log = [], [], {}
    for i in range(steps):
        both = torch.cat([x, x])
        t = (sigmas[i] * 1000).double().expand(len(both))
        hidden, probe = forward_parts(model, both, t, all_labels)
        if i < warmup or (i - warmup + 1) % interval == 0:
            tail = run_blocks(model, hidden, t, all_labels)
            out = run_tail(model, tail, t, all_labels)
            probes.insert(0, (i, probe))
            residuals.insert(0, (i, out - both if latent else tail - hidden))
        else:
            k = i - probes[0][0]
            best = torch.full(probe.shape[:2], math.inf, dtype=torch.float64)
            chosen = torch.zeros(*probe.shape[:2], 2, dtype=torch.int64)
            hat = torch.zeros_like(residuals[0][1])
            losses = {}
            p, side = model.config.patch_size, math.isqrt(probe.shape[1])
            for order in (0, 1, 2):
                if order >= len(probes):
                    continue
                for shift in (0, 1, 2, 3, 4):
                    loss = distance(kind, predictions(probes, order, k - shift), probe)
                    losses[order, shift] = loss
                    candidate = predictions(residuals, order, k - shift)
                    # strictly better beyond rounding: ties stay with the earlier candidate
                    better = loss < best - 1e-13
                    best = torch.where(better, loss, best)
                    for b, n in better.nonzero().tolist():
                        chosen[b, n] = torch.tensor([order, shift])
                        if latent:
                            row, col = divmod(n, side)
                            box = (b, slice(None), slice(row * p, row * p + p), slice(col * p, col * p + p))
                            hat[box] = candidate[box]
                        else:
                            hat[b, n] = candidate[b, n]
            log[i] = chosen, losses
            out = both + hat if latent else run_tail(model, hidden + hat, t, all_labels)
        labelled, free = out.chunk(2)
        velocity = free + guidance * (labelled - free)
        x = x.float().double() + (sigmas[i + 1] - sigmas[i]) * velocity  # diffusers steps from a float32 state
    return x, log
