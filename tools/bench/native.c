/*
 * Reference loops for rcdrv. Volatile makes each access one load or one store of 32 bits, like an
 * access of rcdrv. Times are in nanoseconds.
 */
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Store to one word, count times. */
uint64_t stores(volatile uint32_t *word, uint32_t value, uint64_t count)
{
	uint64_t start = now();

	for (uint64_t i = 0; i < count; i++)
		*word = value;
	return now() - start;
}

uint64_t loads(volatile uint32_t *word, uint64_t count)
{
	uint64_t start = now();

	for (uint64_t i = 0; i < count; i++)
		(void)*word;
	return now() - start;
}

/* Write all words of a BAR and read them back; add the number of differing words to *wrong. */
uint64_t fill_and_verify(volatile uint32_t *words, uint32_t value, uint64_t count, uint64_t *wrong)
{
	uint64_t start = now();

	for (uint64_t i = 0; i < count; i++)
		words[i] = value;
	for (uint64_t i = 0; i < count; i++)
		*wrong += words[i] != value;
	return now() - start;
}

enum { STATUS = 0x08 / 4, IRQ_TYPE = 0x24 / 4, IRQ_NUMBER = 0x28 / 4 };
enum { IRQ_RAISED = 1 << 6, DOORBELL_SUCCESS = 1 << 9, TYPE_MSI = 1 };
enum { SLEEP, SPIN, POLL };

enum { COMMAND = 0x04 / 4, DB_BAR = 0x34 / 4, DB_OFFSET = 0x38 / 4, DB_DATA = 0x3c / 4 };
enum { ENABLE = 1 << 6, ENABLED = 1 << 10, DISABLED = 1 << 12 };

/*
 * An endpoint as fast as memory, until *eventfd is -2. Its doorbell is in BAR1, with a data word of
 * 1. It raises no interrupts while *eventfd is -1.
 */
void endpoint(volatile uint32_t *regs, volatile uint32_t *doorbell, volatile int *eventfd)
{
	const uint64_t one = 1;
	uint32_t command, status;

	while (*eventfd != -2) {
		command = regs[COMMAND];
		if (command) {
			regs[COMMAND] = 0;
			regs[DB_BAR] = command == ENABLE ? 1 : 0xffffffff;
			regs[DB_OFFSET] = 0;
			regs[DB_DATA] = 1;
			status = command == ENABLE ? ENABLED : DISABLED;
		} else if (*doorbell) {
			*doorbell = 0;
			status = DOORBELL_SUCCESS;
		} else {
			continue;
		}
		regs[STATUS] = status | IRQ_RAISED;
		if (*eventfd >= 0 && write(*eventfd, &one, sizeof(one)) < 0)
			return;
	}
}

/* Return 0 if vector 1 fires, or STATUS has the answer, within a second. */
static int wait_answer(volatile uint32_t *regs, int eventfd, int how, uint64_t start)
{
	const uint32_t answer = IRQ_RAISED | DOORBELL_SUCCESS;
	struct pollfd wanted = { .fd = eventfd, .events = POLLIN };
	uint64_t fired;

	do {
		if (how == POLL && (regs[STATUS] & answer) == answer)
			return 0;
		if (how == SLEEP && poll(&wanted, 1, 1000) <= 0)
			return -1;
		if (how != POLL && read(eventfd, &fired, sizeof(fired)) == sizeof(fired))
			return 0;
	} while (now() - start < 1000000000ull);
	return -1;
}

/* Ring an enabled doorbell; store the latency of each ring. Return the number without an answer. */
uint64_t rings(volatile uint32_t *doorbell, uint32_t data, volatile uint32_t *regs, int eventfd,
	       int how, uint64_t *latencies, uint64_t count)
{
	uint64_t start, left, missed = 0;

	for (uint64_t i = 0; i < count; i++) {
		regs[IRQ_NUMBER] = 1;
		regs[IRQ_TYPE] = TYPE_MSI;
		regs[STATUS] = 0;
		while (read(eventfd, &left, sizeof(left)) > 0)
			;
		start = now();
		*doorbell = data;
		missed += wait_answer(regs, eventfd, how, start) != 0;
		latencies[i] = now() - start;
		missed += !(regs[STATUS] & DOORBELL_SUCCESS);
	}
	return missed;
}

/* Receive a message, with a bounded wait as in rcdrv. */
static int take(int fd, char *message, size_t size)
{
	struct pollfd wanted = { .fd = fd, .events = POLLIN };

	return poll(&wanted, 1, 1000) == 1 && recv(fd, message, size, 0) == (ssize_t)size;
}

/*
 * Exchange messages with another process over a socket, with the sizes of a vfio-user register
 * read. Store the latency of each. Return the number without a reply.
 */
uint64_t echo(uint64_t *latencies, uint64_t count)
{
	enum { REQUEST = 32, ANSWER = 36 };
	char message[ANSWER] = { 0 };
	uint64_t start, missed = 0;
	int fds[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
		return count;
	child = fork();
	if (!child) {
		close(fds[0]);
		while (take(fds[1], message, REQUEST))
			if (send(fds[1], message, ANSWER, MSG_NOSIGNAL) < 0)
				break;
		_exit(0);
	}
	close(fds[1]);
	for (uint64_t i = 0; i < count; i++) {
		start = now();
		missed += send(fds[0], message, REQUEST, MSG_NOSIGNAL) != REQUEST ||
			  !take(fds[0], message, ANSWER);
		latencies[i] = now() - start;
	}
	close(fds[0]);
	waitpid(child, 0, 0);
	return missed;
}
