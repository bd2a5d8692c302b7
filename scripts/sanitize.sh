#!/usr/bin/env bash
# Tests the C++ extension under AddressSanitizer and UndefinedBehaviorSanitizer, and then, on
# several threads, under ThreadSanitizer. Any report ends the run with an error.
#
# usage: scripts/sanitize.sh [PYTHON [address|thread]]   PYTHON with the `dev` extra; needs g++
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${1:-python3}
RUNS=("${@:2}")
[ ${#RUNS[@]} -gt 0 ] || RUNS=(address thread)
export CXX=${CXX:-g++} OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc
TESTS=(tests/ops/test_{arguments,bins,content_hash,forest,images,positions,ranks,tokens}.py)
TESTS+=(tests/native/test_corpus.py)

runtime() {
  local path
  path=$("$CXX" -print-file-name="$1")
  [ -e "$path" ] || { echo "$CXX has no $1: sanitized builds need GCC with its runtimes" >&2; exit 1; }
  echo "$path"
}

# build FOLDER SANITIZERS
build() {
  printf '\n== %s: build (%s s)\n' "$2" "$SECONDS"
  "$PYTHON" -m pip install -q --no-deps --upgrade --target "build/sanitize/$1/site" \
    -C build-dir="build/sanitize/$1/objects" -C cmake.build-type=Debug \
    -C cmake.define.FASTMPI_SANITIZE="$2" .
}

# test_under FOLDER RUNTIME [COMMAND...]: COMMAND starts the process.
test_under() {
  local extension=(build/sanitize/"$1"/site/fastmpi/_C*.so)
  local preload
  # Before Python: the runtime, and the C++ library, whose exceptions it must see from the start.
  preload="$(runtime "$2") $(runtime libstdc++.so)"
  shift 2
  printf '\n== %s: tests (%s s)\n' "${extension[0]}" "$SECONDS"
  "$@" env LD_PRELOAD="$preload" "$PYTHON" tests/native/with_extension.py "${extension[0]}" \
    -q --capture=sys -p no:cacheprovider -p no:xdist -p no:benchmark "${TESTS[@]}"
}

address() {
  build address address,undefined,float-cast-overflow
  # CPython keeps what it allocates once: leaks are not looked for.
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    FASTMPI_NUM_THREADS=2 test_under address libasan.so
}

thread() {
  build thread thread
  # Without address randomisation, under which older runtimes do not find room for their shadow.
  TSAN_OPTIONS=halt_on_error=1:exitcode=66:suppressions=$PWD/tests/native/tsan.supp \
    FASTMPI_NUM_THREADS=3 test_under thread libtsan.so setarch --addr-no-randomize
}

runtime libasan.so > /dev/null
runtime libtsan.so > /dev/null
for run in "${RUNS[@]}"; do "$run"; done
printf '\n== no reports (%s s)\n' "$SECONDS"
