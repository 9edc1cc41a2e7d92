#!/bin/bash
# tidy.sh - lengths, names and banned calls, one check each.
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 2
. tests/check.sh tidy
mapfile -t sources < <(ls src/*.c src/*/*.c tiling/*.c kernels/*.c kernels/*.cu 2>/dev/null)
mapfile -t headers < <(ls src/*.h src/*/*.h tiling/*.h kernels/*.h 2>/dev/null)
mapfile -t tests < <(ls tests/*/*.c 2>/dev/null)

check "source files above 800 lines" < <(wc -l "${sources[@]}" | awk '$2 != "total" && $1 > 800')
check "headers above 250 lines" < <(wc -l "${headers[@]}" | awk '$2 != "total" && $1 > 250')
check "lines above 100 columns" < <(grep -nE '^.{101,}' "${sources[@]}" "${headers[@]}" "${tests[@]}" | cut -c1-90)
check "tabs or trailing blanks" < <(grep -nP '\t| +$' "${sources[@]}" "${headers[@]}" "${tests[@]}")
check "file names that are not unique" < <(ls "${sources[@]}" "${headers[@]}" | sed 's#.*/##' | sort | uniq -d)
check "banned calls" < <(grep -nE '\b(strcpy|strcat|sprintf|gets|atoi|atof|strtok|system|popen|rand|srand|alloca)\(' \
    "${sources[@]}")
check "printing or exiting below main.c" < <(grep -nE '\b(printf|puts|putchar|exit|_exit)\(|stdout' "${sources[@]}" | grep -v '^src/main.c:')
check "unfinished marks" < <(grep -nE 'TODO|FIXME|XXX|HACK' "${sources[@]}" "${headers[@]}" "${tests[@]}")
check "allocation in tiling or kernels" < <(grep -nE '\b(malloc|calloc|realloc)\(' tiling/*.c kernels/*.c)

# A function opens with "{" in the first column and closes with "}" there.
check "functions above 100 lines (120 in kernels)" < <(awk 'FNR == 1 {start = 0}
     /^\{/ {start = FNR}
     /^\}/ && start {n = FNR - start - 1; limit = FILENAME ~ /kernels\// ? 120 : 100
                     if (n > limit) print FILENAME ":" start ": " n " lines"; start = 0}' \
    "${sources[@]}")

check "source files without a header comment" < <(for file in "${sources[@]}"; do
    head -c 3 "$file" | grep -q '^/\*' || echo "$file has no header comment"
done)

tracked=$(git ls-files 2>/dev/null | cut -d/ -f1 | sort -u |
    grep -vE '^(Makefile|src|kernels|tiling|tests|samples|README\.md|LICENSE|\..*)$')
check "top-level names outside the layout" < <(echo -n "$tracked")

checked
