/*
 * minisgl.h: the contract between TypeScript, which thinks, and C, which computes.
 *
 * Two libraries implement it: libminisgl.so (CUDA, cuda/kernels/) and libminisgl-cpu.so (cuda/cpu/); a third,
 * libminisgl-null.so (cuda/null/), has the same functions, computes nothing and serves `minisgl bench host`.
 * src/native/symbols.ts is generated from this file by scripts/generate-symbols.ts, which relies on one declaration
 * per `;` and on the types used here.
 *
 * Conventions
 *  - Every function returns 0 on success. Any other value is an error whose text msgl_last_error() gives to the
 *    calling thread. An error found while the queue runs is kept and returned by the next call that waits.
 *  - Ops are enqueued: they copy their scalars, return at once and run in order on the device's one stream. Pointers to
 *    device memory must stay valid until the op has run. A `host` pointer is read before the call returns, unless the
 *    comment says "pinned": then it is read or written when the op runs.
 *  - Argument order: device, outputs, inputs, sizes, parameters. Sizes are in elements, strides in elements, unless
 *    named bytes. Matrices are row-major. `tokens` is the number of rows of the step, `sequences` of its sequences.
 *  - Alignment: device buffers come from msgl_alloc (256 bytes); an op may be given an address inside one that is
 *    aligned to 16 bytes.
 *  - An op neither allocates nor synchronises, so that any of them can be captured in a graph.
 */
#ifndef MINISGL_H
#define MINISGL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- types ------------------------------------------------------------------------------------------------------ */

/* Element types. Those from MSGL_Q8_0 on are GGUF blocks and occur only in files and in weights. */
enum msgl_dtype {
  MSGL_F32 = 0,
  MSGL_F16 = 1,
  MSGL_BF16 = 2,
  MSGL_I32 = 3,
  MSGL_Q8_0 = 8,  /* 32 values: f16 d, 32 x int8 q;            d * q           34 bytes */
  MSGL_Q4_0 = 9,  /* 32 values: f16 d, 16 bytes of nibbles;    d * (q - 8)     18 bytes */
  MSGL_Q4_1 = 10, /* 32 values: f16 d, f16 m, 16 bytes;        d * q + m       20 bytes */
  MSGL_Q4_K = 11, /* 256 values, as in GGUF                                   144 bytes */
  MSGL_Q6_K = 12  /* 256 values, as in GGUF                                   210 bytes */
};

/* A device: one stream, its workspaces and library handles. Used by one thread at a time. */
typedef struct msgl_device msgl_device;
/* A captured list of ops. */
typedef struct msgl_graph msgl_graph;
/* A point in a device's stream. */
typedef struct msgl_event msgl_event;
/* A file that weights are loaded from. */
typedef struct msgl_file msgl_file;
/* A matrix [n, k] prepared for msgl_linear and msgl_embedding, in whatever form the device computes fastest with. */
typedef struct msgl_weight msgl_weight;
/* The schedule of one step's attention, the same for every layer. */
typedef struct msgl_attention_plan msgl_attention_plan;

typedef struct msgl_properties {
  char name[128];            /* of the device, as its vendor has it */
  char library[128];         /* which implementation this is, and the instruction sets or architectures in it */
  int64_t total_memory;      /* bytes */
  int64_t free_memory;       /* bytes, at the time of the call */
  int32_t compute_units;     /* streaming multiprocessors, or threads that compute */
  int32_t capability;        /* CUDA: 10 * major + minor; else 0 */
  int32_t dtypes;            /* bit mask (1 << msgl_dtype): model types that the device computes in */
  int32_t weight_dtypes;     /* bit mask: types in which a weight may be kept; the GGUF blocks among them or not */
  int32_t float_activations; /* 1: activations are MSGL_F32 whatever the model's type; 0: they are the model's type */
  int32_t asynchronous;      /* 1: ops run after the call returns */
} msgl_properties;

/* How one row of logits is turned into a token. 32 bytes; lies in device memory. */
typedef struct msgl_sampling {
  int32_t slot;      /* row of the token table that receives the token; -1: none */
  int32_t position;  /* of the token to be sampled in its sequence: column of the token table, and part of the draw's key */
  float temperature; /* 0: the largest logit, the lowest id among equals */
  int32_t top_k;     /* 0: all */
  float top_p;       /* 1: all */
  float min_p;       /* 0: all */
  uint32_t seed_low; /* the 64-bit seed, the other part of the key */
  uint32_t seed_high;
} msgl_sampling;

/* How the tokens so far change a row of logits before it is sampled. 32 bytes; lies in device memory. */
typedef struct msgl_penalties {
  int32_t row;           /* of the logits */
  int32_t slot;          /* row of the token table with the sequence's tokens */
  int32_t prompt_length; /* its first tokens, which presence and frequency leave out */
  int32_t length;        /* tokens so far, prompt included */
  float repetition;      /* 1: none */
  float presence;        /* 0: none */
  float frequency;       /* 0: none */
  int32_t reserved;
} msgl_penalties;

/* Whose logprob is wanted of one row of logits. 8 bytes; lies in device memory. */
typedef struct msgl_logprob_row {
  int32_t row;   /* of the logits */
  int32_t token; /* -1: the one that was sampled */
} msgl_logprob_row;

/* Most alternatives that msgl_logprobs gives. */
enum msgl_limits { MSGL_MAX_TOP_LOGPROBS = 20 };

/* Bits of msgl_linear_tune's variant: out += ..., gate and up with their product. */
enum msgl_linear_variant { MSGL_LINEAR_ADD = 1, MSGL_LINEAR_GATED = 2 };

/* Bits of msgl_sample's flags: what at least one row of the batch needs. */
enum msgl_sample_flags { MSGL_SAMPLE_RANDOM = 1, MSGL_SAMPLE_FILTER = 2 };

/* Bits of msgl_device_open's flags, for tests: random delays between ops (CPU). */
enum msgl_device_flags { MSGL_DEBUG_DELAY = 1 };

/* Attention backends for msgl_attention_plan_create. */
enum msgl_attention_backend { MSGL_ATTENTION_AUTO = 0, MSGL_ATTENTION_FA = 1, MSGL_ATTENTION_FI = 2 };

/* ---- device ------------------------------------------------------------------------------------------------------ */

/* The text of the last error in the calling thread; "" if there was none. Valid until the thread's next call. */
const char *msgl_last_error(void);

/*
 * What the library stands on and found on this host, a line each: name, tab, version, tab, where it lies or why it is
 * missing (then the version is empty). Written to text with a terminating 0, cut off after `bytes`. Needs no device.
 */
int32_t msgl_libraries(char *text, int64_t bytes);

/* Number of devices; 0 with success where the library loads but no driver or GPU answers. */
int32_t msgl_device_count(int32_t *count);

/* Opens device `index`. threads: CPU threads that compute, 0 for all cores; ignored on CUDA. flags: msgl_device_flags. */
int32_t msgl_device_open(msgl_device **device, int32_t index, int32_t threads, int32_t flags);
/* Waits for the queue and frees everything the device still holds, its memory, weights, plans, graphs, events included. */
int32_t msgl_device_close(msgl_device *device);
int32_t msgl_device_properties(msgl_device *device, msgl_properties *properties);
/* Waits until everything enqueued has run; returns the error that any of it met. */
int32_t msgl_device_synchronize(msgl_device *device);

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Device memory, not cleared. Fails with the sizes asked for and left. Not an op: returns when the memory is there. */
int32_t msgl_alloc(msgl_device *device, void **pointer, int64_t bytes);
/* Frees in stream order: ops enqueued before may still use it. */
int32_t msgl_free(msgl_device *device, void *pointer);
/* Pinned host memory, cleared. */
int32_t msgl_host_alloc(msgl_device *device, void **pointer, int64_t bytes);
int32_t msgl_host_free(msgl_device *device, void *pointer);
/* Copies between pinned host memory and device memory (in either direction) or within device memory. */
int32_t msgl_copy(msgl_device *device, void *destination, const void *source, int64_t bytes);
/* Sets bytes to a value (0..255). */
int32_t msgl_fill(msgl_device *device, void *destination, int32_t value, int64_t bytes);
/* Uniform values in [-scale, scale), a function of (seed, index) alone, rounded to dtype (F32, F16, BF16). */
int32_t msgl_random(msgl_device *device, void *destination, int64_t count, int32_t dtype, uint64_t seed, float scale);

/* ---- events and graphs --------------------------------------------------------------------------------------------- */

int32_t msgl_event_create(msgl_device *device, msgl_event **event);
int32_t msgl_event_destroy(msgl_device *device, msgl_event *event);
/* Marks the current end of the stream; an event may be recorded again and again. */
int32_t msgl_event_record(msgl_device *device, msgl_event *event);
/* done: 1 if the last record has been reached, or there was none. */
int32_t msgl_event_query(msgl_event *event, int32_t *done);
/* Blocks until the last record has been reached; returns an error that the stream met before it. */
int32_t msgl_event_synchronize(msgl_event *event);
/* Milliseconds between two reached events. */
int32_t msgl_event_elapsed(const msgl_event *begin, const msgl_event *end, float *milliseconds);

/* Between begin and end, ops are recorded and do not run. */
int32_t msgl_capture_begin(msgl_device *device);
int32_t msgl_capture_end(msgl_device *device, msgl_graph **graph);
/* Runs the recorded ops in order, with the addresses and scalars they were recorded with. */
int32_t msgl_graph_launch(msgl_device *device, msgl_graph *graph);
int32_t msgl_graph_destroy(msgl_device *device, msgl_graph *graph);

/* Named ranges for profilers (NVTX); free when nobody listens. */
int32_t msgl_range_push(const char *name);
int32_t msgl_range_pop(void);

/* ---- loading ------------------------------------------------------------------------------------------------------- */

int32_t msgl_file_open(msgl_file **file, const char *path);
/* Loads that read the file must have been waited for. */
int32_t msgl_file_close(msgl_file *file);

/*
 * A weight [n, k]. It consists of `parts` runs of rows with a dtype each, so that matrices that are merged (q, k and v)
 * may keep different GGUF blocks: part_rows[parts] sums to n, part_dtypes[parts] are from msgl_properties.weight_dtypes.
 */
int32_t msgl_weight_create(msgl_device *device, msgl_weight **weight, const int64_t *part_rows,
                           const int32_t *part_dtypes, int32_t parts, int64_t k);
int32_t msgl_weight_destroy(msgl_device *device, msgl_weight *weight);
/* Bytes of device memory that the weight holds. */
int32_t msgl_weight_bytes(const msgl_weight *weight, int64_t *bytes);
/*
 * Queues the load of `rows` rows from `row` on: row i lies at byte offset + i * row_bytes of the file, k values of
 * `dtype` (any; blocks must be whole). Values are converted to the part's dtype (rounding to nearest even; blocks are
 * decoded where the part is not of the same block type; encoding to blocks is refused). Rows may come in any order.
 */
int32_t msgl_weight_load(msgl_device *device, msgl_weight *weight, msgl_file *file, int64_t row, int64_t rows,
                         int64_t offset, int64_t row_bytes, int32_t dtype);
/* As msgl_random, for a whole weight (index = row * k + column); blocks get random valid blocks of about that scale. */
int32_t msgl_weight_random(msgl_device *device, msgl_weight *weight, uint64_t seed, float scale);
/* Queues the load of `count` consecutive values of `dtype` at byte `offset` to device memory as `destination_dtype`. */
int32_t msgl_load(msgl_device *device, void *destination, int32_t destination_dtype, msgl_file *file, int64_t offset,
                  int64_t count, int32_t dtype);
/* Waits until queued loads are done, at most `timeout_ms`. bytes: file bytes loaded since the device was opened.
 * done: 1 if nothing is left. Returns the first error a load met (a file too short, say). */
int32_t msgl_load_wait(msgl_device *device, int64_t *bytes, int32_t *done, int32_t timeout_ms);

/* ---- the batch on the device ---------------------------------------------------------------------------------------- */

/*
 * Writes runs of words into a table [rows, row_stride] of int32 (page table, token table).
 * patches [count, 4]: row, column, length, offset of the run in values. Both lie in device memory.
 */
int32_t msgl_table_write(msgl_device *device, int32_t *table, const int32_t *patches, const int32_t *values,
                         int32_t count, int64_t row_stride);

/*
 * Expands a batch. sequence_rows [sequences, 7]: slot, start (position of its first token in this step), count,
 * token_begin (sum of the counts before it), page_begin (sum of the pages before it), sample_index and sample_count (of
 * its last sample_count tokens logits are wanted, from row sample_index of sample_rows on; 0: of none). A sequence's
 * context ends at start + count and has ceil((start + count) / page_size) pages.
 *   ids[tokens]            token_table[slot, position]
 *   positions[tokens]      start .. start + count - 1
 *   cache_rows[tokens]     page_table[slot, position / page_size] * page_size + position % page_size
 *   sample_rows[samples]   the token rows (0 .. tokens - 1) whose logits are wanted
 *   query_begin[sequences + 1], page_begin[sequences + 1]   prefix sums
 *   pages[]                the page ids of each context, one after the other
 *   last_page_length[sequences]  tokens in the context's last page
 */
int32_t msgl_expand(msgl_device *device, int32_t *ids, int32_t *positions, int32_t *cache_rows, int32_t *sample_rows,
                    int32_t *query_begin, int32_t *page_begin, int32_t *pages, int32_t *last_page_length,
                    const int32_t *sequence_rows, const int32_t *token_table, const int32_t *page_table,
                    int32_t sequences, int32_t tokens, int64_t token_stride, int64_t page_stride, int32_t page_size);

/* ---- ops of the model: `dtype` is that of the activations -------------------------------------------------------------- */

/* out[tokens, k] = weight[ids[i], :]. An id outside 0 .. n - 1 gives a row of zeros. */
int32_t msgl_embedding(msgl_device *device, void *out, const int32_t *ids, const msgl_weight *weight, int32_t tokens,
                       int32_t dtype);

/* out[tokens, n] = x[tokens, k] weight^T + bias[n] (bias may be null). out is of out_dtype (the activations', or F32). */
int32_t msgl_linear(msgl_device *device, void *out, const void *x, const msgl_weight *weight, const void *bias,
                    int32_t tokens, int32_t dtype, int32_t out_dtype);

/*
 * The same with what stands around a product in a transformer, which a device may compute as one kernel where there are
 * few tokens. scratch, normed and gate_up are its working memory, of the activations' dtype, and hold nothing afterwards.
 *   linear_add          out[tokens, n] += x weight^T + bias                                    scratch [tokens, n]
 *   norm_linear         out[tokens, n] = rms_norm(x) weight^T + bias                           normed [tokens, k]
 *   norm_gated_linear   out[tokens, n / 2] = silu(y[:, : n / 2]) * y[:, n / 2 :], where
 *                       y = rms_norm(x) weight^T                                gate_up [tokens, n], normed [tokens, k]
 * rms_norm(x) = x / sqrt(mean(x^2) + epsilon) * norm[k].
 */
int32_t msgl_linear_add(msgl_device *device, void *out, void *scratch, const void *x, const msgl_weight *weight,
                        const void *bias, int32_t tokens, int32_t dtype);
int32_t msgl_norm_linear(msgl_device *device, void *out, void *normed, const void *x, const void *norm,
                         const msgl_weight *weight, const void *bias, int32_t tokens, float epsilon, int32_t dtype,
                         int32_t out_dtype);
int32_t msgl_norm_gated_linear(msgl_device *device, void *out, void *gate_up, void *normed, const void *x,
                               const void *norm, const msgl_weight *weight, int32_t tokens, float epsilon,
                               int32_t dtype);

/* out[tokens, size] = x / sqrt(mean(x^2) + epsilon) * weight[size]. */
int32_t msgl_rms_norm(msgl_device *device, void *out, const void *x, const void *weight, int32_t tokens, int32_t size,
                      float epsilon, int32_t dtype);

/* residual += x, then out = rms_norm(residual). */
int32_t msgl_add_rms_norm(msgl_device *device, void *out, void *residual, const void *x, const void *weight,
                          int32_t tokens, int32_t size, float epsilon, int32_t dtype);

/* out[tokens, size] = silu(gate_up[:, :size]) * gate_up[:, size:]; gate_up is [tokens, 2 * size]. */
int32_t msgl_silu_mul(msgl_device *device, void *out, const void *gate_up, int32_t tokens, int32_t size, int32_t dtype);

/* out[count, size] = x[rows[i], :]. */
int32_t msgl_gather(msgl_device *device, void *out, const void *x, const int32_t *rows, int32_t count, int32_t size,
                    int32_t dtype);

/*
 * What stands between the QKV product and attention, for qkv[tokens, (heads + 2 * kv_heads) * head_dim]:
 * RMS-normalises each query and key head with q_norm and k_norm [head_dim] (both null: does not), rotates their first
 * rotary_dim values (half-split pairs: i with i + rotary_dim / 2) by rotary[position] = (cos[rotary_dim / 2],
 * sin[rotary_dim / 2]) in F32, writes the queries to q[tokens, heads, head_dim] and keys and values to
 * k_cache and v_cache [pages * page_size, kv_heads, head_dim] at row cache_rows[i]. cache_dtype: of the cache.
 */
int32_t msgl_rotary_store(msgl_device *device, void *q, void *k_cache, void *v_cache, const void *qkv,
                          const int32_t *positions, const int32_t *cache_rows, const float *rotary, const void *q_norm,
                          const void *k_norm, int32_t tokens, int32_t heads, int32_t kv_heads, int32_t head_dim,
                          int32_t rotary_dim, float epsilon, int32_t dtype, int32_t cache_dtype);

/* ---- attention ----------------------------------------------------------------------------------------------------------- */

/* A plan for up to max_sequences sequences and max_tokens tokens a step. prefill, decode: msgl_attention_backend. */
int32_t msgl_attention_plan_create(msgl_device *device, msgl_attention_plan **plan, int32_t heads, int32_t kv_heads,
                                   int32_t head_dim, int32_t page_size, int32_t max_sequences, int32_t max_tokens,
                                   int32_t dtype, int32_t cache_dtype, int32_t prefill, int32_t decode);
int32_t msgl_attention_plan_destroy(msgl_device *device, msgl_attention_plan *plan);

/*
 * Schedules the next step. host: query_lengths[sequences], context_lengths[sequences] (new tokens included). The first
 * decode_sequences have query length 1. graph: 1 if the ops that use the plan are captured or replayed from a graph of
 * this many sequences: then the schedule lies where the graph looks for it. Takes effect in stream order.
 */
int32_t msgl_attention_plan_update(msgl_device *device, msgl_attention_plan *plan, const int32_t *query_lengths,
                                   const int32_t *context_lengths, int32_t sequences, int32_t decode_sequences,
                                   int32_t graph);

/*
 * Causal attention of each query with its sequence's context: out[tokens, heads, head_dim].
 * query_begin, page_begin, pages, last_page_length: from msgl_expand. tokens: rows of q. scale: of the scores.
 */
int32_t msgl_attention(msgl_device *device, void *out, const void *q, const void *k_cache, const void *v_cache,
                       msgl_attention_plan *plan, const int32_t *query_begin, const int32_t *page_begin,
                       const int32_t *pages, const int32_t *last_page_length, int32_t tokens, float scale);

/* ---- sampling -------------------------------------------------------------------------------------------------------------- */

/*
 * logits[row, id] += value for each of entries[count, 3]: row, id, value (the bits of an F32; -infinity bans the id). Of
 * the entries for one (row, id) at most one is finite, so their order does not matter.
 */
int32_t msgl_logit_bias(msgl_device *device, float *logits, const int32_t *entries, int32_t count, int32_t vocabulary);

/*
 * Applies penalties[count], at most one a row, to logits[rows, vocabulary]. Of a row's tokens token_table[slot, 0 .. length):
 *   repetition  every id among them: l / repetition where l > 0, else l * repetition
 *   presence    then every id among those from prompt_length on: l - presence
 *   frequency   then once for each of those: l - frequency
 * seen [count, 2, ceil(vocabulary / 32)] is working memory, zero before and afterwards.
 */
int32_t msgl_penalize(msgl_device *device, float *logits, int32_t *seen, const int32_t *token_table,
                      const msgl_penalties *penalties, int32_t count, int32_t vocabulary, int64_t token_stride);

/*
 * tokens[count] from logits[count, vocabulary] (F32) by sampling[count]; each is also written to
 * token_table[slot, position]. With a temperature: softmax(logits / temperature), of which top_k keeps the k most
 * probable (ties: lower ids first), then top_p the fewest most probable that reach p of what is left, min_p those with
 * at least min_p times the largest probability; among the kept, the id with the largest
 * logit / temperature - log(-log(u)), u uniform from Philox4x32-10 keyed by the seed at counter (id / 4, position, 0, 0)
 * (word w = id % 4 of the four; u = ((w >> 9) + 0.5) * 2^-23, never 0 or 1 in F32). So the draw depends on the request alone.
 */
int32_t msgl_sample(msgl_device *device, int32_t *tokens, int32_t *token_table, const float *logits,
                    const msgl_sampling *sampling, int32_t count, int32_t vocabulary, int64_t token_stride,
                    int32_t flags);

/*
 * log_softmax(logits[row]) of rows[count]: logprobs[count] of the wanted token (tokens[row] where it is -1), and the
 * `top` (0 .. MSGL_MAX_TOP_LOGPROBS) largest, descending, of equal ones the lower id first: top_ids[count, top],
 * top_logprobs[count, top] (both may be null if top is 0).
 */
int32_t msgl_logprobs(msgl_device *device, float *logprobs, int32_t *top_ids, float *top_logprobs, const float *logits,
                      const int32_t *tokens, const msgl_logprob_row *rows, int32_t count, int32_t vocabulary,
                      int32_t top);

/* ---- choosing algorithms ------------------------------------------------------------------------------------------------------ */

/*
 * Times the algorithms that could compute a product out[tokens, n] = x[tokens, k] weight[n, k]^T on weights that no
 * cache holds, uses the fastest from now on and writes it to text as a line of msgl_linear_algorithms (with a
 * terminating 0; empty where the device has nothing to choose). variant: msgl_linear_variant. Not an op: it waits.
 */
int32_t msgl_linear_tune(msgl_device *device, char *text, int64_t bytes, int64_t n, int64_t k, int32_t tokens,
                         int32_t dtype, int32_t out_dtype, int32_t variant);
/* Takes a table of lines that msgl_linear_tune wrote for devices of this name; before anything is captured.
 * used: the lines that apply here. */
int32_t msgl_linear_algorithms(msgl_device *device, const char *table, int32_t *used);

#ifdef __cplusplus
}
#endif
#endif
