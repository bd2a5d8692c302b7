#!/usr/bin/env bash
# Everything that needs a GPU, in one go: tests, memory checker, benches.
#
#   scripts/measure_gpu.sh FOLDER        results go to FOLDER
#   PYTHON=/path/to/python TESTS=0 SANITIZER=0 BENCHES="policy_head update" scripts/measure_gpu.sh FOLDER
#
# Installs this checkout into the environment of $PYTHON, which must hold a CUDA build of torch and
# the other requirements; nothing is downloaded. A step that fails is named at the end.
set -uo pipefail
folder=$(realpath -m "${1:?usage: scripts/measure_gpu.sh FOLDER}")
root=$(realpath "$(dirname "$0")/..")
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=()

step() {
  local name=$1 began=$SECONDS
  shift
  printf '== %s\n' "$name"
  "$@" >"$folder/$name.txt" 2>&1 || failed+=("$name")
  tail -n "${LINES_SHOWN:-4}" "$folder/$name.txt"
  printf '   %s s\n' "$((SECONDS - began))"
}

step install "$python" -m pip install --no-build-isolation --no-deps --no-index --force-reinstall "$root"
cd "$(mktemp -d)" # where nothing but the installed package can be imported

pytest=("$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q)
if [ "${TESTS:-1}" = 1 ]; then
  step tests timeout 900 "${pytest[@]}" "$root/tests/ops"
  rest=("$root/tests/"{models,rollout,stages,benchmarks})
  step tests-of-the-rest timeout 600 "${pytest[@]}" -m gpu "${rest[@]}"
fi

if [ "${SANITIZER:-1}" = 1 ] && command -v compute-sanitizer >/dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck; do
    step "$tool" timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" "$root/scripts/compile_kernels.py" --launch
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

LINES_SHOWN=40
for bench in ${BENCHES-group_advantage forest_attention policy_head token_logprob update rollout}; do
  step "bench-$bench" timeout 600 "$python" -m fastmpi bench "$bench" --json "$folder/$bench.json"
done

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[*]}"
  exit 1
fi
