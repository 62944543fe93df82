#!/usr/bin/env bash
# Choosing by LatentRM: best-of-N, the votes and beam search at equal budgets, over all benchmarks.
#
#   ./run_tts_with_rm.sh                  the embedded models on the embedded benchmarks
#   PROFILE=paper ./run_tts_with_rm.sh    the published checkpoints on the paper's benchmarks
#
# Each list can be set from the environment, for instance BEAMS="4x4" NS="16" ./run_tts_with_rm.sh.
# LIMIT: only the first so many questions of each benchmark; LIMIT= (empty) takes all of them.
# A cell that is finished is not computed again; one that was interrupted goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PROFILE=${PROFILE:-tiny}
case "$PROFILE" in
tiny)
  GENERATOR=${GENERATOR:-coconut:checkpoints/tiny-coconut}
  PRM=${PRM:-checkpoints/tiny-latentRM-coconut}
  SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
  SAMPLERS=${SAMPLERS-noise:0.8}
  BATCH_SIZE=${BATCH_SIZE:-16}
  LIMIT=${LIMIT-200}
  ;;
paper)
  GENERATOR=${GENERATOR:-coconut:ModalityDance/latent-tts-coconut}
  PRM=${PRM:-ModalityDance/latent-tts-rm}
  SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
  SAMPLERS=${SAMPLERS-dropout:0.2 noise:0.6}
  BATCH_SIZE=${BATCH_SIZE:-8}
  LIMIT=${LIMIT-}
  ;;
*)
  echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
  exit 2
  ;;
esac
NS=${NS-1 4 16 64}                # best-of-N, each a run of its own, so that its time is its own
BEAMS=${BEAMS-1x16 2x8 4x4 8x2}   # beams x candidates
SEED=${SEED-42}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/run_tts_$PROFILE}

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

cell() { # split sampler:strength name, then the mode's flags
  local split=$1 sampler=${2%%:*} strength=${2#*:} name=$3
  local folder="$OUTPUT_DIR/${PRM##*/}/$split/$sampler-$strength-$name-seed$SEED${LIMIT:+-first$LIMIT}"
  local flag=--dropout_p start=(python)
  [ "$sampler" = noise ] && flag=--noise_std
  if [ "$NPROC" -gt 1 ] && [ ! -f "$folder/metrics.json" ]; then # finished cells are only checked
    start=(torchrun --standalone --nproc_per_node "$NPROC")
  fi
  echo "== $split $sampler $strength $name"
  "${start[@]}" -m src.infer_gpt2_rm \
    --generator_type "${GENERATOR%%:*}" --generator_id "${GENERATOR#*:}" --prm_id "$PRM" \
    --data_path "data/$split.json" --sampling_by "$sampler" "$flag" "$strength" --seed "$SEED" \
    --batch_size "$BATCH_SIZE" ${LIMIT:+--limit "$LIMIT"} --output_dir "$folder" "${@:4}"
}

for split in $SPLITS; do
  for sampler in $SAMPLERS; do
    for n in $NS; do
      cell "$split" "$sampler" "n$n" --prm_mode best_of_n --num_return_sequences "$n" --report_n "$n"
    done
    for beam in $BEAMS; do
      cell "$split" "$sampler" "beam$beam" --prm_mode beam_search \
        --num_beams "${beam%x*}" --num_beam_candidates "${beam#*x}"
    done
  done
done

python -m src.collect_rm_results "$OUTPUT_DIR"
