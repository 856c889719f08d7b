#!/usr/bin/env bash
# bash run.sh                                                 toy: naive against vibcreg-warp, table and figures
# bash run.sh DATASET [METHOD [AUGMENTATION [SEED]]] [--flag value ...]      each position takes a comma list
# bash run.sh test [--slow]                                   the tests
#
#   DATASET       toy, a UCR name, or the path of an .npz with X_train, y_train, X_test, y_test
#   METHOD        naive, barlow, vibcreg                        [vibcreg]
#   AUGMENTATION  warp, slice, gauss, ... joined by +           [slice; naive runs once, without]
#   SEED          [1]
#   --dry-run     print one command per run instead (for xargs -P, GNU parallel, a Slurm array)
#   --stages 1    stop after stage 1 and its probes             --preset thesis|fast|toy    the schedule
#   other flags   go to the stage whose config has them: python ncvqvae.py --help, prior.py train --help, evaluate.py run --help
#
# UCR_DIR: folder of the archive [datasets]. OUT: output folder [runs]. DEVICE: cuda, mps, cpu. PYTHON: the interpreter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-runs}

# Python: what is there if it has the dependencies, else a .venv with them.
have() { "$1" -c 'import importlib.util as u, sys
sys.exit(any(u.find_spec(m) is None for m in ("torch", "numpy", "sklearn", "pytest", "matplotlib")))' 2>/dev/null; }
python=${PYTHON:-python3}
if ! have "$python"; then
    if ! have "$here/.venv/bin/python"; then
        echo "run.sh: installing requirements.txt into .venv" >&2
        "$python" -m venv "$here/.venv"
        "$here/.venv/bin/python" -m pip install --quiet -r "$here/requirements.txt"
    fi
    python=$here/.venv/bin/python
fi

if [ "${1:-}" = test ]; then
    shift
    fast=(-m "not slow")
    if [ "${1:-}" = --slow ]; then fast=(); shift; fi
    cd "$here" && exec "$python" -m pytest -q -o markers=slow test_ncvqvae.py "${fast[@]+"${fast[@]}"}" "$@"
fi

# Positions first, flags after.
positions=() flags=() dry=0 stages=2
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$here/run.sh"; exit ;;
        --dry-run) dry=1 ;;
        --*=*) flags+=("$1"); [ "${1%%=*}" = --stages ] && stages=${1#*=} ;;
        --*) [ $# -gt 1 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
             flags+=("$1=$2"); [ "$1" = --stages ] && stages=$2; shift ;;
        *) [ ${#flags[@]} -eq 0 ] || { echo "run.sh: $1 stands behind a flag; positions come first" >&2; exit 2; }
           positions+=("$1") ;;
    esac
    shift
done
if [ ${#positions[@]} -gt 4 ]; then echo "run.sh: too many positions: ${positions[*]}" >&2; exit 2; fi
if [ ${#positions[@]} -eq 0 ]; then positions=(toy naive,vibcreg warp 1); fi
IFS=, read -ra datasets <<<"${positions[0]}"
IFS=, read -ra methods <<<"${positions[1]:-vibcreg}"
IFS=, read -ra augmentations <<<"${positions[2]:-slice}"
IFS=, read -ra seeds <<<"${positions[3]:-1}"
for method in "${methods[@]}"; do
    case $method in naive | barlow | vibcreg) ;;
        *) echo "run.sh: METHOD $method: not one of naive, barlow, vibcreg" >&2; exit 2 ;; esac
done
for seed in "${seeds[@]}"; do
    case $seed in '' | *[!0-9]*) echo "run.sh: SEED $seed: not a whole number" >&2; exit 2 ;; esac
done

# Which stage each flag belongs to; an unknown one is refused here, before anything runs.
routed=$("$python" "$here/evaluate.py" route --augmentations="$(IFS=+; echo "${augmentations[*]}")" "${flags[@]+"${flags[@]}"}") || exit 2
{ read -r flags1; read -r flags2; read -r flags3; } <<<"$routed" || true     # a last empty line is no failure

one() { # DATASET METHOD AUGMENTATION SEED: the three stages of a run; each skips what is finished
    local name run preset=
    name=$(basename "$1" .npz)
    run=$out/$name/$2-$3/seed$4
    [ "$1" = toy ] && preset=--preset=toy                      # a --preset among the flags comes later and wins
    echo "== $run" >&2
    eval "\"\$python\" \"\$here/ncvqvae.py\" \"\$run\" --dataset=\"\$1\" --method=$2 --augmentation=$3 --seed=$4 $preset $flags1" || return
    if [ "$stages" != 1 ]; then
        eval "\"\$python\" \"\$here/prior.py\" train \"\$run\" $preset $flags2" || return
    fi
    eval "\"\$python\" \"\$here/evaluate.py\" run \"\$run\" $preset $flags3"
    finished+=("$run")
}

finished=() failed=0
for dataset in "${datasets[@]}"; do
    for seed in "${seeds[@]}"; do
        for method in "${methods[@]}"; do
            augs=("${augmentations[@]}")
            [ "$method" = naive ] && augs=(none)
            for augmentation in "${augs[@]}"; do
                if [ $dry = 1 ]; then
                    printf '%q ' bash "$here/run.sh" "$dataset" "$method" "$augmentation" "$seed" "${flags[@]+"${flags[@]}"}"
                    echo
                else
                    one "$dataset" "$method" "$augmentation" "$seed" || failed=$((failed + 1))
                fi
            done
        done
    done
done
[ $dry = 1 ] && exit
if [ ${#finished[@]} -gt 0 ]; then
    "$python" "$here/evaluate.py" compare "${finished[@]}"
    echo "figures: $out/*/*/seed*/figures/"
fi
[ $failed = 0 ] || { echo "run.sh: $failed of $((failed + ${#finished[@]})) runs failed; the same command goes on with them" >&2; exit 1; }
