// SPDX-License-Identifier: Apache-2.0
// From pictures to patches, with windows and weights that no resize has: sums that wrap around, and
// windows that begin outside the picture.
#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

namespace {
struct Resize {
  int64_t B, H, W, rows, columns, row_taps, column_taps, patch_height, patch_width;
  Dt dt;
  int64_t down() const { return rows / patch_height; }
  int64_t across() const { return columns / patch_width; }
  int64_t patches() const { return down() * across(); }
};
Resize any_resize(Case& c, int size) {
  Rng& r = c.rng;
  Resize s;
  s.dt = c.float_type();
  s.B = size == 2 ? 1 : r.between(1, 2);
  const int64_t most = size == 0 ? 12 : 40;
  s.H = r.between(1, most);
  s.W = size == 2 ? r.between(1, 700) : r.between(1, most);
  s.rows = r.between(1, most);
  s.columns = size == 0 ? r.between(1, most) : r.pick<int64_t>({256, 257, 300, 530});
  if (size == 2) s.rows = r.between(1, 4), s.columns = r.between(1, 8);
  s.row_taps = r.between(1, s.H);
  s.column_taps = size == 2 ? s.W : r.between(1, std::min<int64_t>(s.W, 12));
  s.patch_height = r.between(1, s.rows);
  s.patch_width = r.between(1, s.columns);
  char text[160];
  std::snprintf(text, sizeof text, "B%lld %lldx%lld to %lldx%lld taps %lldx%lld patch %lldx%lld %s",
                (long long)s.B, (long long)s.H, (long long)s.W, (long long)s.rows,
                (long long)s.columns, (long long)s.row_taps, (long long)s.column_taps,
                (long long)s.patch_height, (long long)s.patch_width, name_of(s.dt));
  c.what = text;
  return s;
}
int32_t word(const Tensor& t, int64_t i, int64_t k) {
  int32_t v;
  std::memcpy(&v, t.data() + t.at({i, k}) * 4, 4);
  return v;
}
Tensor any_taps(Case& c, const char* name, int64_t count, int64_t taps, int64_t side) {
  const Tensor t = c.rng.chance(70)
                       ? make(name, Dt::kI32, {count, 1 + taps}, emu::Kind::kInput)
                       : laid_out(c.rng, name, Dt::kI32, {count, 1 + taps}, emu::Kind::kInput, 2);
  const bool wild = c.rng.chance(25);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k <= taps; ++k) {
      int64_t v = k == 0
                      ? c.rng.between(-2, side + 2)
                      : static_cast<int64_t>(c.rng.normal() * 0x1p23 / static_cast<double>(taps));
      if (wild && c.rng.chance(10)) v = c.rng.pick<int64_t>({INT32_MAX, INT32_MIN, -1, 1 << 30});
      const int32_t w = static_cast<int32_t>(v);
      std::memcpy(t.data() + t.at({i, k}) * 4, &w, 4);
    }
  return t;
}
Tensor any_pictures(Case& c, const char* name, const Resize& s) {
  const Tensor t = laid_out(c.rng, name, Dt::kByte, {s.B, s.H, s.W, 3});
  for (int64_t i = 0; i < t.numel(); ++i)
    t.set(t.nth(i), static_cast<double>(c.rng.pick<int64_t>({0, 255, c.rng.below(256)})));
  return t;
}
int64_t start_of(const Tensor& taps, int64_t i, int64_t side) {
  return std::clamp<int64_t>(word(taps, i, 0), 0, side - (taps.size[1] - 1));
}
// A weighted sum of bytes as one.
int64_t mixed(const Tensor& taps, int64_t i, const std::function<int64_t(int64_t)>& byte_at) {
  uint64_t sum = uint64_t{1} << 21;
  for (int64_t k = 1; k < taps.size[1]; ++k)
    sum += static_cast<uint64_t>(static_cast<int64_t>(word(taps, i, k)) * byte_at(k - 1));
  return std::clamp<int64_t>(static_cast<int32_t>(static_cast<uint32_t>(sum)) >> 22, 0, 255);
}
// Bytes (B, rows, columns, 3) of the resized pictures.
std::vector<int64_t> resized(const Resize& s, const Tensor& x, const Tensor& rows,
                             const Tensor& columns) {
  std::vector<int64_t> narrow(static_cast<size_t>(s.B * s.H * s.columns * 3)), out;
  size_t n = 0;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t y = 0; y < s.H; ++y)
      for (int64_t i = 0; i < s.columns; ++i)
        for (int64_t ch = 0; ch < 3; ++ch) {
          const int64_t first = start_of(columns, i, s.W);
          narrow[n++] = mixed(columns, i, [&](int64_t k) {
            return static_cast<int64_t>(x({b, y, first + k, ch}));
          });
        }
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t at = 0; at < s.columns * 3; ++at) {
        const int64_t first = start_of(rows, i, s.H);
        out.push_back(mixed(rows, i, [&](int64_t k) {
          return narrow[static_cast<size_t>((b * s.H + first + k) * s.columns * 3 + at)];
        }));
      }
  return out;
}
// Whether a patch sees a pixel along one axis.
bool sees(const Tensor& taps, int64_t patch, int64_t pixels, int64_t side, int64_t at) {
  int64_t low = side, high = 0;
  for (int64_t i = patch * pixels; i < (patch + 1) * pixels; ++i) {
    low = std::min(low, start_of(taps, i, side));
    high = std::max(high, start_of(taps, i, side) + taps.size[1] - 1);
  }
  return low <= at && at < high;
}
PatchParams params(const Resize& s, const Tensor& x, const Tensor& rows, const Tensor& columns,
                   const Tensor& values, const Tensor& patches, const Tensor& scratch) {
  PatchParams p = {};
  p.pictures = {x.data(), x.stride[0], x.stride[1], x.stride[2], x.stride[3]};
  p.frames = s.B, p.height = s.H, p.width = s.W;
  p.rows = {rows.as<int32_t>(), s.row_taps};
  p.columns = {columns.as<int32_t>(), s.column_taps};
  p.values = values.data();
  p.element_size = static_cast<int64_t>(size_of(s.dt));
  p.grid_height = s.down(), p.grid_width = s.across();
  p.patch_height = s.patch_height, p.patch_width = s.patch_width;
  p.resized_height = s.down() * s.patch_height, p.resized_width = s.across() * s.patch_width;
  p.patches = patches.mutable_view();
  p.narrowed = scratch.as<uint32_t>();
  p.pitch = p.resized_width;
  return p;
}
// As the bindings give it to the launchers.
Tensor contiguous(const Tensor& t) {
  const Tensor copy = make("contiguous", t.dt, t.size, emu::Kind::kInput);
  for (int64_t i = 0; i < t.size[0]; ++i)
    std::memcpy(copy.data() + copy.at({i, 0}) * 4, t.data() + t.at({i, 0}) * 4,
                static_cast<size_t>(t.size[1]) * 4);
  return copy;
}
double value_of(const Resize& s, const Tensor& values, const std::vector<int64_t>& bytes, int64_t b,
                int64_t patch, int64_t i) {
  const int64_t ch = i / (s.patch_height * s.patch_width);
  const int64_t y = patch / s.across() * s.patch_height + i / s.patch_width % s.patch_height;
  const int64_t x = patch % s.across() * s.patch_width + i % s.patch_width;
  const size_t at = static_cast<size_t>(((b * s.rows + y) * s.columns + x) * 3 + ch);
  return values({ch, bytes[at]});
}
}  // namespace

void test_frames_to_patches(Case& c, int size) {
  const Resize s = any_resize(c, size);
  const Tensor x = any_pictures(c, "pictures", s),
               rows = any_taps(c, "rows", s.rows, s.row_taps, s.H),
               columns = any_taps(c, "columns", s.columns, s.column_taps, s.W),
               values = make("values", s.dt, {3, 256}, emu::Kind::kInput);
  fill(c.rng, values);
  Tensor out = output("patches", s.dt, {s.B, s.patches(), 3 * s.patch_height * s.patch_width});
  Tensor scratch = output("_narrowed", Dt::kI32, {s.B, s.H, s.across() * s.patch_width});
  const Tensor own_rows = contiguous(rows), own_columns = contiguous(columns);
  const PatchParams p = params(s, x, own_rows, own_columns, values, out, scratch);
  c.outputs = {&out, &scratch};
  c.run([&](cudaStream_t st) { return stc::cuda::frames_to_patches(p, st); });
  check_bound(c, "frames_to_patches", bind::frames_to_patches, {&out}, {}, x, rows, columns, values,
              s.patch_height, s.patch_width);
  const std::vector<int64_t> bytes = resized(s, x, rows, columns);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.patches(); ++n)
      for (int64_t i = 0; i < out.size[2]; ++i)
        c.near("patches", out({b, n, i}), value_of(s, values, bytes, b, n, i), 0, 0);
}

void test_update_patches(Case& c, int size) {
  const Resize s = any_resize(c, size);
  const Tensor x = any_pictures(c, "pictures", s),
               before = laid_out(c.rng, "previous", Dt::kByte, {s.B, s.H, s.W, 3});
  for (int64_t i = 0; i < x.numel(); ++i) before.set(before.nth(i), x.get(x.nth(i)));
  for (int64_t i = c.rng.below(4); i > 0; --i) {
    const int64_t at = before.nth(c.rng.below(before.numel()));
    before.set(at, static_cast<double>(static_cast<int64_t>(before.get(at)) ^ 1));
  }
  const Tensor rows = any_taps(c, "rows", s.rows, s.row_taps, s.H),
               columns = any_taps(c, "columns", s.columns, s.column_taps, s.W),
               values = make("values", s.dt, {3, 256}, emu::Kind::kInput);
  fill(c.rng, values);
  Tensor patches =
      laid_out(c.rng, "patches", s.dt, {s.B, s.patches(), 3 * s.patch_height * s.patch_width},
               emu::Kind::kInOut);
  fill(c.rng, patches);
  std::vector<double> old;
  for (int64_t i = 0; i < patches.numel(); ++i) old.push_back(patches.get(patches.nth(i)));
  Tensor changed = output("changed", Dt::kU8, {s.B, s.patches()});
  Tensor scratch = output("_narrowed", Dt::kI32, {s.B, s.H, s.across() * s.patch_width});
  const Tensor own_rows = contiguous(rows), own_columns = contiguous(columns);
  PatchParams p = params(s, x, own_rows, own_columns, values, patches, scratch);
  p.previous = {before.data(), before.stride[0], before.stride[1], before.stride[2],
                before.stride[3]};
  p.changed = changed.as<uint8_t>();
  c.outputs = {&patches, &changed, &scratch};
  c.run([&](cudaStream_t st) { return stc::cuda::update_patches(p, st); });
  check_bound(c, "update_patches_", bind::update_patches, {&changed}, {&patches}, patches, x,
              before, rows, columns, values, s.patch_height, s.patch_width);
  const std::vector<int64_t> bytes = resized(s, x, rows, columns);
  size_t at = 0;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.patches(); ++n) {
      bool differs = false;
      for (int64_t y = 0; y < s.H; ++y)
        for (int64_t i = 0; i < s.W; ++i)
          for (int64_t ch = 0; ch < 3; ++ch)
            differs |= x({b, y, i, ch}) != before({b, y, i, ch}) &&
                       sees(rows, n / s.across(), s.patch_height, s.H, y) &&
                       sees(columns, n % s.across(), s.patch_width, s.W, i);
      c.expect((changed({b, n}) != 0) == differs, "changed");
      for (int64_t i = 0; i < patches.size[2]; ++i, ++at)
        c.near("patches", patches({b, n, i}),
               differs ? value_of(s, values, bytes, b, n, i) : old[at], 0, 0);
    }
}
