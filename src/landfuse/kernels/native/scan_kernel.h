// The scan over one block of channels, forward and backward:
//     h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + skip u_t.
// The decay is applied as h + (exp(delta A) - 1) h, and states, adjoints and sums over time are kept in two parts
// (`settle`): with a small delta the decay rounds to 1 and a step adds less to h than h's last digit.
// STATES is the number of states where it is known when compiling, else 0.

// What both sweeps read, with pointers moved to this task's batch item, group and first channel.
template <int VECTORS>
struct Block {
  const ScanArguments& a;
  int64_t channel;  // of all channels
  int64_t image_channel;
  int lanes;
  const Direction& direction;
  const float *u, *delta, *low_rank, *B, *C;
  Lanes bias[VECTORS], skip[VECTORS];

  INLINE_MEMBER Block(const ScanArguments& arguments, const ScanTask& task)
      : a(arguments),
        channel(task.group * (a.channels / a.groups) + task.first_channel),
        image_channel(a.image ? task.first_channel : channel),
        lanes(task.lanes),
        direction(a.directions[task.group]) {
    u = a.u.data + task.batch * a.u.batch + image_channel * a.u.channel;
    delta = a.delta.data ? a.delta.data + task.batch * a.delta.batch + channel * a.delta.channel : nullptr;
    low_rank = a.rank ? a.low_rank.data + task.batch * a.low_rank.batch + task.group * a.low_rank.channel : nullptr;
    B = a.B.data + task.batch * a.B.batch + task.group * a.B.channel;
    C = a.C.data + task.batch * a.C.batch + task.group * a.C.channel;
    clear<VECTORS>(bias);
    clear<VECTORS>(skip);
    if (a.bias) gather<VECTORS>(bias, a.bias + channel, 1, lanes);
    if (a.skip) gather<VECTORS>(skip, a.skip + channel, 1, lanes);
  }

  // Delta before the bias and softplus: as given, or from its low-rank factors.
  INLINE_MEMBER void load_raw_delta(Tile<VECTORS>& raw, const Lanes* rank_weight, const int64_t* places, int steps) const {
    if (delta) return load_tile<VECTORS>(raw, a.delta, delta, places, steps, lanes);
    for (int t = 0; t < steps; t++) {
      const float* factors = low_rank + places[t] * a.low_rank.time;
      Lanes sum[VECTORS];
      clear<VECTORS>(sum);
      for (int r = 0; r < a.rank; r++)
        for (int v = 0; v < VECTORS; v++) sum[v] += spread(factors[r]) * rank_weight[r * VECTORS + v];
      for (int v = 0; v < VECTORS; v++) raw.at[t][v] = sum[v];
    }
  }
};

template <int STATES, int VECTORS>
void forward_block(const ScanArguments& a, const ScanTask& task, float* scratch) {
  const int states = STATES ? STATES : (int)a.states, rank = (int)a.rank;
  const Block<VECTORS> block(a, task);
  const int64_t channel = block.channel;
  Lanes* A = (Lanes*)scratch;
  Lanes* h = A + states * VECTORS;  // at the start of the tile
  Lanes* change = h + states * VECTORS;  // since then
  Lanes* rank_weight = change + states * VECTORS;
  for (int n = 0; n < states; n++) {
    gather<VECTORS>(A + n * VECTORS, a.A + channel * states + n, states, block.lanes);
    clear<VECTORS>(h + n * VECTORS);
    clear<VECTORS>(change + n * VECTORS);
  }
  for (int r = 0; r < rank; r++)
    gather<VECTORS>(rank_weight + r * VECTORS, a.rank_weight + channel * rank + r, rank, block.lanes);

  float* y_base = a.y.data + task.batch * a.y.batch + block.image_channel * a.y.channel;
  const int64_t tiles = (a.length + TIME_TILE - 1) / TIME_TILE;
  Tile<VECTORS> raw, u, y;
  int64_t places[TIME_TILE];
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t left = a.length - tile * TIME_TILE;
    const int steps = left < TIME_TILE ? (int)left : TIME_TILE;
    place_steps(block.direction, tile * TIME_TILE, steps, places);
    if (a.checkpoints)
      for (int n = 0; n < states; n++)
        scatter<VECTORS>(a.checkpoints + ((task.batch * tiles + tile) * states + n) * a.channels + channel,
                         h + n * VECTORS, 1, block.lanes);
    load_tile<VECTORS>(u, a.u, block.u, places, steps, block.lanes);
    block.load_raw_delta(raw, rank_weight, places, steps);
    for (int t = 0; t < steps; t++) {
      const float* B = block.B + places[t] * a.B.time;
      const float* C = block.C + places[t] * a.C.time;
      Pack<VECTORS> delta = pack<VECTORS>(raw.at[t]) + pack<VECTORS>(block.bias);
      if (a.softplus) delta = softplus(delta);
      const Pack<VECTORS> now = pack<VECTORS>(u.at[t]), input = delta * now;
      Pack<VECTORS> sum = pack<VECTORS>(block.skip) * now;
      for (int n = 0; n < states; n++) {
        Lanes* since = change + n * VECTORS;
        Pack<VECTORS> recent = pack<VECTORS>(since);
        const Pack<VECTORS> start = pack<VECTORS>(h + n * VECTORS);
        const Pack<VECTORS> decay = exponential_minus_1(delta * pack<VECTORS>(A + n * VECTORS));
        recent = recent + (decay * (start + recent) + input * spread(B[n]));
        unpack(since, recent);
        sum = sum + (start + recent) * spread(C[n]);
      }
      unpack(y.at[t], sum);
    }
    for (int n = 0; n < states; n++) settle_all<VECTORS>(h + n * VECTORS, change + n * VECTORS);
    if (a.image && task.group)
      store_tile<VECTORS, true>(y, a.y, y_base, places, steps, block.lanes);
    else
      store_tile<VECTORS, false>(y, a.y, y_base, places, steps, block.lanes);
  }
}

// The sums over lanes of `count` vectors of each step, `stride` floats apart by place.
INLINE void store_sums(const Lanes* vectors, int count, int steps, const int64_t* places, int64_t stride, float* to) {
  const int all = steps * count;
  for (int first = 0, t = 0, n = 0; first < all; first += WIDTH) {  // there is room for whole rows: see scan.cpp
    Lanes rows[WIDTH];
    for (int i = 0; i < WIDTH; i++) rows[i] = vectors[first + i];
    sum_lanes(rows);
    const float* sums = (const float*)rows;
    for (int i = 0; i < WIDTH && first + i < all; i++) {
      to[places[t] * stride + n] = sums[i];
      if (++n == count) n = 0, t++;
    }
  }
}

template <int STATES, int VECTORS>
void backward_block(const ScanArguments& a, const ScanTask& task, float* scratch) {
  const int states = STATES ? STATES : (int)a.states, rank = (int)a.rank;
  const Block<VECTORS> block(a, task);
  const int64_t channel = block.channel;
  Lanes* A = (Lanes*)scratch;
  Lanes* h = A + states * VECTORS;
  Lanes* adjoint = h + states * VECTORS;  // dL/dh_t as far as it comes from the steps after t
  Lanes* adjoint_change = adjoint + states * VECTORS;
  Lanes* dA = adjoint_change + states * VECTORS;
  Lanes* dA_recent = dA + states * VECTORS;
  Lanes* rank_weight = dA_recent + states * VECTORS;
  Lanes* drank_weight = rank_weight + rank * VECTORS;
  Lanes* drank_weight_recent = drank_weight + rank * VECTORS;
  Lanes* decay = drank_weight_recent + rank * VECTORS;   // exp(delta_t A) - 1, [step][state][vector]
  Lanes* before = decay + TIME_TILE * states * VECTORS;  // h_{t-1}
  Lanes* dB = before + TIME_TILE * states * VECTORS;     // [step][state], before lanes are summed
  Lanes* dC = dB + TIME_TILE * states;
  Lanes* dfactors = dC + TIME_TILE * states;  // [step][rank]
  Lanes dskip[VECTORS], dbias[VECTORS], dskip_recent[VECTORS], dbias_recent[VECTORS];
  clear<VECTORS>(dskip);
  clear<VECTORS>(dbias);
  clear<VECTORS>(dskip_recent);
  clear<VECTORS>(dbias_recent);
  for (int n = 0; n < states; n++) {
    gather<VECTORS>(A + n * VECTORS, a.A + channel * states + n, states, block.lanes);
    clear<VECTORS>(dA + n * VECTORS);
    clear<VECTORS>(dA_recent + n * VECTORS);
    clear<VECTORS>(adjoint + n * VECTORS);
    clear<VECTORS>(adjoint_change + n * VECTORS);
  }
  for (int r = 0; r < rank; r++) {
    gather<VECTORS>(rank_weight + r * VECTORS, a.rank_weight + channel * rank + r, rank, block.lanes);
    clear<VECTORS>(drank_weight + r * VECTORS);
    clear<VECTORS>(drank_weight_recent + r * VECTORS);
  }

  const float* dy_base = a.dy.data + task.batch * a.dy.batch + block.image_channel * a.dy.channel;
  float* du_base = a.du.data + task.batch * a.du.batch + block.image_channel * a.du.channel;
  float* ddelta_base = a.ddelta.data ? a.ddelta.data + task.batch * a.ddelta.batch + channel * a.ddelta.channel : nullptr;
  float* dB_base = a.dB.data + task.part * a.dB_part + task.batch * a.dB.batch + task.group * a.dB.channel;
  float* dC_base = a.dC.data + task.part * a.dC_part + task.batch * a.dC.batch + task.group * a.dC.channel;
  float* dlow_rank_base = rank ? a.dlow_rank.data + task.part * a.dlow_rank_part + task.batch * a.dlow_rank.batch +
                                     task.group * a.dlow_rank.channel
                               : nullptr;
  const int64_t tiles = (a.length + TIME_TILE - 1) / TIME_TILE;
  Tile<VECTORS> raw, u, dy, delta, slope;
  int64_t places[TIME_TILE];
  for (int64_t tile = tiles - 1; tile >= 0; tile--) {
    const int64_t left = a.length - tile * TIME_TILE;
    const int steps = left < TIME_TILE ? (int)left : TIME_TILE;
    place_steps(block.direction, tile * TIME_TILE, steps, places);
    if (tile > 0) {
      int64_t coming[TIME_TILE];
      place_steps(block.direction, (tile - 1) * TIME_TILE, TIME_TILE, coming);
      fetch_tile<VECTORS>(a.u, block.u, coming, TIME_TILE);
      fetch_tile<VECTORS>(a.dy, dy_base, coming, TIME_TILE);
      fetch_tile<VECTORS>(a.du, du_base, coming, TIME_TILE);
      for (int t = 0; t < TIME_TILE; t++) __builtin_prefetch(block.B + coming[t] * a.B.time);
    }
    load_tile<VECTORS>(u, a.u, block.u, places, steps, block.lanes);
    load_tile<VECTORS>(dy, a.dy, dy_base, places, steps, block.lanes);
    block.load_raw_delta(raw, rank_weight, places, steps);

    // The states of this tile once more, from its checkpoint.
    for (int n = 0; n < states; n++)
      gather<VECTORS>(h + n * VECTORS, a.checkpoints + ((task.batch * tiles + tile) * states + n) * a.channels + channel,
                      1, block.lanes);
    for (int t = 0; t < steps; t++) {
      const float* B = block.B + places[t] * a.B.time;
      const Pack<VECTORS> z = pack<VECTORS>(raw.at[t]) + pack<VECTORS>(block.bias);
      const Pack<VECTORS> now = a.softplus ? softplus(z) : z;
      unpack(delta.at[t], now);
      if (a.softplus) unpack(slope.at[t], sigmoid(z));
      else for (int v = 0; v < VECTORS; v++) slope.at[t][v] = spread(1.f);
      const Pack<VECTORS> input = now * pack<VECTORS>(u.at[t]);
      for (int n = 0; n < states; n++) {
        const int64_t at = ((int64_t)t * states + n) * VECTORS;
        const Pack<VECTORS> state = pack<VECTORS>(h + n * VECTORS);
        const Pack<VECTORS> change = exponential_minus_1(now * pack<VECTORS>(A + n * VECTORS));
        unpack(before + at, state);
        unpack(decay + at, change);
        unpack(h + n * VECTORS, state + (change * state + input * spread(B[n])));
      }
    }

    for (int t = steps - 1; t >= 0; t--) {
      const float* B = block.B + places[t] * a.B.time;
      const float* C = block.C + places[t] * a.C.time;
      Lanes dinput[VECTORS], ddelta[VECTORS];
      clear<VECTORS>(dinput);
      clear<VECTORS>(ddelta);
      for (int n = 0; n < states; n++) {
        Lanes dBn = spread(0.f), dCn = spread(0.f);
        const Lanes Bn = spread(B[n]), Cn = spread(C[n]);
        for (int v = 0; v < VECTORS; v++) {
          const int64_t at = ((int64_t)t * states + n) * VECTORS + v;
          const Lanes input = delta.at[t][v] * u.at[t][v];
          const Lanes kept = before[at] + decay[at] * before[at];  // exp(delta_t A) h_{t-1}
          const Lanes from_y = Cn * dy.at[t][v];
          const Lanes g = (adjoint[n * VECTORS + v] + adjoint_change[n * VECTORS + v]) + from_y;  // dL/dh_t
          const Lanes g_kept = g * kept;
          dCn += dy.at[t][v] * (kept + input * Bn);
          dBn += g * input;
          dinput[v] += g * Bn;
          ddelta[v] += g_kept * A[n * VECTORS + v];
          dA_recent[n * VECTORS + v] += g_kept * delta.at[t][v];
          adjoint_change[n * VECTORS + v] += decay[at] * g + from_y;
        }
        dB[t * states + n] = dBn;
        dC[t * states + n] = dCn;
      }
      for (int v = 0; v < VECTORS; v++) {
        const Lanes input = u.at[t][v], dout = dy.at[t][v];
        const Lanes draw = (ddelta[v] + dinput[v] * input) * slope.at[t][v];
        dskip_recent[v] += dout * input;
        dbias_recent[v] += draw;
        // The tiles of u and of raw delta are not read again; they carry the gradients out.
        u.at[t][v] = dinput[v] * delta.at[t][v] + block.skip[v] * dout;
        raw.at[t][v] = draw;
      }
    }
    for (int r = 0; r < rank; r++) {  // the gradient of raw delta in all steps, with sums in registers
      Lanes recent[VECTORS];
      for (int v = 0; v < VECTORS; v++) recent[v] = drank_weight_recent[r * VECTORS + v];
      for (int t = steps - 1; t >= 0; t--) {
        const Lanes factor = spread(block.low_rank[places[t] * a.low_rank.time + r]);
        Lanes sum = spread(0.f);
        for (int v = 0; v < VECTORS; v++) {
          sum += raw.at[t][v] * rank_weight[r * VECTORS + v];
          recent[v] += factor * raw.at[t][v];
        }
        dfactors[t * rank + r] = sum;
      }
      for (int v = 0; v < VECTORS; v++) drank_weight_recent[r * VECTORS + v] = recent[v];
    }
    store_sums(dB, states, steps, places, a.dB.time, dB_base);
    store_sums(dC, states, steps, places, a.dC.time, dC_base);
    if (rank) store_sums(dfactors, rank, steps, places, a.dlow_rank.time, dlow_rank_base);
    for (int n = 0; n < states; n++) {
      settle_all<VECTORS>(adjoint + n * VECTORS, adjoint_change + n * VECTORS);
      settle_all<VECTORS>(dA + n * VECTORS, dA_recent + n * VECTORS);
    }
    for (int r = 0; r < rank; r++) settle_all<VECTORS>(drank_weight + r * VECTORS, drank_weight_recent + r * VECTORS);
    settle_all<VECTORS>(dskip, dskip_recent);
    settle_all<VECTORS>(dbias, dbias_recent);
    if (a.image && task.group)
      store_tile<VECTORS, true>(u, a.du, du_base, places, steps, block.lanes);
    else
      store_tile<VECTORS, false>(u, a.du, du_base, places, steps, block.lanes);
    if (ddelta_base) store_tile<VECTORS, false>(raw, a.ddelta, ddelta_base, places, steps, block.lanes);
  }

  const int64_t row = task.batch * a.channels + channel;
  for (int n = 0; n < states; n++) scatter<VECTORS>(a.dA + row * states + n, dA + n * VECTORS, states, block.lanes);
  for (int r = 0; r < rank; r++)
    scatter<VECTORS>(a.drank_weight + row * rank + r, drank_weight + r * VECTORS, rank, block.lanes);
  scatter<VECTORS>(a.dskip + row, dskip, 1, block.lanes);
  scatter<VECTORS>(a.dbias + row, dbias, 1, block.lanes);
}

template <int VECTORS>
void forward_states(const ScanArguments& a, const ScanTask& task, float* scratch) {
  if (a.states == 1) forward_block<1, VECTORS>(a, task, scratch);
  else if (a.states == 16) forward_block<16, VECTORS>(a, task, scratch);
  else forward_block<0, VECTORS>(a, task, scratch);
}

template <int VECTORS>
void backward_states(const ScanArguments& a, const ScanTask& task, float* scratch) {
  if (a.states == 1) backward_block<1, VECTORS>(a, task, scratch);
  else if (a.states == 16) backward_block<16, VECTORS>(a, task, scratch);
  else backward_block<0, VECTORS>(a, task, scratch);
}

void forward(const ScanArguments& a, const ScanTask& task, int vectors, float* scratch) {
  if (vectors == 1) forward_states<1>(a, task, scratch);
  else if (vectors == 2) forward_states<2>(a, task, scratch);
  else if (vectors == 4) forward_states<4>(a, task, scratch);
#if MAX_VECTORS >= 8
  else forward_states<8>(a, task, scratch);
#endif
}

void backward(const ScanArguments& a, const ScanTask& task, int vectors, float* scratch) {
  if (vectors == 1) backward_states<1>(a, task, scratch);
  else if (vectors == 2) backward_states<2>(a, task, scratch);
  else if (vectors == 4) backward_states<4>(a, task, scratch);
#if MAX_VECTORS >= 8
  else backward_states<8>(a, task, scratch);
#endif
}
