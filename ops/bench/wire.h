// What the load programs share: time, failure, latencies, sockets, CBOR (RFC 8949) and client frames (RFC 6455), as much as
// fleetcast.v1 needs of each. Included once by each program.
#include <arpa/inet.h>
#include <errno.h>
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

enum { FILES_BESIDE = 16, WINDOW = 32, HELLO_SIZE_MAX = 512 };

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

// --- latencies, in microseconds

static uint32_t *latencies;
static size_t latency_count, latency_room;

static void measure_latencies(size_t room) {
  latencies = realloc(latencies, room * sizeof *latencies);
  latency_room = room;
  latency_count = 0;
}

static void add_latency(uint64_t ns) {
  if (latency_count < latency_room)
    latencies[latency_count++] = (uint32_t)(ns / 1000);
}

static int by_value(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static void sort_latencies(void) { qsort(latencies, latency_count, sizeof *latencies, by_value); }

static double latency_ms(double share) {
  return latency_count ? latencies[(size_t)(share * (double)(latency_count - 1))] / 1e3 : 0;
}

// --- sockets

static void open_files(int count) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if ((rlim_t)count + FILES_BESIDE > files.rlim_max)
    fail("%d devices need more than the %llu files that a process may open", count, (unsigned long long)files.rlim_max);
}

static int dial(int port, int is_blocking) {
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

// --- CBOR

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

// Moves *at behind a whole item.
static void skip(const unsigned char *data, size_t size, size_t *at) {
  int major;
  uint64_t value = item(data, size, at, &major);
  if (major == 2 || major == 3) {
    if (value > size - *at)
      fail("CBOR ends early");
    *at += value;
  } else if (major == 4 || major == 5) {
    for (uint64_t left = major == 4 ? value : 2 * value; left; left--)
      skip(data, size, at);
  }
}

// --- fleetcast.v1

enum { HELLO = 1, ACK, WELCOME = 8, ALERT, ADVANCE = 11, LOST, GOAWAY = 17, REFUSED };

typedef struct {
  uint64_t epoch, offset; // epoch 0: none yet
} position;

static size_t positions(unsigned char *out, const char *channel, position at) {
  size_t size = head(out, 5, 1);
  size += text(out + size, channel);
  size += head(out + size, 4, 2), size += head(out + size, 0, at.epoch);
  return size + head(out + size, 0, at.offset);
}

// The boot id is the device's number: it never restarts.
static size_t hello(unsigned char *out, const char *channel, int number, position at) {
  size_t size = head(out, 5, at.epoch ? 5 : 4);
  size += head(out + size, 0, 0), size += head(out + size, 0, HELLO);
  size += head(out + size, 0, 1), size += head(out + size, 0, 1); // protocol
  size += head(out + size, 0, 2), size += head(out + size, 0, WINDOW);
  size += head(out + size, 0, 3), size += head(out + size, 2, 16);
  memset(out + size, 0, 16);
  memcpy(out + size, &number, sizeof number);
  size += 16;
  if (at.epoch)
    size += head(out + size, 0, 4), size += positions(out + size, channel, at);
  return size;
}

typedef struct {
  const unsigned char *data;
  size_t size, at;
  uint64_t type, entries; // entries left to read
} message;

// Opens the message that begins at `at`.
static message opened_at(const unsigned char *data, size_t size, size_t at) {
  message m = {.data = data, .size = size, .at = at};
  int major;
  m.entries = item(data, size, &m.at, &major);
  if (major != 5 || !m.entries || item(data, size, &m.at, &major) != 0)
    fail("not a message");
  m.type = item(data, size, &m.at, &major);
  m.entries--;
  return m;
}

static uint64_t next_key(message *m) {
  int major;
  m->entries--;
  return item(m->data, m->size, &m->at, &major);
}

static position read_position(message *m) {
  int major;
  if (item(m->data, m->size, &m->at, &major) != 2 || major != 4)
    fail("not a position");
  position at;
  at.epoch = item(m->data, m->size, &m->at, &major);
  at.offset = item(m->data, m->size, &m->at, &major);
  return at;
}

// Returns the position of an alert of `channel`, and moves behind the alert.
static position read_alert(message *m, const char *channel) {
  position at = {0};
  int major;
  while (m->entries) switch (next_key(m)) {
      case 1: {
        uint64_t length = item(m->data, m->size, &m->at, &major);
        if (length != strlen(channel) || length > m->size - m->at || memcmp(m->data + m->at, channel, length))
          fail("an alert of another channel");
        m->at += length;
        break;
      }
      case 2: at.epoch = item(m->data, m->size, &m->at, &major); break;
      case 3: at.offset = item(m->data, m->size, &m->at, &major); break;
      default: skip(m->data, m->size, &m->at);
    }
  return at;
}

typedef struct {
  position head; // of the channel
  uint64_t spread_s;
  const unsigned char *ticket;
  size_t ticket_size;
} welcome;

static welcome read_welcome(message *m, const char *channel) {
  welcome w = {0};
  int major;
  while (m->entries) switch (next_key(m)) {
      case 2:
        for (uint64_t left = item(m->data, m->size, &m->at, &major); left; left--) {
          uint64_t length = item(m->data, m->size, &m->at, &major);
          int is_it = length == strlen(channel) && !memcmp(m->data + m->at, channel, length);
          m->at += length;
          position at = read_position(m);
          if (is_it)
            w.head = at;
        }
        break;
      case 4: w.spread_s = item(m->data, m->size, &m->at, &major); break;
      case 6:
        w.ticket_size = item(m->data, m->size, &m->at, &major);
        w.ticket = m->data + m->at;
        m->at += w.ticket_size;
        break;
      default: skip(m->data, m->size, &m->at);
    }
  if (!w.head.epoch)
    fail("welcome does not name the channel %s", channel);
  return w;
}
