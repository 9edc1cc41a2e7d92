#!/bin/bash
# run.sh - stories told on the command line: each folder NNN-name is one.
#
# use: MURAL=path/to/mural run.sh [NAME...]
#
#   cmd            shell script, run in an empty folder.  It sees MURAL (the program), TINY (a small
#                  model with random weights) and STORY (its own folder).  To skip, it exits with 77
#                  after printing the reason.
#   expect-exit    exit status; without the file it is 0
#   expect-stdout  lines of standard output, expect-stderr of standard error: as they are; or
#                  "~ REGEX" for a whole line; or "..." for any number of lines.  Not checked when the
#                  file is missing.
#   expect-files   names of the files that the story leaves in its folder, sorted
set -u
cd "$(dirname "$0")" || exit 2
export LC_ALL=C
export MURAL=${MURAL:-$PWD/../../build/release/mural}
[ -x "$MURAL" ] || { echo "no program at $MURAL"; exit 2; }

. ../pool.sh
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work" "$pool"' EXIT
export TINY=$work/tiny
"$MURAL" synth "$TINY" >/dev/null 2>"$work/synth.err" || sed 's/^/no tiny model: /' "$work/synth.err"

# Stories are of the CPU, on any machine, unless they speak of a device.
export MURAL_ITSELF=$MURAL
export MURAL=$work/mural
cat >"$MURAL" <<'SCRIPT'
#!/bin/sh
case " $* " in
*" --device "*) ;;
" render "* | " draft "* | " upscale "* | " batch "* | " plan "*)
    command=$1
    shift
    set -- "$command" --device cpu "$@" ;;
esac
exec "$MURAL_ITSELF" "$@"
SCRIPT
chmod +x "$MURAL"

matches() { # expected file, actual file
    awk 'function fits(want, line) {
             if (want ~ /^~ /) return line ~ ("^(" substr(want, 3) ")$")
             return want == line
         }
         FILENAME == ARGV[1] { want[++wants] = $0; next }
         { line[++lines] = $0 }
         END {
             at = 1; any = 0
             for (i = 1; i <= wants; i++) {
                 if (want[i] == "...") { any = 1; continue }
                 while (any && at <= lines && !fits(want[i], line[at])) at++
                 if (at > lines || !fits(want[i], line[at])) {
                     print "        expected: " want[i]
                     print "        got:      " (at <= lines ? line[at] : "(end)")
                     exit 1
                 }
                 at++; any = 0
             }
             if (!any && at <= lines) { print "        not expected: " line[at]; exit 1 }
         }' "$1" "$2"
}

compare() { # expected file, actual file, what it is; adds to `why`
    local difference
    difference=$(matches "$1" "$2") || why+="        in $3:"$'\n'"$difference"$'\n'
}

tell() { # story
    local name=$1 scratch=$work/$1 status expected why="" part
    export STORY=$PWD/$name
    mkdir "$scratch"
    (cd "$scratch" && timeout 300 sh -u "$STORY/cmd") >"$scratch.stdout" 2>"$scratch.stderr" </dev/null
    status=$?
    if [ "$status" = 77 ]; then
        skipped=$((skipped + 1))
        echo "skip $name: $(tail -1 "$scratch.stdout")"
        return
    fi
    expected=$(cat "$name/expect-exit" 2>/dev/null || echo 0)
    [ "$status" = "$expected" ] || why="        exit status $status, expected $expected"$'\n'
    for part in stdout stderr; do
        [ -e "$name/expect-$part" ] || continue
        compare "$name/expect-$part" "$scratch.$part" "$part"
    done
    if [ -e "$name/expect-files" ]; then
        (cd "$scratch" && find . -type f | sed 's#^\./##' | sort) >"$scratch.files"
        compare "$name/expect-files" "$scratch.files" "the files left behind"
    fi
    if [ -z "$why" ]; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    echo "FAIL $name"
    echo "$why"
    sed 's/^/        stderr: /' "$scratch.stderr" | head -5
}

stories=("$@")
[ $# -gt 0 ] || stories=([0-9][0-9][0-9]-*)
for story in "${stories[@]}"; do side_by_side tell "${story%/}"; done
all_told
echo "cli: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
