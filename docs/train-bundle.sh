#!/usr/bin/env bash
# Trains a whole bundle in calls of a fixed length: call it again, with the same words, until it ends with 0.
#
#   docs/train-bundle.sh PICTURES OUT [MINUTES OF THIS CALL]
#
# Parts that are done are passed over; a call that ends earlier exits with 75. LENGTH="--steps 20"
# makes every part so short, to see that all of them run.
set -euo pipefail
minutes=${3:-100000}
if [ $# -lt 2 ] || [ $# -gt 3 ] || ! [[ $minutes =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PICTURES OUT [MINUTES OF THIS CALL, a whole number]" >&2
    exit 2
fi
pictures=$1 out=$2
python=${PYTHON:-python3}
loaders=${LOADERS:-0}
end=$(($(date +%s) + minutes * 60))
mkdir -p "$out"

part() { # part NAME FOLDER MINUTES OPTIONS…
    local name=$1 folder=$2 length=${LENGTH:---minutes $3}
    shift 3
    if [ -e "$out/.$name.done" ]; then
        echo "$name is done, as $out/.$name.done says; for a new one give another OUT" >&2
        return
    fi
    local left=$(((end - $(date +%s)) / 60))
    [ "$left" -ge 1 ] || exit 75
    # shellcheck disable=SC2086  # the length is two words
    "$python" -m models.train "$name" --data "$pictures" --out "$folder" $length \
        --call-minutes "$left" --loaders "$loaders" "$@"
    touch "$out/.$name.done"
}

part clip "$out" 7 --image-size 64 --batch-size "${BATCH:-1024}" ${TEACHER:+--teacher "$TEACHER"}
part denoiser "$out" 14 --image-size 64 --patch 2 --width 64 --multipliers 1 2 4 \
    --scenes 0.25 --batch-size "${BATCH:-512}" --echo 2 --name "${NAME:-emoji}"
part upscaler "$out" 2 --batch-size 32
part distil "$out" 5 --scenes 0.25 --batch-size "${BATCH:-512}"
part judge "$out-judge" 4 --image-size 64 --batch-size "${BATCH:-512}"
