#!/bin/bash
# exchange.sh - each trace in every allocator that this machine has, as one CSV.
#
# use: [BENCH="build/kit/kit bench_memory"] [PYTHON=python3] exchange.sh [--host|--gpu] TRACE...
#
# Ours plays a trace in a segment over the host's stand-in for a GPU's memory (--host: only that), and
# over the GPU's own (--gpu: only on it); PyTorch's caching allocator needs a GPU.  For ours `created`, `unmapped` and
# `waits` are physical pieces made, mappings undone and waits for the device; for PyTorch segments
# asked for, segments given back and retries after that.  `seconds` is a first pass with all calls of
# the driver, `again` a second over what that left (PyTorch only).
set -u
here=$(cd "$(dirname "$0")" && pwd)
kit=$here/../kit # where `make kit` has put this script
[ -x "$kit" ] && kit+=" bench_memory" || kit=$here/../../build/release/tests/bench/bench_memory
bench=${BENCH:-$kit}
python=${PYTHON:-python3}
failed=0 where="host gpu"
case "${1:-}" in
--host | --gpu) where=${1#--}; shift ;;
esac
[ $# -gt 0 ] || { echo "use: exchange.sh [--host|--gpu] TRACE..." >&2; exit 2; }

ours() { # name, trace, flags of bench_memory
    local name=$1 trace=$2 went cap
    shift 2
    went=$($bench replay "$@" "$trace" | tail -1) && [ -n "$went" ] &&
        cap=$($bench survive "$@" "$trace" | sed -n 's/^# survives in \([0-9]*\) bytes/\1/p') &&
        [ -n "$cap" ] || { failed=1; return; }
    IFS=, read -r live _ mapped share created _ _ unmapped waits _ seconds <<<"$went"
    echo "$(basename "$trace"),$name,$live,$mapped,$share,$cap,$created,$unmapped,$waits,$seconds,"
}

echo "trace,allocator,peak_live,peak_mapped,utilisation,survives,created,unmapped,waits,seconds,again"
[[ $where != *host* ]] || for trace in "$@"; do
    ours "mural on the host" "$trace"
    ours "mural on the host by 2 MiB" "$trace" --chunk 2
done
[[ $where == *gpu* ]] || exit $failed
if ! nvidia-smi >/dev/null 2>&1; then
    echo "no GPU here: its rows are left out" >&2
    exit $failed
fi
for trace in "$@"; do ours "mural on the GPU" "$trace" --cuda; done
for config in "" expandable_segments:True; do
    env -u PYTORCH_ALLOC_CONF -u PYTORCH_CUDA_ALLOC_CONF \
        ${config:+PYTORCH_CUDA_ALLOC_CONF=$config} "$python" "$here/replay_torch.py" "$@" | tail -n +2
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
done
exit $failed
