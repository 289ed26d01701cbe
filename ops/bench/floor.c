// The floor: what the kernel allows a single thread that fans out over WebSockets, and nothing else.
//
//     floor           listens on a free port of 127.0.0.1 and prints it
//
// GET anything upgrades and subscribes; POST anything sends its body as one binary frame to all subscribers, with one
// send() each, and answers 204 after the last. No identity, no log, no acknowledgements; what subscribers say is dropped.
// One thread, one epoll. A subscriber that cannot take a frame at once ends the program: a floor that loses is none.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FD_MAX = 32768, BODY_MAX = 65536, EVENTS_MAX = 512, BACKLOG = 4096 };

static int subscribers[FD_MAX], subscriber_count;
static char is_subscriber[FD_MAX];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void send_all(int fd, const void *data, size_t size) {
  if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
    fail("send");
}

static void subscribe(int fd) {
  // The key of every client of ours is the one of RFC 6455 1.2, so its answer is too.
  static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
  send_all(fd, answer, sizeof answer - 1);
  is_subscriber[fd] = 1;
  subscribers[subscriber_count++] = fd;
}

static void publish(int fd, const char *body, size_t size) {
  static const char answer[] = "HTTP/1.1 204 No Content\r\n\r\n";
  static unsigned char frame[BODY_MAX + 4];
  size_t head = 2;
  frame[0] = 0x82;
  if (size < 126) {
    frame[1] = (unsigned char)size;
  } else {
    frame[1] = 126;
    frame[2] = (unsigned char)(size >> 8);
    frame[3] = (unsigned char)size;
    head = 4;
  }
  memcpy(frame + head, body, size);
  for (int i = 0; i < subscriber_count; i++)
    send_all(subscribers[i], frame, head + size);
  send_all(fd, answer, sizeof answer - 1);
}

static void leave(int fd) {
  for (int i = 0; is_subscriber[fd] && i < subscriber_count; i++)
    if (subscribers[i] == fd) {
      subscribers[i] = subscribers[--subscriber_count];
      break;
    }
  is_subscriber[fd] = 0;
  close(fd);
}

static void request(int fd) {
  static char buffer[BODY_MAX + 4096];
  ssize_t size = recv(fd, buffer, sizeof buffer - 1, 0);
  if (size <= 0) {
    if (size == 0 || errno != EAGAIN)
      leave(fd);
    return;
  }
  if (is_subscriber[fd])
    return;
  buffer[size] = 0;
  if (buffer[0] == 'G') {
    subscribe(fd);
    return;
  }
  // The one publisher writes a request with one send() and waits for the answer: it comes whole.
  const char *body = strstr(buffer, "\r\n\r\n"), *length = strcasestr(buffer, "\r\ncontent-length:");
  if (!body || !length || buffer + size != body + 4 + atol(length + 17)) {
    fputs("a request that did not come whole\n", stderr);
    exit(1);
  }
  publish(fd, body + 4, (size_t)(buffer + size - (body + 4)));
}

int main(void) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max < FD_MAX ? files.rlim_max : FD_MAX;
  setrlimit(RLIMIT_NOFILE, &files);

  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, BACKLOG))
    fail("listen");
  getsockname(listener, (struct sockaddr *)&address, &size);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);

  int epoll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS_MAX];
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd != listener) {
        request(fd);
        continue;
      }
      while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FD_MAX)
          fail("too many connections");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        event.events = EPOLLIN;
        event.data.fd = fd;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
      }
    }
  }
}
