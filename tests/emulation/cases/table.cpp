// SPDX-License-Identifier: Apache-2.0
#include "ops.h"

// clang-format off
// Of each operator any number of cases, at three sizes.
#define EACH_OPERATOR(X)                                                                       \
  X(token_cosine) X(select_changed) X(gather_rows) X(scatter_rows) X(scatter_key_value)        \
  X(scatter_residual) X(gather_layer_norm) X(add_layer_norm) X(bias_gelu) X(channel_variance)  \
  X(saliency_topk) X(spatial_redundancy) X(compact_tokens) X(bipartite_match) X(merge_tokens)  \
  X(sparse_query_attention) X(attention_column_mean) X(frames_to_patches) X(update_patches)
// What no operator's cases meet.
#define EACH_SPECIAL(X)                                                                        \
  X(streams) X(graphs) X(slots) X(dead_streams) X(empties) X(nan_threshold) X(head_widths)     \
  X(infinite_key) X(failed_launch)
// clang-format on

#define DECLARE(name) void test_##name(Case&, int);
EACH_OPERATOR(DECLARE)
EACH_SPECIAL(DECLARE)
#define ENTRY(name) {#name, test_##name},
const std::vector<Op> all_ops = {EACH_OPERATOR(ENTRY)};
const std::vector<Op> special_tests = {EACH_SPECIAL(ENTRY)};
