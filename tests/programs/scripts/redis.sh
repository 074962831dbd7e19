# A server with an append-only file, background saves by fork, and many clients; killed and started again.
set -u
port=17379
ask() { redis-cli -p $port "$@"; }
start() {
    redis-server --port $port --bind 127.0.0.1 --dir "$PWD" --save '' --appendonly yes >>log 2>&1 &
    server=$!
    until [ "$(ask ping 2>/dev/null)" = PONG ]; do
        kill -0 $server || { cat log; exit 1; }
        sleep 0.05
    done
}
finished() {
    while ask info persistence | grep -q "$1_in_progress:1"; do sleep 0.05; done
    ask info persistence | grep "$2_status" | tr -d '\r'
}

start
ask set word 'a value'
ask incrby number 41
ask incr number
printf 'multi\nset a 1\nset b 2\nexec\n' | ask
ask eval 'return redis.call("get", KEYS[1]) .. "!"' 1 word
# One waits for what the other brings.
ask blpop queue 30 >popped &
until [ "$(ask client list | grep -c cmd=blpop)" = 1 ]; do sleep 0.05; done
ask rpush queue item
wait $!
cat popped
redis-benchmark -p $port -n 5000 -c 20 -P 4 -q -t set,get,lpush,mset >benchmark || cat benchmark
ask llen mylist
ask bgsave
finished rdb_bgsave rdb_last_bgsave
ask bgrewriteaof
finished aof_rewrite aof_last_bgrewrite
ask set later 'written after the rewrite'
# It is all there after it was killed.
kill -KILL $server
wait $server 2>/dev/null
echo "status $?"
start
ask mget word number a b later
ask llen mylist
ask shutdown
wait $server
echo "status $?"
