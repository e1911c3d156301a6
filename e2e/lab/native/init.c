// What stands where the supervisor stands when there is none: a small init, as many images have one. It keeps a secret of
// its own, SUPERVISOR_SECRET, which the program that it starts is not given; it passes signals on and reaps.
//
//   init COMMAND [ARGUMENT...]

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t child;

static void pass(int signal) { kill(child, signal); }

int main(int n, char **word) {
	if (n < 2)
		return 2;
	child = fork();
	if (child < 0)
		return 1;
	if (child == 0) {
		unsetenv("SUPERVISOR_SECRET");
		execvp(word[1], word + 1);
		perror(word[1]);
		_exit(127);
	}
	signal(SIGTERM, pass);
	signal(SIGINT, pass);
	for (;;) {
		int status;
		pid_t ended = wait(&status);
		if (ended == child)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		if (ended < 0 && errno != EINTR)
			return 1;
	}
}
