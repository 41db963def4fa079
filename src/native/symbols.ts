// Generated from cuda/include/minisgl.h by scripts/generate-symbols.ts. Do not edit.

export const MSGL_F32 = 0;
export const MSGL_F16 = 1;
export const MSGL_BF16 = 2;
export const MSGL_I32 = 3;
export const MSGL_Q8_0 = 8;
export const MSGL_Q4_0 = 9;
export const MSGL_Q4_1 = 10;
export const MSGL_Q4_K = 11;
export const MSGL_Q6_K = 12;
export const MSGL_MAX_TOP_LOGPROBS = 20;
export const MSGL_LINEAR_ADD = 1;
export const MSGL_LINEAR_GATED = 2;
export const MSGL_SAMPLE_RANDOM = 1;
export const MSGL_SAMPLE_FILTER = 2;
export const MSGL_DEBUG_DELAY = 1;
export const MSGL_ATTENTION_AUTO = 0;
export const MSGL_ATTENTION_FA = 1;
export const MSGL_ATTENTION_FI = 2;

export const msgl_properties = { name: 0, library: 128, total_memory: 256, free_memory: 264, compute_units: 272, capability: 276, dtypes: 280, weight_dtypes: 284, float_activations: 288, asynchronous: 292, bytes: 296 } as const;
export const msgl_sampling = { slot: 0, position: 4, temperature: 8, top_k: 12, top_p: 16, min_p: 20, seed_low: 24, seed_high: 28, bytes: 32 } as const;
export const msgl_penalties = { row: 0, slot: 4, prompt_length: 8, length: 12, repetition: 16, presence: 20, frequency: 24, reserved: 28, bytes: 32 } as const;
export const msgl_logprob_row = { row: 0, token: 4, bytes: 8 } as const;

export const symbols = {
  msgl_last_error: { args: [], returns: "cstring" },
  msgl_libraries: { args: ["ptr", "i64"], returns: "i32" },
  msgl_device_count: { args: ["ptr"], returns: "i32" },
  msgl_device_open: { args: ["ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_device_close: { args: ["ptr"], returns: "i32" },
  msgl_device_properties: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_device_synchronize: { args: ["ptr"], returns: "i32" },
  msgl_alloc: { args: ["ptr", "ptr", "i64"], returns: "i32" },
  msgl_free: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_host_alloc: { args: ["ptr", "ptr", "i64"], returns: "i32" },
  msgl_host_free: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_copy: { args: ["ptr", "ptr", "ptr", "i64"], returns: "i32" },
  msgl_fill: { args: ["ptr", "ptr", "i32", "i64"], returns: "i32" },
  msgl_random: { args: ["ptr", "ptr", "i64", "i32", "u64", "f32"], returns: "i32" },
  msgl_event_create: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_event_destroy: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_event_record: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_event_query: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_event_synchronize: { args: ["ptr"], returns: "i32" },
  msgl_event_elapsed: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  msgl_capture_begin: { args: ["ptr"], returns: "i32" },
  msgl_capture_end: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_graph_launch: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_graph_destroy: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_range_push: { args: ["ptr"], returns: "i32" },
  msgl_range_pop: { args: [], returns: "i32" },
  msgl_file_open: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_file_close: { args: ["ptr"], returns: "i32" },
  msgl_weight_create: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i64"], returns: "i32" },
  msgl_weight_destroy: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_weight_bytes: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_weight_load: { args: ["ptr", "ptr", "ptr", "i64", "i64", "i64", "i64", "i32"], returns: "i32" },
  msgl_weight_random: { args: ["ptr", "ptr", "u64", "f32"], returns: "i32" },
  msgl_load: { args: ["ptr", "ptr", "i32", "ptr", "i64", "i64", "i32"], returns: "i32" },
  msgl_load_wait: { args: ["ptr", "ptr", "ptr", "i32"], returns: "i32" },
  msgl_table_write: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i64"], returns: "i32" },
  msgl_expand: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i64", "i64", "i32"], returns: "i32" },
  msgl_embedding: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i32"], returns: "i32" },
  msgl_linear: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_linear_add: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32"], returns: "i32" },
  msgl_norm_linear: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "f32", "i32", "i32"], returns: "i32" },
  msgl_norm_gated_linear: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "f32", "i32"], returns: "i32" },
  msgl_rms_norm: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i32", "f32", "i32"], returns: "i32" },
  msgl_add_rms_norm: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "f32", "i32"], returns: "i32" },
  msgl_silu_mul: { args: ["ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_gather: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_rotary_store: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "f32", "i32", "i32"], returns: "i32" },
  msgl_attention_plan_create: { args: ["ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  msgl_attention_plan_destroy: { args: ["ptr", "ptr"], returns: "i32" },
  msgl_attention_plan_update: { args: ["ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_attention: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "f32"], returns: "i32" },
  msgl_logit_bias: { args: ["ptr", "ptr", "ptr", "i32", "i32"], returns: "i32" },
  msgl_penalize: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i64"], returns: "i32" },
  msgl_sample: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i64", "i32"], returns: "i32" },
  msgl_logprobs: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  msgl_linear_tune: { args: ["ptr", "ptr", "i64", "i64", "i64", "i32", "i32", "i32", "i32"], returns: "i32" },
  msgl_linear_algorithms: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
} as const;
