"""Triton kernels of the selective scan.

Channels come in groups with B and C of their own; the four walks over an image are groups that share u, and whose
results are added up. Time is cut into tiles:

    walk        what each tile adds to the state, or against time to the state's adjoint; or y. Step by step: a thread
                has all states of a channel, so that neither the recurrence nor the sum over states leaves it
    carry       walks over the tiles: the state entering each one
    gradients   all gradients, by associative scans of (decay, input) within a tile; sums over channels and over time
                are left in one part per program

All arithmetic is float32, whatever type the inputs have; differences of running sums of delta would cancel where large
and small deltas meet. Strides end in their axis: batch, step (l), group, channel (d) or state (n).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
"""exp(x) = 2 ** (LOG2E x): the factor is multiplied into A once, instead of into every step."""
STEPS: tl.constexpr = tl.constexpr(4)
"""Steps of `walk` that are loaded at once, so that none waits for the one before; `_steps` halves twice."""


@triton.jit
def _combine(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _softplus(z):
    # max(z, 0) + log1p(exp(-|z|)); the polynomial of log1p on [0, 1] is that of native/lanes.h
    w = tl.exp2(tl.abs(z) * -LOG2E)
    p = -3.163999359e-03 * w + 1.948768609e-02
    p = p * w - 5.626952581e-02
    p = p * w + 1.053295061e-01
    p = p * w - 1.526327365e-01
    p = p * w + 1.966101787e-01
    p = p * w - 2.495116719e-01
    p = p * w + 3.332966549e-01
    p = p * w - 4.999989090e-01
    p = p * w + 1.0
    return tl.where(z > 0, z, z * 0.0) + p * w  # z * 0: a NaN stays


@triton.jit
def _expm1(x):
    p = 1.0 + x / 7.0
    p = 1.0 + x / 6.0 * p
    p = 1.0 + x / 5.0 * p
    p = 1.0 + x / 4.0 * p
    p = 1.0 + x / 3.0 * p
    p = 1.0 + x / 2.0 * p
    return tl.where(tl.abs(x) < 0.3, x * p, tl.exp(x) - 1.0)


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, (2, tile.shape[0] // 2, tile.shape[1])), (1, 2, 0)))


@triton.jit
def _steps(tile):
    """(STEPS, WIDE) -> STEPS times (1, WIDE)."""
    parts = (tile,)
    for _ in tl.static_range(2):
        halves = ()
        for i in tl.static_range(len(parts)):
            halves += _halves(parts[i])
        parts = halves
    return parts


@triton.jit
def _joined(first, second):
    return tl.reshape(tl.permute(tl.join(first, second), (2, 0, 1)), (2 * first.shape[0], first.shape[1]))


@triton.jit
def _tile(rows):
    """A power of two of (1, WIDE) -> (rows, WIDE)."""
    for _ in tl.static_range(8):
        if len(rows) > 1:
            pairs = ()
            for i in tl.static_range(len(rows) // 2):
                pairs += (_joined(rows[2 * i], rows[2 * i + 1]),)
            rows = pairs
    return rows[0]


@triton.jit
def _load_columns(tensor, d, inside, COUNT: tl.constexpr, MANY: tl.constexpr):
    """Columns of (G*D, COUNT): (MANY, WIDE). Row by row, so that each thread has one column, whatever the strides."""
    rows = ()
    for n in tl.static_range(MANY):
        rows += (tl.load(tensor + d * COUNT + n, mask=inside & (n < COUNT), other=0.0)[None, :],)
    return _tile(rows)


@triton.jit
def _place(t, k, height, width, WALKS: tl.constexpr):
    """Where step t of group k is in memory."""
    place = t.to(tl.int64)
    if WALKS:
        step = tl.where(k >= 2, height * width - 1 - t, t)
        place = tl.where(k % 2 == 1, (step % height) * width + step // height, step).to(tl.int64)
    return place


@triton.jit
def _load_wide(tensor, place, j, both, stride_l, stride_d):
    """(steps, channels or states)."""
    return tl.load(tensor + place[:, None] * stride_l + j[None, :] * stride_d, mask=both, other=0.0).to(tl.float32)


@triton.jit
def _load_tile(tensor, place, j, both, stride_l, stride_d):
    """The same; the sum over one number keeps Triton 3.6 from exchanging half precision between threads, where each
    of them would convert all of it."""
    return tl.sum(_load_wide(tensor, place, j, both, stride_l, stride_d)[:, :, None], 2)


@triton.jit
def _load_raw(
    raw, factors, weight, bias, place, d, j, there, inside, both, raw_l, raw_d, factors_l, RANK: tl.constexpr
):
    """Delta before softplus: read if RANK is 0, else factors times weight; plus bias."""
    if RANK == 0:
        z = _load_wide(raw, place, j, both, raw_l, raw_d)
    else:
        z = tl.zeros_like(both.to(tl.float32))
        for r in tl.static_range(RANK):
            factor = tl.load(factors + place * factors_l + r, mask=there, other=0.0).to(tl.float32)
            z += factor[:, None] * tl.load(weight + d * RANK + r, mask=inside, other=0.0)[None, :]
    return z + tl.load(bias + d, mask=inside, other=0.0)[None, :]


@triton.jit
def _load_delta(
    raw, factors, weight, bias, place, d, j, there, inside, raw_l, raw_d, factors_l,
    RANK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Delta: (steps, channels), 0 where there is no step or channel."""
    both = there[:, None] & inside[None, :]
    z = _load_raw(raw, factors, weight, bias, place, d, j, there, inside, both, raw_l, raw_d, factors_l, RANK)
    return tl.where(both, _softplus(z) if SOFTPLUS else z, 0.0)


@triton.jit(do_not_specialize_on_alignment=["channels", "u_l", "u_d", "raw_l", "raw_d", "y_l", "y_d"])
def walk(
    u, raw, factors, weight, A, B, C, skip, bias, states, totals, y, out,
    length, height, width, first, batch, channels, tiles,
    u_b, u_l, u_g, u_d, raw_b, raw_l, raw_g, raw_d, factors_b, factors_l, factors_g,
    B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n, y_b, y_l, y_g, y_d,
    GIVES: tl.constexpr, STATES: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr,
    SOFTPLUS: tl.constexpr, WALKS: tl.constexpr, ADD: tl.constexpr, TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Walks through each tile of some groups.

    Args:
        u: dy where it gives adjoints.
        states: (groups, B, tiles, N, D), those that enter each tile where it gives outputs; else what it gives.
        totals: (groups, B, tiles, D), the sum of delta over each tile, which it gives beside states and adjoints.
        y: what is added to.
        out: where outputs are written; it may be y.
        first: the first group.
        GIVES: "states", "adjoints" or "outputs".
        N: the power of two from STATES on, as R is of RANK.
    """
    tile, z = tl.program_id(0) % tiles, tl.program_id(0) // tiles + first * batch
    k, b = z // batch, (z % batch).to(tl.int64)
    j = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    n, inside, d = tl.arange(0, N), j < channels, k * channels + j
    some = (n < STATES)[:, None] & inside[None, :]
    a = _load_columns(A, d, inside, STATES, N) * LOG2E
    u += b * u_b + k * u_g
    raw += b * raw_b + k * raw_g
    factors += b * factors_b + k * factors_g
    B += b * B_b + k * B_g
    C += b * C_b + k * C_g
    offset = tl.load(bias + d, mask=inside, other=0.0)
    direct = tl.load(skip + d, mask=inside, other=0.0)
    if RANK > 0:
        r = tl.arange(0, R)
        rank_weight = _load_columns(weight, d, inside, RANK, R)
    row = z.to(tl.int64) * tiles + tile
    at = states + (row * STATES + n[:, None]) * channels + j[None, :]
    if GIVES == "outputs":
        h = tl.load(at, mask=some & (tiles > 1), other=0.0)
    else:
        h = tl.zeros((N, WIDE), tl.float32)
    total = tl.zeros((1, WIDE), tl.float32)
    begin = tile * TIME
    end = tl.minimum(begin + TIME, length)
    for now in range(begin, end, STEPS):
        t = now + tl.arange(0, STEPS)
        t = begin + end - 1 - t if GIVES == "adjoints" else t
        there = (t >= begin) & (t < end)
        both = there[:, None] & inside[None, :]
        place = _place(t, k, height, width, WALKS)
        if RANK == 0:
            z_raw = _load_tile(raw, place, j, both, raw_l, raw_d)
        else:
            low = _steps(_load_tile(factors, place, r, there[:, None] & (r < RANK)[None, :], factors_l, 1))
            sums = ()
            for i in tl.static_range(STEPS):
                sums += (tl.sum(tl.trans(low[i]) * rank_weight, 0, keep_dims=True),)
            z_raw = _tile(sums)
        z_raw += offset[None, :]
        delta = tl.where(both, _softplus(z_raw) if SOFTPLUS else z_raw, 0.0)
        value = _load_tile(u, place, j, both, u_l, u_d)
        deltas = _steps(delta)
        inputs = _steps(value if GIVES == "adjoints" else delta * value)
        each = there[:, None] & (n < STATES)[None, :]
        if GIVES != "adjoints":
            Bs = _steps(_load_tile(B, place, n, each, B_l, B_n))
        if GIVES != "states":
            Cs = _steps(_load_tile(C, place, n, each, C_l, C_n))
        given = ()
        for i in tl.static_range(STEPS):
            decay = tl.exp2(a * deltas[i])
            if GIVES == "adjoints":
                h = decay * (h + inputs[i] * tl.trans(Cs[i]))
            else:
                h = decay * h + inputs[i] * tl.trans(Bs[i])
            if GIVES == "outputs":
                given += (tl.sum(h * tl.trans(Cs[i]), 0, keep_dims=True),)
            else:
                total += deltas[i]
        if GIVES == "outputs":
            sums = _tile(given) + direct[None, :] * value
            to = b * y_b + k * y_g + place[:, None] * y_l + j[None, :] * y_d
            if ADD:
                sums += tl.load(y + to, mask=both, other=0.0)
            tl.store(out + to, sums, mask=both)
    if GIVES != "outputs":
        tl.store(at, h, mask=some)
        tl.store(totals + row * channels + j[None, :], total, mask=inside[None, :])


@triton.jit
def carry(
    ends, totals, A, starts, batch, tiles, channels,
    STATES: tl.constexpr, AGAINST: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """starts[tile] is the state that enters it, zero before the first; ends and starts (groups, B, tiles, N, D)."""
    z = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * MANY + tl.arange(0, MANY)
    n, j, count = i // channels, i % channels, STATES * channels
    there = i < count
    a = tl.load(A + (z // batch * channels + j) * STATES + n, mask=there, other=0.0)
    h = tl.zeros((MANY,), tl.float32)
    for k in range(tiles):
        row = z * tiles + (tiles - 1 - k if AGAINST else k)
        tl.store(starts + row * count + i, h, mask=there)
        total = tl.load(totals + row * channels + j, mask=there, other=0.0)
        h += _expm1(a * total) * h + tl.load(ends + row * count + i, mask=there, other=0.0)


@triton.jit
def gradients(
    u, raw, factors, weight, A, B, C, skip, bias, starts, leaving, dy, du, out, draw, narrow, rows,
    length, height, width, first, batch, channels, tiles,
    u_b, u_l, u_g, u_d, raw_b, raw_l, raw_g, raw_d, factors_b, factors_l, factors_g,
    B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n, dy_b, dy_l, dy_g, dy_d, du_b, du_l, du_g, du_d,
    draw_b, draw_l, draw_g, draw_d,
    STATES: tl.constexpr, RANK: tl.constexpr, SOFTPLUS: tl.constexpr, WALKS: tl.constexpr, ADD: tl.constexpr,
    TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All gradients of some groups.

    Args:
        starts: the states that enter each tile, as in `walk`.
        leaving: the adjoints of the states that leave it.
        du: what is added to.
        out: where the gradient of u is written; it may be du.
        narrow: (blocks, groups, B, L, R + 2N), parts of the gradients of factors, B and C.
        rows: (groups, B, tiles, N + 2 + R, D), parts of those of A, skip, bias and weight.
    """
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    z = part + first * batch
    k, b = z // batch, (z % batch).to(tl.int64)
    step = tl.arange(0, TIME)
    t, j = tile * TIME + step, tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there, inside, d = t < length, j < channels, k * channels + j
    both = there[:, None] & inside[None, :]
    place = _place(t, k, height, width, WALKS)
    u += b * u_b + k * u_g
    raw += b * raw_b + k * raw_g
    factors += b * factors_b + k * factors_g
    B += b * B_b + k * B_g
    C += b * C_b + k * C_g
    z_raw = _load_raw(raw, factors, weight, bias, place, d, j, there, inside, both, raw_l, raw_d, factors_l, RANK)
    delta = tl.where(both, _softplus(z_raw) if SOFTPLUS else z_raw, 0.0)
    # The next step's delta and the last step's input, within this tile: outside it the carried states stand for them.
    has_next, has_last = (t + 1 < length) & (step < TIME - 1), there & (step > 0)
    next_place, last_place = _place(t + 1, k, height, width, WALKS), _place(t - 1, k, height, width, WALKS)
    next_delta = _load_delta(raw, factors, weight, bias, next_place, d, j, has_next, inside, raw_l, raw_d, factors_l,
                             RANK, SOFTPLUS)  # fmt: skip
    last_delta = _load_delta(raw, factors, weight, bias, last_place, d, j, has_last, inside, raw_l, raw_d, factors_l,
                             RANK, SOFTPLUS)  # fmt: skip
    last_x = last_delta * _load_wide(u, last_place, j, has_last[:, None] & inside[None, :], u_l, u_d)
    wide_u = _load_wide(u, place, j, both, u_l, u_d)
    wide_dy = _load_wide(dy + b * dy_b + k * dy_g, place, j, both, dy_l, dy_d)
    x = delta * wide_u
    dx, ddelta = tl.zeros_like(x), tl.zeros_like(x)
    groups = tl.num_programs(0) // tiles
    narrow += ((tl.program_id(1) * groups + part).to(tl.int64) * length + place) * (RANK + 2 * STATES)
    rows += (part.to(tl.int64) * tiles + tile) * (STATES + 2 + RANK) * channels + j
    at = (z.to(tl.int64) * tiles + tile) * STATES * channels + j
    for n in range(STATES):
        a = tl.load(A + d * STATES + n, mask=inside, other=0.0)
        Bn = tl.load(B + place * B_l + n * B_n, mask=there, other=0.0).to(tl.float32)
        last_B = tl.load(B + last_place * B_l + n * B_n, mask=has_last, other=0.0).to(tl.float32)
        Cn = tl.load(C + place * C_l + n * C_n, mask=there, other=0.0).to(tl.float32)
        decay = tl.exp2((a * LOG2E)[None, :] * delta)
        # kept_t = exp(delta_t A) h_{t-1}; taking B x from h instead would cancel where the decay is strong
        decayed, kept = tl.associative_scan((decay, decay * (last_x * last_B[:, None])), 0, _combine)
        carried = inside & (tiles > 1)
        kept += decayed * tl.load(starts + at + n * channels, mask=carried, other=0.0)[None, :]
        next_decay = tl.exp2((a * LOG2E)[None, :] * next_delta)
        decayed, g = tl.associative_scan((next_decay, wide_dy * Cn[:, None]), 0, _combine, reverse=True)
        g += decayed * tl.load(leaving + at + n * channels, mask=carried, other=0.0)[None, :]
        h = kept + x * Bn[:, None]
        g_kept = g * kept
        ddelta += g_kept * a[None, :]
        dx += g * Bn[:, None]
        tl.store(narrow + RANK + n, tl.sum(tl.where(both, g * x, 0.0), 1), mask=there)
        tl.store(narrow + RANK + STATES + n, tl.sum(tl.where(both, wide_dy * h, 0.0), 1), mask=there)
        tl.store(rows + n * channels, tl.sum(tl.where(both, g_kept * delta, 0.0), 0), mask=inside)
    dz = ddelta + dx * wide_u
    if SOFTPLUS:
        dz = dz / (1.0 + tl.exp(-z_raw))
    dz = tl.where(both, dz, 0.0)
    sums = dx * delta + tl.load(skip + d, mask=inside, other=0.0)[None, :] * wide_dy
    to = b * du_b + k * du_g + place[:, None] * du_l + j[None, :] * du_d
    if ADD:
        sums += tl.load(du + to, mask=both, other=0.0)
    tl.store(out + to, sums, mask=both)
    rows += STATES * channels
    tl.store(rows, tl.sum(wide_dy * wide_u, 0), mask=inside)
    tl.store(rows + channels, tl.sum(dz, 0), mask=inside)
    if RANK == 0:
        tl.store(draw + b * draw_b + k * draw_g + place[:, None] * draw_l + j[None, :] * draw_d, dz, mask=both)
    else:
        for r in tl.static_range(RANK):
            w = tl.load(weight + d * RANK + r, mask=inside, other=0.0)
            tl.store(narrow + r, tl.sum(dz * w[None, :], 1), mask=there)
            factor = tl.load(factors + place * factors_l + r, mask=there, other=0.0).to(tl.float32)
            tl.store(rows + (2 + r) * channels, tl.sum(dz * factor[:, None], 0), mask=inside)
