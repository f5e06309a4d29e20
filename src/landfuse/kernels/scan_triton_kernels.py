"""Triton kernels of the selective scan.

Time is cut into tiles, and each tile of each block of channels is one program:

    tile_states     what each tile adds to the state, and by how much it lets an entering state decay
    carry           walks over the tiles: the state entering each one
    outputs         y
    tile_adjoints   like `tile_states`, for the adjoint of the state, against time (`carry` serves again)
    gradients       all gradients; sums over channels and over time are left in one part per program
    image_walk      the first, second and fourth for images, whose channels, not steps, are side by side in memory

Rows and columns of an image are walked, forwards and backwards, without a copy: for `gradients` step t is in memory at
start + (t // inner) * outer_step + (t % inner) * inner_step. All arithmetic is float32, whatever type the inputs have.
Inside a tile the recurrence is an associative scan of (decay, input); differences of running sums of delta would cancel
where large and small deltas meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
"""exp(x) = 2 ** (LOG2E x): the factor is multiplied into A once, instead of into every step."""


@triton.jit
def _combine(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _softplus(z):
    # max(z, 0) + log1p(exp(-|z|)); the polynomial of log1p on [0, 1] is that of native/lanes.h
    w = tl.exp(-tl.abs(z))
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
def _place(t, start, inner, inner_step, outer_step):
    return start + (t // inner) * outer_step + (t % inner) * inner_step


@triton.jit
def _load_raw(
    raw, factors, weight, bias, place, there, d, in_group, raw_l, raw_d, factors_l,
    RANK: tl.constexpr,
):  # fmt: skip
    """Delta before softplus: (TIME, WIDE)."""
    both = there[:, None] & in_group[None, :]
    if RANK == 0:
        z = tl.load(raw + place[:, None] * raw_l + d[None, :] * raw_d, mask=both, other=0.0).to(tl.float32)
    else:
        z = tl.zeros_like(both.to(tl.float32))
        for r in tl.static_range(RANK):
            factor = tl.load(factors + place * factors_l + r, mask=there, other=0.0).to(tl.float32)
            z += factor[:, None] * tl.load(weight + d * RANK + r, mask=in_group, other=0.0)[None, :]
    return z + tl.load(bias + d, mask=in_group, other=0.0)[None, :]


@triton.jit
def _load_delta(
    raw, factors, weight, bias, place, there, d, in_group, raw_l, raw_d, factors_l,
    RANK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Delta: (TIME, WIDE), 0 where there is no step or channel."""
    z = _load_raw(raw, factors, weight, bias, place, there, d, in_group, raw_l, raw_d, factors_l, RANK)
    delta = _softplus(z) if SOFTPLUS else z
    return tl.where(there[:, None] & in_group[None, :], delta, 0.0)


@triton.jit
def _load_wide(tensor, place, there, d, in_group, stride_l, stride_d):
    both = there[:, None] & in_group[None, :]
    return tl.load(tensor + place[:, None] * stride_l + d[None, :] * stride_d, mask=both, other=0.0).to(tl.float32)


@triton.jit
def tile_states(
    u, raw, A, B, bias, ends, decays, length, width, blocks, tiles,
    u_b, u_l, u_d, raw_b, raw_l, raw_d, B_b, B_l, B_g, B_n,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What each tile adds to the state (`ends`), and the decay over it, less 1 (`decays`)."""
    tile, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    channels = tl.num_programs(1) // blocks * width
    step = tl.arange(0, TIME)
    t, j = tile * TIME + step, block * WIDE + tl.arange(0, WIDE)
    there, in_group, d = t < length, j < width, group * width + j
    delta = _load_delta(raw + b * raw_b, raw, raw, bias, t, there, d, in_group, raw_l, raw_d, 0, 0, SOFTPLUS)
    x = delta * _load_wide(u + b * u_b, t, there, d, in_group, u_l, u_d)
    total = tl.sum(delta, 0)
    for n in range(STATES):
        a = tl.load(A + d * STATES + n, mask=in_group, other=0.0)
        Bn = tl.load(B + b * B_b + group * B_g + t * B_l + n * B_n, mask=there, other=0.0).to(tl.float32)
        _, h = tl.associative_scan((tl.exp2((a * LOG2E)[None, :] * delta), x * Bn[:, None]), 0, _combine)
        at = ((b * tiles + tile) * STATES + n) * channels + d
        tl.store(ends + at, tl.sum(tl.where(step[:, None] == TIME - 1, h, 0.0), 0), mask=in_group)
        tl.store(decays + at, _expm1(a * total), mask=in_group)


@triton.jit
def carry(ends, decays, starts, tiles, count, AGAINST: tl.constexpr, MANY: tl.constexpr):
    """Over `count` states: starts[tile] is the state that enters it, zero before the first; decays hold the decay
    less 1."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * MANY + tl.arange(0, MANY)
    there = i < count
    h = tl.zeros((MANY,), tl.float32)
    for k in range(tiles):
        tile = tiles - 1 - k if AGAINST else k
        at = (b * tiles + tile) * count + i
        tl.store(starts + at, h, mask=there)
        h += tl.load(decays + at, mask=there, other=0.0) * h + tl.load(ends + at, mask=there, other=0.0)


@triton.jit
def outputs(
    u, raw, A, B, C, skip, bias, starts, y, length, width, blocks, tiles,
    u_b, u_l, u_d, raw_b, raw_l, raw_d, B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n, y_b, y_l, y_d,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr,
    TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y."""
    tile, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    channels = tl.num_programs(1) // blocks * width
    t, j = tile * TIME + tl.arange(0, TIME), block * WIDE + tl.arange(0, WIDE)
    there, in_group, d = t < length, j < width, group * width + j
    delta = _load_delta(raw + b * raw_b, raw, raw, bias, t, there, d, in_group, raw_l, raw_d, 0, 0, SOFTPLUS)
    wide_u = _load_wide(u + b * u_b, t, there, d, in_group, u_l, u_d)
    x = delta * wide_u
    sum_y = tl.load(skip + d, mask=in_group, other=0.0)[None, :] * wide_u
    for n in range(STATES):
        a = tl.load(A + d * STATES + n, mask=in_group, other=0.0)
        Bn = tl.load(B + b * B_b + group * B_g + t * B_l + n * B_n, mask=there, other=0.0).to(tl.float32)
        Cn = tl.load(C + b * C_b + group * C_g + t * C_l + n * C_n, mask=there, other=0.0).to(tl.float32)
        decay, h = tl.associative_scan((tl.exp2((a * LOG2E)[None, :] * delta), x * Bn[:, None]), 0, _combine)
        entering = tl.load(starts + ((b * tiles + tile) * STATES + n) * channels + d, mask=in_group, other=0.0)
        sum_y += (h + decay * entering[None, :]) * Cn[:, None]
    at = y + b * y_b + t[:, None] * y_l + d[None, :] * y_d
    tl.store(at, sum_y, mask=there[:, None] & in_group[None, :])


@triton.jit
def tile_adjoints(
    raw, A, C, bias, dy, ends, decays, length, width, blocks, tiles,
    raw_b, raw_l, raw_d, C_b, C_l, C_g, C_n, dy_b, dy_l, dy_d,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What each tile adds to the adjoint of the state that enters it, and the decay over it, less 1."""
    tile, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    channels = tl.num_programs(1) // blocks * width
    step = tl.arange(0, TIME)
    t, j = tile * TIME + step, block * WIDE + tl.arange(0, WIDE)
    there, in_group, d = t < length, j < width, group * width + j
    delta = _load_delta(raw + b * raw_b, raw, raw, bias, t, there, d, in_group, raw_l, raw_d, 0, 0, SOFTPLUS)
    wide_dy = _load_wide(dy + b * dy_b, t, there, d, in_group, dy_l, dy_d)
    total = tl.sum(delta, 0)
    for n in range(STATES):
        a = tl.load(A + d * STATES + n, mask=in_group, other=0.0)
        Cn = tl.load(C + b * C_b + group * C_g + t * C_l + n * C_n, mask=there, other=0.0).to(tl.float32)
        decay = tl.exp2((a * LOG2E)[None, :] * delta)
        _, r = tl.associative_scan((decay, decay * (wide_dy * Cn[:, None])), 0, _combine, reverse=True)
        at = ((b * tiles + tile) * STATES + n) * channels + d
        tl.store(ends + at, tl.sum(tl.where(step[:, None] == 0, r, 0.0), 0), mask=in_group)
        tl.store(decays + at, _expm1(a * total), mask=in_group)


@triton.jit
def gradients(
    u, raw, factors, weight, A, B, C, skip, bias, starts, leaving, dy,
    du, draw, dfactors, dB, dC, dA, dskip, dbias, dweight, length, width, blocks, tiles,
    start, inner, inner_step, outer_step,
    u_b, u_l, u_d, raw_b, raw_l, raw_d, factors_b, factors_l, B_b, B_l, B_g, B_n, C_b, C_l, C_g, C_n, dy_b, dy_l, dy_d,
    du_b, du_l, du_d, draw_b, draw_l, draw_d,
    STATES: tl.constexpr, RANK: tl.constexpr, SOFTPLUS: tl.constexpr, ADD: tl.constexpr,
    TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All gradients; see the module's docstring for the sums that are left in parts."""
    tile, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    groups = tl.num_programs(1) // blocks
    channels = groups * width
    step = tl.arange(0, TIME)
    t, j = tile * TIME + step, block * WIDE + tl.arange(0, WIDE)
    there, in_group, d = t < length, j < width, group * width + j
    both = there[:, None] & in_group[None, :]
    place = _place(t, start, inner, inner_step, outer_step)
    raw += b * raw_b
    factors += b * factors_b
    z = _load_raw(raw, factors, weight, bias, place, there, d, in_group, raw_l, raw_d, factors_l, RANK)
    delta = tl.where(both, _softplus(z) if SOFTPLUS else z, 0.0)
    # The next step's delta and the last step's input, within this tile: outside it the carried states stand for them.
    has_next, has_last = (t + 1 < length) & (step < TIME - 1), there & (step > 0)
    next_place = _place(t + 1, start, inner, inner_step, outer_step)
    last_place = _place(t - 1, start, inner, inner_step, outer_step)
    next_delta = _load_delta(raw, factors, weight, bias, next_place, has_next, d, in_group, raw_l, raw_d, factors_l,
                             RANK, SOFTPLUS)  # fmt: skip
    last_delta = _load_delta(raw, factors, weight, bias, last_place, has_last, d, in_group, raw_l, raw_d, factors_l,
                             RANK, SOFTPLUS)  # fmt: skip
    last_x = last_delta * _load_wide(u + b * u_b, last_place, has_last, d, in_group, u_l, u_d)
    wide_u = _load_wide(u + b * u_b, place, there, d, in_group, u_l, u_d)
    wide_dy = _load_wide(dy + b * dy_b, place, there, d, in_group, dy_l, dy_d)
    x = delta * wide_u
    dx, ddelta = tl.zeros_like(x), tl.zeros_like(x)
    B += b * B_b + group * B_g
    for n in range(STATES):
        a = tl.load(A + d * STATES + n, mask=in_group, other=0.0)
        Bn = tl.load(B + place * B_l + n * B_n, mask=there, other=0.0).to(tl.float32)
        last_B = tl.load(B + last_place * B_l + n * B_n, mask=has_last, other=0.0).to(tl.float32)
        Cn = tl.load(C + b * C_b + group * C_g + place * C_l + n * C_n, mask=there, other=0.0).to(tl.float32)
        at = ((b * tiles + tile) * STATES + n) * channels + d
        decay = tl.exp2((a * LOG2E)[None, :] * delta)
        # kept_t = exp(delta_t A) h_{t-1}; taking B x from h instead would cancel where the decay is strong
        decayed, kept = tl.associative_scan((decay, decay * (last_x * last_B[:, None])), 0, _combine)
        kept += decayed * tl.load(starts + at, mask=in_group, other=0.0)[None, :]
        next_decay = tl.exp2((a * LOG2E)[None, :] * next_delta)
        decayed, g = tl.associative_scan((next_decay, wide_dy * Cn[:, None]), 0, _combine, reverse=True)
        g += decayed * tl.load(leaving + at, mask=in_group, other=0.0)[None, :]
        h = kept + x * Bn[:, None]
        g_kept = g * kept
        ddelta += g_kept * a[None, :]
        dx += g * Bn[:, None]
        part = ((((block * tl.num_programs(2) + b) * length + place) * groups) + group) * STATES + n
        tl.store(dC + part, tl.sum(tl.where(both, wide_dy * h, 0.0), 1), mask=there)
        tl.store(dB + part, tl.sum(tl.where(both, g * x, 0.0), 1), mask=there)
        tl.store(dA + at, tl.sum(tl.where(both, g_kept * delta, 0.0), 0), mask=in_group)
    dz = ddelta + dx * wide_u
    if SOFTPLUS:
        dz = dz / (1.0 + tl.exp(-z))
    dz = tl.where(both, dz, 0.0)
    out = dx * delta + tl.load(skip + d, mask=in_group, other=0.0)[None, :] * wide_dy
    to = du + b * du_b + place[:, None] * du_l + d[None, :] * du_d
    if ADD:
        out += tl.load(to, mask=both, other=0.0)
    tl.store(to, out, mask=both)
    row = (b * tiles + tile) * channels + d
    tl.store(dskip + row, tl.sum(wide_dy * wide_u, 0), mask=in_group)
    tl.store(dbias + row, tl.sum(dz, 0), mask=in_group)
    if RANK == 0:
        tl.store(draw + b * draw_b + place[:, None] * draw_l + d[None, :] * draw_d, dz, mask=both)
    else:
        for r in tl.static_range(RANK):
            w = tl.load(weight + d * RANK + r, mask=in_group, other=0.0)
            part = ((block * tl.num_programs(2) + b) * length + place) * RANK + r
            tl.store(dfactors + part, tl.sum(dz * w[None, :], 1), mask=there)
            factor = tl.load(factors + place * factors_l + r, mask=there, other=0.0).to(tl.float32)
            tl.store(dweight + row * RANK + r, tl.sum(dz * factor[:, None], 0), mask=in_group)


@triton.jit
def image_walk(
    x, factors, weight, A, bias, skip, states, decays, y, out, height, width, channels, tiles, batch, walk,
    GIVES: tl.constexpr, STATES: tl.constexpr, N: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr,
    ADD: tl.constexpr, TIME: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One or several walks over images, contiguous as in `ImageInputs`, step by step: a thread has all states of its
    channels, so that neither the recurrence nor a sum over states leaves it.

    Args:
        x: dy where it gives adjoints.
        states: (walks, B, tiles, N, D), those that enter each tile where it gives outputs; else what it gives.
        decays: the decay over each tile, less 1, which it gives beside states and adjoints.
        y: what is added to.
        out: where outputs are written; it may be y.
        walk: the first one.
        GIVES: "states", "adjoints" or "outputs".
        N: the power of two from STATES on, as R is of RANK.
    """
    tile, z = tl.program_id(0), tl.program_id(2) + walk * batch
    k, b = z // batch, (z % batch).to(tl.int64)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    n, r = tl.arange(0, N)[:, None], tl.arange(0, R)[:, None]
    inside, row, length = d < channels, k * channels + d, height * width
    some = (n < STATES) & inside[None, :]
    a = tl.load(A + row[None, :] * STATES + n, mask=some, other=0.0)
    rank_weight = tl.load(weight + row[None, :] * RANK + r, mask=(r < RANK) & inside[None, :], other=0.0)
    offset = tl.load(bias + row, mask=inside, other=0.0)
    direct = tl.load(skip + row, mask=inside, other=0.0)
    at = ((z.to(tl.int64) * tiles + tile) * STATES + n) * channels + d[None, :]
    if GIVES == "outputs":
        h = tl.load(states + at, mask=some, other=0.0)
    else:
        h = tl.zeros((N, WIDE), tl.float32)
    total = tl.zeros((WIDE,), tl.float32)
    for i in range(TIME):
        t = tile * TIME + (TIME - 1 - i if GIVES == "adjoints" else i)
        step = tl.where(k >= 2, length - 1 - t, t)
        pixel = b * length + tl.where(k % 2 == 1, (step % height) * width + step // height, step)
        mask = inside & (t < length)
        value = tl.load(x + pixel * channels + d, mask=mask, other=0.0).to(tl.float32)
        of_walk = factors + (pixel * 4 + k) * (RANK + 2 * STATES)
        low = tl.load(of_walk + r, mask=(r < RANK) & (t < length), other=0.0).to(tl.float32)
        delta = tl.where(mask, _softplus(tl.sum(low * rank_weight, 0) + offset), 0.0)
        decay = tl.exp2(a * LOG2E * delta[None, :])
        there = (n < STATES) & (t < length)
        if GIVES == "adjoints":
            Cn = tl.load(of_walk + RANK + STATES + n, mask=there, other=0.0).to(tl.float32)
            h = decay * (h + value[None, :] * Cn)
        else:
            Bn = tl.load(of_walk + RANK + n, mask=there, other=0.0).to(tl.float32)
            h = decay * h + (delta * value)[None, :] * Bn
        if GIVES == "outputs":
            Cn = tl.load(of_walk + RANK + STATES + n, mask=there, other=0.0).to(tl.float32)
            given = tl.sum(h * Cn, 0) + direct * value
            if ADD:
                given += tl.load(y + pixel * channels + d, mask=mask, other=0.0)
            tl.store(out + pixel * channels + d, given, mask=mask)
        else:
            total += delta
    if GIVES != "outputs":
        tl.store(states + at, h, mask=some)
        tl.store(decays + at, _expm1(a * total[None, :]), mask=some)
