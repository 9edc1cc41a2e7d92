# pool.sh - functions that run side by side; read by other scripts with ".".
#
#   side_by_side FUNCTION [ARGUMENT...]   begins it as soon as there is a place
#   all_told                              waits until everything that began has been told
#
# A function prints what it found and adds to `passed`, `failed` and `skipped`, as it would anywhere.
# What it prints is told whole, in the order of the beginnings; the counts come with it.  Whatever
# ends without counts, for something killed it, is a failure.

passed=0 failed=0 skipped=0
cpus=$(nproc)
places=$(((3 * cpus + 1) / 2)) # more than CPUs, for many of the functions wait half of their time,
[ "$places" -le 8 ] || places=8 # but in eight, all take no longer than the longest of them does
pool=$(mktemp -d) || exit 2 # the caller removes it
begun=0 told=0 names=()

side_by_side() { # function, argument...
    while [ "$(jobs -pr | wc -l)" -ge "$places" ]; do wait -n; pool_tell; done
    (
        passed=0 failed=0 skipped=0
        "$@"
        echo "$passed $failed $skipped" >"$pool/counts-$begun"
    ) >"$pool/words-$begun" 2>&1 </dev/null &
    names[begun]=$*
    begun=$((begun + 1))
}

pool_tell() { # of those that have ended, as many as nobody before them holds up
    local counts
    while [ -s "$pool/counts-$told" ]; do
        cat "$pool/words-$told"
        read -ra counts <"$pool/counts-$told"
        passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
        told=$((told + 1))
    done
}

all_told() {
    wait
    pool_tell
    while [ "$told" -lt "$begun" ]; do
        cat "$pool/words-$told"
        failed=$((failed + 1))
        echo "FAIL ${names[told]}: ended without counts"
        told=$((told + 1))
        pool_tell
    done
}
