// Arithmetic on a vector of WIDTH float lanes, one channel per lane. Included once per instruction set, inside its own
// namespace; GCC and clang turn the vector types into that set's instructions.

typedef float Lanes __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4)));
typedef float LooseLanes __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(WIDTH * 4), aligned(WIDTH * 4)));

#define INLINE static inline __attribute__((always_inline))

INLINE Lanes load(const float* p) { return (Lanes)(*(const LooseLanes*)p); }
INLINE void store(float* p, Lanes v) { *(LooseLanes*)p = (LooseLanes)v; }
INLINE Lanes spread(float x) { return Lanes{} + x; }

// The comparison is false for NaN, so a NaN in x passes through both.
INLINE Lanes at_least(Lanes x, float low) { return spread(low) > x ? spread(low) : x; }
INLINE Lanes at_most(Lanes x, float high) { return spread(high) < x ? spread(high) : x; }
INLINE Lanes magnitude(Lanes x) { return (Lanes)((IntLanes)x & 0x7fffffff); }

// e^x = 2^n (1 + r q(r)),  n = round(x / ln 2),  |r| <= ln 2 / 2; q is Taylor's series, 5e-9 off at most.
struct Exponential {
  Lanes power;      // 2^n
  Lanes remainder;  // r q(r)
};

INLINE Exponential split_exp(Lanes x) {
  // Below, 2^-126 is as good as 0; above, n = 128 makes the bit pattern of infinity.
  x = at_most(at_least(x, -87.3f), 88.73f);
  const float round_to_integer = 12582912.f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  Lanes shifted = x * 1.44269504f + round_to_integer;
  IntLanes n = (IntLanes)shifted - 0x4B400000;
  Lanes whole = shifted - round_to_integer;
  Lanes r = x - whole * 0.693359375f;  // ln 2 in two parts, the first exact in few bits
  r = r + whole * 2.12194440e-4f;
  Lanes q = spread(1.98412698e-04f);
  q = q * r + 1.38888889e-03f;
  q = q * r + 8.33333333e-03f;
  q = q * r + 4.16666667e-02f;
  q = q * r + 1.66666667e-01f;
  q = q * r + 5.00000000e-01f;
  q = q * r + 1.0f;
  return {(Lanes)((n + 127) << 23), r * q};
}

INLINE Lanes exponential(Lanes x) {
  Exponential e = split_exp(x);
  return e.power + e.power * e.remainder;
}

// e^x - 1, exact to rounding near x = 0, where e^x itself would round to 1.
INLINE Lanes exponential_minus_1(Lanes x) {
  Exponential e = split_exp(x);
  return e.power * e.remainder + (e.power - 1.0f);
}

// log(1 + w) for 0 <= w <= 1, relative error 1e-7 (minimax).
INLINE Lanes log_1_plus(Lanes w) {
  Lanes p = spread(-3.163999359e-03f);
  p = p * w + 1.948768609e-02f;
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
INLINE Lanes softplus(Lanes z) { return at_least(z, 0.f) + log_1_plus(exponential(-magnitude(z))); }

INLINE Lanes sigmoid(Lanes z) {
  Lanes w = exponential(-magnitude(z)), one = spread(1.f);
  return (z > spread(0.f) ? one : w) / (one + w);
}

INLINE float sum_of_lanes(Lanes v) {
  float part[WIDTH];
  __builtin_memcpy(part, &v, sizeof v);
  for (int half = WIDTH / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
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
