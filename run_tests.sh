#!/usr/bin/env bash
# The paper's evaluation of the GPT-2 backbones: every model, benchmark, sampler, strength and seed.
#
#   ./run_tests.sh                  the embedded models on the embedded benchmarks
#   PROFILE=paper ./run_tests.sh    the published checkpoints on the paper's benchmarks
#
# Each list can be set from the environment, for instance NOISE_STDS="0.2 0.4 0.8" ./run_tests.sh.
# LIMIT: only the first so many questions of each benchmark; LIMIT= (empty) takes all of them.
# A cell that is finished is not sampled again; one that was interrupted goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

PROFILE=${PROFILE:-tiny}
case "$PROFILE" in
tiny)
  MODELS=${MODELS-coconut:checkpoints/tiny-coconut codi:checkpoints/tiny-codi}
  SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
  BATCH_SIZE=${BATCH_SIZE:-16}
  LIMIT=${LIMIT-300}
  ;;
paper)
  MODELS=${MODELS-coconut:ModalityDance/latent-tts-coconut codi:ModalityDance/latent-tts-codi}
  SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
  BATCH_SIZE=${BATCH_SIZE:-8}
  LIMIT=${LIMIT-}
  ;;
*)
  echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
  exit 2
  ;;
esac
NS=${NS-1 4 16 64} # sizes of the pool; all come from one run at the largest
SEEDS=${SEEDS-42}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/run_tests_$PROFILE}

check_splits "$SPLITS"
choose_processes
sample_cells src.infer_gpt2
