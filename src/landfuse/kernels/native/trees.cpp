// Trees as tables of nodes: what their leaves hold is added up for each pixel, tree by tree.
#include "export.h"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace {

// The children of a node are neighbours: `left`, where its value is at most the threshold, and the one after it.
// A leaf is its own child, with an infinite threshold.
struct Narrow {  // 8 bytes: half as many cache lines as `Wide`
  float limit;
  uint32_t both;
  float threshold() const { return limit; }
  uint32_t feature() const { return both & 4095; }
  uint32_t left() const { return both >> 12; }
};

struct Wide {
  float limit;
  uint32_t place, child;
  float threshold() const { return limit; }
  uint32_t feature() const { return place; }
  uint32_t left() const { return child; }
};

struct Trees {
  const float* features;  // (pixels, count)
  int64_t pixels, count;
  const void* nodes;  // of all trees, one after the other
  const int64_t* start;  // (trees,) where each begins
  int64_t trees, depth, wide;
  const float* values;  // (nodes of all trees, width)
  int64_t width;
  const int32_t* target;  // (trees,) the first class that a tree's values are added to
  float* total;  // (pixels, classes)
  int64_t classes;
};

constexpr int LANES = 8;  // pixels that descend side by side, since each waits for memory most of the time
constexpr int STEPS = 4;  // between two looks whether all have reached a leaf
constexpr int64_t CACHE = 1 << 20;  // numbers of features that stay in the cache while all trees pass
constexpr int64_t MOST = 1 << 15;   // pixels

template <class Node>
void walk(const Trees& a) {
  const int64_t size = std::min(std::max<int64_t>(1024, CACHE / std::max<int64_t>(1, a.count)), MOST) / LANES * LANES;
  uint32_t leaf[MOST];
  for (int64_t block = 0; block < a.pixels; block += size) {
    const int64_t end = std::min(block + size, a.pixels);
    for (int64_t tree = 0; tree < a.trees; ++tree) {
      const Node* __restrict nodes = static_cast<const Node*>(a.nodes) + a.start[tree];
      const float* __restrict values = a.values + a.start[tree] * a.width;
      for (int64_t pixel = block; pixel < end; pixel += LANES) {
        const int64_t lanes = std::min<int64_t>(LANES, end - pixel);
        const float* row[LANES];
        uint32_t node[LANES] = {};
        for (int64_t lane = 0; lane < LANES; ++lane)
          row[lane] = a.features + (pixel + std::min(lane, lanes - 1)) * a.count;
        if (pixel + 2 * LANES <= end) {  // the features of the pixels after these, which no processor foresees
          const char* next = reinterpret_cast<const char*>(a.features + (pixel + LANES) * a.count);
          for (int64_t at = 0; at < LANES * a.count * 4; at += 64) __builtin_prefetch(next + at);
        }
        for (int64_t step = 0; step < a.depth; step += STEPS) {
          uint32_t moved = 0;
#pragma GCC unroll 4
          for (int inner = 0; inner < STEPS; ++inner) {
#pragma GCC unroll 8
            for (int lane = 0; lane < LANES; ++lane) {
              const Node here = nodes[node[lane]];
              const uint32_t next = here.left() + (row[lane][here.feature()] > here.threshold());
              if (inner == STEPS - 1) moved |= next ^ node[lane];
              node[lane] = next;
            }
          }
          if (!moved) break;
        }
        std::copy(node, node + LANES, leaf + (pixel - block));
      }
      for (int64_t pixel = block; pixel < end; ++pixel) {  // afterwards: the processor waits for many values at once
        const float* __restrict value = values + leaf[pixel - block] * a.width;
        float* __restrict total = a.total + pixel * a.classes + a.target[tree];
        for (int64_t place = 0; place < a.width; ++place) total[place] += value[place];
      }
    }
  }
}
}  // namespace

EXPORT int64_t landfuse_trees_arguments_size() { return sizeof(Trees); }

EXPORT void landfuse_trees_add(const Trees* trees) { trees->wide ? walk<Wide>(*trees) : walk<Narrow>(*trees); }

// Numbers the nodes of each tree, of `length` with children (tree, node, 2), level by level from the root, so that two
// children are neighbours; nodes that no pixel reaches are left out. `order` has the old places of all trees' nodes.
// Returns how many these are, or -1 if a child is none of its tree's nodes, or is above its parent.
EXPORT int64_t landfuse_trees_pack(const int32_t* branches, const int32_t* feature, const float* threshold, int64_t trees,
                                   int64_t length, Wide* nodes, int64_t* order, int64_t* start) {
  int64_t at = 0, end = 0;
  for (int64_t tree = 0; tree < trees; ++tree) {
    const int64_t root = tree * length, begin = start[tree] = end;
    order[end++] = root;
    for (; at < end; ++at) {
      const int64_t old = order[at], left = branches[2 * old], right = branches[2 * old + 1];
      if (left == old - root) {
        nodes[at] = {std::numeric_limits<float>::infinity(), 0, uint32_t(at - begin)};
        continue;
      }
      if (std::min(left, right) < 0 || std::max(left, right) >= length || end + 2 > begin + length) return -1;
      nodes[at] = {threshold[old], uint32_t(feature[old]), uint32_t(end - begin)};
      order[end++] = root + left;
      order[end++] = root + right;
    }
  }
  return end;
}
