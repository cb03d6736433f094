// SPDX-License-Identifier: Apache-2.0
#include "../patches.h"

#include "common.h"

namespace stc::bindings::cuda {

namespace {

Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Tensors that the parameters point to.
struct Plan {
  Tensor rows, columns, values, narrowed;
};

Plan take_plan(const OnDevice& on, PatchParams* p, const Tensor& rows, const Tensor& columns,
               const Tensor& values) {
  on.check("rows", rows);
  on.check("columns", columns);
  on.check("values", values);
  p->pitch = p->resized_width;
  Plan plan = {as_contiguous(rows), as_contiguous(columns), as_contiguous(values),
               empty_like_device(values, {p->frames, p->height, p->pitch}, ScalarType::Int)};
  p->rows.data = int_data(plan.rows);
  p->columns.data = int_data(plan.columns);
  p->values = plan.values.const_data_ptr();
  p->narrowed = static_cast<uint32_t*>(plan.narrowed.mutable_data_ptr());
  return plan;
}

}  // namespace

Tensor frames_to_patches(const Tensor& pictures, const Tensor& rows, const Tensor& columns,
                         const Tensor& values, int64_t patch_height, int64_t patch_width) {
  const char* op = "frames_to_patches";
  const OnDevice on(op, pictures);
  PatchParams p = patch_params(op, pictures, rows, columns, values, patch_height, patch_width);
  const Plan plan = take_plan(on, &p, rows, columns, values);
  const Tensor out = new_patches(&p, values);
  on.launched(stc::cuda::frames_to_patches(p, on.stream()));
  return out;
}

Tensor update_patches(Tensor patches, const Tensor& pictures, const Tensor& previous,
                      const Tensor& rows, const Tensor& columns, const Tensor& values,
                      int64_t patch_height, int64_t patch_width) {
  const char* op = "update_patches_";
  const OnDevice on(op, patches);
  on.check("pictures", pictures);
  on.check("previous", previous);
  PatchParams p = patch_params(op, pictures, rows, columns, values, patch_height, patch_width);
  const Tensor changed = changed_flags(op, &p, patches, previous, pictures, values);
  const Plan plan = take_plan(on, &p, rows, columns, values);
  on.launched(stc::cuda::update_patches(p, on.stream()));
  mark_as_written(patches);
  return changed;
}

}  // namespace stc::bindings::cuda
