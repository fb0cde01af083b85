// SPDX-License-Identifier: Apache-2.0
/// Everything that needs the standard library alone: `g++ -std=c++20 -I include x.cpp` and nothing else.
#pragma once

#include <flatshard/base64.hpp>                     // IWYU pragma: export
#include <flatshard/communicator.hpp>               // IWYU pragma: export
#include <flatshard/config/resolve.hpp>             // IWYU pragma: export
#include <flatshard/deepspeed_estimate.hpp>         // IWYU pragma: export
#include <flatshard/document.hpp>                   // IWYU pragma: export
#include <flatshard/dtype.hpp>                      // IWYU pragma: export
#include <flatshard/estimate.hpp>                   // IWYU pragma: export
#include <flatshard/extent.hpp>                     // IWYU pragma: export
#include <flatshard/fnv.hpp>                        // IWYU pragma: export
#include <flatshard/full_weights.hpp>               // IWYU pragma: export
#include <flatshard/initial_values.hpp>             // IWYU pragma: export
#include <flatshard/json_fault.hpp>                 // IWYU pragma: export
#include <flatshard/laws.hpp>                       // IWYU pragma: export
#include <flatshard/layout.hpp>                     // IWYU pragma: export
#include <flatshard/layouts/blocks.hpp>             // IWYU pragma: export
#include <flatshard/layouts/fsdp1.hpp>              // IWYU pragma: export
#include <flatshard/layouts/fsdp2.hpp>              // IWYU pragma: export
#include <flatshard/layouts/fsdp2_groups.hpp>       // IWYU pragma: export
#include <flatshard/layouts/llmc.hpp>               // IWYU pragma: export
#include <flatshard/layouts/megatron.hpp>           // IWYU pragma: export
#include <flatshard/layouts/megatron_groups.hpp>    // IWYU pragma: export
#include <flatshard/layouts/native.hpp>             // IWYU pragma: export
#include <flatshard/layouts/owned.hpp>              // IWYU pragma: export
#include <flatshard/layouts/planned.hpp>            // IWYU pragma: export
#include <flatshard/layouts/ragged.hpp>             // IWYU pragma: export
#include <flatshard/layouts/zero12.hpp>             // IWYU pragma: export
#include <flatshard/layouts/zero3.hpp>              // IWYU pragma: export
#include <flatshard/layouts/zero3_collectives.hpp>  // IWYU pragma: export
#include <flatshard/memory_arena.hpp>               // IWYU pragma: export
#include <flatshard/mesh.hpp>                       // IWYU pragma: export
#include <flatshard/name_pattern.hpp>               // IWYU pragma: export
#include <flatshard/parameter_table.hpp>            // IWYU pragma: export
#include <flatshard/plan.hpp>                       // IWYU pragma: export
#include <flatshard/policy.hpp>                     // IWYU pragma: export
#include <flatshard/problem.hpp>                    // IWYU pragma: export
#include <flatshard/quantity.hpp>                   // IWYU pragma: export
#include <flatshard/require.hpp>                    // IWYU pragma: export
#include <flatshard/reshard.hpp>                    // IWYU pragma: export
#include <flatshard/schedule.hpp>                   // IWYU pragma: export
#include <flatshard/stable_order.hpp>               // IWYU pragma: export
#include <flatshard/unit.hpp>                       // IWYU pragma: export
#include <flatshard/utf8.hpp>                       // IWYU pragma: export
#include <flatshard/value.hpp>                      // IWYU pragma: export
#include <flatshard/version.hpp>                    // IWYU pragma: export
