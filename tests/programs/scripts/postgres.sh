# A server of several processes with shared memory: made, filled, queried side by side, killed and recovered.
set -u
programs=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
chown postgres "$home"
cd "$home" || exit 1
as_postgres() {
    local program=$1
    shift
    setpriv --reuid=postgres --regid=postgres --clear-groups \
        env HOME="$home" PGHOST="$home" PGPORT=17432 PGUSER=postgres PGDATABASE=postgres "$programs/$program" "$@"
}
control() { as_postgres pg_ctl -D data -w -s -l log "$@" || { cat log; exit 1; }; }
start() { control -o "-k $home -p 17432 -h 127.0.0.1" start; }
ask() { as_postgres psql -qAt -v ON_ERROR_STOP=1 "$@" || { cat log; exit 1; }; }

as_postgres initdb -D data -A trust -E UTF8 --locale=C >initdb.log 2>&1 || { cat initdb.log; exit 1; }
start
ask -c 'create table numbers as select generate_series(1, 50000) as n' -c 'create index on numbers (n)' -c 'vacuum analyze numbers'
ask -c 'select count(*), sum(n) from numbers' -c 'select n from numbers where n = 777'
# Several processes work on one question through shared memory.
parallel='set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;'
ask -c "$parallel explain (analyze, costs off, timing off, summary off) select sum(n) from numbers" | grep -o 'Workers .*'
ask -c "$parallel select sum(a.n) from numbers a join numbers b using (n)"
# One is told by another.
ask -c 'listen news' -c "notify news, 'sent'" -c 'select 1' | grep -o 'payload "[a-z]*"'
as_postgres pgbench -i -s 1 >pgbench.log 2>&1 || cat pgbench.log
as_postgres pgbench -n -c 4 -j 2 -t 50 2>&1 | grep processed
PGHOST=127.0.0.1 as_postgres pgbench -n -S -h 127.0.0.1 -c 4 -j 2 -t 50 2>&1 | grep processed
same='select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)'
ask -c "$same" -c 'select count(*) from pgbench_history'
# Without a checkpoint: the next start reads the log.
control -m immediate stop
start
ask -c "$same" -c 'select count(*) from pgbench_history' -c 'select count(*) from numbers'
grep -o 'database system was not properly shut down' log
control -m fast stop
grep -E 'PANIC|FATAL' log
echo done
