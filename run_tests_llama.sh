#!/usr/bin/env bash
# The paper's evaluation of the LLaMA backbone, CoLaR: every model, benchmark, sampler, sampler
# parameter and seed. One greedy run of every model and benchmark is the reference.
#
#   ./run_tests_llama.sh                  the bundled model on the bundled benchmarks
#   PROFILE=paper ./run_tests_llama.sh    the published checkpoint on the paper's benchmarks
#
# Each list can be set in the environment, for instance NOISE_STDS="0.02 0.05" ./run_tests_llama.sh.
# LIMIT: number of questions of each benchmark, the first ones; LIMIT= (empty) takes all.
# MODELS, SPLITS, DROPOUT_PS, NOISE_STDS, NS, SEEDS, BATCH_SIZE, NPROC, OUTPUT_DIR: see
# utils/sweep.sh, also for the release's MODEL_TYPE, Ns, SEEDs and batch_sizes.
# Finished cells are not sampled again; interrupted ones are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

evaluate src.infer_llama run_tests_llama \
  "colar:checkpoints/tiny-colar" \
  "colar:ModalityDance/latent-tts-colar"
