#include "image_kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define FASTMPI_AVX2 __attribute__((target("avx2")))
#define FASTMPI_AVX512 __attribute__((target("avx2,avx512f,avx512bw")))
#endif

namespace fastmpi {

namespace {

constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);

// One whole row passes through unchanged.
bool is_copy(const std::int32_t* weights, std::int64_t taps) {
  return taps == 1 && weights[0] == kOne;
}

namespace plain {

void blend(const std::uint8_t* const* rows, const std::int32_t* weights, std::int64_t taps,
           std::int64_t n, std::uint8_t* out) {
  if (is_copy(weights, taps)) {
    std::memcpy(out, rows[0], static_cast<std::size_t>(n));
    return;
  }
  for (std::int64_t j = 0; j < n; j += kBlock) {
    const std::int64_t size = std::min(kBlock, n - j);
    std::int32_t sums[kBlock];
    for (std::int32_t& sum : sums) sum = kHalf;
    for (std::int64_t t = 0; t < taps; ++t) {
      const std::uint8_t* row = rows[t] + j;
      const std::int32_t weight = weights[t];
      for (std::int64_t i = 0; i < size; ++i) sums[i] += weight * row[i];
    }
    for (std::int64_t i = 0; i < size; ++i) {
      out[j + i] = static_cast<std::uint8_t>(std::clamp(sums[i] >> kPrecisionBits, 0, 255));
    }
  }
}

void to_columns(const std::uint8_t* const* rows, std::int64_t n, std::uint8_t* columns) {
  for (std::int64_t x = 0; x < n; ++x) {
    for (std::int64_t r = 0; r < kBlock; ++r) columns[x * kBlock + r] = rows[r][x];
  }
}

void to_rows(const std::uint8_t* columns, std::int64_t pitch, std::uint8_t* const* rows,
             std::int64_t first) {
  for (std::int64_t r = 0; r < kBlock; ++r) {
    for (std::int64_t x = 0; x < kStrip; ++x) rows[r][first + x] = columns[x * pitch + r];
  }
}

}  // namespace plain

#if defined(__x86_64__)

namespace avx2 {

// GCC's own vectorisation of the plain loop takes twice the time of these 32-bit products (it
// widens bytes in two steps). Splitting the weights into halves for 16-bit pair products (vpmaddwd)
// or unrolling the taps measured no faster.
FASTMPI_AVX2 inline __m256i weighted(const std::uint8_t* bytes, __m256i weight) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(eight), weight);
}

FASTMPI_AVX2 inline __m256i packed(__m256i a, __m256i b) {
  return _mm256_packs_epi32(_mm256_srai_epi32(a, kPrecisionBits),
                            _mm256_srai_epi32(b, kPrecisionBits));
}

FASTMPI_AVX2 void blend(const std::uint8_t* const* rows, const std::int32_t* weights,
                        std::int64_t taps, std::int64_t n, std::uint8_t* out) {
  if (n < kBlock || is_copy(weights, taps)) return plain::blend(rows, weights, taps, n, out);
  const __m256i half = _mm256_set1_epi32(kHalf);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work per half
  for (std::int64_t start = 0; start < n; start += kBlock) {
    const std::int64_t j = std::min(start, n - kBlock);  // the last ones may be done twice
    __m256i a = half, b = half, c = half, d = half;
    for (std::int64_t t = 0; t < taps; ++t) {
      const std::uint8_t* row = rows[t] + j;
      const __m256i weight = _mm256_set1_epi32(weights[t]);
      a = _mm256_add_epi32(a, weighted(row, weight));
      b = _mm256_add_epi32(b, weighted(row + 8, weight));
      c = _mm256_add_epi32(c, weighted(row + 16, weight));
      d = _mm256_add_epi32(d, weighted(row + 24, weight));
    }
    const __m256i bytes = _mm256_packus_epi16(packed(a, b), packed(c, d));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j),
                        _mm256_permutevar8x32_epi32(bytes, in_order));
  }
}

// Transposes 16 x 16 bytes in each 128-bit half: four rounds of a perfect shuffle of the rows.
FASTMPI_AVX2 inline void transpose(__m256i (&rows)[16]) {
  __m256i shuffled[16];
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      shuffled[2 * i] = _mm256_unpacklo_epi8(rows[i], rows[i + 8]);
      shuffled[2 * i + 1] = _mm256_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    for (int i = 0; i < 16; ++i) rows[i] = shuffled[i];
  }
}

FASTMPI_AVX2 inline __m128i load(const std::uint8_t* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

FASTMPI_AVX2 void to_columns(const std::uint8_t* const* rows, std::int64_t n,
                             std::uint8_t* columns) {
  if (n < 16) return plain::to_columns(rows, n, columns);
  for (std::int64_t start = 0; start < n; start += 16) {
    const std::int64_t x = std::min(start, n - 16);
    __m256i block[16];
    for (int r = 0; r < 16; ++r) {
      block[r] = _mm256_set_m128i(load(rows[r + 16] + x), load(rows[r] + x));
    }
    transpose(block);
    for (int i = 0; i < 16; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + (x + i) * kBlock), block[i]);
    }
  }
}

FASTMPI_AVX2 void to_rows(const std::uint8_t* columns, std::int64_t pitch,
                          std::uint8_t* const* rows, std::int64_t first) {
  __m256i block[kStrip];
  for (int x = 0; x < kStrip; ++x) {
    block[x] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns + x * pitch));
  }
  transpose(block);
  for (int r = 0; r < 16; ++r) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[r] + first), _mm256_castsi256_si128(block[r]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[r + 16] + first),
                     _mm256_extracti128_si256(block[r], 1));
  }
}

}  // namespace avx2

namespace avx512 {

FASTMPI_AVX512 inline __m512i weighted(const std::uint8_t* bytes, __m512i weight) {
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(sixteen), weight);
}

FASTMPI_AVX512 inline void store(__m512i sums, std::uint8_t* out) {
  const __m512i shifted = _mm512_srai_epi32(sums, kPrecisionBits);
  const __m512i positive = _mm512_max_epi32(shifted, _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(positive));
}

FASTMPI_AVX512 void blend(const std::uint8_t* const* rows, const std::int32_t* weights,
                          std::int64_t taps, std::int64_t n, std::uint8_t* out) {
  if (n < kBlock || is_copy(weights, taps)) return plain::blend(rows, weights, taps, n, out);
  for (std::int64_t start = 0; start < n; start += kBlock) {
    const std::int64_t j = std::min(start, n - kBlock);
    __m512i a = _mm512_set1_epi32(kHalf), b = a;
    for (std::int64_t t = 0; t < taps; ++t) {
      const __m512i weight = _mm512_set1_epi32(weights[t]);
      a = _mm512_add_epi32(a, weighted(rows[t] + j, weight));
      b = _mm512_add_epi32(b, weighted(rows[t] + j + 16, weight));
    }
    store(a, out + j);
    store(b, out + j + 16);
  }
}

}  // namespace avx512

#endif

constexpr ImageKernels kPlain{"plain", plain::blend, plain::to_columns, plain::to_rows};
#if defined(__x86_64__)
constexpr ImageKernels kAvx2{"avx2", avx2::blend, avx2::to_columns, avx2::to_rows};
constexpr ImageKernels kAvx512{"avx512", avx512::blend, avx2::to_columns, avx2::to_rows};
#endif

// The fastest first.
std::vector<const ImageKernels*> runnable() {
  std::vector<const ImageKernels*> found;
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2");
  const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  if (has_avx2 && has_512) found.push_back(&kAvx512);
  if (has_avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kPlain);
  return found;
}

void check_wish(const std::string& wish) {
  if (wish == "plain" || wish == "avx2" || wish == "avx512") return;
  throw std::invalid_argument("FASTMPI_SIMD must be plain, avx2 or avx512, got '" + wish + "'");
}

const ImageKernels& choose() {
  const std::vector<const ImageKernels*> kernels = runnable();
  const char* wish = std::getenv("FASTMPI_SIMD");
  if (wish == nullptr) return *kernels.front();
  check_wish(wish);
  for (const ImageKernels* found : kernels) {
    if (std::strcmp(wish, found->name) == 0) return *found;
  }
  return *kernels.front();
}

}  // namespace

const ImageKernels& image_kernels() {
  static const ImageKernels& chosen = choose();
  return chosen;
}

}  // namespace fastmpi
