#!/usr/bin/env bash
# bash run.sh                                       toy: naive against vibcreg-warp, table and figures
# bash run.sh DATASET [METHOD [AUGMENTATION [SEED]]] [--flag value ...]   positions take comma lists
# bash run.sh test [--slow]                         the tests
#
#   DATASET       toy, a UCR name, or the path of an .npz with X_train, y_train, X_test, y_test
#   METHOD        naive, barlow, vibcreg                                               [vibcreg]
#   AUGMENTATION  warp, slice, gauss, ... joined by +                 [slice; naive runs without]
#   SEED          [1]
#   --dry-run     print one command a run instead: for xargs -P, GNU parallel, a Slurm array
#   --stages 1    stop after stage 1 and its probes      --preset thesis | fast | toy
#   other flags   every setting of a run: python ncvqvae.py --help
#
# UCR_DIR: the archive's folder [datasets]. OUT [runs]. DEVICE: cuda, cuda:1, cpu, mps. PYTHON.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
refuse() { echo "run.sh: $1" >&2; exit 2; }

# Python: what is there if it has the dependencies, else a .venv with them.
python=${PYTHON:-python3}
have() { "$1" -c 'import sys, importlib.util as u
sys.exit(not all(map(u.find_spec, ("torch", "numpy", "sklearn", "pytest", "matplotlib"))))' 2>/dev/null; }
if ! have "$python"; then
    if ! have "$here/.venv/bin/python"; then
        echo "run.sh: installing requirements.txt into .venv" >&2
        "$python" -m venv "$here/.venv"
        "$here/.venv/bin/python" -m pip install --quiet -r "$here/requirements.txt"
    fi
    python=$here/.venv/bin/python
fi

case ${1:-} in
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$here/run.sh"; exit ;;
    test) shift
        slow=(-m "not slow"); [ "${1:-}" = --slow ] && { slow=(-m "slow or not slow"); shift; }
        cd "$here" && exec "$python" -m pytest -q -o markers=slow "${slow[@]}" "$@" test_ncvqvae.py benchmarks ;;
esac

# Positions first, then flags.
positions=() dry=0 flags=()
while [ $# -gt 0 ] && [[ $1 != --* ]]; do positions+=("$1"); shift; done
for flag in "$@"; do [ "$flag" = --dry-run ] && dry=1 || flags+=("$flag"); done
[ ${#positions[@]} -gt 0 ] || positions=(toy naive,vibcreg warp)
[ ${#positions[@]} -le 4 ] || refuse "too many positions: ${positions[*]}"
IFS=, read -ra datasets <<<"${positions[0]}"
methods=${positions[1]:-vibcreg} augmentations=${positions[2]:-slice} seeds=${positions[3]:-1}
[ ${#datasets[@]} -gt 0 ] || refuse "DATASET is empty"
"$python" "$here/data.py" "$methods" "$augmentations" "$seeds" ${flags[@]+"${flags[@]}"} || exit 2

runs=() failed=0
trap 'exit 130' INT                                        # one Ctrl-C ends the whole grid
for dataset in "${datasets[@]}"; do for seed in ${seeds//,/ }; do for method in ${methods//,/ }; do
    for augmentation in $([ "$method" = naive ] && echo none || echo "${augmentations//,/ }"); do
        name=$(basename -- "$dataset" .npz) seed=$((10#$seed))
        run=${OUT:-runs}/$name/$method-$augmentation/seed$seed
        command=("$python" "$here/ncvqvae.py" "--dataset=$dataset" "--method=$method"
                 "--augmentation=$augmentation" "--seed=$seed" ${flags[@]+"${flags[@]}"} -- "$run")
        if [ $dry = 1 ]; then
            printf '%q ' bash "$here/run.sh" "$dataset" "$method" "$augmentation" "$seed" ${flags[@]+"${flags[@]}"}
            echo; continue
        fi
        echo "== $run" >&2
        if "${command[@]}" && "$python" "$here/prior.py" train -- "$run" &&
            "$python" "$here/evaluate.py" run -- "$run"
        then runs+=("$run"); else failed=$((failed + 1)); fi
    done
done; done; done
if [ ${#runs[@]} -gt 0 ]; then
    "$python" "$here/evaluate.py" compare -- "${runs[@]}"
    echo "figures: ${OUT:-runs}/*/*/seed*/figures/"
fi
[ $failed = 0 ] || { echo "run.sh: $failed of $((failed + ${#runs[@]})) runs failed; the same command goes on" >&2; exit 1; }
