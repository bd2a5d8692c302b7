// A 128-bit content hash at the speed of memory. Not cryptographic. Twin:
// fastmpi/reference/content_hash.py.
//
// A tree of NH, the universal hash of UMAC and VMAC (public domain): every block of 1 KiB becomes
// 32 bytes, by two sums of products of 64-bit words under shifted keys, until one block is left;
// multiply-shift takes its 32 bytes to 16. Of keys drawn at random, the share under which two given
// inputs collide is at most 2^-128 a level, below 2^-125 for any input that fits into memory. The
// keys are fixed, so that equal contents have equal hashes everywhere: whoever knows them can build
// collisions, and nobody else will meet one.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "arrays.h"

namespace fastmpi {

using Digest = std::array<std::uint64_t, 2>;

// header: what else must agree (shapes, say). Every word of the data is taken `& mask`.
Digest content_hash(const std::uint8_t* data, std::int64_t size,
                    const std::vector<std::uint64_t>& header, std::uint64_t mask);

void register_hash(py::module_& m);

}  // namespace fastmpi
