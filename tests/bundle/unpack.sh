#!/bin/bash
# unpack.sh - src/bundle/unpack.c around a library of our own; ends with one line of counts.
#
# Each function is the first to be called once: only then does unpacking happen between a call and
# its function, and arguments could be lost.
set -u
cd "$(dirname "$0")/../.." || exit 2
export LC_ALL=C
. tests/check.sh unpack
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile=("${CC:-gcc}" -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror)

pack() { # result, names of functions
    local result=$1 calls
    shift
    calls=$(printf 'X(%s) ' "$@")
    "${compile[@]}" -fPIC -shared -fvisibility=hidden -Wl,-soname,liblibrary.so \
        "-DUNPACK_CALLS=$calls" "-DUNPACK_FILE=\"$work/packed.zst\"" src/bundle/unpack.c -lzstd \
        -o "$result"
}

names=(library_inner library_outer library_floats library_many library_any library_twice)
mkdir "$work/lib" "$work/lacking"
"${compile[@]}" -fPIC -shared -Wl,-soname,liblibrary.so tests/bundle/library.c -o "$work/whole.so" &&
    zstd -q "$work/whole.so" -o "$work/packed.zst" &&
    pack "$work/lib/liblibrary.so" "${names[@]}" &&
    pack "$work/lacking/liblibrary.so" "${names[@]}" library_of_tomorrow &&
    "${compile[@]}" tests/bundle/caller.c "$work/lib/liblibrary.so" -lpthread -o "$work/caller" ||
    { echo "unpack: 0 passed, 1 failed, 0 skipped"; exit 1; }

for first in inner outer floats many any twice threads; do
    check "$first is called first" < <(
        LD_LIBRARY_PATH=$work/lib timeout 20 "$work/caller" $first 2>&1 || echo "exit $?")
done
check "a function that the library lacks is not told" < <(
    LD_LIBRARY_PATH=$work/lacking timeout 20 "$work/caller" 2>&1 |
        grep -q 'mural: oneDNN, packed in this bundle, could not be used: .*library_of_tomorrow' ||
        echo "nothing was said of it")

checked
