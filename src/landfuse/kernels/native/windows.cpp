// Means and standard deviations of the windows around each pixel. Compiled without fused multiply-adds, which round once
// where NumPy rounds twice.
#include "export.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

namespace {

struct Windows {
  const float* image;  // (images, (rows + 2 halo) * zoom, (columns + 2 halo) * zoom, channels)
  int64_t images, rows, columns, channels, zoom;
  const int64_t* half;  // (windows,) ascending: a window reaches so many pixels from its middle; the last is the halo
  int64_t windows;
  float* found;   // (images, rows, columns, stride), of which (windows, 2, channels) are written: mean, deviation
  int64_t stride;
};

constexpr int64_t TILE = 32, CHANNELS = 8;  // what is summed at once stays in the cache
constexpr int MOMENTS = 3;                  // sum of values, of squares, and how many there are

void add(double* to, const double* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// One row of pixels: the sums over the zoom x zoom values within each.
void moments(const Windows& a, int64_t image, int64_t row, int64_t column, int64_t pixels, int64_t first, int64_t channels,
             double* out) {
  const int64_t halo = a.half[a.windows - 1], width = (a.columns + 2 * halo) * a.zoom;
  const int64_t height = (a.rows + 2 * halo) * a.zoom, each = pixels * channels;
  for (int64_t y = 0; y < a.zoom; ++y) {
    const float* line = a.image + ((image * height + row * a.zoom + y) * width + column * a.zoom) * a.channels + first;
    for (int64_t x = 0; x < a.zoom; ++x)
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        const float* value = line + (pixel * a.zoom + x) * a.channels;
        double* own = out + pixel * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const bool known = std::isfinite(value[c]);
          const double v = known ? value[c] : 0, terms[MOMENTS] = {v, v * v, double(known)};
          for (int m = 0; m < MOMENTS; ++m) own[m * each + c] = x || y ? own[m * each + c] + terms[m] : terms[m];
        }
      }
  }
}

// The order of all sums is that of `_window_sums` in pixel_tables.py: from the middle outwards, rows first.
void tile(const Windows& a, int64_t image, int64_t column, int64_t pixels, int64_t first, int64_t channels,
          std::vector<double>& room) {
  const int64_t halo = a.half[a.windows - 1], seen = pixels + 2 * halo, size = MOMENTS * seen * channels;
  const int64_t kept = 2 * halo + 1, each = seen * channels, wanted = pixels * channels;
  room.resize((kept + 1) * size + MOMENTS * wanted);
  double* down = room.data() + kept * size;
  double* across = down + size;
  const auto at = [&](int64_t row) { return room.data() + row % kept * size; };
  for (int64_t row = 0; row < 2 * halo; ++row) moments(a, image, row, column, seen, first, channels, at(row));
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t middle = row + halo;
    moments(a, image, row + 2 * halo, column, seen, first, channels, at(row + 2 * halo));
    std::copy(at(middle), at(middle) + size, down);
    int64_t step = 1;
    for (int64_t window = 0; window < a.windows; ++window) {
      for (; step <= a.half[window]; ++step) {
        add(down, at(middle - step), size);
        add(down, at(middle + step), size);
      }
      for (int m = 0; m < MOMENTS; ++m) {
        const double* from = down + m * each + halo * channels;
        double* sum = across + m * wanted;
        std::copy(from, from + wanted, sum);
        for (int64_t aside = 1; aside <= a.half[window]; ++aside) {
          add(sum, from - aside * channels, wanted);
          add(sum, from + aside * channels, wanted);
        }
      }
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        const int64_t place = (image * a.rows + row) * a.columns + column + pixel;
        float* out = a.found + place * a.stride + window * 2 * a.channels + first;
        for (int64_t c = 0; c < channels; ++c) {
          const double* own = across + pixel * channels + c;
          const double mean = own[0] / own[2 * wanted], variance = own[wanted] / own[2 * wanted] - mean * mean;
          out[c] = float(mean);
          out[a.channels + c] = float(std::sqrt(variance < 0 ? 0 : variance));
        }
      }
    }
  }
}
}  // namespace

EXPORT int64_t landfuse_windows_size() { return sizeof(Windows); }

EXPORT int landfuse_windows_run(const Windows* windows) {
  const Windows& a = *windows;
  try {
    std::vector<double> room;
    for (int64_t image = 0; image < a.images; ++image)
      for (int64_t first = 0; first < a.channels; first += CHANNELS)
        for (int64_t column = 0; column < a.columns; column += TILE)
          tile(a, image, column, std::min(TILE, a.columns - column), first, std::min(CHANNELS, a.channels - first), room);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
