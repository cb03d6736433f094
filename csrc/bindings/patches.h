// SPDX-License-Identifier: Apache-2.0
// What the bindings from pictures to patches share on either kind of device.
#pragma once

#include "common.h"

namespace stc::bindings {

// Checked parameters but for what they point to: plan, patches and scratch.
PatchParams patch_params(const char* op, const Tensor& pictures, const Tensor& rows,
                         const Tensor& columns, const Tensor& values, int64_t patch_height,
                         int64_t patch_width);

// (B, H, W, 3) bytes of any layout.
GridView picture_view(const char* op, const char* name, const Tensor& t);

// The result of frames_to_patches, which the parameters then point to.
Tensor new_patches(PatchParams* p, const Tensor& values);

// The same of update_patches_ with all that only an update has.
Tensor changed_flags(const char* op, PatchParams* p, const Tensor& patches, const Tensor& previous,
                     const Tensor& pictures, const Tensor& values);

}  // namespace stc::bindings
