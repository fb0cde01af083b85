# SPDX-License-Identifier: Apache-2.0
# The scripts of bench/peers by a Python without packages: they say in one line what they skip, and what they cannot read.
find_package(Python3 QUIET COMPONENTS Interpreter)
if(NOT Python3_Interpreter_FOUND)
  message(STATUS "peers tests: skipped, no Python was found")
  return()
endif()
set(python_alone ${Python3_EXECUTABLE} -E -S -B)
flatshard_command_test(peers_casts_skipped_test LABELS fast COMMAND ${python_alone} bench/peers/casts.py
  PROPERTIES PASS_REGULAR_EXPRESSION "^casts.py: skipped, this Python has no PyTorch\n$")
flatshard_command_test(peers_collectives_skipped_test LABELS fast
  COMMAND ${python_alone} bench/peers/collectives.py --build no/such/tree
  PROPERTIES PASS_REGULAR_EXPRESSION "^collectives.py: skipped, there is no no/such/tree/bin/collectives_bench\n$")
flatshard_command_test(peers_train_step_skipped_test LABELS fast COMMAND ${python_alone} bench/peers/train_step.py
  PROPERTIES PASS_REGULAR_EXPRESSION "^train_step.py: skipped, this Python has no PyTorch\n$")
flatshard_command_test(peers_turns_test LABELS fast COMMAND ${python_alone} bench/peers/casts.py --turns 0
  PROPERTIES PASS_REGULAR_EXPRESSION "--turns: must be a whole number from 1 to 1000, found '0'")
flatshard_command_test(peers_ranks_test LABELS fast COMMAND ${python_alone} bench/peers/collectives.py --ranks 3
  PROPERTIES PASS_REGULAR_EXPRESSION "--ranks: invalid choice: 3")
# A skipped script is no failure.
flatshard_command_test(peers_exit_test LABELS fast COMMAND ${python_alone} bench/peers/casts.py)
