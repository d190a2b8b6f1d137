#!/usr/bin/env bash
# Every experiment on a real model, as one runs it on a GPU: more tasks than on a processor, three seeds. Each has a limit
# and goes on where it stopped when this is called again; what fails does not stop the others. Results, logs and
# summary.txt are in the folder of results. With --tiny all of it runs on tiny models, to see that it does.
#
#   benchmarks/evidence.sh --model DIR --data DIR [--out DIR] [--seeds 3] [--hours 4] [--only NAME]… [--tiny]
#
# --data: a folder with mbpp/mbpp.jsonl, gsm8k, sciknoweval and tooluse. --hours: most of one experiment.
set -uo pipefail
model='' data='' out=runs/evidence seeds=3 hours=4 tiny='' only=()
while [ $# -gt 0 ]; do
    case $1 in
        --model) model=$2; shift ;;
        --data) data=$2; shift ;;
        --out) out=$2; shift ;;
        --seeds) seeds=$2; shift ;;
        --hours) hours=$2; shift ;;
        --only) only+=("$2"); shift ;;
        --tiny) tiny=--tiny ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
if [ -z "$tiny" ] && ! { [ -d "$model" ] && [ -d "$data" ]; }; then
    echo "--model and --data should be folders, got '$model' and '$data'" >&2
    exit 2
fi
mkdir -p "$out"
model=$(realpath -m -- "${model:-.}") data=$(realpath -m -- "${data:-.}") out=$(realpath -- "$out")
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
failed=0

experiment() { # name, module, arguments
    local name=$1 module=$2 began=$SECONDS end
    shift 2
    [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
    [ -z "$tiny" ] || set -- --tiny
    echo "== $name: python -m $module $*"
    timeout --signal=INT --kill-after=120 "${hours}h" "${PYTHON:-python3}" -m "$module" "$@" --out "$out/$name" >"$out/$name.log" 2>&1
    end=$?
    [ $end -eq 0 ] || { failed=1; tail -n 5 "$out/$name.log"; }
    echo "$(date -u +%F) $name: exit $end after $((SECONDS - began)) s: python -m $module $*" | tee -a "$out/summary.txt"
}

real=(--model "$model" --seeds "$seeds")
mbpp=("${real[@]}" --data "$data/mbpp/mbpp.jsonl" --held-out 500 --steps 40 --stages 4 --tasks 16 --new-tokens 256 --gain-tasks 128)
experiment feedback benchmarks.mbpp "${mbpp[@]}"
experiment turns benchmarks.mbpp "${mbpp[@]}" --turns 3 --gain-tasks 0
experiment skills benchmarks.skills "${real[@]}" --data "$data" --steps 30 --measured 200
experiment knowledge benchmarks.knowledge "${real[@]}" --articles 30 --steps 300
experiment discovery benchmarks.discovery "${real[@]}" --data "$data/mbpp/mbpp.jsonl" \
    --candidates 200 --samples 256 --tasks 24 --budget 512 --unique
experiment kinds benchmarks.feedback_kinds --seeds "$seeds" --steps 40
experiment teachers benchmarks.teachers --seeds "$seeds" --steps 800
experiment logged benchmarks.logged "${real[@]}"
experiment prompts benchmarks.feedback_prompts --model "$model" --data "$data/mbpp/mbpp.jsonl" --tasks 256 --answers 4
experiment credit benchmarks.credit_picture --model "$model" --controls 19
exit $failed
