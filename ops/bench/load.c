// The load: many devices on one epoll loop, and the operator who publishes to them, all on one clock.
//
//     load --port P --count N [--channel NAME --fleet NAME --device FORMAT --token FORMAT]
//          --publish-path PATH [--publish-token TOKEN] [--publish-body TEXT]
//
// With --channel each connection is a device of fleetcast.v1.cbor: it says hello, checks that the offsets of its alerts
// are contiguous, and acknowledges cumulatively every 16 alerts or 250 ms after the oldest, as the SDK does. FORMAT has
// one %d, the connection's number. Without --channel it only counts frames: for the floor.
//
// It connects all, says so in one line, then obeys lines on standard input, one JSON line of answer to each:
//
//     burst         publish one alert: from the first byte at any device to the last byte at the last device
//     sequence M    publish M alerts, each when the one before was delivered to all devices
//     settle        wait until every alert is acknowledged and the acknowledgements are sent
//     quit
//
// Anything unforeseen (a status, a close, a gap, a timeout) ends the program with a message.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  OPENING_MAX = 200, // connections between connect() and welcome at one time
  EVENTS_MAX = 1024,
  FRAME_MAX = 65536,
  WINDOW = 32,
  ACK_COUNT = 16,
  ACK_NS = 250 * 1000000,
  TIMEOUT_S = 120,
};
enum state { IDLE, CONNECTING, UPGRADING, GREETING, OPEN };

typedef struct device {
  int fd, number;
  enum state state;
  uint64_t epoch, offset;   // of the last alert
  uint64_t acked;           // offset
  uint64_t ack_due;         // ns; 0: nothing to acknowledge
  uint64_t visit_at;        // ns; when the queue of those who owe an acknowledgement looks at it; 0: not in it
  struct device *ack_next;
  size_t kept;              // bytes of an unfinished frame (or of the answer to the upgrade)
  unsigned char *partial;
} device;

static int epoll, port, count, opening, opened, next_to_open;
static const char *channel, *fleet = "", *device_format = "%d", *token_format = "%d";
static const char *publish_path = "/", *publish_token = "", *publish_body = "";
static device *devices, *ack_first, *ack_last;
static device publisher;
static unsigned char mask[4];
static uint64_t first_byte, last_byte, deliveries, target; // of the alert that is on its way
static uint64_t acks_sent, repeats;
static size_t frame_size;
static int is_answered = 1;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static void send_all(int fd, const void *data, size_t size) {
  if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
    fail("send: %s", strerror(errno));
}

static void watch(device *d, uint32_t what, int operation) {
  struct epoll_event event = {.events = what, .data.ptr = d};
  if (epoll_ctl(epoll, operation, d->fd, &event))
    fail("epoll_ctl: %s", strerror(errno));
}

// --- CBOR (RFC 8949), as much as the messages here need

static size_t head(unsigned char *out, int major, uint64_t value) {
  out[0] = (unsigned char)(major << 5);
  if (value < 24) {
    out[0] |= (unsigned char)value;
    return 1;
  }
  int log = value < 256 ? 0 : value < 65536 ? 1 : value < 1ull << 32 ? 2 : 3;
  out[0] |= (unsigned char)(24 + log);
  for (int i = 0; i < 1 << log; i++)
    out[1 + i] = (unsigned char)(value >> 8 * ((1 << log) - 1 - i));
  return 1 + (1u << log);
}

static size_t text(unsigned char *out, const char *string) {
  size_t size = strlen(string), at = head(out, 3, size);
  memcpy(out + at, string, size);
  return at + size;
}

// Reads a head; *at moves behind it.
static uint64_t item(const unsigned char *data, size_t size, size_t *at, int *major) {
  if (*at >= size)
    fail("CBOR ends early");
  *major = data[*at] >> 5;
  unsigned info = data[(*at)++] & 31;
  if (info < 24)
    return info;
  size_t width = 1u << (info - 24);
  if (info > 27 || *at + width > size)
    fail("CBOR of another form");
  uint64_t value = 0;
  while (width--)
    value = value << 8 | data[(*at)++];
  return value;
}

// --- what a device says

static void say(device *d, const unsigned char *payload, size_t size, int opcode) {
  unsigned char frame[512];
  size_t at = 2;
  frame[0] = (unsigned char)(0x80 | opcode);
  if (size < 126) {
    frame[1] = (unsigned char)(0x80 | size);
  } else {
    if (size + 8 > sizeof frame)
      fail("a message of %zu bytes", size);
    frame[1] = 0x80 | 126;
    frame[2] = (unsigned char)(size >> 8);
    frame[3] = (unsigned char)size;
    at = 4;
  }
  memcpy(frame + at, mask, 4);
  at += 4;
  for (size_t i = 0; i < size; i++)
    frame[at + i] = payload[i] ^ mask[i & 3];
  send_all(d->fd, frame, at + size);
}

static void say_hello(device *d) {
  unsigned char m[64];
  size_t at = head(m, 5, 4);
  at += head(m + at, 0, 0), at += head(m + at, 0, 1); // hello
  at += head(m + at, 0, 1), at += head(m + at, 0, 1); // protocol
  at += head(m + at, 0, 2), at += head(m + at, 0, WINDOW);
  at += head(m + at, 0, 3), at += head(m + at, 2, 16); // boot_id
  memset(m + at, 0, 16);
  memcpy(m + at, &d->number, sizeof d->number);
  say(d, m, at + 16, 2);
}

static void acknowledge(device *d) {
  unsigned char m[256];
  size_t at = head(m, 5, 2);
  at += head(m + at, 0, 0), at += head(m + at, 0, 2); // ack
  at += head(m + at, 0, 1), at += head(m + at, 5, 1); // positions
  at += text(m + at, channel);
  at += head(m + at, 4, 2), at += head(m + at, 0, d->epoch), at += head(m + at, 0, d->offset);
  say(d, m, at, 2);
  d->acked = d->offset;
  d->ack_due = 0;
  acks_sent++;
}

// Those who owe an acknowledgement, by when to look at them. One who has paid meanwhile drops out; one who owes again
// by then goes to the end.
static void owe(device *d) {
  d->visit_at = d->ack_due;
  d->ack_next = NULL;
  if (ack_last)
    ack_last->ack_next = d;
  else
    ack_first = d;
  ack_last = d;
}

static void acknowledge_due(uint64_t t) {
  while (ack_first && ack_first->visit_at <= t) {
    device *d = ack_first;
    ack_first = d->ack_next;
    if (!ack_first)
      ack_last = NULL;
    d->visit_at = 0;
    if (d->ack_due > t)
      owe(d);
    else if (d->ack_due)
      acknowledge(d);
  }
}

// --- what a device hears

static void delivered(size_t size, uint64_t t) {
  deliveries++;
  frame_size = size;
  last_byte = t;
}

static void hear_alert(device *d, const unsigned char *m, size_t size, size_t at, uint64_t entries, size_t frame,
                       uint64_t t) {
  uint64_t epoch = 0, offset = 0;
  for (; entries; entries--) {
    int major;
    uint64_t key = item(m, size, &at, &major), value = item(m, size, &at, &major);
    if (key == 1 && (value != strlen(channel) || memcmp(m + at, channel, value)))
      fail("an alert of another channel");
    if (major == 2 || major == 3)
      at += value;
    if (key == 2)
      epoch = value;
    if (key == 3)
      offset = value;
  }
  if (d->offset && epoch == d->epoch && offset <= d->offset) {
    repeats++; // known already: it was sent again before the acknowledgement was read
    acknowledge(d);
    return;
  }
  if (d->offset && (offset != d->offset + 1 || epoch != d->epoch))
    fail("device %d: offset %llu after %llu", d->number, (unsigned long long)offset, (unsigned long long)d->offset);
  if (!d->offset)
    d->acked = offset - 1;
  d->epoch = epoch;
  d->offset = offset;
  delivered(frame, t);
  if (d->offset - d->acked >= ACK_COUNT)
    acknowledge(d);
  else if (!d->ack_due) {
    d->ack_due = t + ACK_NS;
    if (!d->visit_at)
      owe(d);
  }
}

static void hear(device *d, const unsigned char *m, size_t size, size_t frame, uint64_t t) {
  if (!channel) {
    delivered(frame, t);
    return;
  }
  size_t at = 0;
  int major;
  uint64_t entries = item(m, size, &at, &major);
  if (major != 5 || item(m, size, &at, &major) != 0)
    fail("not a message");
  uint64_t type = item(m, size, &at, &major);
  if (type == 9)
    hear_alert(d, m, size, at, entries - 1, frame, t);
  else if (type == 8 && d->state == GREETING)
    d->state = OPEN, opening--, opened++;
  else if (type == 11 || type == 12 || type == 17 || type == 18)
    fail("device %d: message of type %d", d->number, (int)type);
}

// Returns how many bytes were used up.
static size_t frames(device *d, const unsigned char *data, size_t size, uint64_t t) {
  size_t at = 0;
  while (size - at >= 2) {
    const unsigned char *f = data + at;
    size_t length = f[1] & 127, start = 2;
    if (length == 126) {
      if (size - at < 4)
        break;
      length = (size_t)f[2] << 8 | f[3];
      start = 4;
    } else if (length == 127) {
      fail("a frame of more than 64 KiB");
    }
    int opcode = f[0] & 15;
    if (opcode == 2 && !first_byte && d->state == OPEN)
      first_byte = t;
    if (size - at < start + length)
      break;
    if (opcode == 8)
      fail("device %d: closed with %d", d->number, length >= 2 ? f[start] << 8 | f[start + 1] : 1005);
    if (opcode == 9)
      say(d, f + start, length, 10);
    else if (opcode == 2)
      hear(d, f + start, length, start + length, t);
    at += start + length;
  }
  return at;
}

static size_t upgraded(device *d, const unsigned char *data, size_t size) {
  const unsigned char *end = memmem(data, size, "\r\n\r\n", 4);
  if (!end)
    return 0;
  if (size < 12 || memcmp(data + 9, "101", 3))
    fail("device %d: %.*s", d->number, (int)size, (const char *)data);
  if (channel) {
    d->state = GREETING;
    say_hello(d);
  } else {
    d->state = OPEN, opening--, opened++;
  }
  return (size_t)(end - data) + 4;
}

static void receive(device *d) {
  static unsigned char buffer[2 * FRAME_MAX];
  size_t size = d->kept;
  if (size)
    memcpy(buffer, d->partial, size);
  ssize_t got = recv(d->fd, buffer + size, sizeof buffer - size, 0);
  if (got <= 0) {
    if (got < 0 && errno == EAGAIN)
      return;
    fail("device %d: connection lost", d->number);
  }
  uint64_t t = now();
  size += (size_t)got;
  size_t used = d->state == UPGRADING ? upgraded(d, buffer, size) : 0;
  if (d->state != UPGRADING)
    used += frames(d, buffer + used, size - used, t);
  if (size - used > FRAME_MAX)
    fail("device %d: more than a frame", d->number);
  d->kept = size - used;
  if (d->kept) {
    d->partial = realloc(d->partial, d->kept);
    memcpy(d->partial, buffer + used, d->kept);
  }
}

// --- connections

static int dial(int is_blocking) {
  int fd = socket(AF_INET, SOCK_STREAM | (is_blocking ? 0 : SOCK_NONBLOCK), 0), on = 1;
  if (fd < 0)
    fail("socket: %s", strerror(errno));
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
    fail("connect: %s", strerror(errno));
  return fd;
}

static void open_next(void) {
  device *d = &devices[next_to_open];
  d->number = next_to_open++;
  d->fd = dial(0);
  d->state = CONNECTING;
  opening++;
  watch(d, EPOLLOUT, EPOLL_CTL_ADD);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void upgrade(device *d) {
  char request[2048], device_id[256], token[512];
  snprintf(device_id, sizeof device_id, device_format, d->number);
  snprintf(token, sizeof token, token_format, d->number);
  int size = snprintf(request, sizeof request,
                      "GET /v1/device/connect HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                      "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: fleetcast.v1.cbor\r\n"
                      "Authorization: Bearer %s\r\nFleetcast-Fleet: %s\r\nFleetcast-Device: %s\r\n\r\n",
                      token, fleet, device_id);
  send_all(d->fd, request, (size_t)size);
  d->state = UPGRADING;
  watch(d, EPOLLIN, EPOLL_CTL_MOD);
}
#pragma GCC diagnostic pop

static void publish(void) {
  char request[FRAME_MAX];
  int size = snprintf(request, sizeof request,
                      "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                      "Authorization: Bearer %s\r\nContent-Length: %zu\r\n\r\n%s",
                      publish_path, publish_token, strlen(publish_body), publish_body);
  if (size < 0 || (size_t)size >= sizeof request)
    fail("a body of that size is not published");
  first_byte = last_byte = 0;
  target = deliveries + (uint64_t)count;
  is_answered = 0;
  if (publisher.state != OPEN) {
    publisher.fd = dial(1);
    publisher.state = OPEN;
    watch(&publisher, EPOLLIN, EPOLL_CTL_ADD);
  }
  send_all(publisher.fd, request, (size_t)size);
}

static void answered(void) {
  static char answer[FRAME_MAX];
  ssize_t size = recv(publisher.fd, answer + publisher.kept, sizeof answer - 1 - publisher.kept, 0);
  if (size <= 0) {
    if (!is_answered)
      fail("publish: connection lost");
    close(publisher.fd); // kept alive no longer; the next publish dials again
    publisher.state = IDLE;
    return;
  }
  publisher.kept += (size_t)size;
  answer[publisher.kept] = 0;
  const char *end = strstr(answer, "\r\n\r\n");
  if (!end)
    return;
  if (memcmp(answer + 9, "20", 2))
    fail("publish: %s", answer);
  const char *length = strcasestr(answer, "\r\ncontent-length:");
  if (length && length < end && answer + publisher.kept < end + 4 + atol(length + 17))
    return;
  publisher.kept = 0;
  is_answered = 1;
}

// --- the loop

static void turn(int timeout_ms) {
  struct epoll_event events[EVENTS_MAX];
  int found = epoll_wait(epoll, events, EVENTS_MAX, ack_first && (timeout_ms < 0 || timeout_ms > 5) ? 5 : timeout_ms);
  for (int i = 0; i < found; i++) {
    device *d = events[i].data.ptr;
    if (d == &publisher)
      answered();
    else if (d && d->state == CONNECTING)
      upgrade(d);
    else if (d)
      receive(d);
  }
  if (ack_first)
    acknowledge_due(now());
}

static void deliver(void) {
  uint64_t end = now() + TIMEOUT_S * 1000000000ull;
  publish();
  while (deliveries < target || !is_answered) {
    turn(1000);
    if (now() > end)
      fail("%d of %d deliveries after %d s", count - (int)(target - deliveries), count, TIMEOUT_S);
  }
  if (deliveries != target)
    fail("more deliveries than devices");
}

static void burst(void) {
  uint64_t begun = now();
  deliver();
  printf("{\"burst_ms\": %.3f, \"first_byte_ms\": %.3f, \"frame_size\": %zu}\n", (double)(last_byte - first_byte) / 1e6,
         (double)(first_byte - begun) / 1e6, frame_size);
}

static void sequence(int alerts) {
  uint64_t begun = now(), acks = acks_sent;
  for (int i = 0; i < alerts; i++)
    deliver();
  double seconds = (double)(now() - begun) / 1e9;
  printf("{\"deliveries_per_s\": %.1f, \"seconds\": %.3f, \"acks\": %llu}\n", (double)alerts * count / seconds, seconds,
         (unsigned long long)(acks_sent - acks));
}

static void settle(void) {
  while (ack_first)
    turn(5);
  printf("{\"acks\": %llu, \"repeats\": %llu, \"offset\": %llu}\n", (unsigned long long)acks_sent,
         (unsigned long long)repeats, (unsigned long long)devices[0].offset);
}

static void obey(void) {
  char line[128];
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event))
    fail("standard input: %s", strerror(errno));
  fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
  for (;;) {
    fflush(stdout);
    ssize_t size;
    while ((size = read(0, line, sizeof line - 1)) < 0 && errno == EAGAIN)
      turn(-1);
    line[size > 0 ? size : 0] = 0;
    if (size <= 0 || !strncmp(line, "quit", 4))
      return;
    if (!strncmp(line, "burst", 5))
      burst();
    else if (!strncmp(line, "sequence ", 9))
      sequence(atoi(line + 9));
    else if (!strncmp(line, "settle", 6))
      settle();
    else
      fail("what is: %s", line);
  }
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, NULL, 'p'},         {"count", 1, NULL, 'n'},         {"channel", 1, NULL, 'c'},
      {"fleet", 1, NULL, 'f'},        {"device", 1, NULL, 'd'},        {"token", 1, NULL, 't'},
      {"publish-path", 1, NULL, 'P'}, {"publish-token", 1, NULL, 'T'}, {"publish-body", 1, NULL, 'B'},
      {NULL, 0, NULL, 0},
  };
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'n': count = atoi(optarg); break;
      case 'c': channel = optarg; break;
      case 'f': fleet = optarg; break;
      case 'd': device_format = optarg; break;
      case 't': token_format = optarg; break;
      case 'P': publish_path = optarg; break;
      case 'T': publish_token = optarg; break;
      case 'B': publish_body = optarg; break;
      default: return 2;
    }
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (!port || count < 1 || (rlim_t)count + 16 > files.rlim_max)
    fail("--port and --count are needed, and fewer devices than %llu files", (unsigned long long)files.rlim_max);
  if (channel && strlen(channel) > 128)
    fail("a channel's name is at most 128 characters");

  epoll = epoll_create1(0);
  devices = calloc((size_t)count, sizeof *devices);
  uint64_t begun = now(), end = begun + TIMEOUT_S * 1000000000ull;
  memcpy(mask, &begun, sizeof mask);
  while (opened < count) {
    while (opening < OPENING_MAX && next_to_open < count)
      open_next();
    turn(1000);
    if (now() > end)
      fail("%d of %d connections after %d s", opened, count, TIMEOUT_S);
  }
  printf("{\"opened\": %d, \"connections_per_s\": %.1f}\n", opened, opened / ((double)(now() - begun) / 1e9));
  obey();
  return 0;
}
