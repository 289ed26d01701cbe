// The long-poll load: many devices, each with a poll that waits, and the operator who publishes to them.
//
//     polls --port P --count N --channel NAME --fleet NAME --device FORMAT --token FORMAT
//           --publish-path PATH --publish-token TOKEN --publish-body TEXT [--timeout SECONDS]
//
// FORMAT has one %d, the device's number. All say hello and poll; then one line says so, and it obeys:
//
//     wave M        M rounds: publish one alert; each device that gets it polls again at once, which acknowledges it.
//                   A round ends when all have it and all polls of the next round are on their way
//     quit
//
// A device whose offsets are not contiguous has lost alerts: counted, as are the statuses of all answers. One that is
// answered 503 polls again after Retry-After. Latencies are from the publish to an answer's last byte.
#define _GNU_SOURCE
#include "wire.h"

#include <getopt.h>
#include <stdbool.h>

enum { EVENTS_MAX = 1024, ANSWER_MAX = 65536, CURSOR_MAX = 2200, OPENING_MAX = 200 };
enum state { IDLE, CONNECTING, GREETING, POLLING, AWAY };

typedef struct {
  int fd, number;
  enum state state;
  position at;
  uint64_t wake_at; // ns; AWAY until then
  char cursor[128];
  size_t kept;
  char *partial;
} device;

static int epoll, port, count, greeting, ready, timeout_s = 120;
static const char *channel, *fleet, *device_format, *token_format;
static const char *publish_path, *publish_token, *publish_body;
static device *devices, publisher;
static uint64_t published, goal;
static int behind; // devices whose offset is below the goal
static uint64_t lost_alerts, answers_200, answers_204, answers_503, answers_5xx, answers_other;
static bool is_answered = true;

static void send_all(int fd, const void *data, size_t size) {
  if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
    fail("send: %s", strerror(errno));
}

static void watch(device *d, uint32_t what, int operation) {
  struct epoll_event event = {.events = what, .data.ptr = d};
  if (epoll_ctl(epoll, operation, d->fd, &event))
    fail("epoll_ctl: %s", strerror(errno));
}

// --- what a device says

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static size_t identity(const device *d, char *out, size_t room) {
  char device_id[256], token[512];
  snprintf(device_id, sizeof device_id, device_format, d->number);
  snprintf(token, sizeof token, token_format, d->number);
  return (size_t)snprintf(out, room,
                          "Host: 127.0.0.1\r\nAuthorization: Bearer %s\r\nFleetcast-Fleet: %s\r\n"
                          "Fleetcast-Device: %s\r\n",
                          token, fleet, device_id);
}
#pragma GCC diagnostic pop

static void greet(device *d) {
  unsigned char body[HELLO_SIZE_MAX];
  char request[4096], who[2048];
  size_t body_size = hello(body, channel, d->number, d->at);
  identity(d, who, sizeof who);
  int size = snprintf(request, sizeof request - sizeof body,
                      "POST /v1/device/hello HTTP/1.1\r\n%sContent-Type: application/cbor\r\n"
                      "Content-Length: %zu\r\n\r\n",
                      who, body_size);
  memcpy(request + size, body, body_size);
  send_all(d->fd, request, (size_t)size + body_size);
  d->state = GREETING;
}

static void poll_again(device *d) {
  char request[4096], who[2048];
  identity(d, who, sizeof who);
  int size = snprintf(request, sizeof request, "GET /v1/device/messages?wait=55 HTTP/1.1\r\n%s%s%s%s\r\n", who,
                      *d->cursor ? "If-None-Match: " : "", d->cursor, *d->cursor ? "\r\n" : "");
  send_all(d->fd, request, (size_t)size);
  d->state = POLLING;
}

// --- what a device is answered

static void take(device *d, position at) {
  if (at.epoch != d->at.epoch)
    fail("device %d: an alert of epoch %llu", d->number, (unsigned long long)at.epoch);
  if (at.offset <= d->at.offset)
    return; // once more, because the answer before was not acknowledged
  lost_alerts += at.offset - d->at.offset - 1;
  if (d->at.offset < goal && at.offset >= goal)
    behind--;
  d->at = at;
}

static void hear(device *d, const unsigned char *body, size_t size) {
  size_t at = 0;
  int major;
  uint64_t left = item(body, size, &at, &major);
  if (major != 4)
    fail("device %d: not a batch", d->number);
  for (; left; left--) {
    message m = opened_at(body, size, at);
    if (m.type == ALERT) {
      take(d, read_alert(&m, channel));
      at = m.at;
    } else if (m.type == WELCOME) {
      position found = read_welcome(&m, channel).head;
      if (!d->at.epoch)
        d->at = found;
      at = m.at;
    } else {
      fail("device %d: message of type %d", d->number, (int)m.type);
    }
  }
}

static void wait_for(device *d, const char *head_) {
  const char *retry = strcasestr(head_, "\r\nretry-after:");
  if (!retry)
    fail("503 without Retry-After: %s", head_);
  answers_503++;
  d->state = AWAY;
  d->wake_at = now() + strtoull(retry + 14, NULL, 10) * 1000000000ull;
}

static void answered(device *d, char *answer, size_t head_size, size_t body_size, uint64_t t) {
  int status = atoi(answer + 9);
  enum state was = d->state;
  if (status == 503) {
    wait_for(d, answer);
    return;
  }
  if (status >= 500) {
    answers_5xx++;
  } else if (status == 200) {
    const char *etag = strcasestr(answer, "\r\netag: ");
    if (etag)
      sscanf(etag + 8, "%127[^\r]", d->cursor);
    hear(d, (const unsigned char *)answer + head_size, body_size);
    if (was == POLLING) {
      answers_200++;
      add_latency(t - published);
    }
  } else if (status == 204) {
    answers_204++;
  } else {
    answers_other++;
  }
  if (was == GREETING) {
    if (status != 200)
      fail("device %d: %s", d->number, answer);
    greeting--, ready++;
  }
  poll_again(d);
}

static bool has_all(const char *answer, size_t size, size_t *head_size, size_t *body_size) {
  const char *end = memmem(answer, size, "\r\n\r\n", 4);
  if (!end)
    return false;
  const char *length = strcasestr(answer, "\r\ncontent-length:");
  *head_size = (size_t)(end - answer) + 4;
  *body_size = length && length < end ? strtoull(length + 17, NULL, 10) : 0;
  return size >= *head_size + *body_size;
}

static void receive(device *d) {
  static char buffer[ANSWER_MAX + 1];
  size_t size = d->kept, head_size, body_size;
  if (size)
    memcpy(buffer, d->partial, size);
  ssize_t got = recv(d->fd, buffer + size, ANSWER_MAX - size, 0);
  if (got <= 0) {
    if (got < 0 && errno == EAGAIN)
      return;
    fail("device %d: connection lost", d->number);
  }
  size += (size_t)got;
  buffer[size] = 0;
  d->kept = 0;
  if (has_all(buffer, size, &head_size, &body_size)) {
    if (size != head_size + body_size)
      fail("device %d: more than an answer", d->number);
    if (d != &publisher) {
      answered(d, buffer, head_size, body_size, now());
      return;
    }
    if (memcmp(buffer + 9, "20", 2))
      fail("publish: %s", buffer);
    is_answered = true;
    return;
  }
  d->kept = size;
  d->partial = realloc(d->partial, size);
  memcpy(d->partial, buffer, size);
}

// --- the loop

static void turn(int timeout_ms) {
  struct epoll_event events[EVENTS_MAX];
  int found = epoll_wait(epoll, events, EVENTS_MAX, timeout_ms);
  for (int i = 0; i < found; i++) {
    device *d = events[i].data.ptr;
    if (d->state == CONNECTING) {
      watch(d, EPOLLIN, EPOLL_CTL_MOD);
      greet(d);
    } else {
      receive(d);
    }
  }
  uint64_t t = now();
  for (int i = 0; answers_503 && i < count; i++)
    if (devices[i].state == AWAY && devices[i].wake_at <= t) {
      if (devices[i].at.epoch)
        poll_again(&devices[i]);
      else
        greet(&devices[i]);
    }
}

static void publish(void) {
  char request[ANSWER_MAX];
  int size = snprintf(request, sizeof request,
                      "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                      "Authorization: Bearer %s\r\nContent-Length: %zu\r\n\r\n%s",
                      publish_path, publish_token, strlen(publish_body), publish_body);
  is_answered = false;
  published = now();
  send_all(publisher.fd, request, (size_t)size);
}

static void wave(int rounds) {
  uint64_t begun = now(), end = begun + (uint64_t)timeout_s * 1000000000ull;
  answers_200 = answers_204 = answers_503 = answers_5xx = answers_other = lost_alerts = 0;
  measure_latencies((size_t)rounds * (size_t)count);
  for (int round = 0; round < rounds; round++) {
    goal = devices[0].at.offset + 1;
    behind = count;
    publish();
    while (behind || !is_answered) {
      turn(100);
      if (now() > end)
        fail("%d devices are without the alert of round %d after %d s", behind, round + 1, timeout_s);
    }
  }
  double seconds = (double)(now() - begun) / 1e9;
  sort_latencies();
  printf("{\"seconds\": %.3f, \"lost\": %llu, \"status_200\": %llu, \"status_204\": %llu, \"status_503\": %llu, "
         "\"status_5xx\": %llu, \"status_other\": %llu, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"offset\": %llu}\n",
         seconds, (unsigned long long)lost_alerts, (unsigned long long)answers_200, (unsigned long long)answers_204,
         (unsigned long long)answers_503, (unsigned long long)answers_5xx, (unsigned long long)answers_other,
         latency_ms(0.5), latency_ms(0.99), (unsigned long long)devices[0].at.offset);
}

static void obey(void) {
  char line[128];
  while (fflush(stdout), fgets(line, sizeof line, stdin)) {
    if (!strncmp(line, "quit", 4))
      return;
    if (strncmp(line, "wave ", 5))
      fail("what is: %s", line);
    wave(atoi(line + 5));
  }
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, NULL, 'p'},         {"count", 1, NULL, 'n'},         {"channel", 1, NULL, 'c'},
      {"fleet", 1, NULL, 'f'},        {"device", 1, NULL, 'd'},        {"token", 1, NULL, 't'},
      {"publish-path", 1, NULL, 'P'}, {"publish-token", 1, NULL, 'T'}, {"publish-body", 1, NULL, 'B'},
      {"timeout", 1, NULL, 's'},      {NULL, 0, NULL, 0},
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
      case 's': timeout_s = atoi(optarg); break;
      default: return 2;
    }
  if (!port || count < 1 || !channel || !fleet || !device_format || !token_format || !publish_path || !publish_token ||
      !publish_body)
    fail("every option but --timeout is needed");
  open_files(count);

  epoll = epoll_create1(0);
  devices = calloc((size_t)count, sizeof *devices);
  publisher.fd = dial(port, 1);
  publisher.state = POLLING;
  watch(&publisher, EPOLLIN, EPOLL_CTL_ADD);
  uint64_t begun = now(), end = begun + (uint64_t)timeout_s * 1000000000ull;
  for (int next = 0; ready < count;) {
    for (; greeting < OPENING_MAX && next < count; next++, greeting++) {
      device *d = &devices[next];
      d->number = next;
      d->fd = dial(port, 0);
      d->state = CONNECTING;
      watch(d, EPOLLOUT, EPOLL_CTL_ADD);
    }
    turn(1000);
    if (now() > end)
      fail("%d of %d hellos after %d s", ready, count, timeout_s);
  }
  double seconds = (double)(now() - begun) / 1e9;
  printf("{\"opened\": %d, \"connections_per_s\": %.1f}\n", ready, ready / seconds);
  obey();
  return 0;
}
