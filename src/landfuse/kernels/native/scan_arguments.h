// What the callers hand to the scan: plain C types only, mirrored field by field in scan_native.py.
#pragma once
#include <cstdint>

// A tensor addressed by (batch, time, channel) or, for B, C and the low-rank factors, by (batch, time, group);
// strides count floats. The position in time comes from a Direction.
struct Strided {
  float* data;
  int64_t batch, time, channel;
};

// The place in memory of step t:  start + (t / inner) * outer_step + (t % inner) * inner_step.
// One image can thus be walked by rows, by columns, and backwards, without a copy.
struct Direction {
  int64_t start, inner, inner_step, outer_step;
};

struct ScanArguments {
  int64_t batch, length, channels, groups, states, rank;
  int32_t image;     // 1: all groups read the same `channels / groups` channels of u, and y sums over the groups
  int32_t softplus;  // 1: delta = softplus(raw delta + bias)
  int32_t threads;
  int32_t isa;                   // -1: the best this machine has; else 0 baseline, 1 AVX2, 2 AVX-512
  const Direction* directions;   // one per group

  const float *A, *skip, *bias, *rank_weight;  // (channels, states), (channels), (channels), (channels, rank)
  Strided u, delta, low_rank, B, C;  // delta.data is null where low_rank serves; states and rank are contiguous
  Strided y;
  float* checkpoints;  // (batch, ceil(length / TIME_TILE), states, channels): the state before each tile, or null

  // Backward only. Sums over channels are left in one part per block of channels (`*_part` apart), sums over time in
  // one part per batch item, so that the result does not depend on the order in which threads finish.
  Strided dy, du, ddelta, dlow_rank, dB, dC;
  int64_t dlow_rank_part, dB_part, dC_part;
  float *dA, *dskip, *dbias, *drank_weight;  // (batch, channels, ...)
};

constexpr int TIME_TILE = 16;  // steps that are loaded, transposed and checkpointed together

// Work on one block of channels of one batch item: what one thread does at a time.
struct ScanTask {
  int64_t batch, group, first_channel, part;  // first_channel within the group
  int lanes;                                  // channels in this block; less than the full width at the group's end
};

// One instruction set's kernels. They use no library code, so nothing compiled for a newer processor can be chosen by
// the linker for an older one.
struct ScanKernels {
  int width;        // floats in a vector
  int max_vectors;  // vectors side by side in one block, at most
  void (*forward)(const ScanArguments&, const ScanTask&, int vectors, float* scratch);
  void (*backward)(const ScanArguments&, const ScanTask&, int vectors, float* scratch);
};
