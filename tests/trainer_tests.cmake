# SPDX-License-Identifier: Apache-2.0
# The trainer, run as a program.
if(NOT TARGET train_llama)
  return()
endif()
flatshard_test(train_llama_test LABELS fast LINK flatshard::json)
flatshard_test(llama_golden_test LABELS fast golden LINK flatshard::json)
foreach(trainer_test train_llama_test llama_golden_test)
  if(TARGET ${trainer_test})
    target_compile_definitions(${trainer_test} PRIVATE FLATSHARD_TRAINER="$<TARGET_FILE:train_llama>")
    target_compile_definitions(${trainer_test} PRIVATE $<$<TARGET_EXISTS:yaml-cpp>:FLATSHARD_YAML>)
    add_dependencies(${trainer_test} train_llama)
  endif()
endforeach()
