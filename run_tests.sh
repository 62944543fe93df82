#!/usr/bin/env bash
# The paper's evaluation of the GPT-2 backbones: every model, benchmark, sampler, sampler
# parameter and seed. One greedy run of every model and benchmark is the reference.
#
#   ./run_tests.sh                  the bundled models on the bundled benchmarks
#   PROFILE=paper ./run_tests.sh    the published checkpoints on the paper's benchmarks
#
# Each list can be set in the environment, for instance NOISE_STDS="0.2 0.4 0.8" ./run_tests.sh.
# LIMIT: number of questions of each benchmark, the first ones; LIMIT= (empty) takes all.
# MODELS, SPLITS, DROPOUT_PS, NOISE_STDS, NS, SEEDS, BATCH_SIZE, NPROC, OUTPUT_DIR: see
# utils/sweep.sh, also for the release's MODEL_TYPE, Ns, SEEDs and batch_sizes.
# Finished cells are not sampled again; interrupted ones are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

evaluate src.infer_gpt2 run_tests \
  "coconut:checkpoints/tiny-coconut codi:checkpoints/tiny-codi" \
  "coconut:ModalityDance/latent-tts-coconut codi:ModalityDance/latent-tts-codi"
