// SPDX-License-Identifier: Apache-2.0
/// What is wrong with an input: code, place, sentence; all problems of one input together, and the exception that
/// carries them.
#pragma once

#include <flatshard/require.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flatshard {
inline namespace v0 {

/// What kind of problem. Files use the names of docs/formats.md, configurations those of docs/config.md.
enum class errc : std::uint8_t {
  // safetensors files, indexes, models
  io,
  file_type,
  header_too_small,
  header_too_large,
  header_length,
  header_utf8,
  header_json,
  duplicate_key,
  metadata_type,
  entry_shape,
  number,
  dtype_unknown,
  overflow,
  not_byte_sized,
  offsets,
  size_mismatch,
  hole_or_overlap,
  data_size,
  path,
  file_missing,
  tensor_missing,
  tensor_unexpected,
  shape_mismatch,
  dtype_mismatch,
  short_read,
  file_changed,
  total_size,
  model_config,
  bad_world,
  // reading configurations
  json_syntax,
  yaml_syntax,
  duplicate_keys,
  root_not_object,
  file_unreadable,
  json_file_unreadable,
  // deciding
  section_not_object,
  fp16_unsupported,
  both_enabled,
  unknown_key,
  unknown_keys,
  unknown_backend,
  unknown_backend_keys,
  backend_name_missing,
  config_file_missing,
  wrong_type,
  out_of_range,
  auto_unresolved,
  hidden_size_missing,
  hidden_sizes_empty,
  model_config_missing,
  batch_missing,
  batch_product_mismatch,
  batch_not_divisible,
  bad_batch_size,
  train_batch_not_positive,
  micro_batch_not_positive,
  micro_batch_unresolved,
  accumulation_not_positive,
  division_by_zero,
  zero_section_missing,
  bad_attention,
  mesh_mismatch,
  context_parallel_needs_fsdp2,
  needs_flash_attention,
  adapter_on_meta,
  bad_number,
  bad_dtype,
  bad_reshard_value,
  bad_reshard_group,
  optimizer_conflict,
  native_validation,
  // accepted silently upstream, reported here
  duplicate_key_ignored,
  odd_truth_value,
  number_as_bool,
  string_as_bool,
  ignored_key,
  shadowed_key,
  not_zero3_loading,
  trap,
  process_group_exists,
  accumulation_mismatch,
  dcp_path_missing,
  ddp_fallback,
  fsdp_skipped,
  no_device_mesh,
  other,
  // added later, in the order of their coming
  mixed_precision_conflict,
  bad_communication_dtype,
  bad_allreduce_op,
  extra_forbidden,
  enum_value,
  bool_parsing,
  bool_type,
  int_parsing,
  int_parsing_size,
  int_from_float,
  int_type,
  finite_number,
  greater_than_equal,
  less_than_equal,
  float_parsing,
  float_type,
  model_type,
  path_type,
  dict_type,
  value_error,
  assertion_error,
  deprecated_and_new,
  param_dtype_conflict,
  accumulation_dtype_mix,
  needs_zero_stage,
  needs_bf16_master,
  deprecated_key,
  wrong_section,
  load_train_differ,
  mpi_starts_nothing,
  meta_weights_unfilled,
  named_file_missing,
  list_type,
  string_type,
  unsupported,
  bad_distributed_type,
  bad_fsdp_policy,
  bad_mixed_precision,
  bad_offload,
  bad_source,
  bad_truth_value,
  bad_wrap_policy,
  bad_wrap_unit,
  checkpointing_needs_wrap_policy,
  config_file_and_keys,
  distributed_type_missing,
  forward_prefetch_refused,
  layer_class_missing,
  local_state_dict_refused,
  offload_needs_checkpointing,
  parallelism_needs_fsdp2,
  processes_missing,
  sync_module_states_needed,
  unexpected_argument,
  unknown_name,
  unit_dtype_mismatch,
  deprecated_sharding_strategy,
  ignored_backward_prefetch,
  ignored_sync_module_states,
  ignored_use_orig_params,
  zero3_init_flag_off,
  training_mismatch,
  optimizer_section_missing,
  // of DeepSpeed's own reading
  hjson_syntax,
  unterminated_comment,
  not_base64,
  removed_key,
  bad_tag_validation,
  bad_autocast_modules,
  key_missing,
  needs_cpu_offload,
  both_masters,
  amp_with_zero,
  amp_with_half,
  greater_than,
  less_than,
  literal_error,
  tuple_type,
  instance_of,
  unknown_release,
  unsupported_optimizer,
  untested_optimizer
};

/// The code as it is printed: snake_case for files, kebab-case for configurations.
[[nodiscard]] std::string_view name(errc code);

/// How much a problem matters: an error stops what was asked for; a warning is accepted by upstream in silence.
enum class severity : std::uint8_t { error, warning, note };
[[nodiscard]] constexpr std::string_view name(severity s) {
  return s == severity::error ? "error" : s == severity::warning ? "warning" : "note";
}

/// A place in an input. Lines and columns count from 1, columns in bytes; 0 = not known.
struct place {
  std::string file;
  std::string pointer;  ///< JSON Pointer (RFC 6901); empty = the whole document
  std::size_t line{}, column{};
  friend bool operator==(place const&, place const&) = default;
};
/// `file:line:column: /json/pointer`, without the parts that are not known.
[[nodiscard]] inline std::string to_string(place const& p) {
  std::string text = p.file;
  if (p.line != 0) text += (text.empty() ? "line " : ":") + std::to_string(p.line) + ':' + std::to_string(p.column);
  if (!p.pointer.empty()) text += (text.empty() ? "" : ": ") + p.pointer;
  return text;
}

/// One problem. `detail` says what was found, what is allowed and how to mend it.
struct problem {
  errc code{};
  place where;
  std::string detail;
  severity level = severity::error;
  std::string when;      ///< upstream's moment: read, load, train, first step; empty where it does not apply
  std::string upstream;  ///< what upstream raises, as kind: message; empty = nothing, silently
  std::size_t more = 0;  ///< this problem stands for so many of its code, level and moment, which are counted only
};

/// All problems of one input. Not an aggregate: g++ 12 would take it for constructible from its first member.
struct config_error {
  config_error() = default;
  explicit config_error(problem one) { problems.push_back(std::move(one)); }
  explicit config_error(std::vector<problem> all) : problems{std::move(all)} {}
  std::vector<problem> problems;
};

/// Every problem, one a line: `file:line:column: /pointer: error: detail [code]`.
[[nodiscard]] inline std::string to_string(problem const& p) {
  auto text = to_string(p.where);
  if (!text.empty()) text += ": ";
  text += std::string{name(p.level)} + ": " + p.detail + " [" + std::string{name(p.code)} + ']';
  return text;
}
[[nodiscard]] inline std::string to_string(config_error const& e) {
  std::string text;
  for (auto const& p : e.problems) text += (text.empty() ? "" : "\n") + to_string(p);
  return text;
}

#if defined(__cpp_exceptions)
/// Thrown by `.value()` of a result or resolution that holds problems; `what()` lists all of them.
struct bad_input : std::runtime_error {
  explicit bad_input(config_error e) : runtime_error{to_string(e)}, error{std::move(e)} {}
  config_error error;
};
[[noreturn]] inline void throw_bad_input(config_error e) { throw bad_input{std::move(e)}; }
#else
[[noreturn]] inline void throw_bad_input(config_error const& e) {
  std::fprintf(stderr, "flatshard: bad input\n%s\n", to_string(e).c_str());
  std::abort();
}
#endif

inline std::string_view name(errc code) {
  switch (code) {
    case errc::io: return "io";
    case errc::file_type: return "file_type";
    case errc::header_too_small: return "header_too_small";
    case errc::header_too_large: return "header_too_large";
    case errc::header_length: return "header_length";
    case errc::header_utf8: return "header_utf8";
    case errc::header_json: return "header_json";
    case errc::duplicate_key: return "duplicate_key";
    case errc::metadata_type: return "metadata_type";
    case errc::entry_shape: return "entry_shape";
    case errc::number: return "number";
    case errc::dtype_unknown: return "dtype_unknown";
    case errc::overflow: return "overflow";
    case errc::not_byte_sized: return "not_byte_sized";
    case errc::offsets: return "offsets";
    case errc::size_mismatch: return "size_mismatch";
    case errc::hole_or_overlap: return "hole_or_overlap";
    case errc::data_size: return "data_size";
    case errc::path: return "path";
    case errc::file_missing: return "file_missing";
    case errc::tensor_missing: return "tensor_missing";
    case errc::tensor_unexpected: return "tensor_unexpected";
    case errc::shape_mismatch: return "shape_mismatch";
    case errc::dtype_mismatch: return "dtype_mismatch";
    case errc::short_read: return "short_read";
    case errc::file_changed: return "file_changed";
    case errc::total_size: return "total_size";
    case errc::model_config: return "model_config";
    case errc::bad_world: return "bad_world";
    case errc::json_syntax: return "json-syntax";
    case errc::yaml_syntax: return "yaml-syntax";
    case errc::duplicate_keys: return "duplicate-keys";
    case errc::root_not_object: return "root-not-object";
    case errc::file_unreadable: return "file-unreadable";
    case errc::json_file_unreadable: return "json-file-unreadable";
    case errc::section_not_object: return "section-not-object";
    case errc::fp16_unsupported: return "fp16-unsupported";
    case errc::both_enabled: return "both-enabled";
    case errc::unknown_key: return "unknown-key";
    case errc::unknown_keys: return "unknown-keys";
    case errc::unknown_backend: return "unknown-backend";
    case errc::unknown_backend_keys: return "unknown-backend-keys";
    case errc::backend_name_missing: return "backend-name-missing";
    case errc::config_file_missing: return "config-file-missing";
    case errc::wrong_type: return "wrong-type";
    case errc::out_of_range: return "out-of-range";
    case errc::auto_unresolved: return "auto-unresolved";
    case errc::hidden_size_missing: return "hidden-size-missing";
    case errc::hidden_sizes_empty: return "hidden-sizes-empty";
    case errc::model_config_missing: return "model-config-missing";
    case errc::batch_missing: return "batch-missing";
    case errc::batch_product_mismatch: return "batch-product-mismatch";
    case errc::batch_not_divisible: return "batch-not-divisible";
    case errc::bad_batch_size: return "bad-batch-size";
    case errc::train_batch_not_positive: return "train-batch-not-positive";
    case errc::micro_batch_not_positive: return "micro-batch-not-positive";
    case errc::micro_batch_unresolved: return "micro-batch-unresolved";
    case errc::accumulation_not_positive: return "accumulation-not-positive";
    case errc::division_by_zero: return "division-by-zero";
    case errc::zero_section_missing: return "zero-section-missing";
    case errc::bad_attention: return "bad-attention";
    case errc::mesh_mismatch: return "mesh-mismatch";
    case errc::context_parallel_needs_fsdp2: return "context-parallel-needs-fsdp2";
    case errc::needs_flash_attention: return "needs-flash-attention";
    case errc::adapter_on_meta: return "adapter-on-meta";
    case errc::bad_number: return "bad-number";
    case errc::bad_dtype: return "bad-dtype";
    case errc::bad_reshard_value: return "bad-reshard-value";
    case errc::bad_reshard_group: return "bad-reshard-group";
    case errc::optimizer_conflict: return "optimizer-conflict";
    case errc::native_validation: return "native-validation";
    case errc::duplicate_key_ignored: return "duplicate-key-ignored";
    case errc::odd_truth_value: return "odd-truth-value";
    case errc::number_as_bool: return "number-as-bool";
    case errc::string_as_bool: return "string-as-bool";
    case errc::ignored_key: return "ignored-key";
    case errc::shadowed_key: return "shadowed-key";
    case errc::not_zero3_loading: return "not-zero3-loading";
    case errc::trap: return "trap";
    case errc::process_group_exists: return "process-group-exists";
    case errc::accumulation_mismatch: return "accumulation-mismatch";
    case errc::dcp_path_missing: return "dcp-path-missing";
    case errc::ddp_fallback: return "ddp-fallback";
    case errc::fsdp_skipped: return "fsdp-skipped";
    case errc::no_device_mesh: return "no-device-mesh";
    case errc::other: return "other";
    case errc::mixed_precision_conflict: return "mixed-precision-conflict";
    case errc::bad_communication_dtype: return "bad-communication-dtype";
    case errc::bad_allreduce_op: return "bad-allreduce-op";
    case errc::extra_forbidden: return "extra-forbidden";
    case errc::enum_value: return "enum";
    case errc::bool_parsing: return "bool-parsing";
    case errc::bool_type: return "bool-type";
    case errc::int_parsing: return "int-parsing";
    case errc::int_parsing_size: return "int-parsing-size";
    case errc::int_from_float: return "int-from-float";
    case errc::int_type: return "int-type";
    case errc::finite_number: return "finite-number";
    case errc::greater_than_equal: return "greater-than-equal";
    case errc::less_than_equal: return "less-than-equal";
    case errc::float_parsing: return "float-parsing";
    case errc::float_type: return "float-type";
    case errc::model_type: return "model-type";
    case errc::path_type: return "path-type";
    case errc::dict_type: return "dict-type";
    case errc::value_error: return "value-error";
    case errc::assertion_error: return "assertion-error";
    case errc::deprecated_and_new: return "deprecated-and-new";
    case errc::param_dtype_conflict: return "param-dtype-conflict";
    case errc::accumulation_dtype_mix: return "accumulation-dtype-mix";
    case errc::needs_zero_stage: return "needs-zero-stage";
    case errc::needs_bf16_master: return "needs-bf16-master";
    case errc::deprecated_key: return "deprecated-key";
    case errc::wrong_section: return "wrong-section";
    case errc::load_train_differ: return "load-train-differ";
    case errc::mpi_starts_nothing: return "mpi-starts-nothing";
    case errc::meta_weights_unfilled: return "meta-weights-unfilled";
    case errc::named_file_missing: return "file-missing";
    case errc::list_type: return "list-type";
    case errc::string_type: return "string-type";
    case errc::unsupported: return "unsupported";
    case errc::bad_distributed_type: return "bad-distributed-type";
    case errc::bad_fsdp_policy: return "bad-fsdp-policy";
    case errc::bad_mixed_precision: return "bad-mixed-precision";
    case errc::bad_offload: return "bad-offload";
    case errc::bad_source: return "bad-source";
    case errc::bad_truth_value: return "bad-truth-value";
    case errc::bad_wrap_policy: return "bad-wrap-policy";
    case errc::bad_wrap_unit: return "bad-wrap-unit";
    case errc::checkpointing_needs_wrap_policy: return "checkpointing-needs-wrap-policy";
    case errc::config_file_and_keys: return "config-file-and-keys";
    case errc::distributed_type_missing: return "distributed-type-missing";
    case errc::forward_prefetch_refused: return "forward-prefetch-refused";
    case errc::layer_class_missing: return "layer-class-missing";
    case errc::local_state_dict_refused: return "local-state-dict-refused";
    case errc::offload_needs_checkpointing: return "offload-needs-checkpointing";
    case errc::parallelism_needs_fsdp2: return "parallelism-needs-fsdp2";
    case errc::processes_missing: return "processes-missing";
    case errc::sync_module_states_needed: return "sync-module-states-needed";
    case errc::unexpected_argument: return "unexpected-argument";
    case errc::unknown_name: return "unknown-name";
    case errc::unit_dtype_mismatch: return "dtype-mismatch";
    case errc::deprecated_sharding_strategy: return "deprecated-sharding-strategy";
    case errc::ignored_backward_prefetch: return "ignored-backward-prefetch";
    case errc::ignored_sync_module_states: return "ignored-sync-module-states";
    case errc::ignored_use_orig_params: return "ignored-use-orig-params";
    case errc::zero3_init_flag_off: return "zero3-init-flag-off";
    case errc::training_mismatch: return "mismatch";
    case errc::optimizer_section_missing: return "optimizer-section-missing";
    case errc::hjson_syntax: return "hjson-syntax";
    case errc::unterminated_comment: return "unterminated-comment";
    case errc::not_base64: return "not-base64";
    case errc::removed_key: return "removed-key";
    case errc::bad_tag_validation: return "bad-tag-validation";
    case errc::bad_autocast_modules: return "bad-autocast-modules";
    case errc::key_missing: return "key-missing";
    case errc::needs_cpu_offload: return "needs-cpu-offload";
    case errc::both_masters: return "both-masters";
    case errc::amp_with_zero: return "amp-with-zero";
    case errc::amp_with_half: return "amp-with-half";
    case errc::greater_than: return "greater-than";
    case errc::less_than: return "less-than";
    case errc::literal_error: return "literal-error";
    case errc::tuple_type: return "tuple-type";
    case errc::instance_of: return "is-instance-of";
    case errc::unknown_release: return "unknown-release";
    case errc::unsupported_optimizer: return "unsupported-optimizer";
    case errc::untested_optimizer: return "untested-optimizer";
  }
  return "other";
}

}  // namespace v0
}  // namespace flatshard
