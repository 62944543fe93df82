#!/usr/bin/env bash
# Samples and labels the trajectories for training and evaluation of a LatentRM.
#
#   ./run_annotation.sh                  the bundled COCONUT
#                                        (for training_args/train_tiny_coconut.yaml)
#   BACKBONE=codi ./run_annotation.sh    another backbone, codi or colar (train_tiny_codi.yaml)
#   SIZE=small ./run_annotation.sh       small pools (train_tiny_coconut_small.yaml)
#   PROFILE=paper ./run_annotation.sh    a published checkpoint on GSM8K-Aug (train_coconut.yaml)
#
# Each setting can be set in the environment, also by the release's names MODEL_TYPE (BACKBONE), Ns,
# SEEDs (SEED) and batch_sizes. Finished pools are not made again; interrupted ones are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

read_release_names BACKBONE SEED
PROFILE=${PROFILE:-tiny}
SIZE=${SIZE:-full}
BACKBONE=${BACKBONE:-coconut}
case "$PROFILE-$SIZE" in
tiny-full | tiny-small | paper-full) ;;
*)
  echo "error: PROFILE=$PROFILE SIZE=$SIZE: must be tiny with full or small, or paper with full" >&2
  exit 2
  ;;
esac
check_backbone "$BACKBONE"
if [ -n "${NS:-}" ] && [ -n "${VALID:-}" ]; then
  echo "error: NS=$NS has no effect with VALID=$VALID: leave one out" >&2
  exit 2
fi
# NS: sizes of the validation pools, whose names end in them
case "$PROFILE" in
tiny) NS=${NS:-64} ;;
paper) NS=${NS:-4 64} ;;
esac

pools() { # pools in the format below, in which N stands for each size of NS
  local n
  for n in $NS; do
    echo "${*//N/$n}"
  done
}

# name : questions : trajectories : rollouts per thought : sampler : its strength; if the last is
# missing, the checkpoint's own
case "$PROFILE-$SIZE" in
tiny-full)
  questions=60000
  [ "$BACKBONE" = coconut ] || questions=30000
  train=tiny-$BACKBONE-train valid=tiny-$BACKBONE-valid
  TRAIN=${TRAIN-$train-noise:$questions:8:0:noise $train-dropout:$questions:8:0:dropout}
  VALID=${VALID-$(pools "$valid-noise-N::N:0:noise" "$valid-dropout-N::N:0:dropout")}
  ;;
tiny-small)
  TRAIN=${TRAIN-tiny-$BACKBONE-small-train:1500:8:4:noise}
  VALID=${VALID-$(pools "tiny-$BACKBONE-small-valid-N:150:N:0:noise")}
  ;;
paper-full)
  TRAIN=${TRAIN-$BACKBONE-train::8:64:dropout}
  VALID=${VALID-$(pools "$BACKBONE-valid-N::N:0:dropout")}
  ;;
esac
embedding=()
if [ "$PROFILE" = tiny ]; then
  MODEL=${MODEL:-checkpoints/tiny-$BACKBONE}
  TRAIN_DATA=${TRAIN_DATA:-data/tiny_train.json} VALID_DATA=${VALID_DATA:-data/tiny_valid.json}
  BATCH_SIZE=${BATCH_SIZE:-32} SHARD_SIZE=${SHARD_SIZE:-500}
  embedding=(--dropout_embedding false) # sample thoughts as in inference
  [ -f "$TRAIN_DATA" ] || python -m src.prepare_data tiny --train 120000
else
  MODEL=${MODEL:-ModalityDance/latent-tts-$BACKBONE}
  TRAIN_DATA=${TRAIN_DATA:-data/gsm_train.json} VALID_DATA=${VALID_DATA:-data/gsm_valid.json}
  BATCH_SIZE=${BATCH_SIZE:-8} SHARD_SIZE=${SHARD_SIZE:-64}
fi
SEED=${SEED:-1}
SAVE_PATH=${SAVE_PATH:-outputs/annotated}
choose_processes
start_cells "$SAVE_PATH" "cells-$PROFILE-$BACKBONE-$SIZE"

annotate() { # data file, then a pool in the format above
  local name questions trajectories rollouts sampler value
  IFS=: read -r name questions trajectories rollouts sampler value <<<"$2"
  local how=() flags
  [ "$sampler" != dropout ] || how=(${embedding[@]+"${embedding[@]}"})
  flags=$(sampler_flags "$sampler" "$value") || exit 2
  # shellcheck disable=SC2086
  add_cell src.annotate_data --save_path "$SAVE_PATH" --name "$name" --data_path "$1" \
    --model_type "$BACKBONE" --model_id "$MODEL" --n_samples "$trajectories" \
    --n_samples_per_step "$rollouts" --batch_size "$BATCH_SIZE" --shard_size "$SHARD_SIZE" \
    --seed "$SEED" ${questions:+--limit "$questions"} $flags \
    ${how[@]+"${how[@]}"}
}

for pool in $TRAIN; do annotate "$TRAIN_DATA" "$pool"; done
for pool in $VALID; do annotate "$VALID_DATA" "$pool"; done
run_cells
