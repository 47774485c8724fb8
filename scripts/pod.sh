#!/usr/bin/env bash
# From a clone to scores, and to a submission, on a rented GPU machine (docs/pod.md):
#
#   TORCH_INDEX=ADDRESS [PRICE=3] [SEEDS="1 2 3"] scripts/pod.sh RECIPE [section.key=value ...]
#
# A long step that ended well is marked in .cache/pod and not done again: given once more, the same command goes on
# where it was cut off. With NAME, BLURB and GITHUB_ID in the environment it ends with `paramgolf submit`.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $# -ge 1 && $1 != -* ]] || { echo "usage: scripts/pod.sh RECIPE [section.key=value ...]" >&2; exit 2; }
recipe=$1
[[ -e recipes/$recipe.yaml ]] || { echo "pod: there is no recipe $recipe: see the folder recipes" >&2; exit 2; }
[[ -n ${TORCH_INDEX:-} || -e .venv/.gpu-packages ]] || { echo "pod: set TORCH_INDEX (docs/pod.md)" >&2; exit 2; }
seeds=${SEEDS:-1337}
export PATH="$PWD/.venv/bin:$PATH"
short_hash() { printf '%s\n' "$@" | sha256sum | cut -c 1-8; }
# other changes are another run, and DVC takes each name once
marks=.cache/pod/$(short_hash "$@")
run=$recipe
[[ $# -eq 1 ]] || run+=-$(short_hash "${@:2}")
mkdir -p "$marks"
[[ ! -e repro.log ]] || mv repro.log before.log # `paramgolf watch` shows what went wrong in this one alone

step() { # NAME COMMAND...
    local name=$1 began=$SECONDS
    shift
    echo "pod: $name: $*"
    "$@" 2>&1 | tee -a repro.log
    echo "pod: $name took $((SECONDS - began)) s"
}

once() { # NAME COMMAND...: a step that is not done again
    if [[ -e $marks/$1 ]]; then
        echo "pod: $1 was done before"
        return
    fi
    step "$@"
    touch "$marks/$1"
}

names=()
once setup make gpu
step use paramgolf use "$@" # each time: another run may have written params.yaml since
once estimate paramgolf estimate "$@" --gpus "$(nvidia-smi --list-gpus | wc -l)" ${PRICE:+--price "$PRICE"}
once tokens dvc repro audit
once rehearse paramgolf rehearse "$@"
for seed in $seeds; do
    names+=("$run-seed$seed")
    once "seed-$seed" dvc exp run --name "$run-seed$seed" --set-param "train.seed=$seed"
done
if [[ -n $(dvc remote list) ]]; then
    step push dvc exp push origin "${names[@]}"
fi
if [[ -n ${NAME:-} && -n ${BLURB:-} && -n ${GITHUB_ID:-} ]]; then
    submission=("${names[@]}" --name "$NAME" --blurb "$BLURB" --github-id "$GITHUB_ID")
    once "submit-$(short_hash "${submission[@]}")" paramgolf submit "${submission[@]}"
fi
paramgolf compare "${names[@]}"
