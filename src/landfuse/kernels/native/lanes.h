// Arithmetic on a vector of WIDTH float lanes, one channel per lane. Included once per instruction set, inside its own
// namespace; GCC and clang turn the vector types into that set's instructions.

typedef float Lanes __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4)));
typedef float LooseLanes __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4)));

#define INLINE static inline __attribute__((always_inline))

INLINE Lanes load(const float* p) { return (Lanes)(*(const LooseLanes*)p); }
INLINE void store(float* p, Lanes v) { *(LooseLanes*)p = (LooseLanes)v; }
INLINE Lanes spread(float x) { return Lanes{} + x; }

// V vectors side by side. Each operation is done on all of them before the next one: in the long chain of a single vector
// a processor waits for every result.
template <int V>
struct Pack {
  Lanes at[V];
};

template <class F, int... I>
INLINE Pack<sizeof...(I)> each(F f, std::integer_sequence<int, I...>) {
  return {{f(I)...}};
}
#define EACH(expression) \
  each([&](int i) __attribute__((always_inline)) -> Lanes { return expression; }, std::make_integer_sequence<int, V>{})

template <int V> INLINE Pack<V> operator+(Pack<V> a, Pack<V> b) { return EACH(a.at[i] + b.at[i]); }
template <int V> INLINE Pack<V> operator-(Pack<V> a, Pack<V> b) { return EACH(a.at[i] - b.at[i]); }
template <int V> INLINE Pack<V> operator*(Pack<V> a, Pack<V> b) { return EACH(a.at[i] * b.at[i]); }
template <int V> INLINE Pack<V> operator/(Pack<V> a, Pack<V> b) { return EACH(a.at[i] / b.at[i]); }
template <int V> INLINE Pack<V> operator+(Pack<V> a, float b) { return EACH(a.at[i] + b); }
template <int V> INLINE Pack<V> operator-(Pack<V> a, float b) { return EACH(a.at[i] - b); }
template <int V> INLINE Pack<V> operator*(Pack<V> a, float b) { return EACH(a.at[i] * b); }
template <int V> INLINE Pack<V> operator*(Pack<V> a, Lanes b) { return EACH(a.at[i] * b); }
template <int V> INLINE Pack<V> pack(const Lanes* from) { return EACH(from[i]); }
template <int V> INLINE void unpack(Lanes* to, Pack<V> a) { for (int v = 0; v < V; v++) to[v] = a.at[v]; }

// The comparison is false for NaN, so a NaN in x passes through both.
template <int V> INLINE Pack<V> at_least(Pack<V> x, float low) {
  return EACH(spread(low) > x.at[i] ? spread(low) : x.at[i]);
}
template <int V> INLINE Pack<V> at_most(Pack<V> x, float high) {
  return EACH(spread(high) < x.at[i] ? spread(high) : x.at[i]);
}
template <int V> INLINE Pack<V> minus_magnitude(Pack<V> x) {
  return EACH((Lanes)((IntLanes)x.at[i] | (int32_t)0x80000000));
}

// e^x = 2^n (1 + r q(r)),  n = round(x / ln 2),  |r| <= ln 2 / 2; q is Taylor's series, 5e-9 off at most.
template <int V>
struct Exponential {
  Pack<V> power;      // 2^n
  Pack<V> remainder;  // r q(r)
};

template <int V>
INLINE Exponential<V> split_exp(Pack<V> x) {
  // Below, 2^-126 is as good as 0; above, n = 128 makes the bit pattern of infinity.
  x = at_most(at_least(x, -87.3f), 88.73f);
  const float round_to_integer = 12582912.f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  const Pack<V> shifted = x * 1.44269504f + round_to_integer;
  const Pack<V> whole = shifted - round_to_integer;
  Pack<V> r = x - whole * 0.693359375f;  // ln 2 in two parts, the first exact in few bits
  r = r + whole * 2.12194440e-4f;
  Pack<V> q = r * 1.98412698e-04f + 1.38888889e-03f;
  q = q * r + 8.33333333e-03f;
  q = q * r + 4.16666667e-02f;
  q = q * r + 1.66666667e-01f;
  q = q * r + 5.00000000e-01f;
  q = q * r + 1.0f;
  return {EACH((Lanes)(((IntLanes)shifted.at[i] - 0x4B400000 + 127) << 23)), r * q};
}

template <int V>
INLINE Pack<V> exponential(Pack<V> x) {
  const Exponential<V> e = split_exp(x);
  return e.power + e.power * e.remainder;
}

// e^x - 1, exact to rounding near x = 0, where e^x itself would round to 1.
template <int V>
INLINE Pack<V> exponential_minus_1(Pack<V> x) {
  const Exponential<V> e = split_exp(x);
  return e.power * e.remainder + (e.power - 1.0f);
}

// log(1 + w) for 0 <= w <= 1, relative error 1e-7 (minimax).
template <int V>
INLINE Pack<V> log_1_plus(Pack<V> w) {
  Pack<V> p = w * -3.163999359e-03f + 1.948768609e-02f;
  p = p * w - 5.626952581e-02f;
  p = p * w + 1.053295061e-01f;
  p = p * w - 1.526327365e-01f;
  p = p * w + 1.966101787e-01f;
  p = p * w - 2.495116719e-01f;
  p = p * w + 3.332966549e-01f;
  p = p * w - 4.999989090e-01f;
  p = p * w + 1.0f;
  return p * w;
}

// softplus(z) = max(z, 0) + log(1 + e^-|z|), which neither overflows nor cancels.
template <int V>
INLINE Pack<V> softplus(Pack<V> z) {
  return at_least(z, 0.f) + log_1_plus(exponential(minus_magnitude(z)));
}

template <int V>
INLINE Pack<V> sigmoid(Pack<V> z) {
  const Pack<V> w = exponential(minus_magnitude(z));
  return EACH(z.at[i] > spread(0.f) ? spread(1.f) : w.at[i]) / (w + 1.f);
}

// One butterfly of a transpose: exchanges blocks of STEP lanes between two rows STEP apart.
template <int STEP, bool UPPER, int... LANE>
INLINE Lanes butterfly(Lanes a, Lanes b, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, b, (UPPER ? ((LANE & STEP) == 0 ? LANE + STEP : WIDTH + LANE)
                                              : ((LANE & STEP) == 0 ? LANE : WIDTH + LANE - STEP))...);
}

template <int STEP>
INLINE void butterflies(Lanes* rows) {
  typedef std::make_integer_sequence<int, WIDTH> Sequence;
  for (int i = 0; i < WIDTH; i++)
    if ((i & STEP) == 0) {
      Lanes a = rows[i], b = rows[i | STEP];
      rows[i] = butterfly<STEP, false>(a, b, Sequence{});
      rows[i | STEP] = butterfly<STEP, true>(a, b, Sequence{});
    }
}

INLINE void transpose(Lanes* rows) {  // WIDTH rows of WIDTH lanes, in registers
#if WIDTH >= 16
  butterflies<8>(rows);
#endif
#if WIDTH >= 8
  butterflies<4>(rows);
#endif
  butterflies<2>(rows);
  butterflies<1>(rows);
}

template <int STEP>
INLINE void fold(Lanes* rows) {
  typedef std::make_integer_sequence<int, WIDTH> Sequence;
  for (int i = 0; i < STEP; i++)
    rows[i] = butterfly<STEP, false>(rows[i], rows[i + STEP], Sequence{}) +
              butterfly<STEP, true>(rows[i], rows[i + STEP], Sequence{});
}

INLINE void sum_lanes(Lanes* rows) {  // of WIDTH rows: lane i of the first becomes the sum over row i's lanes
#if WIDTH >= 16
  fold<8>(rows);
#endif
#if WIDTH >= 8
  fold<4>(rows);
#endif
  fold<2>(rows);
  fold<1>(rows);
}

// A long sum kept in two parts: `base` stays fixed for a tile while `recent` takes what is added. `settle` then moves
// `recent` into `base` and keeps the rounding error, so that errors do not pile up over tens of thousands of steps.
INLINE void settle(Lanes& base, Lanes& recent) {
  const Lanes sum = base + recent, of_recent = sum - base, of_base = sum - of_recent;
  recent = (base - of_base) + (recent - of_recent);
  base = sum;
}

template <int COUNT>
INLINE void settle_all(Lanes* base, Lanes* recent) {
  for (int i = 0; i < COUNT; i++) settle(base[i], recent[i]);
}
