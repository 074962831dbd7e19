# The values differ from host to host, so what is printed is what must be so anywhere.
[ "$(cat /proc/self/comm)" = cat ] && echo comm
[ "$(readlink /proc/self/cwd)" = "$PWD" ] && echo cwd
exec 9< /dev/null; [ "$(readlink /proc/$$/fd/9)" = /dev/null ] && echo fd
grep -q "^PPid:.$$\$" /proc/self/status && echo parent
grep -q '\[stack\]' /proc/self/maps && echo maps
grep -Eq '^MemTotal: +[0-9]+ kB' /proc/meminfo && echo memory
[ "$(grep -c ^processor /proc/cpuinfo)" = "$(nproc --all)" ] && echo processors
grep -q ' / ' /proc/mounts && echo mounts; [ -r /proc/uptime ] && read -r up _ < /proc/uptime && echo up
[ -e /sys/devices/system/cpu/online ] && echo cpus; ls /proc/self/task | wc -l; cat /proc/sys/kernel/ostype
ls -d /proc/net/tcp /proc/loadavg /proc/stat /proc/version /proc/filesystems /proc/self/environ
ps -e -o comm= | grep -c ps; stat -fc %T /proc; stat -L -c %F /dev/null /dev/tty /dev/ptmx /dev/urandom
