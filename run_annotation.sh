#!/usr/bin/env bash
# Samples and labels the trajectories that LatentRM is trained and evaluated on.
#
#   ./run_annotation.sh                  pools of the embedded model: training_args/train_tiny_coconut.yaml
#   SIZE=small ./run_annotation.sh       a few of them: training_args/train_tiny_coconut_small.yaml
#   PROFILE=paper ./run_annotation.sh    the published COCONUT on GSM8K-Aug: training_args/train_coconut.yaml
#
# Each setting can be set from the environment. Finished pools are not made again; an interrupted one
# goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PROFILE=${PROFILE:-tiny}
SIZE=${SIZE:-full}
# name : questions : trajectories : rollouts a thought : sampler : strength
case "$PROFILE-$SIZE" in
tiny-full)
  TRAIN=${TRAIN-tiny-train-noise:60000:8:0:noise:0.8 tiny-train-dropout:60000:8:0:dropout:0.1}
  VALID=${VALID-tiny-valid-noise-64::64:0:noise:0.8 tiny-valid-dropout-64::64:0:dropout:0.1}
  ;;
tiny-small)
  TRAIN=${TRAIN-tiny-small-train:1500:8:4:noise:0.8}
  VALID=${VALID-tiny-small-valid-64:150:64:0:noise:0.8}
  ;;
paper-full)
  TRAIN=${TRAIN-coconut-train::8:64:dropout:0.2}
  VALID=${VALID-coconut-valid-4::4:0:dropout:0.2 coconut-valid-64::64:0:dropout:0.2}
  ;;
*)
  echo "error: PROFILE=$PROFILE SIZE=$SIZE: must be tiny with full or small, or paper with full" >&2
  exit 2
  ;;
esac
if [ "$PROFILE" = tiny ]; then
  MODEL=${MODEL:-coconut:checkpoints/tiny-coconut}
  TRAIN_DATA=${TRAIN_DATA:-data/tiny_train.json} VALID_DATA=${VALID_DATA:-data/tiny_valid.json}
  BATCH_SIZE=${BATCH_SIZE:-32} SHARD_SIZE=${SHARD_SIZE:-500}
  DROPOUT_EMBEDDING=${DROPOUT_EMBEDDING:-false} # thoughts as inference samples them
  [ -f "$TRAIN_DATA" ] || python -m src.prepare_data tiny --train 120000
else
  MODEL=${MODEL:-coconut:ModalityDance/latent-tts-coconut}
  TRAIN_DATA=${TRAIN_DATA:-data/gsm_train.json} VALID_DATA=${VALID_DATA:-data/gsm_valid.json}
  BATCH_SIZE=${BATCH_SIZE:-8} SHARD_SIZE=${SHARD_SIZE:-64}
  DROPOUT_EMBEDDING=${DROPOUT_EMBEDDING:-true} # as the release
fi
SEED=${SEED:-1}
SAVE_PATH=${SAVE_PATH:-outputs/annotated}

# One process a GPU; without one, a process a core, up to four.
if [ -z "${NPROC:-}" ]; then
  NPROC=$(python -c 'import os, torch; print(torch.cuda.device_count() or min(4, os.cpu_count()))')
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

annotate() { # data file, then the pool as above
  local name questions trajectories rollouts sampler strength
  IFS=: read -r name questions trajectories rollouts sampler strength <<<"$2"
  local how=(--sampling_by noise --noise_std "$strength") start=(python)
  if [ "$sampler" = dropout ]; then
    how=(--sampling_by dropout --dropout_p "$strength" --dropout_embedding "$DROPOUT_EMBEDDING")
  fi
  if [ "$NPROC" -gt 1 ] && [ ! -f "$SAVE_PATH/$name/manifest.json" ]; then
    start=(torchrun --standalone --nproc_per_node "$NPROC")
  fi
  echo "== $name"
  "${start[@]}" -m src.annotate_data --save_path "$SAVE_PATH" --name "$name" --data_path "$1" \
    --model_type "${MODEL%%:*}" --model_id "${MODEL#*:}" --n_samples "$trajectories" \
    --n_samples_per_step "$rollouts" --batch_size "$BATCH_SIZE" --shard_size "$SHARD_SIZE" \
    --seed "$SEED" ${questions:+--limit "$questions"} "${how[@]}"
}

for pool in $TRAIN; do annotate "$TRAIN_DATA" "$pool"; done
for pool in $VALID; do annotate "$VALID_DATA" "$pool"; done
