for i in $(seq 200); do /bin/true; done; echo 200 processes
for i in $(seq 20); do (for j in $(seq 5); do /bin/true; done) & done; wait; echo side by side
seq 30 | xargs -P 8 -I{} sh -c 'exit 0' && echo xargs
sh -c 'exec sh -c "exec sh -c \"exit 42\""'; echo $?
/no/such/program 2>/dev/null; echo "missing $?"
touch plain; ./plain 2>/dev/null; echo "not executable $?"
printf '#!/bin/sh\necho interpreted $1\n' > script; chmod +x script; ./script well
env -i A=1 /usr/bin/env; ulimit -n 100; ulimit -n
nice -n 5 nice; echo ${#PPID} | grep -c .
(cd /; exec -a name sh -c 'echo $0')
tr '\0' ' ' < /proc/self/cmdline; echo; readlink /proc/self/exe
