#!/usr/bin/env bash
# The paper's evaluation of the GPT-2 backbones: every model, benchmark, sampler, strength and seed.
#
#   ./run_tests.sh                  the embedded model on the embedded benchmarks
#   PROFILE=paper ./run_tests.sh    the published checkpoints on the paper's benchmarks
#
# Each list can be set from the environment, for instance NOISE_STDS="0.2 0.4 0.8" ./run_tests.sh.
# LIMIT: only the first so many questions of each benchmark; LIMIT= (empty) takes all of them.
# A cell that is finished is not sampled again; one that was interrupted goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PROFILE=${PROFILE:-tiny}
case "$PROFILE" in
tiny)
  MODELS=${MODELS-coconut:checkpoints/tiny-coconut}
  SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
  DROPOUT_PS=${DROPOUT_PS-0.1 0.2}
  NOISE_STDS=${NOISE_STDS-0.4 0.8}
  BATCH_SIZE=${BATCH_SIZE:-16}
  LIMIT=${LIMIT-300}
  ;;
paper)
  MODELS=${MODELS-coconut:ModalityDance/latent-tts-coconut}
  SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
  DROPOUT_PS=${DROPOUT_PS-0.2}
  NOISE_STDS=${NOISE_STDS-0.6}
  BATCH_SIZE=${BATCH_SIZE:-8}
  LIMIT=${LIMIT-}
  ;;
*)
  echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
  exit 2
  ;;
esac
NS=${NS-1 4 16 64}                  # sizes of the pool; all come from one run at the largest
SEEDS=${SEEDS-42}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/run_tests_$PROFILE}

for split in $SPLITS; do
  [ -f "data/$split.json" ] || {
    echo "error: SPLITS: data/$split.json: no such file; data/tiny_*.json are shipped" >&2
    exit 2
  }
done

# One process a GPU; without one, a process a core, up to four.
if [ -z "${NPROC:-}" ]; then
  NPROC=$(python -c 'import os, torch; print(torch.cuda.device_count() or min(4, os.cpu_count()))')
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

largest=0
for n in $NS; do largest=$((n > largest ? n : largest)); done

cell() { # model split seed, then the sampler's flags, of which the last is its strength
  local model=$1 split=$2 seed=$3 sampler=$5 strength=${*: -1}
  local folder="$OUTPUT_DIR/${model##*/}/$split/$sampler-$strength-n$largest-seed$seed${LIMIT:+-first$LIMIT}"
  local start=(python)
  if [ "$NPROC" -gt 1 ] && [ ! -f "$folder/metrics.json" ]; then # finished cells are only checked
    start=(torchrun --standalone --nproc_per_node "$NPROC")
  fi
  echo "== ${model##*/} $split $sampler $strength seed $seed"
  # shellcheck disable=SC2086  # NS is a list
  "${start[@]}" -m src.infer_gpt2 \
    --model_type "${model%%:*}" --model_id "${model#*:}" --data_path "data/$split.json" \
    --n_samples "$largest" --report_n $NS --batch_size "$BATCH_SIZE" --seed "$seed" \
    ${LIMIT:+--limit "$LIMIT"} --output_dir "$folder" "${@:4}"
}

for model in $MODELS; do
  for split in $SPLITS; do
    for seed in $SEEDS; do
      for p in $DROPOUT_PS; do cell "$model" "$split" "$seed" --sampling_by dropout --dropout_p "$p"; done
      for s in $NOISE_STDS; do cell "$model" "$split" "$seed" --sampling_by noise --noise_std "$s"; done
    done
  done
done

python -m src.collect_results "$OUTPUT_DIR"
