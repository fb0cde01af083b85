// SPDX-License-Identifier: Apache-2.0
// Breaks the include rules on purpose.
#include <flatshard/config/resolve.hpp>
