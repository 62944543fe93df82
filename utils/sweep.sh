# Functions that the sweeps share; run_*.sh source this file from the root of the repository. A
# sweep writes its cells, one command line each, to a file. src.sweep runs them in one group of
# processes.

# read_release_names MODEL SEED: takes the release's variables as ours: Ns as NS, batch_sizes as
# BATCH_SIZE, MODEL_TYPE as the variable that MODEL names, and SEEDs as the one that SEED names,
# which is SEEDS in a script that takes several and else SEED.
read_release_names() {
  _take_name "$1" MODEL_TYPE
  _take_name NS Ns
  if [ "$2" = SEED ]; then
    case "${SEEDs:-}" in
    *' '*)
      echo "error: SEEDs=$SEEDs: this script takes one seed" >&2
      exit 2
      ;;
    esac
  fi
  _take_name "$2" SEEDs
  _choose_batch_size
  _take_name BATCH_SIZE batch_sizes
}

_take_name() { # our variable, the release's
  [ -n "${!2:-}" ] || return 0
  if [ -n "${!1:-}" ] && [ "${!1}" != "${!2}" ]; then
    echo "error: $1=${!1} and $2=${!2} are the same setting: leave one out" >&2
    exit 2
  fi
  printf -v "$1" %s "${!2}"
}

# Of several batch_sizes, one for each of Ns in the release, the smallest is taken: here all N come
# from one pool, and no sample depends on it.
_choose_batch_size() {
  local size least=''
  for size in ${batch_sizes:-}; do
    case "$size" in
    *[!0-9]* | 0*)
      echo "error: batch_sizes: $size is no whole number from 1 on" >&2
      exit 2
      ;;
    esac
    [ -n "$least" ] && [ "$least" -le "$size" ] || least=$size
  done
  if [ "${batch_sizes:-}" != "$least" ]; then
    echo "batch_sizes=$batch_sizes: all N come from one pool, with $least questions a batch" >&2
    batch_sizes=$least
  fi
}

# models_of TYPE MODELS: prints the models of this backbone; TYPE may be empty, for all.
models_of() {
  local model found=''
  for model in $2; do
    case "$model" in "${1:-${model%%:*}}":*) found="$found $model" ;; esac
  done
  [ -n "$found" ] || [ -z "$1" ] || {
    echo "error: MODEL_TYPE=$1: not in MODELS=$2" >&2
    exit 2
  }
  echo "${found# }"
}

# Checks that all benchmarks exist before the first cell starts.
check_splits() {
  local split
  for split in $1; do
    [ -f "data/$split.json" ] || {
      echo "error: SPLITS: data/$split.json: no such file; data/tiny_*.json are shipped, the" \
        "paper's come with \`python -m src.prepare_data paper\`" >&2
      exit 2
    }
  done
}

# Checks that the profiles know the backbone.
check_backbone() {
  case "$1" in
  coconut | codi | colar) ;;
  *)
    echo "error: $1: unknown backbone; coconut, codi and colar are known" >&2
    exit 2
    ;;
  esac
}

# NPROC: one process per GPU; without a GPU one per core, at most four.
choose_processes() {
  if [ -z "${NPROC:-}" ]; then
    NPROC=$(python -c 'from src.runs.launch import default_processes as n; print(n())')
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
}

# infer_command BACKBONE MODEL: prints the command that samples from a model, by the architecture in
# its config.json; for a hub id by that of the published checkpoint.
infer_command() {
  local published=gpt2
  [ "$1" != colar ] || published=llama
  case "$(grep -o '"model_type": *"[a-z0-9]*"' "$2/config.json" 2>/dev/null)" in
  *'"llama"') echo src.infer_llama ;;
  *'"gpt2"') echo src.infer_gpt2 ;;
  *) echo "src.infer_$published" ;;
  esac
}

# largest NS: prints the largest size of a pool. Sizes must be whole numbers.
largest() {
  local n most=0
  for n in $1; do
    case "$n" in
    *[!0-9]* | 0*)
      echo "error: NS: $n is no size of a pool; it must be a whole number from 1 on" >&2
      exit 2
      ;;
    esac
    most=$((n > most ? n : most))
  done
  echo "$most"
}

# start_cells FOLDER NAME: starts the file of a sweep's cells, FOLDER/NAME.txt.
start_cells() {
  mkdir -p "$1"
  CELLS="$1/$2.txt"
  : >"$CELLS"
}

# add_cell MODULE FLAGS..: appends a cell to the file.
add_cell() {
  printf '%q ' "$@" >>"$CELLS"
  echo >>"$CELLS"
}

# run_cells FLAGS..: runs the cells; the flags are those of src.sweep.
run_cells() {
  python -m src.sweep "$CELLS" --nproc "$NPROC" "$@"
}

RELEASE_DROPOUT_P=0.1 # GPT-2's, where a config says nothing

# sampler_flags NAME VALUE: prints the flags of a sampler. VALUE is its strength, such as dropout_p
# or noise_std, or coverage or vote: the checkpoint's own for this purpose; if empty, for coverage.
# dropout-release, without a value: GPT-2's own dropout as in its training, which the release's
# best-of-N samples at.
sampler_flags() {
  case "$1-$2" in
  dropout-release-)
    echo "--sampling_by dropout --dropout_p $RELEASE_DROPOUT_P" \
      "--dropout_embedding true --dropout_attention true"
    ;;
  dropout-release-*)
    echo "error: dropout-release:$2: takes no value" >&2
    exit 2
    ;;
  dropout-* | noise-* | svp-* | weight_noise-* | tokens-*) _strength_flags "$1" "$2" ;;
  *)
    echo "error: $1: unknown sampler; dropout, dropout-release, noise, svp, weight_noise and" \
      "tokens are known" >&2
    exit 2
    ;;
  esac
}

_strength_flags() { # sampler, strength or purpose
  local strength
  case "$1" in
  dropout) strength=dropout_p ;;
  noise) strength=noise_std ;;
  svp) strength=svp_alpha ;;
  weight_noise) strength=weight_noise_std ;;
  tokens) strength=temperature ;;
  esac
  case "$2" in
  "") echo "--sampling_by $1" ;;
  coverage | vote) echo "--sampling_by $1 --tuned_for $2" ;;
  *) echo "--sampling_by $1 --$strength $2" ;;
  esac
}

# evaluate COMMAND NAME TINY_MODELS PAPER_MODELS: the paper's evaluation of some backbones. The
# settings come from the environment.
evaluate() {
  read_release_names MODEL_TYPE SEEDS
  PROFILE=${PROFILE:-tiny}
  case "$PROFILE" in
  tiny)
    MODELS=${MODELS-$3}
    SPLITS=${SPLITS-tiny_test tiny_multi tiny_hard}
    BATCH_SIZE=${BATCH_SIZE:-16}
    LIMIT=${LIMIT-300}
    strengths="coverage vote"
    ;;
  paper)
    MODELS=${MODELS-$4}
    SPLITS=${SPLITS-gsm_test gsm_hard multiarith}
    BATCH_SIZE=${BATCH_SIZE:-8}
    LIMIT=${LIMIT-}
    strengths=coverage # the published checkpoints have no others
    ;;
  *)
    echo "error: PROFILE=$PROFILE: must be tiny or paper" >&2
    exit 2
    ;;
  esac
  MODELS=$(models_of "${MODEL_TYPE:-}" "$MODELS") || exit 2
  DROPOUT_PS=${DROPOUT_PS-$strengths}
  NOISE_STDS=${NOISE_STDS-$strengths}
  NS=${NS-1 4 16 64} # sizes of the pool; all come from one run at the largest
  SEEDS=${SEEDS-42}
  OUTPUT_DIR=${OUTPUT_DIR:-outputs/$2_$PROFILE}
  check_splits "$SPLITS"
  choose_processes
  start_cells "$OUTPUT_DIR" cells
  sample_cells "$1"
  run_cells --results "$OUTPUT_DIR"
}

# sample_cells COMMAND: a cell for every model of MODELS, benchmark of SPLITS, seed of SEEDS, and
# value of DROPOUT_PS and of NOISE_STDS, at the largest of NS; and of SVP_ALPHAS, WEIGHT_NOISE_STDS
# and TEMPERATURES, which are empty by default. The words coverage and vote are the checkpoint's own
# values for these purposes (src.tune_sampler), the default: a sampler that covers most does not
# vote best. And one greedy cell for every model and benchmark, the reference.
sample_cells() {
  local command=$1 model split seed p s most
  most=$(largest "$NS") || exit 2
  for model in $MODELS; do
    model=${model%/}
    check_backbone "${model%%:*}"
    for split in $SPLITS; do
      _greedy_cell
      for seed in $SEEDS; do
        for p in $DROPOUT_PS; do _sample_cell dropout "$p"; done
        for s in $NOISE_STDS; do _sample_cell noise "$s"; done
        for s in ${SVP_ALPHAS-}; do _sample_cell svp "$s"; done
        for s in ${WEIGHT_NOISE_STDS-}; do _sample_cell weight_noise "$s"; done
        for s in ${TEMPERATURES-}; do _sample_cell tokens "$s"; done
      done
    done
  done
}

_sample_cell() { # sampler, and its strength
  local flags
  flags=$(sampler_flags "$1" "$2") || exit 2
  # shellcheck disable=SC2086  # NS and flags are lists
  _cell "{sampler}-n$most-seed$seed" --n_samples "$most" --report_n $NS --seed "$seed" $flags
}

_greedy_cell() { # without a seed, which has no effect on it
  _cell greedy --do_sample false
}

_cell() { # name, then the flags that are not common to all cells of a model and benchmark
  local name="$1${LIMIT:+-first$LIMIT}"
  add_cell "$command" --model_type "${model%%:*}" --model_id "${model#*:}" \
    --data_path "data/$split.json" --batch_size "$BATCH_SIZE" ${LIMIT:+--limit "$LIMIT"} \
    --output_dir "$OUTPUT_DIR/${model##*/}/$split/$name" "${@:2}"
}
