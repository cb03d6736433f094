// SPDX-License-Identifier: Apache-2.0
#include "stc/patches.h"

#include "launchers.h"

namespace stc::STC_ISA {

namespace {

void narrow(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  packed(p.pictures) ? narrow_rows_range<true>(p, part, begin, end)
                     : narrow_rows_range<false>(p, part, begin, end);
}

void make(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  p.element_size == 4 ? make_patches_range<uint32_t>(p, part, begin, end)
                      : make_patches_range<uint16_t>(p, part, begin, end);
}

PatchPart whole(const PatchParams& p, int64_t frame) {
  return {frame, 0, p.height, 0, p.resized_width, p.narrowed};
}

}  // namespace

// Rows [begin, end) of a picture, resized along the row into scratch (height, pitch).
void narrow_rows(const PatchParams& p, int64_t frame, int64_t begin, int64_t end) {
  narrow(p, whole(p, frame), begin, end);
}

// Rows [begin, end) of the resized picture from that scratch.
void make_patches(const PatchParams& p, int64_t frame, int64_t begin, int64_t end) {
  make(p, whole(p, frame), begin, end);
}

// A row of patches, with scratch of update_scratch() words.
void update_patches(const PatchParams& p, uint32_t* scratch, int64_t row_of_patches) {
  const int64_t frame = row_of_patches / p.grid_height, down = row_of_patches % p.grid_height;
  const Seen rows = seen_by(p.rows, down, p.patch_height);
  const bool any = packed(p.pictures) && packed(p.previous)
                       ? mark_changed<true>(p, frame, down, rows)
                       : mark_changed<false>(p, frame, down, rows);
  if (!any) return;
  const uint8_t* changed = p.changed + row_of_patches * p.grid_width;
  for (int64_t first = 0; first < p.grid_width; ++first) {
    if (!changed[first]) continue;
    int64_t end = first + 1;  // neighbours together: they share most of what they see
    while (end < p.grid_width && changed[end]) ++end;
    const PatchPart part = {
        frame,  rows.first, rows.end - rows.first, first * p.patch_width, end * p.patch_width,
        scratch};
    narrow(p, part, 0, part.rows);
    make(p, part, down * p.patch_height, (down + 1) * p.patch_height);
    first = end;
  }
}

int64_t update_scratch(const PatchParams& p) {
  int64_t most = 0;
  for (int64_t down = 0; down < p.grid_height; ++down) {
    const Seen rows = seen_by(p.rows, down, p.patch_height);
    most = rows.end - rows.first > most ? rows.end - rows.first : most;
  }
  return most * p.pitch;
}

}  // namespace stc::STC_ISA
