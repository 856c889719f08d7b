#!/usr/bin/env bash
# bash run.sh                     toy: naive against vibcreg-warp, table and figures
# bash run.sh DATASET [METHOD [AUGMENTATION [SEED]]] [--flag value ...]    positions: comma lists
# bash run.sh test [--slow]       the tests
#
#   DATASET       toy, a UCR name, or own data: the path of a folder NAME with NAME_TRAIN.csv and
#                 NAME_TEST.csv, or of an .npz with X_train, y_train, X_test, y_test
#   METHOD        naive, barlow, vibcreg                                               [vibcreg]
#   AUGMENTATION  warp, slice, gauss, ... joined by +                 [slice; naive runs without]
#   SEED          [1]
#   --dry-run     print one command a run instead: for xargs -P, GNU parallel, a Slurm array
#   --stages 1    stop after stage 1 and its probes      --preset thesis | fast | best | toy
#   other flags   every setting of a run: python ncvqvae.py --help
#
# UCR_DIR: the archive's folder [datasets]. OUT [runs]. DEVICE: cuda, cuda:1, cpu, mps. PYTHON.
if [ -z "${BASH_VERSION:-}" ]; then echo "run.sh: run it as bash run.sh" >&2; exit 2; fi
set -euo pipefail

refuse() {
    echo "run.sh: $1" >&2
    exit "${2:-2}"
}

script=$(readlink -f "${BASH_SOURCE[0]}") # a link to run.sh is followed
here=$(dirname "$script")
out=${OUT:-runs}
case $out in # a quoted ~ stays one
    "~") out=$HOME ;;
    "~/"*) out=$HOME/${out:2} ;;
esac
unset MPLBACKEND # a notebook's, inherited, may not exist here
unset CDPATH # it has cd print the folder
# glibc keeps freed memory: else a step's 64 MB gradients are handed back and zeroed anew each time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647
# Threads wait for each other by spinning. Where another program has a core, two may share one, and
# the one spins while the other waits for its turn (results/speed.md). So they soon sleep.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
case ${1:-} in
    -h | --help)
        sed -n '2,16s/^# \{0,1\}//p' "$script"
        exit
        ;;
esac

# Python: what is there if it has the dependencies, else a .venv with them.
lack() { # the first thing that a python lacks; nothing where all is there
    "$1" -c '
import importlib.metadata, importlib.util, re
for package in "torch", "numpy", "sklearn", "pytest", "matplotlib":
    if importlib.util.find_spec(package) is None:
        print("no", package)
        raise SystemExit
version = importlib.metadata.version("torch")
if tuple(map(int, re.findall("[0-9]+", version)[:2])) < (2, 9):  # the first with Muon
    print(f"torch {version}, older than 2.9")
' 2>/dev/null || echo "no working $1"
}
python=${PYTHON:-python3}
lacks=$(lack "$python")
if [ -n "$lacks" ]; then
    if [ -n "${PYTHON:-}" ]; then # a mistyped one
        command -v "$PYTHON" >/dev/null || refuse "PYTHON=$PYTHON: no such program" 1
    fi
    python=$here/.venv/bin/python
    if [ -n "$(lack "$python")" ]; then
        echo "run.sh: $lacks: installing requirements.txt into .venv" >&2
        "${PYTHON:-python3}" -m venv "$here/.venv"
        "$python" -m pip install --quiet -r "$here/requirements.txt"
        lacks=$(lack "$python")
        [ -z "$lacks" ] || refuse "$python: $lacks; remove $here/.venv and run it again" 1
    fi
fi

if [ "${1:-}" = test ]; then
    case ${2:-} in
        "") tests="not slow" ;;
        --slow) tests="slow or not slow" ;;
        *) refuse "test takes --slow alone, not '$2'" ;;
    esac
    [[ $python != */* || $python == /* ]] || python=$PWD/$python
    cd "$here"
    exec "$python" -m pytest -q -m "$tests" test_*.py tests benchmarks
fi

# Positions first, then flags. A dataset's name may begin with one dash.
positions=()
while [ $# -gt 0 ] && [[ $1 != -* || ( ${#positions[@]} = 0 && $1 != --* && $1 != -h ) ]]; do
    positions+=("$1")
    shift
done
dry=
flags=()
for flag in "$@"; do
    if [ "$flag" = --help ] || [ "$flag" = -h ]; then
        exec "$python" "$here/ncvqvae.py" --help
    elif [ "$flag" = --dry-run ]; then
        dry=$flag
    elif [[ $flag =~ ^--(datasets?|method|augmentation|seed)(=|$) ]]; then
        refuse "$flag: goes without a flag: DATASET METHOD AUGMENTATION SEED, in this order"
    else
        flags+=("$flag")
    fi
done
if [ ${#positions[@]} = 0 ]; then
    positions=(toy naive,vibcreg warp)
fi
[ ${#positions[@]} -le 4 ] || refuse "too many positions: ${positions[*]}"
case ,${positions[0]}, in
    *,,*) refuse "DATASET is empty in '${positions[0]}'" ;;
esac
if [[ ${positions[0]} == *[,$'\n']* && -e ${positions[0]} ]]; then
    refuse "'${positions[0]}': rename it: a comma stands between two datasets, a path has one line"
fi
IFS=, read -ra datasets <<<"${positions[0]}"
datasets=("${datasets[@]/#-/./-}")
methods=${positions[1]-vibcreg}
augmentations=${positions[2]-slice}
seeds=${positions[3]-1}

# Every value is checked before anything runs, every dataset looked up (not for --dry-run: another
# machine may have it).
"$python" "$here/data.py" "$methods" "$augmentations" "$seeds" $dry \
    --datasets "${datasets[@]}" ${flags[@]+"${flags[@]}"} || exit 2

run_one() { # dataset, method, augmentation, seed: all three stages of a run
    local name run settings variable
    name=$(basename -- "$1" .npz)
    if [ -d "$1" ]; then
        name=$(cd -- "$1" && basename -- "$PWD") # of . and .. too
    fi
    run=$out/$name/$2-$3/seed$((10#$4))
    settings=("--dataset=$1" "--method=$2" "--augmentation=$3" "--seed=$4")
    if [ -n "$dry" ]; then
        printf '%q ' env "OUT=$out"
        for variable in UCR_DIR DEVICE PYTHON; do
            [ -z "${!variable:-}" ] || printf '%q ' "$variable=${!variable}"
        done
        printf '%q ' bash "$script" "$1" "$2" "$3" "$4" ${flags[@]+"${flags[@]}"}
        echo
        return
    fi
    echo "== $run" >&2
    if "$python" "$here/ncvqvae.py" "${settings[@]}" ${flags[@]+"${flags[@]}"} -- "$run" &&
        "$python" "$here/prior.py" train -- "$run" &&
        "$python" "$here/evaluate.py" run -- "$run"; then
        finished+=("$run")
    else
        failed+=("$run")
    fi
}

finished=()
failed=()
trap 'exit 130' INT # one Ctrl-C ends the whole grid
for dataset in "${datasets[@]}"; do
    for seed in ${seeds//,/ }; do
        for method in ${methods//,/ }; do
            of_method=${augmentations//,/ }
            if [ "$method" = naive ]; then
                of_method=none
            fi
            for augmentation in $of_method; do
                run_one "$dataset" "$method" "$augmentation" "$seed"
            done
        done
    done
done
if [ ${#finished[@]} -gt 0 ]; then
    "$python" "$here/evaluate.py" compare -- "${finished[@]}"
    echo "figures: $out/*/*/seed*/figures/"
fi
if [ ${#failed[@]} -gt 0 ]; then
    refuse "${#failed[@]} of $((${#failed[@]} + ${#finished[@]})) runs failed: ${failed[*]}; see \
above what each says, then run the same command again" 1
fi
