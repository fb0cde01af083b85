// SPDX-License-Identifier: Apache-2.0
/// The version of the library. CMake reads these three lines; the inline namespace changes only with the binary
/// interface.
#pragma once

#define FLATSHARD_VERSION_MAJOR 0
#define FLATSHARD_VERSION_MINOR 1
#define FLATSHARD_VERSION_PATCH 0

/// flatshard: training configurations resolved into policies, policies into layouts, layouts into shards.
namespace flatshard {
inline namespace v0 {}
}  // namespace flatshard
