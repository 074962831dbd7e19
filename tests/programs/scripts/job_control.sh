set -m
sleep 100 & first=$!
sleep 100 & second=$!
jobs -r | wc -l
kill -STOP %1
until grep -q '^State:.*T' /proc/$first/status; do :; done
kill -CONT %1; kill %1; wait %1; echo "first $?"
kill -KILL $second; wait $second; echo "second $?"
(exit 7) & wait $!; echo "third $?"
( sleep 0.01; exit 3 ) & wait -n; echo "any $?"
sh -c 'kill -SEGV $$'; echo "fourth $?"
[ "$(ps -o pgid= -p $$ | tr -d ' ')" -gt 0 ] && echo group
