#!/bin/bash
# run.sh - a bundle does what it is for; ends with one line of counts.
#
# The folder is copied to another place, with a blank in its name, and used with an empty
# environment.  All of it is of the CPU.
#
# use: run.sh BUNDLE PROGRAM     PROGRAM: the same program as built, with this machine's libraries
set -u
bundle=$(realpath "$1") || exit 2
program=$(realpath "$2") || exit 2
limit=60000000 # bytes; what a person downloads and carries without a thought
export LC_ALL=C
. "$(dirname "$0")/../check.sh" bundle

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
there="$work/another place/mural"
mkdir -p "$work/another place" && cp -r "$bundle" "$there" && cd "$work" || exit 2

# The C library and the loader are the machine's own; a driver's would be too.
of_the_machine='/(ld-linux-x86-64|libc|libm|libpthread|libdl|librt)\.so\.[0-9]+$'

paint() { # program, result, variables...
    local of=$1 result=$2
    shift 2
    env -i OMP_WAIT_POLICY=passive "$@" "$of" render "a lake at sunset" -o "$result" --device cpu \
        --quiet --size 64x64 --tile 64 --overlap 16 --draft-size 64 --draft-steps 1 --steps 1 \
        --no-keep-tiles 2>"$result.err" || { echo "exit $?"; cat "$result.err"; }
}

loaded() { # what the dynamic loader started, from its own record
    cat "$work/$1".* | sed -nE 's/.*calling init: (.*)/\1/p' | sort -u
}

check "larger than $limit bytes" < <(du -sb "$there" | awk -v limit=$limit '$1 > limit')
check "debugging information" < <(for file in "$there/mural" "$there"/lib/*; do
    readelf -SW "$file" | grep -q '\.debug_' && echo "$file"; done)
check "libraries without a licence" < <(
    [ "$(ls "$there/licences" | wc -l)" -gt 0 ] || echo "none has one")

# The model is found without being named, and its picture has the same bytes.
check "the program cannot paint" < <(paint "$program" as-built.tif)
check "the bundle cannot paint" < <(
    paint "$there/mural" carried.tif LD_DEBUG=libs LD_DEBUG_OUTPUT="$work/paint")
check "another picture than the program's own" < <(cmp as-built.tif carried.tif 2>&1)
check "libraries from outside" < <(loaded paint | grep -vF "$there/" | grep -vE "$of_the_machine" |
    grep -v '^/proc/self/fd/')

# Help needs no arithmetic, so nothing is unpacked for it; painting does need it.
check "help ends with an error" < <(
    env -i LD_DEBUG=libs LD_DEBUG_OUTPUT="$work/help" "$there/mural" help >/dev/null || echo "exit $?")
check "oneDNN is unpacked for help" < <(loaded help | grep '^/proc/self/fd/')
check "oneDNN is not unpacked for painting" < <(loaded paint | grep -q '^/proc/self/fd/' || echo "not")

# Memory without a name counts as a file; a limit on those is told by its name.
check "a limit on files is not told" < <(
    ulimit -f 1024
    paint "$there/mural" limited.tif 2>/dev/null |
        grep -q 'could not be given memory: ulimit -f is below its size, raise it' ||
        echo "nothing was said of it")

# A packed library that lost a byte is noticed.
packed=$(ls "$there"/lib/libdnnl.so.*)
printf 'mural' | dd of="$packed" bs=1 seek=$(($(stat -c %s "$packed") / 2)) conv=notrunc status=none
check "damage is not told" < <(paint "$there/mural" damaged.tif 2>/dev/null |
    grep -q 'mural: oneDNN, packed in this bundle, could not be unpacked: the bundle is damaged' ||
    echo "nothing was said of it")

checked
