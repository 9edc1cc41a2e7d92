#!/bin/bash
# run.sh - everything that only a GPU can show; ends with one line of counts.
#
# It stands in a folder that `make kit` made: the programs in one file, their shared libraries, the
# expected values.  The machine needs a driver, cuBLASLt and cuDNN; no compiler, no packages.
#
# use: [LOGS=folder] run.sh [quick]     quick: without compute-sanitizer
set -u
cd "$(dirname "$0")" || exit 2
export MURAL_TEST_DATA=$PWD OMP_WAIT_POLICY=passive CMOCKA_MESSAGE_OUTPUT=TAP
passed=0 failed=0 skipped=0
logs=${LOGS:-$PWD/logs}
mkdir -p "$logs"
XDG_CACHE_HOME=$(realpath "$logs")/cache # what trials choose here is none of the user's
export XDG_CACHE_HOME

stage() { echo; echo "== $1"; }

count() { # log, exit status, name
    local ok bad skip
    skip=$(grep -cE '^(not )?ok .*# SKIP' "$1")
    ok=$(grep -E '^ok ' "$1" | grep -cv '# SKIP')
    bad=$(grep -E '^not ok ' "$1" | grep -cv '# SKIP')
    if [ "$2" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    if [ "$2" = 0 ] && [ $((ok + skip + bad)) = 0 ]; then bad=1; fi
    passed=$((passed + ok)) skipped=$((skipped + skip)) failed=$((failed + bad))
    if [ "$bad" != 0 ]; then
        echo "FAIL $3 ($bad), exit $2"
        grep -vE '^ok ' "$1" | tail -40
    else
        echo "ok   $3 ($ok$([ "$skip" = 0 ] || echo ", $skip skipped"))"
        grep -hE '^# skipped' "$1" | sort -u | head -3
    fi
}

run() { # program, name of the log
    timeout 900 ./kit "$1" >"$logs/$2.log" 2>&1
    count "$logs/$2.log" $? "$2"
}

stage "the card"
nvidia-smi --query-gpu=name,driver_version,memory.total,memory.free --format=csv,noheader 2>&1 | head -4
tests=$(./kit | grep -E '^test_.*_cuda$')

stage "kernels against their twins on the CPU"
for test in $tests; do run "$test" "$test"; done

stage "operations and stages on the GPU"
export MURAL_TEST_DEVICE=cuda
for test in test_ops $(./kit | grep '^parity_'); do run "$test" "$test"; done

if [ "${1:-}" != quick ]; then
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    for tool in memcheck racecheck; do
        stage "compute-sanitizer $tool"
        if [ -z "$sanitizer" ]; then
            echo "skipped: no compute-sanitizer on this machine"
            skipped=$((skipped + 1))
            continue
        fi
        for test in $(echo "$tests" | grep -vE 'contest|copy|gemm|graph|link|plan|ring|trace'); do
            timeout 900 "$sanitizer" --tool "$tool" --error-exitcode 9 ./kit "$test" \
                >"$logs/$test-$tool.log" 2>&1
            count "$logs/$test-$tool.log" $? "$test-$tool"
        done
    done
fi

echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
