# SPDX-License-Identifier: Apache-2.0
# Part of CMakeLists.txt: tests that mpirun starts. Open MPI wants to be told that it may run as root, and more ranks
# than cores; what it keeps at the end is not our leak.
set(mpi_run ${CMAKE_COMMAND} -E env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  ASAN_OPTIONS=detect_leaks=0 ${MPIEXEC_EXECUTABLE})
execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpi_version ERROR_QUIET)
if(mpi_version MATCHES "Open MPI|OpenRTE")
  list(APPEND mpi_run --oversubscribe)
endif()
foreach(program mpi_collectives_test mpi_faults_rank)
  add_executable(${program} ${program}.cpp)
  target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${program} PRIVATE flatshard::mpi flatshard_flags doctest::doctest)
  target_compile_options(${program} PRIVATE -O1)
  flatshard_test_wanted(${program} wanted)
  set(unwanted ON)
  if(wanted)
    set(unwanted OFF)
  endif()
  set_target_properties(${program} PROPERTIES EXCLUDE_FROM_ALL ${unwanted})
endforeach()
# Four processes run the suite on worlds of one to four; fewer run what depends on all of them.
foreach(ranks 2 3 4)
  set(cases "")
  if(ranks LESS 4)
    set(cases "--test-case=*nodes_of_two*,*a window*,*without close*,*construction*")
  endif()
  flatshard_command_test(mpi_collectives_${ranks}_test LABELS fast mpi TIMEOUT 180
    COMMAND ${mpi_run} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:mpi_collectives_test> ${cases} PROPERTIES PROCESSORS 2 COST 800)  # early, beside others
endforeach()
foreach(level single funneled serialized)  # what MPI is initialised with
  flatshard_command_test(mpi_level_${level}_test LABELS fast mpi COMMAND ${mpi_run} ${MPIEXEC_NUMPROC_FLAG} 1
    $<TARGET_FILE:mpi_collectives_test> ${level} "--test-case=the level of threads*")
endforeach()
flatshard_command_test(mpi_faults_test LABELS slow mpi TIMEOUT 7200
  COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/mpi_faults.sh $<TARGET_FILE:mpi_faults_rank> 6 ${mpi_run} ${MPIEXEC_NUMPROC_FLAG}
  PROPERTIES RUN_SERIAL ON)  # it measures when ranks are named
if(TARGET flatshard_perf)
  flatshard_command_test(perf_mpi_test LABELS fast mpi
    COMMAND ${mpi_run} ${MPIEXEC_NUMPROC_FLAG} 3 $<TARGET_FILE:flatshard_perf> --backend mpi -b 64K -e 128K -n 3 -J /dev/stdout
    PROPERTIES PROCESSORS 2 PASS_REGULAR_EXPRESSION
    "mpi, 3 ranks.* processors; [^\n]*MPI[^\n]*\n# ranks (not pinned: they may use fewer processors than they are|not pinned each: some are held to the same processor|pinned, each to a processor of its own), buffers warm.*all_gather.*reduce_scatter.*values : 0 OK.*\"path\": \"a shared window\"")
endif()
# Ranks of NCCL that mpirun starts, over the stand-in: the id of the group travels by MPI, each process is a rank. Emulated.
if(TARGET emulated_perf)
  flatshard_command_test(perf_nccl_mpi_test LABELS fast mpi emulated COMMAND sh -c
    "folder=$(mktemp -d) && NCCL_ON_HOST_FOLDER=$folder \"$@\"; status=$?; rm -rf \"$folder\"; exit $status" sh
    ${mpi_run} ${MPIEXEC_NUMPROC_FLAG} 3 $<TARGET_FILE:emulated_perf> --backend nccl --bootstrap mpi -b 6000 -e 12000 -n 2 -T 30
    PROPERTIES PROCESSORS 2 PASS_REGULAR_EXPRESSION "nccl, 3 ranks.*MPI.*NCCL 2[.]28[.]9.*all_gather.*reduce_scatter.*values : 0 OK")
endif()
