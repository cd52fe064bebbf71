#!/bin/bash
# parse-prometheus-text-format 1.1.1 (npm): histograms and summaries with labels are one, that of the last label, without its
# labels, sum and count.
#
# Every set of labels is a series of its own, in histograms as in counters (Prometheus' exposition formats, "histograms and
# summaries"). The parser keeps the buckets of what comes last: of the latencies of several disks the last disk's are left, as
# if they were everybody's. Without labels, and for counters and gauges with labels, all is right.
#
# Needs npm and node (seen with 20.20.2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm --silent --no-audit --no-fund --cache "$folder/cache" install parse-prometheus-text-format@1.1.1 >/dev/null
cat >look.mjs <<'JS'
import parse from "parse-prometheus-text-format";
const text = `# TYPE bytes counter
bytes{disk="a"} 1
bytes{disk="b"} 2
# TYPE plain histogram
plain_bucket{le="1"} 3
plain_bucket{le="+Inf"} 4
plain_sum 5
plain_count 4
# TYPE latency histogram
latency_bucket{disk="a",le="1"} 3
latency_bucket{disk="a",le="+Inf"} 4
latency_sum{disk="a"} 5
latency_count{disk="a"} 4
latency_bucket{disk="b",le="1"} 0
latency_bucket{disk="b",le="+Inf"} 0
latency_sum{disk="b"} 0
latency_count{disk="b"} 0
# TYPE size summary
size{disk="a",quantile="0.5"} 6
size_sum{disk="a"} 7
size_count{disk="a"} 8
size{disk="b",quantile="0.5"} 9
size_sum{disk="b"} 10
size_count{disk="b"} 11
`;
for (const family of parse(text)) console.log(family.name, JSON.stringify(family.metrics));
JS
seen=$(node look.mjs)
echo "$seen"
want='bytes [{"value":"1","labels":{"disk":"a"}},{"value":"2","labels":{"disk":"b"}}]
plain [{"buckets":{"1":"3","+Inf":"4"},"count":"4","sum":"5"}]
latency [{"buckets":{"1":"0","+Inf":"0"}}]
size [{"quantiles":{"0.5":"9"}}]'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
