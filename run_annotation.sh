#!/usr/bin/env bash
# Samples and labels the trajectories that LatentRM is trained and evaluated on.
#
#   ./run_annotation.sh                  the embedded model, the full recipe (hours)
#   SIZE=small ./run_annotation.sh       the embedded model, a small setting (minutes)
#   PROFILE=paper ./run_annotation.sh    the published COCONUT on GSM8K-Aug
#
# Each setting below can be set from the environment. Finished pools are not made again; an interrupted
# one goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PROFILE=${PROFILE:-tiny}
SIZE=${SIZE:-full}
case "$PROFILE-$SIZE" in
tiny-full)
  TRAIN_QUESTIONS=${TRAIN_QUESTIONS:-60000}
  ;;
tiny-small)
  TRAIN_QUESTIONS=${TRAIN_QUESTIONS:-4000}
  ;;
paper-full)
  TRAIN_QUESTIONS=${TRAIN_QUESTIONS-}
  ;;
*)
  echo "error: PROFILE=$PROFILE SIZE=$SIZE: must be tiny with full or small, or paper" >&2
  exit 2
  ;;
esac
