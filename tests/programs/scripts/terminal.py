import os, pty, select, signal, termios, tty
signal.signal(signal.SIGINT, signal.SIG_DFL) # a background job has it ignored
pid, fd = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", "tty -s && echo is a terminal; stty size; read x; echo got $x; exec sleep 100"])
out = b""
def until(what):
    global out
    while what not in out:
        assert select.select([fd], [], [], 20)[0], out
        out += os.read(fd, 1000)
until(b"0 0"); os.write(fd, b"typex\x7fd\n"); until(b"got typed")
# A key that comes between a shell's fork and the program may get lost.
while open(f"/proc/{pid}/comm").read() != "sleep\n": pass
os.write(fd, b"\x03")
print(out.replace(b"\r", b"").decode().replace("x\b \b", "")); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
m, s = os.openpty(); tty.setraw(s); os.write(m, b"\x03raw"); print(os.read(s, 10))
a = termios.tcgetattr(s); print(bool(a[3] & termios.ICANON))
