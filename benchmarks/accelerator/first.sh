#!/usr/bin/env bash
# The first lines of README.md, on a machine with one GPU and no network.
#
#   OUT=FOLDER [COMMIT=ID] [PYTHON=python3] bash benchmarks/accelerator/first.sh [SECONDS [LINE...]]
#
# Runs the lines in order until SECONDS (default 530) are over; each has a limit of its own, so that one that
# hangs does not take the time of the others. Without names: digits and the five rows. Further lines:
# same_numbers, augmentation, profile_ROW, kernel_NAME, cifar10_PAPER (with IMAGES=FOLDER_OR_TAR, SEED, and
# RUNS=FOLDER for checkpoints, where FOLDER is not kept between two calls).
# Writes to FOLDER as it goes: log.txt, throughput.jsonl, digits_metrics.jsonl, digits_results.jsonl.
set -u
cd "$(dirname "$0")/../.." || exit 1
LIMIT=${1:-530}
shift
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(digits supervised_r50 simclr_r50 moco_v3_vit_b deit_b byol_r50)
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/accelerator}
LOG=$OUT/log.txt
HERE=benchmarks/accelerator
WORK=$(mktemp -d)
mkdir -p "$OUT"

export PYTHONPATH=$PWD:$WORK/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-/tmp/ssljax_xla_cache}

say() { echo "$@" | tee -a "$LOG"; }

# limited NAME SECONDS COMMAND...: runs it within its own limit and what is left of the whole.
limited() {
  local name=$1 limit=$2 left=$((LIMIT - SECONDS)) from code
  shift 2
  if ((left < 25)); then
    say "=== $name: left out, $left s are left"
    return 1
  fi
  ((limit < left)) || limit=$left
  say "=== $name: from second $SECONDS, at most $limit s"
  from=$(wc -l <"$LOG")
  # To a file, not through a pipe: a process that outlives the command would keep the pipe open.
  timeout --kill-after=5 "$limit" "$@" >>"$LOG" 2>&1
  code=$?
  tail -n +$((from + 1)) "$LOG" | grep -v -i warning | tail -n 14
  say "--- $name: exit code $code, second $SECONDS"
  return $code
}

# Only what is missing: the machine's own packages stay as they are.
: >>"$LOG"
for wheel in "$HERE"/wheels/*.whl; do
  [ -e "$wheel" ] || continue
  name=$(basename "$wheel")
  name=${name%%-*}
  there="import importlib.metadata as m, sys; m.version(sys.argv[1])"
  "$PYTHON" -c "$there" "$name" >/dev/null 2>&1 && continue
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site" "$wheel" >>"$LOG" 2>&1
  say "installed $name: exit code $?"
done

limited machine 60 "$PYTHON" -c '
import importlib.metadata as m, sys
there = {d.name.lower(): d.version for d in m.distributions()}
names = "jax jaxlib flax optax orbax-checkpoint ml-collections torch torchvision timm".split()
print(sys.version.split()[0], {name: there.get(name) or there.get(name.replace("-", "_")) for name in names})
import jax
print(jax.devices(), jax.devices()[0].device_kind)
sys.exit(jax.default_backend() == "cpu" and not sys.argv[1:])' ${TOY:+toy} ||
  { say "JAX sees no accelerator here: nothing is measured"; exit 1; }
fields=name,memory.total,memory.used,driver_version,clocks.sm,clocks.max.sm
nvidia-smi --query-gpu=$fields --format=csv 2>&1 |
  tee -a "$LOG"

# What an earlier occasion has measured is not measured again.
[ -f "$HERE/throughput.jsonl" ] && [ ! -f "$OUT/throughput.jsonl" ] && cp "$HERE/throughput.jsonl" "$OUT/"

for line in "${wanted[@]}"; do
  case $line in
    digits)
      flags=(--config configs/simclr.py:digits --workdir "$WORK/digits")
      limited digits 90 "$PYTHON" -m ssljax train "${flags[@]}"
      limited digits-evaluate 60 "$PYTHON" -m ssljax evaluate "${flags[@]}" --protocols knn,linear
      cp "$WORK/digits/metrics.jsonl" "$OUT/digits_metrics.jsonl"
      cp "$WORK/digits/results.jsonl" "$OUT/digits_results.jsonl"
      ;;
    augmentation)
      limited augmentation 120 "$PYTHON" -m benchmarks.accelerator.augmentation --out "$OUT" \
        --commit "${COMMIT:-}" ${TOY:+--toy}
      ;;
    profile_*)
      limited "$line" 120 "$PYTHON" -m benchmarks.accelerator.step_profile --row "${line#profile_}" \
        --out "$OUT" --commit "${COMMIT:-}" ${TOY:+--toy}
      ;;
    kernel_*)
      limited "$line" 250 "$PYTHON" -m benchmarks.accelerator.kernels --kernel "${line#kernel_}" \
        --out "$OUT" --commit "${COMMIT:-}" ${TOY:+--toy}
      ;;
    cifar10_*)
      # The run is stopped so early that its last checkpoint and the evaluation still fit.
      limited "$line" "$LIMIT" "$PYTHON" -m benchmarks.accelerator.cifar10 --paper "${line#cifar10_}" \
        --seed "${SEED:-0}" --images "$IMAGES" --workdir "${RUNS:-$OUT}/$line-${SEED:-0}" --out "$OUT" \
        --seconds $((LIMIT - SECONDS - 60)) --commit "${COMMIT:-}" ${TOY:+--toy}
      ;;
    same_numbers)
      limited same_numbers 230 "$PYTHON" -m benchmarks.accelerator.same_numbers --out "$OUT" \
        --commit "${COMMIT:-}"
      ;;
    *)
      limited "$line" "${ROW_SECONDS:-200}" "$PYTHON" -m benchmarks.accelerator.throughput --row "$line" \
        --out "$OUT" --commit "${COMMIT:-}" --budget "${BUDGET:-130}" ${TOY:+--toy} ${ROW_FLAGS:-}
      ;;
  esac
done
say "=== end at second $SECONDS"
[ -f "$OUT/throughput.jsonl" ] && wc -l "$OUT/throughput.jsonl"
exit 0
