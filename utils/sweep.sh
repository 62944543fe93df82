# What the sweeps share: sourced by run_*.sh, from the repository's root.

# Benchmarks must be there before the first cell starts.
check_splits() {
  local split
  for split in $1; do
    [ -f "data/$split.json" ] || {
      echo "error: SPLITS: data/$split.json: no such file; data/tiny_*.json are shipped, the paper's come" \
        "with \`python -m src.prepare_data paper\`" >&2
      exit 2
    }
  done
}

# NPROC: one process a GPU; without one, a process a core, up to four.
choose_processes() {
  if [ -z "${NPROC:-}" ]; then
    NPROC=$(python -c 'import os, torch; print(torch.cuda.device_count() or min(4, os.cpu_count()))')
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
}

# launch FILE MODULE FLAGS..: on NPROC processes, or on one where FILE says that the work is done and only checked.
launch() {
  local start=(python)
  if [ "$NPROC" -gt 1 ] && [ ! -f "$1" ]; then
    start=(torchrun --standalone --nproc_per_node "$NPROC")
  fi
  "${start[@]}" -m "${@:2}"
}

# strengths TYPE tiny|paper dropout|noise: the sampler's strengths for a backbone, chosen on tiny_valid or the release's.
strengths() {
  case "$1-$2-$3" in
  coconut-tiny-dropout) echo 0.1 ;;
  coconut-tiny-noise) echo 0.8 ;;
  codi-tiny-dropout) echo 0.1 ;;
  codi-tiny-noise) echo 0.6 ;;
  colar-tiny-dropout) echo 0.03 ;;
  colar-tiny-noise) echo 0.05 ;;
  coconut-paper-dropout | codi-paper-dropout) echo 0.2 ;;
  coconut-paper-noise) echo 0.6 ;;
  codi-paper-noise) echo 1.4 ;;
  colar-paper-dropout) echo 0.03 ;;
  colar-paper-noise) echo 0.01 ;;
  *)
    echo "error: $1: unknown backbone; coconut, codi and colar are known" >&2
    exit 2
    ;;
  esac
}

# evaluate COMMAND NAME TINY_MODELS PAPER_MODELS: the paper's evaluation of some backbones, settings from the environment.
evaluate() {
  PROFILE=${PROFILE:-tiny}
  case "$PROFILE" in
  tiny)
    MODELS=${MODELS-$3}
    SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
    BATCH_SIZE=${BATCH_SIZE:-16}
    LIMIT=${LIMIT-300}
    ;;
  paper)
    MODELS=${MODELS-$4}
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
  OUTPUT_DIR=${OUTPUT_DIR:-outputs/$2_$PROFILE}
  check_splits "$SPLITS"
  choose_processes
  sample_cells "$1"
}

# sample_cells COMMAND: every model, benchmark, sampler, strength and seed of MODELS, SPLITS, DROPOUT_PS, NOISE_STDS,
# SEEDS at the largest of NS, then the table. DROPOUT_PS and NOISE_STDS unset: each backbone's own.
sample_cells() {
  local command=$1 model split seed p s ps ss largest=0 n
  for n in $NS; do largest=$((n > largest ? n : largest)); done
  for model in $MODELS; do
    ps=${DROPOUT_PS-$(strengths "${model%%:*}" "$PROFILE" dropout)}
    ss=${NOISE_STDS-$(strengths "${model%%:*}" "$PROFILE" noise)}
    for split in $SPLITS; do
      for seed in $SEEDS; do
        for p in $ps; do
          _sample_cell --sampling_by dropout --dropout_p "$p"
        done
        for s in $ss; do
          _sample_cell --sampling_by noise --noise_std "$s"
        done
      done
    done
  done
  python -m src.collect_results "$OUTPUT_DIR"
}

_sample_cell() { # the sampler's flags, of which the last is its strength
  local name=$2-${*: -1}-n$largest-seed$seed${LIMIT:+-first$LIMIT}
  local folder="$OUTPUT_DIR/${model##*/}/$split/$name"
  echo "== ${model##*/} $split $2 ${*: -1} seed $seed"
  # shellcheck disable=SC2086  # NS is a list
  launch "$folder/metrics.json" "$command" \
    --model_type "${model%%:*}" --model_id "${model#*:}" --data_path "data/$split.json" \
    --n_samples "$largest" --report_n $NS --batch_size "$BATCH_SIZE" --seed "$seed" \
    ${LIMIT:+--limit "$LIMIT"} --output_dir "$folder" "$@"
}
