#!/usr/bin/env bash
# bash run.sh                     toy: naive against vibcreg-warp, table and figures
# bash run.sh DATASET [METHOD [AUGMENTATION [SEED]]] [--flag value ...]    positions: comma lists
# bash run.sh test [--slow]       the tests
#
#   DATASET       toy, a UCR name, or the path of an .npz with X_train, y_train, X_test, y_test
#   METHOD        naive, barlow, vibcreg                                               [vibcreg]
#   AUGMENTATION  warp, slice, gauss, ... joined by +                 [slice; naive runs without]
#   SEED          [1]
#   --dry-run     print one command a run instead: for xargs -P, GNU parallel, a Slurm array
#   --stages 1    stop after stage 1 and its probes      --preset thesis | fast | best | toy
#   other flags   every setting of a run: python ncvqvae.py --help
#
# UCR_DIR: the archive's folder [datasets]. OUT [runs]. DEVICE: cuda, cuda:1, cpu, mps. PYTHON.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) out=${OUT:-runs}
# glibc keeps freed memory: else a step's 64 MB gradients are handed back and zeroed anew each time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647
case ${1:-} in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$here/run.sh"; exit ;; esac
refuse() { echo "run.sh: $1" >&2; exit "${2:-2}"; }

# Python: what is there if it has the dependencies, else a .venv with them.
python=${PYTHON:-python3}
lack() {  # the first thing that a python lacks; nothing where all is there
    "$1" -c '
import importlib.metadata, importlib.util, re
for package in "torch", "numpy", "sklearn", "pytest", "matplotlib":
    if importlib.util.find_spec(package) is None:
        raise SystemExit(print("no", package))
version = importlib.metadata.version("torch")
if tuple(map(int, re.findall("[0-9]+", version)[:2])) < (2, 9):  # the first with Muon
    print(f"torch {version}, older than 2.9")
' 2>/dev/null || echo "no working $1"
}
lacks=$(lack "$python")
if [ -n "$lacks" ]; then
    python=$here/.venv/bin/python
    if [ -n "$(lack "$python")" ]; then
        echo "run.sh: $lacks: installing requirements.txt into .venv" >&2
        "${PYTHON:-python3}" -m venv "$here/.venv"
        "$python" -m pip install --quiet -r "$here/requirements.txt"
        lacks=$(lack "$python")
        [ -z "$lacks" ] || refuse "$python: $lacks; remove $here/.venv and run it again" 1
    fi
fi
case ${1:-} in
    test) tests="not slow"; if [ "${2:-}" = --slow ]; then tests="slow or not slow"; fi
        cd "$here"; exec "$python" -m pytest -q -o markers=slow -m "$tests" test_*.py benchmarks ;;
esac

# Positions first, then flags.
positions=() dry=0 flags=()
while [ $# -gt 0 ] && [[ $1 != --* ]]; do positions+=("$1"); shift; done
for flag in "$@"; do if [ "$flag" = --dry-run ]; then dry=1; else flags+=("$flag"); fi; done
[ ${#positions[@]} -gt 0 ] || positions=(toy naive,vibcreg warp)
[ ${#positions[@]} -le 4 ] || refuse "too many positions: ${positions[*]}"
IFS=, read -ra datasets <<<"${positions[0]}"
case ,${positions[0]}, in *,,*) refuse "DATASET is empty in '${positions[0]}'" ;; esac
methods=${positions[1]-vibcreg} augmentations=${positions[2]-slice} seeds=${positions[3]-1}
"$python" "$here/data.py" "$methods" "$augmentations" "$seeds" ${flags[@]+"${flags[@]}"} || exit 2

runs=() failed=0
trap 'exit 130' INT                                        # one Ctrl-C ends the whole grid
for dataset in "${datasets[@]}"; do for seed in ${seeds//,/ }; do for method in ${methods//,/ }; do
    for augmentation in $([ "$method" = naive ] && echo none || echo "${augmentations//,/ }"); do
        run=$out/$(basename -- "$dataset" .npz)/$method-$augmentation/seed$((10#$seed))
        settings=("--dataset=$dataset" "--method=$method" "--augmentation=$augmentation"
                  "--seed=$seed" ${flags[@]+"${flags[@]}"})
        one=("$dataset" "$method" "$augmentation" "$seed" ${flags[@]+"${flags[@]}"})
        if [ $dry = 1 ]; then printf '%q ' bash "$here/run.sh" "${one[@]}"; echo; continue; fi
        echo "== $run" >&2
        if "$python" "$here/ncvqvae.py" "${settings[@]}" -- "$run" &&
            "$python" "$here/prior.py" train -- "$run" &&
            "$python" "$here/evaluate.py" run -- "$run"
        then runs+=("$run"); else failed=$((failed + 1)); fi
    done
done; done; done
[ ${#runs[@]} = 0 ] || "$python" "$here/evaluate.py" compare -- "${runs[@]}"
[ ${#runs[@]} = 0 ] || echo "figures: $out/*/*/seed*/figures/"
[ $failed = 0 ] || refuse "$failed of $((failed + ${#runs[@]})) runs failed; run it again" 1
