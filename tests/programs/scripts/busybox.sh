bb() { busybox "$@"; }
bb sh -c 'for i in 1 2 3; do echo $i; done | busybox sort -r'
bb echo text | bb gzip | bb zcat
bb seq 5 | bb awk '{ s += $1 } END { print s }'
bb sh -c 'set -e; x=$(busybox expr 2 + 3); echo "${x}th"; trap "echo bye" EXIT'
bb printf '%s\n' b a c | bb sort | bb xargs bb echo
bb mkdir -p q/r/s; bb find q | bb sort; bb rm -r q
bb sh -c 'busybox sleep 0.05 & wait; echo waited'
bb id -u; bb test -c /dev/null && echo device; bb head -c 3 /dev/zero | bb od -An -tx1
bb sh -c 'echo nested $(busybox sh -c "echo $(busybox sh -c "echo deep")")'
