// SPDX-License-Identifier: Apache-2.0
#include "patches.h"

#include "common.h"

namespace stc::bindings {

namespace {

// A copy whose windows lie within the picture, whatever is written to the tensor meanwhile.
std::vector<int32_t> checked_taps(const Tensor& taps, int64_t side) {
  const int64_t count = taps.size(0), width = taps.size(1);
  const int32_t* from = int_data(taps);
  const int64_t row = taps.stride(0), column = taps.stride(1);
  std::vector<int32_t> copy(static_cast<size_t>(count * width));
  int32_t* to = copy.data();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < width; ++k) *to++ = from[i * row + k * column];
    int32_t& start = to[-width];
    start = std::clamp<int32_t>(start, 0, static_cast<int32_t>(side - (width - 1)));
  }
  return copy;
}

std::vector<uint8_t> contiguous_bytes(const Tensor& values, int64_t element_size) {
  const auto* from = static_cast<const uint8_t*>(values.const_data_ptr());
  std::vector<uint8_t> copy(static_cast<size_t>(values.numel() * element_size));
  for (int64_t i = 0; i < values.numel(); ++i) {
    const int64_t at =
        i / values.size(1) * values.stride(0) + i % values.size(1) * values.stride(1);
    std::copy_n(from + at * element_size, element_size, copy.data() + i * element_size);
  }
  return copy;
}

// The part of a weight that is left for 16 bits with a sign.
int64_t high_part(int32_t weight, int shift) {
  return (int64_t{weight} + (int64_t{1} << shift >> 1)) >> shift;
}

// As few low bits as leave 16 at most; 16 low ones always do, as the others wrap around.
int low_bits(const std::vector<int32_t>& taps, int64_t width) {
  int shift = 0;
  for (const int32_t* tap = taps.data(); tap < taps.data() + taps.size(); tap += width) {
    for (int64_t k = 1; k < width; ++k) {
      while (shift < 16 &&
             high_part(tap[k], shift) != static_cast<int16_t>(high_part(tap[k], shift))) {
        ++shift;
      }
    }
  }
  return shift;
}

// See TapPairs.
TapPairs pair_up(const std::vector<int32_t>& taps, int64_t count, int64_t side,
                 std::vector<uint32_t>* words) {
  const int64_t all = (side + 1) / 2, width = 1 + count;
  TapPairs pairs = {nullptr, std::min(count / 2 + 1, all), low_bits(taps, width)};
  words->assign(taps.size() / static_cast<size_t>(width) *
                    static_cast<size_t>(TapPairs::kHead + 2 * pairs.count),
                0);
  pairs.data = words->data();
  uint32_t* to = words->data();
  for (const int32_t* tap = taps.data(); tap < taps.data() + taps.size(); tap += width) {
    const int64_t first = std::min(tap[0] / 2, static_cast<int32_t>(all - pairs.count));
    int64_t least = 0, spread = 0;
    uint32_t* high = to + TapPairs::kHead;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t upper = high_part(tap[1 + k], pairs.shift),
                    lower = tap[1 + k] - upper * (int64_t{1} << pairs.shift);
      const int64_t place = tap[0] + k - 2 * first;
      high[place / 2] |= static_cast<uint32_t>(upper & 0xffff) << place % 2 * 16;
      high[pairs.count + place / 2] |= static_cast<uint32_t>(lower & 0xffff) << place % 2 * 16;
      least += std::min<int64_t>(lower, 0) * 255;
      spread += std::abs(lower) * 255;
    }
    to[0] = static_cast<uint32_t>(first);
    to[1] = static_cast<uint32_t>(least);
    to[2] = static_cast<uint32_t>(std::min<int64_t>(spread, int64_t{1} << kFractionBits));
    to += TapPairs::kHead + 2 * pairs.count;
  }
  return pairs;
}

// What the parameters point to.
struct Plan {
  std::vector<int32_t> rows, columns;
  std::vector<uint32_t> row_pairs, column_pairs;
  std::vector<uint8_t> values;
};

Plan take_plan(PatchParams* p, const Tensor& rows, const Tensor& columns, const Tensor& values) {
  Plan plan = {checked_taps(rows, p->height),
               checked_taps(columns, p->width),
               {},
               {},
               contiguous_bytes(values, p->element_size)};
  p->rows.data = plan.rows.data();
  p->columns.data = plan.columns.data();
  p->values = plan.values.data();
  // Two rows of three bytes a column, and what vectors of any instruction set read behind them.
  p->pitch = (6 * p->resized_width + 128 + 63) / 64 * 16;
  return plan;
}

// What making a patch needs and seeing whether to make one does not.
void prepare_pairs(PatchParams* p, Plan* plan) {
  p->row_pairs = pair_up(plan->rows, p->rows.count, p->height, &plan->row_pairs);
  p->column_pairs = pair_up(plan->columns, p->columns.count, p->width, &plan->column_pairs);
}

// Additions and multiplications that a resized row or column costs.
int64_t operations(const Taps& taps, int64_t pixels) { return work({3, taps.count, pixels}); }

}  // namespace

PatchParams patch_params(const char* op, const Tensor& pictures, const Tensor& rows,
                         const Tensor& columns, const Tensor& values, int64_t patch_height,
                         int64_t patch_width) {
  constexpr int64_t kMostPixels = 65535;
  PatchParams p = {};
  p.pictures = picture_view(op, "pictures", pictures);
  p.frames = pictures.size(0);
  p.height = pictures.size(1);
  p.width = pictures.size(2);
  const auto taps = [&](const char* name, const Tensor& t, int64_t side) {
    check_dim(op, name, t, 2);
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int, "`", op, "`: ", name, " must be int32");
    check_range(op, name, t.size(0), 1, kMostPixels);
    check_range(op, "height and width of pictures", side, 1, kMostPixels);
    check_range(op, "the number of weights", t.size(1) - 1, 1, side);
    return Taps{nullptr, t.size(1) - 1};
  };
  p.rows = taps("rows", rows, p.height);
  p.columns = taps("columns", columns, p.width);
  check_dim(op, "values", values, 2);
  check_size(op, "values", values, 0, 3);
  check_size(op, "values", values, 1, 256);
  p.element_size = size_of(dtype_of(op, "values", values));
  check_range(op, "patch_height", patch_height, 1, rows.size(0));
  check_range(op, "patch_width", patch_width, 1, columns.size(0));
  p.patch_height = patch_height;
  p.patch_width = patch_width;
  p.grid_height = rows.size(0) / patch_height;
  p.grid_width = columns.size(0) / patch_width;
  p.resized_height = p.grid_height * patch_height;
  p.resized_width = p.grid_width * patch_width;
  product(op, {p.frames, p.resized_height, p.resized_width, 3});
  return p;
}

GridView picture_view(const char* op, const char* name, const Tensor& t) {
  check_dim(op, name, t, 4);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Byte, "`", op, "`: ", name, " must be uint8");
  check_size(op, name, t, 3, 3);
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

Tensor new_patches(PatchParams* p, const Tensor& values) {
  const int64_t count = p->grid_height * p->grid_width;
  const Tensor out = empty_like_device(
      values, {p->frames, count, 3 * p->patch_height * p->patch_width}, values.scalar_type());
  p->patches = mutable_view_of(out);
  return out;
}

Tensor changed_flags(const char* op, PatchParams* p, const Tensor& patches, const Tensor& previous,
                     const Tensor& pictures, const Tensor& values) {
  check_same_dtype(op, "values", values, patches);
  check_dim(op, "patches", patches, 3);
  check_size(op, "patches", patches, 0, p->frames);
  check_size(op, "patches", patches, 1, p->grid_height * p->grid_width);
  check_size(op, "patches", patches, 2, 3 * p->patch_height * p->patch_width);
  p->patches = mutable_view_of(patches);
  p->previous = picture_view(op, "previous", previous);
  for (int64_t i = 0; i < 3; ++i) check_size(op, "previous", previous, i, pictures.size(i));
  const Tensor changed = empty_like_device(patches, {p->frames, patches.size(1)}, ScalarType::Bool);
  p->changed = static_cast<uint8_t*>(changed.mutable_data_ptr());
  return changed;
}

Tensor frames_to_patches(const Tensor& pictures, const Tensor& rows, const Tensor& columns,
                         const Tensor& values, int64_t patch_height, int64_t patch_width) {
  PatchParams p =
      patch_params("frames_to_patches", pictures, rows, columns, values, patch_height, patch_width);
  Plan plan = take_plan(&p, rows, columns, values);
  const Tensor out = new_patches(&p, values);
  if (p.frames == 0) return out;
  prepare_pairs(&p, &plan);
  const int64_t pairs = (p.height + 1) / 2;
  p.narrowed = reinterpret_cast<uint32_t*>(scratch_floats(pairs * p.pitch));
  for (int64_t frame = 0; frame < p.frames; ++frame) {
    parallel(pairs, 2 * operations(p.columns, p.resized_width),
             [&](int64_t b, int64_t e) { kernels().narrow_rows(p, frame, b, e); });
    parallel(p.resized_height, operations(p.rows, p.resized_width),
             [&](int64_t b, int64_t e) { kernels().make_patches(p, frame, b, e); });
  }
  return out;
}

Tensor update_patches(Tensor patches, const Tensor& pictures, const Tensor& previous,
                      const Tensor& rows, const Tensor& columns, const Tensor& values,
                      int64_t patch_height, int64_t patch_width) {
  const char* op = "update_patches_";
  PatchParams p = patch_params(op, pictures, rows, columns, values, patch_height, patch_width);
  const Tensor changed = changed_flags(op, &p, patches, previous, pictures, values);
  Plan plan = take_plan(&p, rows, columns, values);
  const int64_t patch_rows = p.frames * p.grid_height;
  const int64_t row_work = work({p.width, p.height / p.grid_height + 1});
  parallel(patch_rows, row_work, [&](int64_t b, int64_t e) { kernels().mark_changed(p, b, e); });
  const uint8_t *flags = p.changed, *end = flags + patch_rows * p.grid_width;
  if (std::find(flags, end, 1) != end) {
    prepare_pairs(&p, &plan);
    const int64_t floats = kernels().update_scratch(p);
    parallel(patch_rows, row_work, [&](int64_t b, int64_t e) {
      uint32_t* scratch = reinterpret_cast<uint32_t*>(scratch_floats(floats));
      for (int64_t i = b; i < e; ++i) kernels().update_patches(p, scratch, i);
    });
  }
  mark_as_written(patches);
  return changed;
}

}  // namespace stc::bindings
