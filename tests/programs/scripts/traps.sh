trap 'echo usr1' USR1
trap 'echo leaving' EXIT
kill -USR1 $$
trap 'echo child ended' CHLD
/bin/true
trap - CHLD
trap '' TERM
kill -TERM $$; echo 'still here'
( trap 'echo inner; exit 4' INT; kill -INT $BASHPID; echo no ); echo "inner $?"
timeout -s INT 0.2 sleep 10; echo "timeout $?"
trap -p TERM
