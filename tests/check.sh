#!/bin/bash
# check.sh - for scripts that look for findings, each of which is a failure: counts, and tells of them.
#
# use: . tests/check.sh NAME, then check and, as the last command, checked.
checks_of=$1 passed=0 failed=0

check() { # name, findings on stdin: none is a pass
    local found
    found=$(cat)
    if [ -z "$found" ]; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "$checks_of: $1"
    echo "$found" | head -20 | sed 's/^/    /'
}

checked() { # the line of counts that tests/run.sh reads
    echo "$checks_of: $passed passed, $failed failed, 0 skipped"
    [ "$failed" = 0 ]
}
