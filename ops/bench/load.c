// The load: many devices on one epoll loop, and the operator who publishes to them, all on one clock.
//
//     load --port P --count N [--path PATH] [--channel NAME --fleet NAME --device FORMAT --token FORMAT] [--ack-each]
//          [--patient] [--publish-port P] [--publish-path PATH --publish-token TOKEN --publish-body TEXT]
//          [--timeout SECONDS]
//
// With --channel each connection is a device of fleetcast.v1.cbor: it says hello, checks that the offsets of its alerts
// are contiguous, and acknowledges cumulatively every 16 alerts or 250 ms after the oldest, as the SDK does; with
// --ack-each each alert by a message of its own. With --patient a device that is answered 503 comes back when it is told
// to. In FORMAT a first %d is the device's number, a second in the token's is the generation: 0, until `return` says
// another. Without --channel it only counts frames: for servers of another kind.
//
// It connects all, says so in one line, then obeys lines on standard input, one JSON line of answer to each:
//
//     burst         publish one alert: from the first byte at any device to the last byte at the last device
//     sequence M    publish M alerts, each when the one before was delivered to all devices
//     settle        wait until every alert is acknowledged and the acknowledgements are sent
//     leave         hang up, all of them
//     return G      connect all again, with tokens of generation G
//     resume        connect all again, with the tickets and the tokens that they were given for
//     until H       wait until every device has the alert of offset H
//     storm H       wait for the gateway to end or lose every connection; have each come back as the SDK does: spread,
//                   backoff, Retry-After; until all are connected and have the alert of offset H
//     quit
//
// Latencies are from the first byte of the request that publishes to an alert's last byte at a device. Anything
// unforeseen (a status, a close, a gap, a timeout) ends the program with a message.
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>

enum {
  OPENING_MAX = 200, // connections between connect() and welcome at one time
  EVENTS_MAX = 1024,
  FRAME_MAX = 65536,
  ACK_COUNT = 16,
  ACK_NS = 250 * 1000000,
  SAMPLE_MS = 250, // of a storm's course
  SAMPLES_MAX = 4096,
  BACKOFF_MS = 500,
  BACKOFF_MAX_MS = 20000,
};
enum state { IDLE, CONNECTING, UPGRADING, GREETING, OPEN, AWAY };

typedef struct device {
  int fd, number, generation;
  enum state state;
  position at;              // on stable storage, as it were
  uint64_t acked;           // offset
  uint64_t ack_due;         // ns; 0: nothing to acknowledge
  uint64_t visit_at;        // ns; when the queue of those who owe an acknowledgement looks at it; 0: not in it
  uint64_t wake_at;         // ns; AWAY until then
  int failures;             // in a row
  struct device *ack_next;
  size_t kept;              // bytes of an unfinished frame (or of the answer to the upgrade)
  unsigned char *partial;
  char *ticket;             // base64url
} device;

static int epoll, port, count, opening, opened, next_to_open, timeout_s = 120;
static const char *path = "/v1/device/connect";
static const char *channel, *fleet = "", *device_format = "%d", *token_format = "%d";
static int publish_port;
static const char *publish_path = "/", *publish_token = "", *publish_body = "";
static device *devices, *ack_first, *ack_last;
static device publisher;
static unsigned char mask[4];
static uint64_t published, first_byte, last_byte, deliveries, target; // of the alert that is on its way
static uint64_t acks_sent, repeats, goal;
static int behind; // devices whose offset is below the goal
static uint64_t spread_s;
static size_t frame_size;
static bool is_answered = true, acks_each, shows_tickets, is_patient;
static bool foresees_loss; // of connections: in a storm, and while a patient one connects
static struct {
  int lost, connected, refused_503, closed_1013, unanswered;
} storm_counts;

static void send_all(int fd, const void *data, size_t size) {
  if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size && !foresees_loss)
    fail("send: %s", strerror(errno));
}

static void watch(device *d, uint32_t what, int operation) {
  struct epoll_event event = {.events = what, .data.ptr = d};
  if (epoll_ctl(epoll, operation, d->fd, &event))
    fail("epoll_ctl: %s", strerror(errno));
}

// --- what a device says

static void say(device *d, const unsigned char *payload, size_t size, int opcode) {
  unsigned char frame[HELLO_SIZE_MAX + 8];
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
  unsigned char m[HELLO_SIZE_MAX];
  say(d, m, hello(m, channel, d->number, d->at), 2);
}

static void acknowledge(device *d) {
  unsigned char m[256];
  size_t size = head(m, 5, 2);
  size += head(m + size, 0, 0), size += head(m + size, 0, ACK);
  size += head(m + size, 0, 1), size += positions(m + size, channel, d->at);
  say(d, m, size, 2);
  d->acked = d->at.offset;
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
  add_latency(t - published);
}

static void hear_alert(device *d, message *m, size_t frame, uint64_t t) {
  position at = read_alert(m, channel);
  if (at.epoch != d->at.epoch)
    fail("device %d: an alert of epoch %llu", d->number, (unsigned long long)at.epoch);
  if (at.offset <= d->at.offset) {
    repeats++; // known already: it was sent again before the acknowledgement was read
    acknowledge(d);
    return;
  }
  if (at.offset != d->at.offset + 1)
    fail("device %d: offset %llu after %llu", d->number, (unsigned long long)at.offset,
         (unsigned long long)d->at.offset);
  d->at = at;
  if (at.offset == goal)
    behind--;
  delivered(frame, t);
  if (acks_each || d->at.offset - d->acked >= ACK_COUNT) {
    acknowledge(d);
  } else if (!d->ack_due) {
    d->ack_due = t + ACK_NS;
    if (!d->visit_at)
      owe(d);
  }
}

static char *base64url(const unsigned char *data, size_t size) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  char *text = malloc(size * 4 / 3 + 4), *out = text;
  for (size_t i = 0; i < size; i += 3) {
    unsigned value = (unsigned)data[i] << 16 | (i + 1 < size ? data[i + 1] << 8 : 0) | (i + 2 < size ? data[i + 2] : 0);
    for (size_t digit = 0; digit < 4 && i + digit <= size; digit++)
      *out++ = digits[value >> (18 - 6 * digit) & 63];
  }
  *out = 0;
  return text;
}

static void hear_welcome(device *d, message *m) {
  welcome w = read_welcome(m, channel);
  if (!d->at.epoch)
    d->at = w.head;
  else if (d->at.epoch != w.head.epoch)
    fail("device %d: another epoch", d->number);
  d->acked = d->at.offset;
  if (w.ticket_size) {
    free(d->ticket);
    d->ticket = base64url(w.ticket, w.ticket_size);
  }
  spread_s = w.spread_s;
  d->state = OPEN, opening--, opened++;
}

static void hear(device *d, const unsigned char *data, size_t size, size_t frame, uint64_t t) {
  if (!channel) {
    delivered(frame, t);
    return;
  }
  message m = opened_at(data, size, 0);
  if (m.type == ALERT)
    hear_alert(d, &m, frame, t);
  else if (m.type == WELCOME && d->state == GREETING)
    hear_welcome(d, &m);
  else if (m.type == ADVANCE || m.type == LOST || m.type == REFUSED || (m.type == GOAWAY && !foresees_loss))
    fail("device %d: message of type %d", d->number, (int)m.type);
}

// --- connections that end

// A reset: thousands that leave in an orderly way would keep their ports for a minute.
static void hang_up(int fd) {
  struct linger at_once = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(fd);
}

static void go_away(device *d, uint64_t wait_ns) {
  if (d->state == OPEN)
    opened--, storm_counts.lost++;
  else
    opening--;
  hang_up(d->fd); // and so it is no longer watched
  d->state = AWAY;
  d->kept = 0;
  d->ack_due = 0;
  d->wake_at = now() + wait_ns;
}

static uint64_t uniform(uint64_t most) { return most ? (uint64_t)(drand48() * (double)most) : 0; }

static void lost(device *d, const char *why) {
  if (!foresees_loss)
    fail("device %d: %s", d->number, why);
  if (d->state == OPEN) {
    d->failures = 1;
    go_away(d, uniform(spread_s * 1000000000ull));
    return;
  }
  uint64_t most_ms = BACKOFF_MS << (d->failures < 6 ? d->failures : 6);
  d->failures++;
  storm_counts.unanswered++;
  go_away(d, uniform((most_ms < BACKOFF_MAX_MS ? most_ms : BACKOFF_MAX_MS) * 1000000));
}

static void closed(device *d, int code) {
  if (!foresees_loss || (code != 1013 && code != 1001))
    fail("device %d: closed with %d", d->number, code);
  storm_counts.closed_1013 += code == 1013;
  lost(d, "closed");
}

static void refused(device *d, const char *answer) {
  const char *retry = strcasestr(answer, "\r\nretry-after:");
  if (!foresees_loss || memcmp(answer + 9, "503", 3) || !retry)
    fail("device %d: %s", d->number, answer);
  storm_counts.refused_503++;
  d->failures++;
  go_away(d, strtoull(retry + 14, NULL, 10) * 1000000000ull);
}

// --- bytes in

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
    bool has_data = opcode == 2 || (opcode == 1 && !channel);
    if (has_data && !first_byte && d->state == OPEN)
      first_byte = t;
    if (size - at < start + length)
      break;
    if (opcode == 8) {
      closed(d, length >= 2 ? f[start] << 8 | f[start + 1] : 1005);
      return size;
    }
    if (opcode == 9)
      say(d, f + start, length, 10);
    else if (has_data)
      hear(d, f + start, length, start + length, t);
    at += start + length;
  }
  return at;
}

static size_t upgraded(device *d, unsigned char *data, size_t size) {
  const unsigned char *end = memmem(data, size, "\r\n\r\n", 4);
  if (!end)
    return 0;
  if (size < 12 || memcmp(data + 9, "101", 3)) {
    data[size] = 0;
    refused(d, (const char *)data);
    return size;
  }
  if (channel) {
    d->state = GREETING;
    say_hello(d);
  } else {
    d->state = OPEN, opening--, opened++;
  }
  return (size_t)(end - data) + 4;
}

static void receive(device *d) {
  static unsigned char buffer[2 * FRAME_MAX + 1];
  size_t size = d->kept;
  if (size)
    memcpy(buffer, d->partial, size);
  ssize_t got = recv(d->fd, buffer + size, sizeof buffer - 1 - size, 0);
  if (got <= 0) {
    if (got == 0 || errno != EAGAIN)
      lost(d, "connection lost");
    return;
  }
  uint64_t t = now();
  size += (size_t)got;
  size_t used = d->state == UPGRADING ? upgraded(d, buffer, size) : 0;
  if (d->state != UPGRADING && d->state != AWAY)
    used += frames(d, buffer + used, size - used, t);
  if (d->state == AWAY)
    return;
  if (size - used > FRAME_MAX)
    fail("device %d: more than a frame", d->number);
  d->kept = size - used;
  if (d->kept) {
    d->partial = realloc(d->partial, d->kept);
    memcpy(d->partial, buffer + used, d->kept);
  }
}

// --- connections

static void open_one(device *d) {
  d->fd = dial(port, 0);
  d->state = CONNECTING;
  opening++;
  watch(d, EPOLLOUT, EPOLL_CTL_ADD);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-extra-args"
static void upgrade(device *d) {
  char request[4096];
  int size = snprintf(request, sizeof request,
                      "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
                      path);
  if (channel) {
    char device_id[256], token[512];
    snprintf(device_id, sizeof device_id, device_format, d->number);
    snprintf(token, sizeof token, token_format, d->number, d->generation);
    bool shows = shows_tickets && d->ticket;
    size += snprintf(request + size, sizeof request - (size_t)size,
                     "Sec-WebSocket-Protocol: fleetcast.v1.cbor\r\nAuthorization: Bearer %s\r\n"
                     "Fleetcast-Fleet: %s\r\nFleetcast-Device: %s\r\n%s%s%s",
                     token, fleet, device_id, shows ? "Fleetcast-Ticket: " : "", shows ? d->ticket : "",
                     shows ? "\r\n" : "");
  }
  memcpy(request + size, "\r\n", 2);
  send_all(d->fd, request, (size_t)size + 2);
  d->state = UPGRADING;
  watch(d, EPOLLIN, EPOLL_CTL_MOD);
}
#pragma GCC diagnostic pop

static void dialled(device *d) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error)
    lost(d, strerror(error));
  else
    upgrade(d);
}

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
  is_answered = false;
  if (publisher.state != OPEN) {
    publisher.fd = dial(publish_port ? publish_port : port, 1);
    publisher.state = OPEN;
    watch(&publisher, EPOLLIN, EPOLL_CTL_ADD);
  }
  published = now();
  send_all(publisher.fd, request, (size_t)size);
}

// The next publish dials again.
static void close_publisher(void) {
  close(publisher.fd);
  publisher.state = IDLE;
}

static void answered(void) {
  static char answer[FRAME_MAX];
  ssize_t size = recv(publisher.fd, answer + publisher.kept, sizeof answer - 1 - publisher.kept, 0);
  if (size <= 0) {
    if (!is_answered)
      fail("publish: connection lost");
    close_publisher();
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
  is_answered = true;
  const char *is_last = strcasestr(answer, "\r\nconnection: close");
  if (is_last && is_last < end)
    close_publisher();
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
      dialled(d);
    else if (d && d->state != AWAY)
      receive(d);
  }
  if (ack_first)
    acknowledge_due(now());
}

static uint64_t deadline(void) { return now() + (uint64_t)timeout_s * 1000000000ull; }

static void wake(uint64_t t) {
  for (int i = 0; i < count; i++)
    if (devices[i].state == AWAY && devices[i].wake_at <= t)
      open_one(&devices[i]);
}

static double connect_all(int generation) {
  uint64_t begun = now(), end = deadline();
  next_to_open = 0;
  foresees_loss = is_patient;
  while (opened < count) {
    while (opening < OPENING_MAX && next_to_open < count) {
      devices[next_to_open].number = next_to_open;
      devices[next_to_open].generation = generation;
      open_one(&devices[next_to_open++]);
    }
    turn(is_patient ? 5 : 1000);
    if (is_patient)
      wake(now());
    if (now() > end)
      fail("%d of %d connections after %d s", opened, count, timeout_s);
  }
  foresees_loss = false;
  return (double)(now() - begun) / 1e9;
}

static void connect_and_say(int generation) {
  double seconds = connect_all(generation);
  printf("{\"opened\": %d, \"connections_per_s\": %.1f, \"seconds\": %.3f}\n", opened, opened / seconds, seconds);
}

static void deliver(void) {
  uint64_t end = deadline();
  publish();
  while (deliveries < target || !is_answered) {
    turn(1000);
    if (now() > end)
      fail("%d of %d deliveries after %d s", count - (int)(target - deliveries), count, timeout_s);
  }
  if (deliveries != target)
    fail("more deliveries than devices");
}

static void burst(void) {
  measure_latencies((size_t)count);
  deliver();
  sort_latencies();
  printf("{\"burst_ms\": %.3f, \"first_byte_ms\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"frame_size\": %zu}\n",
         (double)(last_byte - first_byte) / 1e6, (double)(first_byte - published) / 1e6, latency_ms(0.5),
         latency_ms(0.99), frame_size);
}

static void sequence(int alerts) {
  uint64_t begun = now(), acks = acks_sent;
  measure_latencies((size_t)alerts * (size_t)count);
  for (int i = 0; i < alerts; i++)
    deliver();
  double seconds = (double)(now() - begun) / 1e9;
  sort_latencies();
  printf("{\"deliveries_per_s\": %.1f, \"seconds\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"acks\": %llu}\n",
         (double)alerts * count / seconds, seconds, latency_ms(0.5), latency_ms(0.99),
         (unsigned long long)(acks_sent - acks));
}

static void settle(void) {
  while (ack_first)
    turn(5);
  printf("{\"acks\": %llu, \"repeats\": %llu, \"offset\": %llu}\n", (unsigned long long)acks_sent,
         (unsigned long long)repeats, (unsigned long long)devices[0].at.offset);
}

static void leave(void) {
  while (ack_first)
    turn(5);
  for (int i = 0; i < count; i++) {
    hang_up(devices[i].fd);
    devices[i].state = IDLE;
    devices[i].kept = 0;
  }
  opened = 0;
  printf("{\"left\": %d, \"deliveries\": %llu}\n", count, (unsigned long long)deliveries);
}

static void aim(uint64_t offset) {
  goal = offset;
  behind = 0;
  for (int i = 0; i < count; i++)
    behind += devices[i].at.offset < goal;
}

static void until(uint64_t offset) {
  uint64_t begun = now(), end = deadline();
  aim(offset);
  while (behind) {
    turn(1000);
    if (now() > end)
      fail("%d devices are below offset %llu after %d s", behind, (unsigned long long)offset, timeout_s);
  }
  printf("{\"seconds\": %.3f, \"deliveries\": %llu}\n", (double)(now() - begun) / 1e9,
         (unsigned long long)deliveries);
}

static void storm(uint64_t offset) {
  static struct {
    int connected, caught_up;
    uint64_t ms;
  } samples[SAMPLES_MAX];
  int taken = 0;
  uint64_t begun = 0, end = deadline(), next_sample = 0, sent = deliveries;
  memset(&storm_counts, 0, sizeof storm_counts);
  foresees_loss = shows_tickets = true;
  aim(offset);
  while (!begun || opened < count || behind) {
    turn(5);
    uint64_t t = now();
    wake(t);
    if (!begun && storm_counts.lost)
      begun = next_sample = t;
    if (begun && t >= next_sample && taken < SAMPLES_MAX) {
      samples[taken].ms = (t - begun) / 1000000;
      samples[taken].connected = opened;
      samples[taken++].caught_up = count - behind;
      next_sample += SAMPLE_MS * 1000000ull;
    }
    if (t > end)
      fail("storm: %d of %d devices are back after %d s, %d of them behind", opened, count, timeout_s, behind);
  }
  foresees_loss = false;
  printf("{\"seconds\": %.3f, \"lost\": %d, \"messages\": %llu, \"refused_503\": %d, \"closed_1013\": %d, "
         "\"unanswered\": %d, \"spread_s\": %llu, \"samples\": [",
         (double)(now() - begun) / 1e9, storm_counts.lost, (unsigned long long)(deliveries - sent),
         storm_counts.refused_503, storm_counts.closed_1013, storm_counts.unanswered, (unsigned long long)spread_s);
  for (int i = 0; i < taken; i++)
    printf("%s[%llu, %d, %d]", i ? ", " : "", (unsigned long long)samples[i].ms, samples[i].connected,
           samples[i].caught_up);
  printf("]}\n");
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
    else if (!strncmp(line, "leave", 5))
      leave();
    else if (!strncmp(line, "return ", 7))
      shows_tickets = false, connect_and_say(atoi(line + 7));
    else if (!strncmp(line, "resume", 6))
      shows_tickets = true, connect_and_say(devices->generation);
    else if (!strncmp(line, "until ", 6))
      until(strtoull(line + 6, NULL, 10));
    else if (!strncmp(line, "storm ", 6))
      storm(strtoull(line + 6, NULL, 10));
    else
      fail("what is: %s", line);
  }
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, NULL, 'p'},         {"count", 1, NULL, 'n'},         {"path", 1, NULL, 'u'},
      {"channel", 1, NULL, 'c'},      {"fleet", 1, NULL, 'f'},         {"device", 1, NULL, 'd'},
      {"token", 1, NULL, 't'},        {"ack-each", 0, NULL, 'a'},      {"patient", 0, NULL, 'w'},
      {"publish-port", 1, NULL, 'O'}, {"publish-path", 1, NULL, 'P'},  {"publish-token", 1, NULL, 'T'},
      {"publish-body", 1, NULL, 'B'}, {"timeout", 1, NULL, 's'},       {NULL, 0, NULL, 0},
  };
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'n': count = atoi(optarg); break;
      case 'u': path = optarg; break;
      case 'c': channel = optarg; break;
      case 'f': fleet = optarg; break;
      case 'd': device_format = optarg; break;
      case 't': token_format = optarg; break;
      case 'a': acks_each = true; break;
      case 'w': is_patient = true; break;
      case 'O': publish_port = atoi(optarg); break;
      case 'P': publish_path = optarg; break;
      case 'T': publish_token = optarg; break;
      case 'B': publish_body = optarg; break;
      case 's': timeout_s = atoi(optarg); break;
      default: return 2;
    }
  if (!port || count < 1 || timeout_s < 1)
    fail("--port and --count are needed");
  if (channel && strlen(channel) > 128)
    fail("a channel's name is at most 128 characters");
  open_files(count);

  epoll = epoll_create1(0);
  devices = calloc((size_t)count, sizeof *devices);
  uint64_t begun = now();
  memcpy(mask, &begun, sizeof mask);
  srand48((long)begun);
  connect_and_say(0);
  obey();
  return 0;
}
