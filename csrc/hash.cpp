#include "hash.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastmpi {

namespace {

__extension__ using uint128 = unsigned __int128;

constexpr std::int64_t kWords = 128;  // of a block
constexpr std::int64_t kBlockBytes = 8 * kWords;
constexpr std::int64_t kDigestWords = 4;  // of a block
constexpr std::int64_t kShift = 2;        // of the second sum's keys
constexpr std::int64_t kLevels = 8;       // enough for 2^45 bytes
constexpr std::int64_t kLevelKeys = kWords + kShift;
constexpr std::int64_t kFoldKeys = 4 * kDigestWords;
constexpr std::int64_t kMaxHeader = kWords - kDigestWords - 2;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

using Keys = std::array<std::uint64_t, kLevels * kLevelKeys + kFoldKeys>;

// splitmix64 (Vigna, public domain) from an arbitrary seed.
Keys make_keys() {
  Keys keys{};
  std::uint64_t state = 0x243F6A8885A308D3;  // digits of pi
  for (std::uint64_t& key : keys) {
    state += 0x9E3779B97F4A7C15;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    key = z ^ (z >> 31);
  }
  return keys;
}

const Keys& keys() {
  static const Keys made = make_keys();
  return made;
}

std::uint64_t load(const std::uint8_t* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Appends the digest of one block of kWords words.
void compress(const std::uint8_t* block, std::uint64_t mask, const std::uint64_t* key,
              std::vector<std::uint64_t>& digests) {
  uint128 one = 0, two = 0;
  for (std::int64_t i = 0; i < kWords; i += 2) {
    const std::uint64_t a = load(block + 8 * i) & mask, b = load(block + 8 * i + 8) & mask;
    one += static_cast<uint128>(a + key[i]) * (b + key[i + 1]);
    two += static_cast<uint128>(a + key[i + kShift]) * (b + key[i + kShift + 1]);
  }
  for (const uint128 sum : {one, two}) {
    digests.push_back(static_cast<std::uint64_t>(sum));
    digests.push_back(static_cast<std::uint64_t>(sum >> 64));
  }
}

// The digests of all blocks; the last block is padded with zeros, and the length is hashed apart.
std::vector<std::uint64_t> compress_all(const std::uint8_t* data, std::int64_t size,
                                        std::uint64_t mask, std::int64_t level) {
  const std::uint64_t* key = keys().data() + level * kLevelKeys;
  std::vector<std::uint64_t> digests;
  digests.reserve(index((size / kBlockBytes + 1) * kDigestWords));
  std::int64_t at = 0;
  for (; size - at >= kBlockBytes; at += kBlockBytes) compress(data + at, mask, key, digests);
  if (at < size) {
    std::array<std::uint8_t, kBlockBytes> padded{};
    std::memcpy(padded.data(), data + at, index(size - at));
    compress(padded.data(), mask, key, digests);
  }
  return digests;
}

const std::uint8_t* bytes_of(const std::vector<std::uint64_t>& words) {
  return reinterpret_cast<const std::uint8_t*>(words.data());
}

std::int64_t size_of(const std::vector<std::uint64_t>& words) {
  return 8 * static_cast<std::int64_t>(words.size());
}

// Four words to 64 bits: the upper half of a sum of products with 128-bit keys.
std::uint64_t fold(const std::vector<std::uint64_t>& words, const std::uint64_t* key) {
  uint128 sum = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const uint128 wide = static_cast<uint128>(key[2 * i + 1]) << 64 | key[2 * i];
    sum += wide * words[i];
  }
  return static_cast<std::uint64_t>(sum >> 64);
}

}  // namespace

Digest content_hash(const std::uint8_t* data, std::int64_t size,
                    const std::vector<std::uint64_t>& header, std::uint64_t mask) {
  if (static_cast<std::int64_t>(header.size()) > kMaxHeader) {
    throw std::invalid_argument("a header has at most " + std::to_string(kMaxHeader) + " words");
  }
  std::vector<std::uint64_t> words = compress_all(data, size, mask, 0);
  std::int64_t level = 1;
  for (; static_cast<std::int64_t>(words.size()) > kDigestWords; ++level) {
    if (level == kLevels - 1) throw std::invalid_argument("too many bytes to hash");
    words = compress_all(bytes_of(words), size_of(words), ~std::uint64_t{0}, level);
  }
  words.resize(kDigestWords);
  words.push_back(static_cast<std::uint64_t>(size));
  words.push_back(header.size());
  words.insert(words.end(), header.begin(), header.end());
  words = compress_all(bytes_of(words), size_of(words), ~std::uint64_t{0}, kLevels - 1);
  const std::uint64_t* fold_keys = keys().data() + kLevels * kLevelKeys;
  return {fold(words, fold_keys), fold(words, fold_keys + kFoldKeys / 2)};
}

void register_hash(py::module_& m) {
  m.def(
      "content_hash",
      [](const py::array& data, const std::vector<std::uint64_t>& header, std::uint64_t mask) {
        if ((data.flags() & py::array::c_style) == 0) {
          throw std::invalid_argument("data must be C-contiguous");
        }
        const auto* bytes = static_cast<const std::uint8_t*>(data.data());
        const std::int64_t size = data.nbytes();
        Digest digest;
        {
          py::gil_scoped_release release;
          digest = content_hash(bytes, size, header, mask);
        }
        return py::bytes(reinterpret_cast<const char*>(digest.data()), sizeof digest);
      },
      py::arg("data"), py::arg("header"), py::arg("mask"));
}

}  // namespace fastmpi
