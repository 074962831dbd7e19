import os, signal, subprocess, sys, time
print(subprocess.check_output(["echo", "hello"], text=True), end="")
print(subprocess.run(["cat"], input="x" * 300000, capture_output=True, text=True).stdout.count("x"))
p = subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True, text=True)
print(p)
p = subprocess.Popen(["sleep", "100"]); p.terminate(); print(p.wait())
try:
    subprocess.run(["sleep", "100"], timeout=0.1)
except subprocess.TimeoutExpired:
    print("timeout")
try:
    subprocess.run(["/no/such"])
except FileNotFoundError as e:
    print(e)
print(subprocess.run("exit 9", shell=True, start_new_session=True, cwd="/").returncode)
pid = os.fork()
if pid == 0:
    os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
got = []
signal.signal(signal.SIGALRM, lambda *a: got.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.02)
time.sleep(0.2); print(got)
print(signal.sigtimedwait([signal.SIGUSR1], 0.01))
r, w = os.pipe()
if os.fork() == 0:
    os.close(r); os.write(w, b"from a child"); os._exit(0)
os.close(w); print(os.read(r, 100), os.read(r, 100)); os.wait()
try:
    os.kill(99999999, 0)
except ProcessLookupError as e:
    print(e)
