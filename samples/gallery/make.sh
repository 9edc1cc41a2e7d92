#!/bin/bash
# make.sh - the pictures of this folder, painted anew with the program and the sample model.
#
#     samples/gallery/make.sh [--model DIR] [--size WxH] [--out DIR]
#
# For each of three prompts: the draft, the whole poster 1280 px wide, a crop across a seam between
# four tiles and a crop from the middle of the picture, both pixel for pixel.  Needs vips
# (Debian: libvips-tools).  A 7680x4320 poster takes about ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=samples/model size=7680x4320 out=samples/gallery
while [ $# -gt 0 ]; do
    case "$1" in
    --model) model=$2 ;;
    --size) size=$2 ;;
    --out) out=$2 ;;
    *) echo "make.sh: unknown flag '$1'" >&2; exit 2 ;;
    esac
    shift 2
done
for tool in vips vipsthumbnail; do
    command -v "$tool" >/dev/null || { echo "make.sh: '$tool' is missing; install libvips-tools" >&2; exit 2; }
done
make
program=build/release/mural
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# Width, height and overlaps of the tiles, as the plan says them.
plan=$($program plan --model "$model" --size "$size")
read -r tile_w tile_h over_x over_y < <(sed -nE \
    's/.* of ([0-9]+) x ([0-9]+) px, overlapping by ([0-9]+) and ([0-9]+) px.*/\1 \2 \3 \4/p' <<<"$plan")
width=${size%x*} height=${size#*x}

# crop NAME LEFT TOP: 960x540, or what fits, moved inside the picture.
crop() {
    local w=$((width < 960 ? width : 960)) h=$((height < 540 ? height : 540)) x=$2 y=$3
    x=$((x < 0 ? 0 : x > width - w ? width - w : x))
    y=$((y < 0 ? 0 : y > height - h ? height - h : y))
    vips extract_area "$work/poster.tif" "$1.jpg[Q=90]" "$x" "$y" "$w" "$h"
}

paint() { # NAME SEED PROMPT
    local name=$out/$1
    $program render "$3" --seed "$2" --model "$model" --size "$size" -o "$work/poster.tif" \
        --overwrite --keep-draft "$name-draft.png"
    vipsthumbnail "$work/poster.tif" --size 1280x -o "$work/poster.jpg[Q=90]"
    mv "$work/poster.jpg" "$name-poster.jpg"
    # The corner that four tiles share, nearest to two fifths across and three fifths down.
    local step_x=$((tile_w - over_x)) step_y=$((tile_h - over_y))
    local x=$((width * 2 / 5 / step_x * step_x + over_x / 2))
    local y=$((height * 3 / 5 / step_y * step_y + over_y / 2))
    crop "$name-seam" $((x - 480)) $((y - 270))
    crop "$name-detail" $((width / 2 - 480)) $((height * 11 / 20 - 270))
}

paint lake 7 "a mountain lake at sunset, scattered clouds, warm colours, framed by pines"
paint cliffs 8 "sea cliffs at night, the moon on the left, a clear sky"
paint forest 9 "a forest of firs at dawn, fog in the valleys"
ls -l "$out"
