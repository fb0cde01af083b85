# SPDX-License-Identifier: Apache-2.0
# Configurations under every front end.
flatshard_test(config_golden_test GROUP config_tests LABELS fast golden LINK flatshard::json flatshard_frontend flatshard_resolver)
flatshard_test(places_golden_test GROUP config_tests LABELS fast golden LINK flatshard::json flatshard_frontend flatshard_resolver)
flatshard_test(key_table_test GROUP config_tests LABELS fast DEFINITIONS FLATSHARD_DOCS="${PROJECT_SOURCE_DIR}/docs")
flatshard_test(resolve_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(input_grids_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(deepspeed_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(front_ends_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(concrete_test GROUP config_tests GOLDEN LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(accelerate_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(diagnosed_cases_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(frontend_test GROUP config_tests LABELS fast LINK flatshard::json flatshard_frontend flatshard_resolver)
