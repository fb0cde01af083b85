// SPDX-License-Identifier: Apache-2.0
#include "no_mutable_state_planted/state.hpp"
