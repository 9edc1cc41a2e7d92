#!/bin/bash
# run.sh - everything that `make test` promises, in order; ends with one line of counts.
#
# use: run.sh MAKE [quick].  Each stage builds what it needs, so a stage that does not compile counts
# as one failure and the others still run.  "quick": only lint, and the unit and kernel checks.
set -u
cd "$(dirname "$0")/.." || exit 2
make=${1:-make}
mode=${2:-all}
. tests/pool.sh
trap 'rm -rf "$pool"' EXIT
export OMP_WAIT_POLICY=passive # threads that wait must not keep a busy machine's CPUs
log=build/test-logs
mkdir -p "$log"
export XDG_CACHE_HOME=$PWD/$log/cache # what tests keep is none of the user's

stage() { all_told; echo; echo "== $1"; }

fail() { failed=$((failed + 1)); echo "FAIL $1"; }

# One cmocka program in TAP; its cases are counted one by one.
run_cases() { # program, environment...
    local program=$1 out ok bad skip code
    out=$log/$(echo "$program" | tr / _).log
    shift
    env CMOCKA_MESSAGE_OUTPUT=TAP "$@" timeout 600 "$program" >"$out" 2>&1
    code=$?
    skip=$(grep -cE '^(not )?ok .*# SKIP' "$out")
    ok=$(grep -E '^ok ' "$out" | grep -cv '# SKIP')
    bad=$(grep -E '^not ok ' "$out" | grep -cv '# SKIP')
    if [ "$code" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    if [ "$code" = 0 ] && [ $((ok + skip + bad)) = 0 ]; then bad=1; fi
    passed=$((passed + ok)) skipped=$((skipped + skip)) failed=$((failed + bad))
    if [ "$bad" != 0 ]; then
        echo "FAIL $program ($bad), exit $code"
        grep -vE '^ok ' "$out" | tail -30
    else
        echo "ok   ${program#build/} ($ok$([ "$skip" = 0 ] || echo ", $skip skipped"))"
    fi
}

# A script that ends with "N passed, N failed, N skipped".
run_script() { # name, command...
    local name=$1 line
    shift
    timeout 1200 "$@" >"$log/$name.log" 2>&1
    line=$(grep -E '[0-9]+ passed, [0-9]+ failed' "$log/$name.log" | tail -1)
    if [[ $line =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)? ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        skipped=$((skipped + ${BASH_REMATCH[4]:-0}))
        [ "${BASH_REMATCH[2]}" = 0 ] && echo "ok   $name ($line)" || { echo "FAIL $name"; tail -40 "$log/$name.log"; }
    else
        fail "$name: no result"
        tail -40 "$log/$name.log"
    fi
}

run_fuzz() { # target
    local name
    name=$(basename "$1")
    if timeout 120 "$1" "tests/fuzz/corpus/${name#fuzz_}" 20000 >"$log/$name.log" 2>&1; then
        passed=$((passed + 1)); echo "ok   $(tail -1 "$log/$name.log")"
    else
        fail "$name"; tail -30 "$log/$name.log"
    fi
}

build() { # variant, goal...
    local variant=$1
    shift
    "$make" --no-print-directory -k -j"$cpus" SAN="$variant" "$@" >"$log/build-${variant:-release}.log" 2>&1 ||
        { fail "build ${variant:-release}"; grep -E 'error|Error' "$log/build-${variant:-release}.log" | head -20; }
}

# All programs of a variant, the longest first, as it happens; a GPU's have it to themselves.
run_programs() { # variant, environment...
    local program variant=$1
    shift
    for program in $(programs "$variant" | grep -v '_cuda$'); do side_by_side run_cases "$program" "$@"; done
    all_told
    for program in $(programs "$variant" | grep '_cuda$'); do run_cases "$program" "$@"; done
}

programs() { # variant folder
    find "build/$1/tests/unit" "build/$1/tests/kernels" "build/$1/tests/parity" \
        "build/$1/tests/fault" -maxdepth 1 -type f -executable -name '*_*' 2>/dev/null | sort
}

finish() {
    all_told
    echo
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}

stage "lint"
side_by_side run_script layers tests/lint/layers.sh
side_by_side run_script tidy tests/lint/tidy.sh

if [ "$mode" = quick ]; then
    stage "unit, kernels"
    build "" unit
    for program in $(programs release | grep -vE '/parity_|_cuda$'); do side_by_side run_cases "$program"; done
    finish
fi

stage "unit, kernels, parity, faults"
build "" checks
run_programs release

stage "stages and pictures behind a wall"
for program in $(programs release | grep /parity_); do side_by_side run_cases "$program" MURAL_TEST_DEVICE=walled; done

stage "command line"
run_script cli env MURAL="$PWD/build/release/mural" tests/cli/run.sh

stage "the bundle"
side_by_side run_script unpack tests/bundle/unpack.sh
side_by_side run_script bundle "$make" --no-print-directory build/bundle

stage "the same with AddressSanitizer and UndefinedBehaviorSanitizer"
build address checks fuzz
run_programs address ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
run_script cli-sanitized env MURAL="$PWD/build/address/mural" tests/cli/run.sh

# OpenMP's own library is not instrumented, so one thread of it; what is watched are ours.
stage "threads of ours with ThreadSanitizer"
threaded="tests/unit/test_assemble tests/unit/test_crew tests/unit/test_shelf tests/unit/test_gauge tests/unit/test_wire tests/fault/fault_fleet tests/fault/fault_group \
          tests/fault/fault_workshop"
build thread $(printf ' build/thread/%s' $threaded)
for program in $threaded; do
    side_by_side run_cases "build/thread/$program" OMP_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=1
done

stage "short fuzzing"
for target in build/address/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [[ $target != *.* ]] && side_by_side run_fuzz "$target"
done

finish
