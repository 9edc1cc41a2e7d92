#!/bin/bash
# layers.sh - a file may include doors of strictly lower rank, its own folder's headers, and nothing
# else of ours.  A door is <folder>/<folder>.h, and kernels/kernels_cuda.h for what is on a GPU; rank
# table as in the README's map.
set -u
cd "$(dirname "$0")/../.." || exit 2

declare -A rank=([base]=0 [bundle]=0 [tiling]=1 [image]=1 [config]=1 [memory]=1 [kernels]=1 [backend]=2
                 [weights]=3 [engine]=4 [render]=5 [fleet]=6 [mural]=7 [main]=8)
passed=0 failed=0

folder_of() { # the folder a file belongs to; the library's and the program's own stand for themselves
    case "$1" in
    src/main.c | src/batch.[ch] | src/console.[ch] | src/report.[ch]) echo main ;;
    src/mural.[ch] | src/job.h | src/job_*.c | src/workshop.c) echo mural ;;
    src/*/*) echo "$1" | cut -d/ -f2 ;;
    *) echo "$1" | cut -d/ -f1 ;;
    esac
}

# main.c and its files speak to the library through mural.h, and to settings and files for help and info only.
declare -A main_may=([main]=1 [mural]=1 [config]=1 [image]=1 [base]=1)

for file in src/*.[ch] src/*/*.[ch] tiling/*.[ch] kernels/*.[ch] kernels/*.cu; do
    [ -e "$file" ] || continue
    own=$(folder_of "$file")
    [ -n "${rank[$own]:-}" ] || { echo "$file: folder '$own' has no rank"; failed=$((failed + 1)); continue; }
    bad=0
    while read -r header; do
        case "$header" in
        mural.h) target=mural ;;
        job.h) [ "$own" = mural ] || { echo "$file: \"$header\" is the library's own"; bad=1; }; continue ;;
        batch.h | console.h | report.h) target=main ;;
        */*) target=${header%%/*} ;;
        *) echo "$file: \"$header\" must name its folder"; bad=1; continue ;;
        esac
        [ "$target" = "$own" ] && continue
        if [ "$target" != mural ] && [ "$header" != "$target/$target.h" ] &&
            [ "$header" != kernels/kernels_cuda.h ]; then
            echo "$file: includes \"$header\"; only the door $target/$target.h may be included from outside"
            bad=1
        elif [ "$own" = main ]; then
            [ -n "${main_may[$target]:-}" ] || { echo "$file: main may not include $target"; bad=1; }
        elif [ "${rank[$target]:-99}" -ge "${rank[$own]}" ]; then
            echo "$file: rank ${rank[$own]} ($own) includes $header of rank ${rank[$target]:-unknown}"
            bad=1
        fi
    done < <(sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]+"([^"]+)".*/\1/p' "$file")
    if [ "$bad" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "layers: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
