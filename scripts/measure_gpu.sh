#!/usr/bin/env bash
# Everything that needs a GPU: tests, memory checker, benches.
#
#   scripts/measure_gpu.sh FOLDER        results go to FOLDER
#   PYTHON=/path/to/python TESTS=0 SANITIZER=0 BENCHES="policy_head update" scripts/measure_gpu.sh FOLDER
#
# Installs this checkout into the environment of $PYTHON, which must hold a CUDA build of torch and
# the other requirements; nothing is downloaded. A step that fails is named at the end.
#
# Where a session on the GPU is cut into pieces of, say, ten minutes, LIMIT=570 ends a piece in time:
# a step gets the seconds that are left, the steps after it are named as not run, and what was
# measured stays, since a bench's file is whole after each of its cases. The pieces, in this order:
#
#   LIMIT=570 TESTS_LIMIT=350 BENCHES= SANITIZER=0 ...                      install and tests
#   LIMIT=570 TESTS=0 SANITIZER=0 BENCHES="group_advantage policy_head token_logprob" ...
#   LIMIT=570 TESTS=0 SANITIZER=0 BENCHES="forest_attention decode_attention update" ...
#   LIMIT=570 TESTS=0 SANITIZER=0 BENCHES=rollout ...
#   LIMIT=570 TESTS=0 SANITIZER=0 BENCHES=step ...                          and its next case
#   LIMIT=570 TESTS=0 BENCHES= ...                                          compute-sanitizer
#
# Where the tests of an op fail, mend it before its bench: a bench judges errors too, but says less.
# Where a bench ran out of time, `fastmpi bench NAME --case TEXT --json FILE` adds a case to its file
# (under the same --runs), and RUNS=5 makes all of them shorter. JOBS: processes of the tests, which
# mostly wait for the compiler; each may hold 30 GB.
set -uo pipefail
folder=$(realpath -m "${1:?usage: scripts/measure_gpu.sh FOLDER}")
root=$(realpath "$(dirname "$0")/..")
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=()

step() { # name, most seconds, command
  local name=$1 began=$SECONDS left=$((${LIMIT:-86400} - SECONDS))
  local seconds=$(($2 < left ? $2 : left))
  shift 2
  printf '== %s\n' "$name"
  if [ "$seconds" -lt 5 ]; then
    failed+=("$name (no time left)")
    return
  fi
  # as by Ctrl-C: pytest then still says what has failed so far
  timeout -s INT -k 10 "$seconds" "$@" >"$folder/$name.txt" 2>&1
  case $? in
    0) ;;
    124 | 137) failed+=("$name (stopped after $seconds s)") ;;
    *) failed+=("$name") ;;
  esac
  tail -n "${LINES_SHOWN:-4}" "$folder/$name.txt"
  printf '   %s s\n' "$((SECONDS - began))"
}

step install 300 "$python" -m pip install --no-build-isolation --no-deps --no-index \
  --force-reinstall "$root"
cd "$(mktemp -d)" # where nothing but the installed package can be imported
export PYTHONUNBUFFERED=1

pytest=("$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q)
"$python" -c 'import xdist' 2>/dev/null && pytest+=(-n "${JOBS:-4}" --benchmark-disable)
LINES_SHOWN=25
if [ "${TESTS:-1}" = 1 ]; then
  step tests "${TESTS_LIMIT:-900}" "${pytest[@]}" "$root/tests/ops"
  rest=("$root/tests/"{models,rollout,stages,benchmarks})
  step tests-of-the-rest 600 "${pytest[@]}" -m gpu "${rest[@]}"
fi

if [ "${SANITIZER:-1}" = 1 ] && command -v compute-sanitizer >/dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck; do
    step "$tool" 300 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" "$root/scripts/compile_kernels.py" --launch
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

LINES_SHOWN=40
# All but those whose description says that they are about the CPU.
benches='from fastmpi.bench import BENCHES as b; print(*(n for n in b if not b[n].endswith("CPU")))'
for bench in ${BENCHES-$("$python" -c "$benches")}; do
  step "bench-$bench" 600 "$python" -m fastmpi bench "$bench" --json "$folder/$bench.json" \
    ${RUNS:+--runs "$RUNS"}
done

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "$(printf '%s; ' "${failed[@]}")"
  exit 1
fi
