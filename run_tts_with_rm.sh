#!/usr/bin/env bash
# Choosing by LatentRM: best-of-N, the votes and beam search at equal budgets, over all benchmarks.
#
#   ./run_tts_with_rm.sh                    the embedded COCONUT on the embedded benchmarks
#   BACKBONE=codi ./run_tts_with_rm.sh      another embedded backbone, codi or colar
#   PROFILE=paper ./run_tts_with_rm.sh      a published checkpoint on the paper's benchmarks
#
# Each list can be set from the environment, for instance BEAMS="4x4" NS="16" ./run_tts_with_rm.sh.
# LIMIT: only the first so many questions of each benchmark; LIMIT= (empty) takes all of them.
# A cell that is finished is not computed again; one that was interrupted goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

PROFILE=${PROFILE:-tiny}
BACKBONE=${BACKBONE:-coconut}
case "$PROFILE" in
tiny)
  GENERATOR=${GENERATOR:-checkpoints/tiny-$BACKBONE}
  PRM=${PRM:-checkpoints/tiny-latentRM-$BACKBONE}
  SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
  SAMPLERS=${SAMPLERS-noise:$(strengths "$BACKBONE" tiny noise)}
  BATCH_SIZE=${BATCH_SIZE:-16}
  LIMIT=${LIMIT-200}
  ;;
paper)
  GENERATOR=${GENERATOR:-ModalityDance/latent-tts-$BACKBONE}
  # one reward model is published, COCONUT's; another backbone's is trained: training_args/train_codi.yaml
  PRM=${PRM:-$([ "$BACKBONE" = coconut ] && echo ModalityDance/latent-tts-rm || echo "outputs/latentRM-$BACKBONE")}
  SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
  SAMPLERS=${SAMPLERS-dropout:$(strengths "$BACKBONE" paper dropout) noise:$(strengths "$BACKBONE" paper noise)}
  BATCH_SIZE=${BATCH_SIZE:-8}
  LIMIT=${LIMIT-}
  ;;
*)
  echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
  exit 2
  ;;
esac
NS=${NS-1 4 16 64}              # best-of-N, each a run of its own, so that its time is its own
BEAMS=${BEAMS-1x16 2x8 4x4 8x2} # beams x candidates
SEED=${SEED-42}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/run_tts_${PROFILE}_$BACKBONE}
command=src.infer_gpt2_rm
[ "$BACKBONE" != colar ] || command=src.infer_llama_rm

check_splits "$SPLITS"
choose_processes

cell() { # split sampler:strength name, then the mode's flags
  local split=$1 sampler=${2%%:*} strength=${2#*:} name=$3 flag=--dropout_p
  local folder="$OUTPUT_DIR/${PRM##*/}/$split/$sampler-$strength-$name-seed$SEED${LIMIT:+-first$LIMIT}"
  [ "$sampler" = noise ] && flag=--noise_std
  echo "== $split $sampler $strength $name"
  launch "$folder/metrics.json" "$command" \
    --generator_type "$BACKBONE" --generator_id "$GENERATOR" --prm_id "$PRM" \
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
