#!/bin/bash
# poster.sh - whole posters of the sample model on a GPU, undisturbed and in bad luck; ends with one
# line of counts.
#
# It stands in the folder that `make kit` made, beside `kit`.  The sample model is looked for there
# as `model`, and in the source tree around it.
#
# use: [DEVICE=cuda:N] [MODEL=folder] [LOGS=folder] poster.sh
#
# DEVICE=cpu with SMALL=1 goes through all that needs no GPU, to try the script itself.
set -u
cd "$(dirname "$0")" || exit 2
here=$PWD
export OMP_WAIT_POLICY=passive
device=${DEVICE:-cuda:0}
gpu=${device#cuda}
gpu=${gpu#:}
for model in "${MODEL:-}" model ../../samples/model; do
    [ -e "$model/model_index.json" ] && break
done
model=$(realpath "$model") || { echo "no sample model; give MODEL=folder"; exit 2; }
work=${LOGS:-$PWD/poster}
mkdir -p "$work" && cd "$work" || exit 2
export XDG_CACHE_HOME=$PWD/cache # what trials choose here is none of the user's
rm -rf cache/mural
passed=0 failed=0 skipped=0

mural() { "$here/kit" mural "$@"; }
ok() { passed=$((passed + 1)); echo "ok   $1"; }
bad() {
    failed=$((failed + 1))
    echo "FAIL $1"
    if [ -e "${2:-}" ]; then tail -3 "$2" | sed 's/^/     /'; fi
}
skip() { skipped=$((skipped + 1)); echo "skip $1"; }
check() { # what, log, command...
    local what=$1 log=$2
    shift 2
    if "$@"; then ok "$what"; else bad "$what" "$log"; fi
}
stage() { echo; echo "== $1"; }

# Long enough to be disturbed: many steps of few tiles.
prompt="a mountain lake at sunset"
if [ -n "${SMALL:-}" ]; then
    shape="--size 512x256 --tile 256 --overlap 64 --draft-size 128 --draft-steps 2"
    steps="--steps 2" long="--steps 8"
else
    shape="--size 2560x1440 --tile 1024 --overlap 128"
    steps="--steps 8" long="--steps 150"
fi
common="--model $model --no-metadata --overwrite --seed 7 $shape"

paint() { # name, flags...
    local name=$1
    shift
    # shellcheck disable=SC2086
    timeout 300 "$here/kit" mural render "$prompt" -o "$name.tif" $common "$@" >"$name.log" 2>&1
}

begin() { # name, flags...; sets `job`, and `worker` once a first tile is on the disk
    local name=$1 tries=0
    shift
    rm -rf "$name.tif" "$name.tif.mural"
    # A shell's background job ignores SIGINT unless told otherwise.
    # shellcheck disable=SC2086
    env --default-signal=INT "$here/kit" mural render "$prompt" -o "$name.tif" $common "$@" -v \
        >"$name.log" 2>&1 &
    job=$!
    until [ -e "$name.tif.mural/tile-1.rgb16" ] || ! kill -0 "$job" 2>/dev/null; do
        sleep 0.02
        tries=$((tries + 1))
        [ "$tries" -lt 15000 ] || break
    done
    worker=$(sed -n 's/.*worker 1 is process //p' "$name.log" | tail -1)
}

stage "the same bytes, by whoever they are painted"
time_of() { local begun=$EPOCHREALTIME; "$@"; local rc=$?; printf 'took %s s\n' "$(awk "BEGIN{printf \"%.1f\", $EPOCHREALTIME - $begun}")"; return $rc; }
# shellcheck disable=SC2086
time_of paint first --device "$device" $steps || bad "a poster with a worker" first.log
# shellcheck disable=SC2086
paint second --device "$device" $steps
check "a second poster with a worker has the same bytes" second.log cmp -s first.tif second.tif
# shellcheck disable=SC2086
paint alone --device "$device" $steps --no-persistent-workers
check "one without workers has the same bytes" alone.log cmp -s first.tif alone.tif
# shellcheck disable=SC2086
paint two --device "$device" $steps --workers 2
check "one by two workers on the same GPU has the same bytes" two.log cmp -s first.tif two.tif

stage "what trials chose is kept"
kept=cache/mural/choices
if [ "$device" = cpu ]; then
    check "the CPU makes no trials" first.log [ ! -e cache/mural ]
else
    # Of this model, products of a tile of 2048 px are worth a trial, and none of smaller ones.
    large="--size 2048x2048 --tile 2048 --steps 2 --draft-steps 2"
    # shellcheck disable=SC2086
    paint tried --device "$device" $large
    check "on the disk" tried.log [ -s "$kept" ]
    cp "$kept" choices
    # shellcheck disable=SC2086
    paint recalled --device "$device" $large
    check "another start keeps nothing new" recalled.log cmp -s "$kept" choices
    check "and paints the same bytes" recalled.log cmp -s tried.tif recalled.tif
    for damage in zeros noise nothing folder; do
        rm -f "$kept"
        case $damage in
        zeros) head -c 98304 /dev/zero >"$kept" ;;
        noise) head -c 200000 /dev/urandom >"$kept" ;;
        folder) mkdir "$kept" ;;
        esac
        # shellcheck disable=SC2086
        paint damaged --device "$device" $large
        check "and so it does with $damage in the place of the file" damaged.log \
            cmp -s tried.tif damaged.tif
    done
    rmdir "$kept"
fi

stage "a batch of posters with one loaded model"
{
    # shellcheck disable=SC2086
    printf '%s\n' $shape $steps | paste -d' ' - - |
        sed 's/^--size/size:/; s/^--tile/tile_px:/; s/^--overlap/overlap_px:/; s/^--draft-size/draft_px:/
             s/^--draft-steps/draft_steps:/; s/^--steps/steps:/'
    echo "jobs:"
    echo "  - {prompt: $prompt, output: batch1.tif}"
    echo "  - {prompt: a pine forest, output: batch2.tif, width: 1024}"
    echo "  - {prompt: $prompt, output: batch3.tif}"
} >batch.yaml
batch() { mural batch batch.yaml --model "$model" --device "$device" --no-metadata --seed 7 "$@" >batch.log 2>&1; }
rm -rf batch?.tif batch?.tif.mural
time_of batch -v
check "is painted" batch.log [ $? = 0 ]
check "by one worker" batch.log [ "$(grep -c 'is process' batch.log)" = 1 ]
check "to the bytes of single posters" batch.log cmp -s first.tif batch1.tif
check "and so is the last one" batch.log cmp -s first.tif batch3.tif
time_of batch
check "another run finds them finished" batch.log [ "$(grep -c 'finished already' batch.log)" = 3 ]

stage "near to the CPU's"
near() { # name, precision, least dB; a small canvas, for the CPU's sake
    local db small="--size 512x384 --tile 256 --overlap 64 --draft-size 256 --draft-steps 8 --steps 4"
    # shellcheck disable=SC2086
    paint "near-$1" --device "$device" --precision "$2" $small
    # shellcheck disable=SC2086
    paint near-cpu --device cpu --precision f32 $small
    db=$("$here/kit" psnr "near-$1.tif" near-cpu.tif) || db=0
    check "$2: $db dB to the CPU in f32, at least $3" "near-$1.log" \
        awk "BEGIN { exit !($db >= $3) }"
}
near f32 f32 45
[ "$device" = cpu ] || near bf16 bf16 28

stage "who may touch the GPU"
# shellcheck disable=SC2086
begin killed --device "$device" $long
if [ "$device" = cpu ]; then
    skip "the program itself never loads the driver: no GPU"
else
    check "the program itself has not loaded the driver" killed.log \
        awk '/libcuda\.so/ { found = 1 } END { exit found }' "/proc/$job/maps"
    check "its worker has" killed.log grep -q 'libcuda\.so' "/proc/$worker/maps"
fi

stage "a worker is killed in the middle"
kill -9 "$worker"
wait "$job"
check "the poster is finished all the same" killed.log [ $? = 0 ]
check "and says so" killed.log grep -q 'was killed by signal 9' killed.log
# shellcheck disable=SC2086
paint whole --device "$device" $long
check "with the bytes of one that nobody disturbed" killed.log cmp -s whole.tif killed.tif

stage "Ctrl-C in the middle"
# shellcheck disable=SC2086
begin cut --device "$device" $long
kill -INT "$job"
wait "$job"
check "stops cleanly with status 130" cut.log [ $? = 130 ]
mural resume cut.tif >resume.log 2>&1
check "resume ends with the same bytes" resume.log cmp -s whole.tif cut.tif

stage "devices that are not there"
mural plan --model "$model" --device cuda:99 >none.log 2>&1
check "cuda:99 is refused" none.log [ $? = 1 ]
CUDA_VISIBLE_DEVICES="" mural plan --model "$model" --device auto >hidden.log 2>&1
check "auto takes the CPU where every GPU is hidden" hidden.log grep -q 'painting on the CPU: ' hidden.log
if [ "$device" = cpu ]; then
    skip "memory that another program took: no GPU"
else
    mural plan --model "$model" >auto.log 2>&1
    check "auto takes the GPU" auto.log grep -q 'painting on GPU 0: ' auto.log

    hold() { # MB left free; sets `hog`
        mkfifo hog.fifo
        "$here/kit" hog "${gpu:-0}" "$1" <hog.fifo >hog.log 2>&1 &
        hog=$!
        exec 7>hog.fifo
        until grep -q held hog.log || ! kill -0 "$hog" 2>/dev/null; do sleep 0.1; done
    }
    let_go() { exec 7>&-; wait "$hog"; rm -f hog.fifo; }

    stage "another program took the memory"
    rm -f hog.fifo
    hold 300
    # shellcheck disable=SC2086
    paint short --device "$device" $steps
    check "named GPU: status 33" short.log [ $? = 33 ]
    check "and one sentence that names --device cpu" short.log grep -q -- '--device cpu' short.log
    tail -1 short.log
    # shellcheck disable=SC2086
    paint auto --device auto $steps
    check "auto: status 33 as well, and never the CPU" auto.log [ $? = 33 ]
    let_go
    # shellcheck disable=SC2086
    paint again --device "$device" $steps
    check "afterwards it paints as before" again.log cmp -s first.tif again.tif
    # shellcheck disable=SC2086
    begin crowded --device "$device" $long
    hold 0
    wait "$job"
    check "a poster in work goes on when all the rest is taken" crowded.log [ $? = 0 ]
    let_go
    check "with the same bytes" crowded.log cmp -s whole.tif crowded.tif
fi

echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
