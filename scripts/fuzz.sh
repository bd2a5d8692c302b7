#!/usr/bin/env bash
# Fuzzes entry points of the C++ extension, guided by coverage, under AddressSanitizer and
# UndefinedBehaviorSanitizer; then reduces what was found to a corpus that the tests replay.
#
# usage: scripts/fuzz.sh [SECONDS [ENTRY...]]   SECONDS for each entry point, all of them by default
#
# Needs clang++ and, as PYTHON, a Python with numpy and with its shared library. An input that
# fails is left in build/fuzz/ and ends the run: fix it, and add it to tests/native/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
SECONDS_EACH=${1:-60}
ENTRIES=("${@:2}")
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1

command -v clang++ > /dev/null || { echo "the fuzzer needs clang++, for libFuzzer" >&2; exit 1; }
"$PYTHON" -m pip install -q cmake ninja pybind11
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH
cmake -S tests/native -B build/fuzz/objects -G Ninja -DCMAKE_CXX_COMPILER=clang++ \
  -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
  -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" > /dev/null
cmake --build build/fuzz/objects

if [ ${#ENTRIES[@]} -eq 0 ]; then
  mapfile -t ENTRIES < <(cd tests/native && "$PYTHON" -c 'import entries; print(*entries.ENTRIES, sep="\n")')
fi

# The embedded interpreter finds its library and numpy through these.
PACKAGES=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
HOME_OF_PYTHON=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')

# fuzzer ENTRY ARGUMENT...
fuzzer() {
  FASTMPI_ENTRY=$1 PYTHONHOME=$HOME_OF_PYTHON PYTHONPATH=tests/native:$PACKAGES \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    build/fuzz/objects/fuzzer "${@:2}" > "build/fuzz/$1.log" 2>&1 ||
    { tail -n 60 "build/fuzz/$1.log"; echo "failed: build/fuzz/$1.log" >&2; exit 1; }
}

for entry in "${ENTRIES[@]}"; do
  found=build/fuzz/found/$entry reduced=build/fuzz/reduced/$entry
  "$PYTHON" tests/native/corpus.py unpack "$entry" "$found"
  fuzzer "$entry" -max_total_time="$SECONDS_EACH" -max_len=400 -len_control=5 -timeout=60 \
    -rss_limit_mb=4000 -artifact_prefix="build/fuzz/$entry-" "$found"
  printf '%-26s%s\n' "$entry" "$(grep DONE "build/fuzz/$entry.log")"
  rm -rf "$reduced" && mkdir -p "$reduced"
  fuzzer "$entry" -merge=1 "$reduced" "$found"
  "$PYTHON" tests/native/corpus.py pack "$entry" "$reduced"
done
