seq 1 1000 | grep 7 | sort -rn | head -n 5 | tr '\n' ' '
echo
yes | head -n 100000 | wc -l
false | true; echo "pipe status ${PIPESTATUS[0]} ${PIPESTATUS[1]}"
set -o pipefail
false | cat; echo "pipefail $?"
diff <(printf 'a\nb\n') <(printf 'a\nc\n'); echo "diff $?"
echo 'to a process' > >(cat; echo done); wait $!
exec 3<<<'here string'; read -r line <&3; echo "$line"
coproc CAT { cat; }
echo 'through a coprocess' >&"${CAT[1]}"; read -r line <&"${CAT[0]}"; echo "$line"
head -c 1000000 /dev/zero | tee >(wc -c >&2) 2>&1 >/dev/null | cat
