// SPDX-License-Identifier: Apache-2.0
#include "stc/patches.h"

#include "launchers.h"

namespace stc::STC_ISA {

namespace {

void make(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  p.element_size == 4 ? make_patches_range<uint32_t>(p, part, begin, end)
                      : make_patches_range<uint16_t>(p, part, begin, end);
}

PatchPart whole(const PatchParams& p, int64_t frame) {
  return {
      frame, {0, (p.height + 1) / 2}, {0, p.resized_width}, reinterpret_cast<uint8_t*>(p.narrowed)};
}

// The pairs of rows that a row of patches sees.
Span pairs_seen(const PatchParams& p, int64_t down) {
  return pairs_of(p.row_pairs, down * p.patch_height, p.patch_height);
}

}  // namespace

// Pairs [begin, end) of rows of a picture, resized along the row into scratch (pairs, pitch).
void narrow_rows(const PatchParams& p, int64_t frame, int64_t begin, int64_t end) {
  narrow_rows_range(p, whole(p, frame), begin, end);
}

// Rows [begin, end) of the resized picture from that scratch.
void make_patches(const PatchParams& p, int64_t frame, int64_t begin, int64_t end) {
  make(p, whole(p, frame), begin, end);
}

// The flags of rows [begin, end) of patches. Needs no pairs.
void mark_changed(const PatchParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t down = row % p.grid_height;
    mark_changed_range(p, row / p.grid_height, down, seen_by(p.rows, down, p.patch_height));
  }
}

// The marked patches of a row of them, with scratch of update_scratch() words.
void update_patches(const PatchParams& p, uint32_t* scratch, int64_t row_of_patches) {
  const int64_t frame = row_of_patches / p.grid_height, down = row_of_patches % p.grid_height;
  const uint8_t* changed = p.changed + row_of_patches * p.grid_width;
  for (int64_t first = 0; first < p.grid_width; ++first) {
    if (!changed[first]) continue;
    int64_t end = first + 1;  // neighbours together: they share most of what they see
    while (end < p.grid_width && changed[end]) ++end;
    const PatchPart part = {frame,
                            pairs_seen(p, down),
                            {first * p.patch_width, end * p.patch_width},
                            reinterpret_cast<uint8_t*>(scratch)};
    narrow_rows_range(p, part, 0, part.pairs.end - part.pairs.first);
    make(p, part, down * p.patch_height, (down + 1) * p.patch_height);
    first = end;
  }
}

int64_t update_scratch(const PatchParams& p) {
  int64_t most = 0;
  for (int64_t down = 0; down < p.grid_height; ++down) {
    const Span pairs = pairs_seen(p, down);
    most = pairs.end - pairs.first > most ? pairs.end - pairs.first : most;
  }
  return most * p.pitch;
}

}  // namespace stc::STC_ISA
