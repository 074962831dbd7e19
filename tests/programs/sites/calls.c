/*
 * Makes calls of one kind after another, each kind often and in a process of its own, and prints what they came to and in how
 * many places the code in memory has become another than in the files that it comes from. The calls by which it looks are none
 * of the library's.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TURNS = 1000, MOST = 16, NEAR = 8 };

static long raw(long number, long a, long b, long c, long d, long e)
{
	long result;
	register long fourth asm("r10") = d;
	register long fifth asm("r8") = e;
	register long sixth asm("r9") = 0;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
		     : "rcx", "r11", "memory");
	return result;
}

static struct {
	const char *memory;
	const char *file;
	size_t len;
} texts[MOST];
static int count;

static void find_texts(void)
{
	static char maps[1 << 16];
	long fd = raw(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY, 0, 0), got;
	size_t len = 0;

	while ((got = raw(SYS_read, fd, (long)maps + len, sizeof(maps) - 1 - len, 0, 0)) > 0)
		len += got;
	raw(SYS_close, fd, 0, 0, 0, 0);
	for (char *line = maps; *line; line++) {
		unsigned long start, end, offset;
		char mode[5], path[1024] = "";
		char *behind = strchr(line, '\n');

		*behind = 0;
		if (sscanf(line, "%lx-%lx %4s %lx %*s %*s %1023s", &start, &end, mode, &offset, path) == 5 &&
		    !strcmp(mode, "r-xp") && path[0] == '/' && count < MOST) {
			long file = raw(SYS_openat, AT_FDCWD, (long)path, O_RDONLY, 0, 0);

			texts[count].memory = (const char *)start;
			texts[count].len = end - start;
			texts[count].file = mmap(NULL, end - start, PROT_READ, MAP_PRIVATE, file, offset);
			if (texts[count++].file == MAP_FAILED)
				abort();
			raw(SYS_close, file, 0, 0, 0, 0);
		}
		line = behind;
	}
	if (!count)
		abort();
}

static int changed(void)
{
	int places = 0;

	for (int i = 0; i < count; i++) {
		size_t last = 0;

		for (size_t at = 0; at < texts[i].len; at++) {
			if (texts[i].memory[at] == texts[i].file[at])
				continue;
			places += !last || at - last > NEAR;
			last = at;
		}
	}
	return places;
}

static int zero, null, ends[2], epoll;
static sem_t there;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int asked;

static void *answer(void *unused)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < TURNS; i++) {
		while (!asked)
			pthread_cond_wait(&moved, &lock);
		asked = 0;
		pthread_cond_signal(&moved);
	}
	pthread_mutex_unlock(&lock);
	return unused;
}

/* It has the lock until it waits: so it does wait, each time. */
static long asks(void)
{
	pthread_mutex_lock(&lock);
	asked = 1;
	pthread_cond_signal(&moved);
	while (asked)
		pthread_cond_wait(&moved, &lock);
	return pthread_mutex_unlock(&lock);
}

static void *nothing(void *argument)
{
	return argument;
}

static long number(void) { return syscall(SYS_getppid) == getppid(); }
static long parent(void) { return getppid() > 0; }
static long yield(void) { return sched_yield(); }
static long in(void) { char byte; return read(zero, &byte, 1) + byte; }
static long out(void) { return write(null, "x", 1); }
static long seek(void) { return lseek(zero, 0, SEEK_SET); }
static long flags(void) { return fcntl(zero, F_GETFL) & O_ACCMODE; }
static long open_close(void) { int fd = open("/dev/null", O_RDONLY); return fd > 0 && !close(fd); }
static long look(void) { struct stat st; return !stat("/dev/null", &st) && S_ISCHR(st.st_mode); }
static long look_at(void) { struct stat st; return !fstat(null, &st) && S_ISCHR(st.st_mode); }
static long may(void) { return access("/dev/null", R_OK); }
static long polls(void) { struct pollfd end = { .fd = ends[0], .events = POLLIN }; return poll(&end, 1, 0); }
static long waits(void) { struct epoll_event event; return epoll_wait(epoll, &event, 1, 0); }
static long rests(void) { struct timespec none = { 0, 0 }; return nanosleep(&none, NULL); }
static long passes(void) { char byte; return send(ends[1], "x", 1, 0) + recv(ends[0], &byte, 1, 0); }

static long blocks(void)
{
	sigset_t set, old;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, &old);
	return sigismember(&old, SIGUSR1) + sigprocmask(SIG_SETMASK, &old, NULL);
}

static long handles(void)
{
	struct sigaction old;

	return !sigaction(SIGUSR1, NULL, &old) && old.sa_handler == SIG_DFL;
}

static long threads(void)
{
	pthread_t thread;
	void *result = NULL;

	return !pthread_create(&thread, NULL, nothing, &zero) && !pthread_join(thread, &result) && result == &zero;
}

static void *cancelled(void *unused)
{
	char byte;

	sem_post(&there);
	read(ends[0], &byte, 1);
	return unused;
}

/* A library that looks where a signal has come upon the thread must find it before the call, or behind it. */
static long cancels(void)
{
	pthread_t thread;
	void *result = NULL;

	pthread_create(&thread, NULL, cancelled, NULL);
	sem_wait(&there);
	return !pthread_cancel(thread) && !pthread_join(thread, &result) && result == PTHREAD_CANCELED;
}

static const struct {
	const char *name;
	long (*call)(void);
} kinds[] = {
	{ "syscall", number },	    { "getppid", parent },   { "sched_yield", yield }, { "read", in },
	{ "write", out },	    { "lseek", seek },	     { "fcntl", flags },       { "open, close", open_close },
	{ "stat", look },	    { "fstat", look_at },    { "access", may },	       { "poll", polls },
	{ "epoll_wait", waits },    { "nanosleep", rests },  { "send, recv", passes }, { "sigprocmask", blocks },
	{ "sigaction", handles },   { "pthread_cond_wait", asks },
	{ "pthread_create", threads }, { "pthread_cancel", cancels },
};

static void once(const char *name, long (*call)(void))
{
	long sum = 0;
	int before;
	pthread_t thread;

	if (call == asks)
		pthread_create(&thread, NULL, answer, NULL);
	before = changed();
	for (int i = 0; i < TURNS; i++)
		sum += call();
	printf("%s: %ld\nrewritten for %s: %d\n", name, sum, name, changed() - before);
	fflush(stdout);
}

int main(void)
{
	zero = open("/dev/zero", O_RDONLY);
	null = open("/dev/null", O_WRONLY);
	epoll = epoll_create1(0);
	if (zero < 0 || null < 0 || epoll < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		abort();
	sem_init(&there, 0, 0);
	find_texts();
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int status = 0;
		pid_t child = fork();

		if (!child) {
			once(kinds[i].name, kinds[i].call);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			abort();
	}
	return 0;
}
