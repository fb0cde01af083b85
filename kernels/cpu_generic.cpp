// SPDX-License-Identifier: Apache-2.0
/// The CPU kernels for every processor.
#include "cpu_loops.hpp"

namespace flatshard {
inline namespace v0 {
namespace kernels {
constinit kernel_table const generic_kernels = table_of<one_lane>();
}  // namespace kernels
}  // namespace v0
}  // namespace flatshard
