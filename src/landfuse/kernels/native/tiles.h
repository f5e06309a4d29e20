// Moving TIME_TILE steps of a block of channels between memory and vectors, whichever of time and channel is contiguous.

template <int VECTORS>
struct Tile {
  Lanes at[TIME_TILE][VECTORS];  // [step][vector], one channel per lane
};

INLINE void place_steps(const Direction& direction, int64_t first, int steps, int64_t* places) {
  int64_t outer = first / direction.inner, inner = first % direction.inner;
  for (int i = 0; i < steps; i++) {
    places[i] = direction.start + inner * direction.inner_step + outer * direction.outer_step;
    if (++inner == direction.inner) inner = 0, outer++;
  }
}

// +1 where the places rise by one at every step, -1 where they fall by one, else 0.
INLINE int consecutive(const int64_t* places, int steps) {
  if (steps != TIME_TILE) return 0;
  const int64_t span = places[TIME_TILE - 1] - places[0];
  // A walk along rows of one pixel has this span too when its places jump, so the first step is looked at as well.
  if (span == TIME_TILE - 1 && places[1] - places[0] == 1) return 1;
  if (span == 1 - TIME_TILE && places[1] - places[0] == -1) return -1;
  return 0;
}

template <int VECTORS>
INLINE void load_tile(Tile<VECTORS>& tile, const Strided& tensor, const float* base, const int64_t* places, int steps,
                      int lanes) {
  const bool full = lanes == WIDTH * VECTORS;
  const int run = full && tensor.time == 1 && tensor.channel != 1 ? consecutive(places, steps) : 0;
  if (full && tensor.channel == 1) {
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < VECTORS; v++) tile.at[t][v] = load(base + places[t] * tensor.time + v * WIDTH);
  } else if (run) {
    const float* first = base + (run > 0 ? places[0] : places[TIME_TILE - 1]);
    for (int v = 0; v < VECTORS; v++)
      for (int q = 0; q < TIME_TILE; q += WIDTH) {
        Lanes rows[WIDTH];
        for (int i = 0; i < WIDTH; i++) rows[i] = load(first + (v * WIDTH + i) * tensor.channel + q);
        transpose(rows);
        for (int i = 0; i < WIDTH; i++) tile.at[run > 0 ? q + i : TIME_TILE - 1 - q - i][v] = rows[i];
      }
  } else {
    for (int t = 0; t < steps; t++) {
      float* row = (float*)&tile.at[t][0];
      for (int j = 0; j < WIDTH * VECTORS; j++)
        row[j] = j < lanes ? base[places[t] * tensor.time + j * tensor.channel] : 0.f;
    }
  }
}

template <int VECTORS, bool ADD>
INLINE void store_tile(const Tile<VECTORS>& tile, const Strided& tensor, float* base, const int64_t* places, int steps,
                       int lanes) {
  const bool full = lanes == WIDTH * VECTORS;
  const int run = full && tensor.time == 1 && tensor.channel != 1 ? consecutive(places, steps) : 0;
  if (full && tensor.channel == 1) {
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < VECTORS; v++) {
        float* to = base + places[t] * tensor.time + v * WIDTH;
        store(to, ADD ? load(to) + tile.at[t][v] : tile.at[t][v]);
      }
  } else if (run) {
    float* first = base + (run > 0 ? places[0] : places[TIME_TILE - 1]);
    for (int v = 0; v < VECTORS; v++)
      for (int q = 0; q < TIME_TILE; q += WIDTH) {
        Lanes rows[WIDTH];
        for (int i = 0; i < WIDTH; i++) rows[i] = tile.at[run > 0 ? q + i : TIME_TILE - 1 - q - i][v];
        transpose(rows);
        for (int i = 0; i < WIDTH; i++) {
          float* to = first + (v * WIDTH + i) * tensor.channel + q;
          store(to, ADD ? load(to) + rows[i] : rows[i]);
        }
      }
  } else {
    for (int t = 0; t < steps; t++) {
      const float* row = (const float*)&tile.at[t][0];
      for (int j = 0; j < lanes; j++) {
        float* to = base + places[t] * tensor.time + j * tensor.channel;
        *to = ADD ? *to + row[j] : row[j];
      }
    }
  }
}

// Asks for the memory of a tile ahead of its turn: steps may lie further apart than processors foresee.
template <int VECTORS>
INLINE void fetch_tile(const Strided& tensor, const float* base, const int64_t* places, int steps) {
  if (tensor.channel != 1) return;
  for (int t = 0; t < steps; t++)
    for (int j = 0; j < WIDTH * VECTORS; j += 16) __builtin_prefetch(base + places[t] * tensor.time + j);
}

// One value per channel, `stride` floats apart; lanes beyond the block are zero.
template <int VECTORS>
INLINE void gather(Lanes* vectors, const float* from, int64_t stride, int lanes) {
  if (stride == 1 && lanes == WIDTH * VECTORS) {
    for (int v = 0; v < VECTORS; v++) vectors[v] = load(from + v * WIDTH);
    return;
  }
  float* row = (float*)vectors;
  for (int j = 0; j < WIDTH * VECTORS; j++) row[j] = j < lanes ? from[j * stride] : 0.f;
}

template <int VECTORS>
INLINE void scatter(float* to, const Lanes* vectors, int64_t stride, int lanes) {
  if (stride == 1 && lanes == WIDTH * VECTORS) {
    for (int v = 0; v < VECTORS; v++) store(to + v * WIDTH, vectors[v]);
    return;
  }
  const float* row = (const float*)vectors;
  for (int j = 0; j < lanes; j++) to[j * stride] = row[j];
}

template <int VECTORS>
INLINE void clear(Lanes* vectors) {
  for (int v = 0; v < VECTORS; v++) vectors[v] = spread(0.f);
}
