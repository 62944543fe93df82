#!/usr/bin/env bash
# Compares methods with a LatentRM: best-of-N, the votes and beam search at equal budgets, on all
# benchmarks.
#
#   ./run_tts_with_rm.sh                    the bundled COCONUT on the bundled benchmarks
#   BACKBONE=codi ./run_tts_with_rm.sh      another bundled backbone, codi or colar
#   PROFILE=paper ./run_tts_with_rm.sh      a published checkpoint on the paper's benchmarks
#
# Each list can be set in the environment, for instance BEAMS="4x4" NS="16" ./run_tts_with_rm.sh.
# LIMIT: number of questions of each benchmark, the first ones; LIMIT= (empty) takes all.
# The release's names MODEL_TYPE (BACKBONE), Ns, SEEDs (SEED) and batch_sizes are taken too.
# Finished cells are not computed again; interrupted ones are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. utils/sweep.sh

read_release_names BACKBONE SEED
PROFILE=${PROFILE:-tiny}
BACKBONE=${BACKBONE:-coconut}
check_backbone "$BACKBONE"
case "$PROFILE" in
tiny)
  GENERATOR=${GENERATOR:-checkpoints/tiny-$BACKBONE}
  PRM=${PRM:-checkpoints/tiny-latentRM-$BACKBONE}
  SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
  SAMPLERS=${SAMPLERS-noise}
  BATCH_SIZE=${BATCH_SIZE:-16}
  LIMIT=${LIMIT-200}
  ;;
paper)
  GENERATOR=${GENERATOR:-ModalityDance/latent-tts-$BACKBONE}
  # Only COCONUT's reward model is published. Train the others: training_args/train_codi.yaml,
  # train_colar.yaml.
  published=ModalityDance/latent-tts-rm
  [ "$BACKBONE" = coconut ] || published=outputs/latentRM-$BACKBONE
  PRM=${PRM:-$published}
  SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
  # Best-of-N both ways, which are not comparable. dropout: as the paper's evaluation, at the
  # checkpoint's dropout_p, after attention and MLP only. dropout-release: what the release's
  # best-of-N script really samples at, 0.1 after the embedding and of the attention weights too;
  # the replication's table (best-of-16 on GSM8K Test: 33.7) is this one. LLaMA has no such dropout.
  release=dropout-release
  [ "$(infer_command "$BACKBONE" "$GENERATOR")" = src.infer_gpt2 ] || release=
  SAMPLERS=${SAMPLERS-dropout $release noise}
  BATCH_SIZE=${BATCH_SIZE:-8}
  LIMIT=${LIMIT-}
  ;;
*)
  echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
  exit 2
  ;;
esac
# SAMPLERS: noise or dropout with the checkpoint's own noise_std or dropout_p, or for instance
# noise:0.5; dropout-release
NS=${NS-1 4 16 64}              # sizes of best-of-N; all come from one pool of the largest
BEAMS=${BEAMS-1x16 2x8 4x4 8x2} # beams x proposals
SEED=${SEED-42}
OUTPUT_DIR=${OUTPUT_DIR:-outputs/run_tts_${PROFILE}_$BACKBONE}
PRM=${PRM%/}
sampling=$(infer_command "$BACKBONE" "$GENERATOR")
most=$(largest "$NS") || exit 2

check_splits "$SPLITS"
choose_processes
start_cells "$OUTPUT_DIR" cells

common() { # split: the flags that all cells of a benchmark share
  echo "--data_path data/$1.json --seed $SEED --batch_size $BATCH_SIZE ${LIMIT:+--limit $LIMIT}"
}

greedy_cell() { # split
  # shellcheck disable=SC2046
  add_cell "$sampling" --model_type "$BACKBONE" --model_id "$GENERATOR" --do_sample false \
    $(common "$1") --output_dir "$OUTPUT_DIR/greedy/$1/greedy${LIMIT:+-first$LIMIT}"
}

choice_cell() { # split, sampler[:noise_std or dropout_p], name, then the flags of the mode
  local value='' flags
  case "$2" in *:*) value=${2#*:} ;; esac
  flags=$(sampler_flags "${2%%:*}" "$value") || exit 2
  local folder="$OUTPUT_DIR/${PRM##*/}/$1/{sampler}-$3-seed$SEED${LIMIT:+-first$LIMIT}"
  # shellcheck disable=SC2046,SC2086
  add_cell "${sampling}_rm" --model_type "$BACKBONE" --model_id "$GENERATOR" --prm_id "$PRM" \
    $(common "$1") $flags --output_dir "$folder" "${@:4}"
}

for split in $SPLITS; do
  greedy_cell "$split"
  for sampler in $SAMPLERS; do
    # shellcheck disable=SC2086  # NS is a list
    [ "$most" = 0 ] || choice_cell "$split" "$sampler" "n$most" \
      --prm_mode best_of_n --n_samples "$most" --report_n $NS
    [ "$sampler" != dropout-release ] || continue # the release has no beam search
    for beam in $BEAMS; do
      choice_cell "$split" "$sampler" "beam$beam" --prm_mode beam_search \
        --num_beams "${beam%x*}" --num_beam_candidates "${beam#*x}"
    done
  done
done
run_cells --results "$OUTPUT_DIR"
