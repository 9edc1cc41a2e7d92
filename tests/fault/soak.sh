#!/bin/bash
# soak.sh - posters that are killed at random moments and resumed until they are done.
#
# use: MURAL=program soak.sh [RUNS [SEED]]   Every run paints the same small poster.  It is killed
# with SIGKILL after a random part of the time that an undisturbed run takes: the program itself in
# two of three cases, one of its workers in the third.  What is left is resumed, and killed again,
# until a run ends by itself; its file must be the reference, byte for byte, and no process may stay.
# A run gets a time limit, so that one that hangs is a failure and not the end of the night.
set -u
runs=${1:-200} seed=${2:-1}
mural=$(realpath "${MURAL:?names the program to test}")
work=$(mktemp -d "${TMPDIR:-/tmp}/mural-soak.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
RANDOM=$seed
passed=0 failed=0 kills=0 worker_kills=0
export OMP_WAIT_POLICY=passive

flags=(--model "$work/model" --size 256x192 --tile 96 --overlap 32 --steps 8 --draft-steps 2
       --draft-size 64 --threads 1 --quiet)
"$mural" synth model --spec tiny >/dev/null || exit 2
start=$(date +%s%N)
"$mural" render "a fox in the snow" -o reference.tif "${flags[@]}" >/dev/null || exit 2
whole_ms=$((($(date +%s%N) - start) / 1000000))
begun=$SECONDS

# A poster is asked for again, as somebody would who knows nothing of what happened, or resumed.
paint() {
    if [ $((RANDOM % 2)) = 0 ] && [ -e poster.tif.mural/journal ]; then
        timeout 120 "$mural" resume poster.tif --threads 1 --quiet --overwrite
    else
        timeout 120 "$mural" render "a fox in the snow" -o poster.tif --overwrite "${flags[@]}"
    fi
}

kill_one_worker() {
    local workers
    mapfile -t workers < <(pgrep -P "$(pgrep -d, -f "^$mural (render|resume) ")" 2>/dev/null)
    [ ${#workers[@]} -gt 0 ] && kill -KILL "${workers[RANDOM % ${#workers[@]}]}" 2>/dev/null &&
        worker_kills=$((worker_kills + 1))
}

one_run() {
    local code=1 tries=0 pid ms
    rm -rf poster.tif poster.tif.part poster.tif.mural
    while [ "$code" != 0 ]; do
        tries=$((tries + 1))
        [ "$tries" -le 60 ] || return 1
        paint >/dev/null 2>told &
        pid=$!
        ms=$((RANDOM % (whole_ms + 100)))
        sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
        if [ $((RANDOM % 3)) = 0 ]; then
            kill_one_worker
        elif pkill -KILL -f "^$mural (render|resume) " 2>/dev/null; then
            kills=$((kills + 1))
        fi
        wait "$pid"
        code=$?
        case $code in
        0 | 137) ;;
        *) echo "exit $code: $(tr -d "\0" <told)"; return 1 ;;
        esac
    done
    cmp reference.tif poster.tif || return 1
    [ ! -e poster.tif.part ] || { echo "a half-written file stays"; return 1; }
}

for ((i = 1; i <= runs; i++)); do
    if one_run; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL run $i of seed $seed"; fi
done
sleep 1
for process in /proc/[0-9]*; do
    [ "$(readlink "$process/exe")" = "$mural" ] || continue
    echo "FAIL a worker outlived its program"
    failed=$((failed + 1))
done
echo "soak: $kills kills of the program, $worker_kills of workers, $((SECONDS - begun)) s"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
