// The one pass over the embeddings, forward and backward; contracts in ops.py. Included by cpp_backend.cpp.
//
// What limits these functions is memory traffic: every embedding is read once, and nothing of size N x D but the result
// is written. B batch, N tokens, D width, S slots; E embeddings' type, T type of weights and sums (float or double).

#pragma once

#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <torch/extension.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;

// Tokens of each slot of each document, in order: members[row][starts[row][slot] .. starts[row][slot + 1]].
struct Members {
  std::vector<int32_t> starts, members;
  int64_t num_tokens, slots;

  Members(const Tensor& groups, int64_t slots_)
      : starts(groups.size(0) * (slots_ + 1)),
        members(groups.numel()),
        num_tokens(groups.size(1)),
        slots(slots_) {
    const int64_t* group = groups.const_data_ptr<int64_t>();
    at::parallel_for(0, groups.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int32_t* start = starts.data() + row * (slots + 1);
        const int64_t* row_group = group + row * num_tokens;
        for (int64_t i = 0; i < num_tokens; ++i)
          if (row_group[i] >= 0) ++start[row_group[i] + 1];
        std::partial_sum(start, start + slots + 1, start);
        std::vector<int32_t> next(start, start + slots);
        for (int64_t i = 0; i < num_tokens; ++i)
          if (row_group[i] >= 0) members[row * num_tokens + next[row_group[i]]++] = static_cast<int32_t>(i);
      }
    });
  }
};

constexpr int64_t kCacheLine = 64;
constexpr int64_t kSlotsPerTask = 8, kTokensPerTask = 64;
constexpr int64_t kStreamBytes = 16 << 20;  // a gradient that caches would not keep anyway

// To and from the type of sums. bfloat16 is spelt out, for c10's own conversion keeps loops from being vectorised.
template <typename T, typename E>
inline T widen(E value) {
  if constexpr (std::is_same_v<E, c10::BFloat16>) return c10::bit_cast<float>(static_cast<uint32_t>(value.x) << 16);
  else return static_cast<T>(value);
}

template <typename E, typename T>
inline E narrow(T value) {
  if constexpr (std::is_same_v<E, c10::BFloat16>) {
    const uint32_t bits = c10::bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to nearest, ties to even
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return E(static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded), E::from_bits());
  } else {
    return static_cast<E>(value);
  }
}

// sum += w * e. One function for both orders below, so that they round alike.
template <typename E, typename T>
inline void add_row(T* __restrict sum, const E* __restrict e, T w, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) sum[d] += w * widen<T>(e[d]);
}

// A document at a time: embeddings stream in as they lie in memory, the sums of all its slots stay in the cache. The
// faster order (hardware prefetches, one page after another) where there are documents enough for all threads.
template <typename E, typename T>
void group_sum_by_document(const Tensor& embeddings, const Tensor& weights, const Tensor& groups, Tensor& out) {
  const int64_t num_tokens = embeddings.size(1), dim = embeddings.size(2), slots = out.size(1);
  const E* all = embeddings.const_data_ptr<E>();
  const T* all_weights = weights.const_data_ptr<T>();
  const int64_t* all_groups = groups.const_data_ptr<int64_t>();
  E* result = out.mutable_data_ptr<E>();
  at::parallel_for(0, embeddings.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(std::is_same_v<E, T> ? 0 : slots * dim);
    for (int64_t row = begin; row < end; ++row) {
      E* row_result = result + row * slots * dim;
      T* sums;
      if constexpr (std::is_same_v<E, T>) sums = row_result;
      else sums = scratch.data();
      std::fill(sums, sums + slots * dim, T(0));
      for (int64_t i = row * num_tokens; i < (row + 1) * num_tokens; ++i)
        if (all_groups[i] >= 0) add_row(sums + all_groups[i] * dim, all + i * dim, all_weights[i], dim);
      if constexpr (!std::is_same_v<E, T>)
        for (int64_t d = 0; d < slots * dim; ++d) row_result[d] = narrow<E>(sums[d]);
    }
  });
}

// Embeddings are read in the order of slots, which no hardware prefetcher guesses.
template <typename E>
inline void prefetch_row(const E* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(E)); byte += kCacheLine)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// A slot at a time: any number of threads can share one document.
template <typename E, typename T>
void group_sum_by_slot(const Tensor& embeddings, const Tensor& weights, const Tensor& groups, Tensor& out) {
  const int64_t num_tokens = embeddings.size(1), dim = embeddings.size(2), slots = out.size(1);
  const Members lists(groups, slots);
  const E* all = embeddings.const_data_ptr<E>();
  const T* all_weights = weights.const_data_ptr<T>();
  E* result = out.mutable_data_ptr<E>();
  at::parallel_for(0, embeddings.size(0) * slots, kSlotsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<T> sum(dim);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / slots, slot = task % slots;
      const int32_t* start = lists.starts.data() + row * (slots + 1) + slot;
      const int32_t* member = lists.members.data() + row * num_tokens;
      const E* base = all + row * num_tokens * dim;
      std::fill(sum.begin(), sum.end(), T(0));
      for (int32_t i = start[0]; i < start[1]; ++i) {
        if (i + 1 < start[slots - slot]) prefetch_row(base + member[i + 1] * dim, dim);  // also the next slot's first
        add_row(sum.data(), base + member[i] * dim, all_weights[row * num_tokens + member[i]], dim);
      }
      for (int64_t d = 0; d < dim; ++d) result[task * dim + d] = narrow<E>(sum[d]);
    }
  });
}

// Whether documents, dealt out whole, keep all threads busy: by slot costs about 1.7 times as much.
inline bool documents_enough(int64_t batch) {
  const int64_t threads = at::get_num_threads(), turns = (batch + threads - 1) / threads;
  return 10 * turns * threads <= 17 * batch;
}

// Copy past the caches: what is written is not read again soon, and a cached store first fetches what it overwrites.
inline void stream(void* to, const void* from, int64_t bytes) {
#ifdef __SSE2__
  if ((reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes)) % sizeof(__m128i) == 0) {
    auto* out = static_cast<__m128i*>(to);
    auto* in = static_cast<const __m128i*>(from);
    for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(__m128i)); ++i) _mm_stream_si128(out + i, _mm_loadu_si128(in + i));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

inline void finish_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// o = w g, and the product <e, g>. Never inlined: compiled into the loop below, whose last iteration the compiler writes
// anew with another order of sums, a token's product would depend on where a thread's share ends.
template <typename E, typename T>
__attribute__((noinline)) T backward_row(E* __restrict o, const E* __restrict e, const E* __restrict g, T w, int64_t dim) {
  T product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t d = 0; d < dim; ++d) {
    product += widen<T>(e[d]) * widen<T>(g[d]);
    o[d] = narrow<E>(w * widen<T>(g[d]));
  }
  return product;
}

// de_i = w_i g_j and dw_i = <e_i, g_j>, j the slot of i: embeddings in document order, g from the cache.
template <typename E, typename T>
void group_sum_backward_rows(const Tensor& grad, const Tensor& embeddings, const Tensor& weights, const Tensor& groups,
                             Tensor& grad_embeddings, Tensor& grad_weights) {
  const int64_t num_tokens = embeddings.size(1), dim = embeddings.size(2), slots = grad.size(1);
  const E* all = embeddings.const_data_ptr<E>();
  const E* all_grads = grad.const_data_ptr<E>();
  const T* all_weights = weights.const_data_ptr<T>();
  const int64_t* all_groups = groups.const_data_ptr<int64_t>();
  E* result = grad_embeddings.mutable_data_ptr<E>();
  T* products = grad_weights.mutable_data_ptr<T>();
  const bool past_caches = embeddings.numel() * static_cast<int64_t>(sizeof(E)) >= kStreamBytes;
  at::parallel_for(0, embeddings.size(0) * num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    std::vector<E> line(dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = all_groups[i];
      E* o = past_caches ? line.data() : result + i * dim;
      if (slot < 0) std::fill(o, o + dim, E(0));
      const E* g = all_grads + (i / num_tokens * slots + slot) * dim;
      products[i] = slot < 0 ? T(0) : backward_row(o, all + i * dim, g, all_weights[i], dim);
      if (past_caches) stream(result + i * dim, o, dim * sizeof(E));
    }
    finish_streams();
  });
}

// Large gradients, kept for the next backward pass when they are freed: to fault in fresh pages, even huge ones, costs
// more than to compute what goes there. At most kKeptBytes are kept, the oldest go first; never destroyed, for tensors
// may outlive static objects.
class Blocks {
 public:
  static Blocks& all() {
    static auto* blocks = new Blocks;
    return *blocks;
  }

  // Tensor of uninitialised values, as at::empty.
  Tensor tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
    if (bytes < 2 * kHugePage) return at::empty(sizes, options);
    Block block = take(bytes);
    if (!block.memory) {
      if (posix_memalign(&block.memory, kHugePage, bytes) != 0) return at::empty(sizes, options);
      madvise(block.memory, bytes, MADV_HUGEPAGE);  // a wish; without it the pages are small
      block.bytes = bytes;
    }
    return at::from_blob(block.memory, sizes, [block](void*) { all().keep(block, kKeptBytes); }, options);
  }

  void release() { keep({}, 0); }

 private:
  static constexpr size_t kHugePage = 2 << 20, kKeptBytes = 256 << 20;
  struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
  };
  std::mutex mutex;
  std::vector<Block> kept;  // oldest first

  Block take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t i = kept.size(); i-- > 0;) {
      const Block block = kept[i];
      if (block.bytes < bytes || block.bytes / 2 > bytes) continue;
      kept.erase(kept.begin() + i);
      return block;
    }
    return {};
  }

  void keep(Block block, size_t limit) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (block.memory) kept.push_back(block);
    size_t total = 0;
    for (const Block& each : kept) total += each.bytes;
    while (total > limit) {
      total -= kept.front().bytes;
      std::free(kept.front().memory);
      kept.erase(kept.begin());
    }
  }
};

// Calls body(E(), T()) with the embeddings' type and that of weights and sums.
template <typename Body>
void with_types(const Tensor& embeddings, const Tensor& weights, const Body& body) {
  const bool wide = weights.scalar_type() == at::kDouble;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, embeddings.scalar_type(), "group_sum", [&] {
    if (wide) body(scalar_t(), double());
    else body(scalar_t(), float());
  });
}

Tensor group_sum(const Tensor& embeddings_, const Tensor& weights_, const Tensor& groups_, int64_t slots) {
  const Tensor embeddings = embeddings_.contiguous(), weights = weights_.contiguous(), groups = groups_.contiguous();
  Tensor out = at::empty({embeddings.size(0), slots, embeddings.size(2)}, embeddings.options());
  with_types(embeddings, weights, [&](auto e, auto t) {
    using E = decltype(e);
    using T = decltype(t);
    if (documents_enough(embeddings.size(0))) group_sum_by_document<E, T>(embeddings, weights, groups, out);
    else group_sum_by_slot<E, T>(embeddings, weights, groups, out);
  });
  return out;
}

std::tuple<Tensor, Tensor> group_sum_backward(const Tensor& grad_, const Tensor& embeddings_, const Tensor& weights_,
                                              const Tensor& groups_) {
  const Tensor grad = grad_.contiguous(), embeddings = embeddings_.contiguous();
  const Tensor weights = weights_.contiguous(), groups = groups_.contiguous();
  Tensor grad_embeddings = Blocks::all().tensor(embeddings.sizes(), embeddings.options());
  Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  with_types(embeddings, weights, [&](auto e, auto t) {
    group_sum_backward_rows<decltype(e), decltype(t)>(grad, embeddings, weights, groups, grad_embeddings, grad_weights);
  });
  return {grad_embeddings, grad_weights};
}

}  // namespace
