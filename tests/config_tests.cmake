# SPDX-License-Identifier: Apache-2.0
# Configurations under every front end.
flatshard_test(config_golden_test LABELS fast golden LINK flatshard::json flatshard_frontend flatshard_resolver)
flatshard_test(places_golden_test LABELS fast golden LINK flatshard::json flatshard_frontend flatshard_resolver)
flatshard_test(key_table_test LABELS fast)
target_compile_definitions(key_table_test PRIVATE FLATSHARD_DOCS="${PROJECT_SOURCE_DIR}/docs")
flatshard_test(resolve_test LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(deepspeed_test LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(front_ends_test LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(concrete_test GOLDEN LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(accelerate_test LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(diagnosed_cases_test LABELS fast LINK flatshard::json flatshard_resolver)
flatshard_test(frontend_test LABELS fast LINK flatshard::json flatshard_frontend flatshard_resolver)
