// SPDX-License-Identifier: Apache-2.0
// Planted: the record of one name has another member in the other source.
#include <vector>

namespace planted {
struct record {
  int value = 1;
};
}  // namespace planted

std::vector<planted::record> first_records(unsigned n) { return std::vector<planted::record>(n); }
