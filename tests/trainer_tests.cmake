# SPDX-License-Identifier: Apache-2.0
# The trainer, run as a program.
if(NOT TARGET train_llama)
  return()
endif()
flatshard_test(train_llama_test GROUP trainer_tests LABELS fast LINK flatshard::json)
flatshard_test(llama_golden_test GROUP trainer_tests LABELS fast golden LINK flatshard::json)
get_target_property(trainer_definitions train_llama COMPILE_DEFINITIONS)
if(TARGET trainer_tests)
  target_compile_definitions(trainer_tests PRIVATE FLATSHARD_TRAINER="$<TARGET_FILE:train_llama>"
    FLATSHARD_PROJECT="${PROJECT_SOURCE_DIR}" $<$<TARGET_EXISTS:yaml-cpp>:FLATSHARD_YAML>)
  if("FLATSHARD_ONEDNN" IN_LIST trainer_definitions)  # quoted: it is a variable too
    target_compile_definitions(trainer_tests PRIVATE FLATSHARD_ONEDNN)
  endif()
  add_dependencies(trainer_tests train_llama)
endif()
