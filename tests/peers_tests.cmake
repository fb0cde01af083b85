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
flatshard_command_test(peers_device_skipped_test LABELS fast COMMAND ${python_alone} bench/peers/device.py --build no/such/tree
  PROPERTIES PASS_REGULAR_EXPRESSION "^device.py: skipped, there is no no/such/tree/bin/device_bench\n$")
# Over programs that print what those of a machine without and with GPUs would; the figures are made up.
flatshard_command_test(peers_no_device_test LABELS fast COMMAND ${python_alone} bench/peers/device.py --build tests/peers/no_device
  PROPERTIES PASS_REGULAR_EXPRESSION "^device.py: skipped, no CUDA device \\(cudaErrorNoDevice\\)\n$")
flatshard_command_test(peers_device_table_test LABELS fast COMMAND ${python_alone} bench/peers/device.py --build tests/peers/figures --turns 3
  PROPERTIES PASS_REGULAR_EXPRESSION
  "3 turns, 3 rows of a turn void\n.*\nfp32 -> bf16 : a copy of as many bytes +4000 +4020 +1.00 +1.00, 1.00 +0.97  PASS\nfp32 -> bf16 : cub::DeviceTransform +4000 +5000 +0.80 +0.80, 0.80 +1.00  below\n.*host time of a launch: 4.8 us.*2 ranks of one process.*64 Ki, the same : ncclReduceScatter of fp32, bytes of bf16 +300 +150 +2.00")
flatshard_command_test(peers_turns_test LABELS fast COMMAND ${python_alone} bench/peers/casts.py --turns 0
  PROPERTIES PASS_REGULAR_EXPRESSION "--turns: must be a whole number from 1 to 1000, found '0'")
flatshard_command_test(peers_ranks_test LABELS fast COMMAND ${python_alone} bench/peers/collectives.py --ranks 3
  PROPERTIES PASS_REGULAR_EXPRESSION "--ranks: invalid choice: 3")
# A skipped script is no failure.
flatshard_command_test(peers_exit_test LABELS fast COMMAND ${python_alone} bench/peers/casts.py)
