// nettcp=…: what TCP over the interface carries, and how fast; see README.md.

#include "tcp.h"

// The stream that is sent: byte k is place k mod PERIOD of it. A prime, so that
// a shift by whole segments shows.
#define PERIOD 65521
#define PORT 5001
#define WINDOW (2 << 20)
#define RING (256 << 10)	// what serve's echo holds for each connection

static u8 *stream;
static struct net net;

static void make_stream(void)
{
	stream = heap_raw(PERIOD + 65536);
	for (u32 i = 0; i < PERIOD; i++)
		stream[i] = i * 167 + (i >> 8) * 13 + 7;
	memcpy(stream + PERIOD, stream, PERIOD);
}

// The sum of a stream: FNV-1a, 64 bits at a time (little-endian), the last word
// filled up with zeroes.
static void sum_add(struct tcp *c, const u8 *p, u32 n)
{
	u64 h = c->sum;

	for (; n && c->got & 7; n--, p++, c->got++) {
		c->word |= (u64)*p << 8 * (c->got & 7);
		if ((c->got & 7) == 7) {
			h = (h ^ c->word) * 1099511628211ul;
			c->word = 0;
		}
	}
	c->got += n;
	for (; n >= 8; n -= 8, p += 8)
		h = (h ^ *(const u64 *)p) * 1099511628211ul;
	for (u32 i = 0; i < n; i++)
		c->word |= (u64)p[i] << 8 * i;
	c->sum = h;
}

static u64 sum_end(const struct tcp *c) { return c->got & 7 ? (c->sum ^ c->word) * 1099511628211ul : c->sum; }

static void sum_start(struct tcp *c)
{
	c->sum = 14695981039346656037ul;
	c->got = c->word = 0;
}

static void take_sum(struct tcp *c, const u8 *p, u32 n) { sum_add(c, p, n); }
static void take_only(struct tcp *c, const u8 *p, u32 n) { (void)p; c->got += n; }

static int dotted(const char *s, u32 *ip)
{
	u64 v;

	*ip = 0;
	for (u32 i = 0; i < 4; i++) {
		if ((i && *s++ != '.') || !number(&s, &v) || v > 255)
			return 0;
		*ip = *ip << 8 | v;
	}
	return 1;
}

static struct tcp *first(u32 count)
{
	net.conns = heap(count * sizeof(struct tcp));
	net.nconns = count;
	for (u32 i = 0; i < count; i++) {
		net.conns[i].rcv_wnd = opt_number("wnd", WINDOW);
		net.conns[i].src = (struct source){ stream, PERIOD, 65536 - 1 };
		net.conns[i].take = take_only;
	}
	return net.conns;
}

// connected opens a connection to option host=, port=.
static int connected(struct tcp *c, u32 ip, u16 port)
{
	tcp_open(&net, c, ip, port);
	while (c->state == TCP_SYN_SENT && !net.broken)
		net_step(&net);
	if (c->state == TCP_OPEN)
		return 1;
	fail("nettcp", "%u.%u.%u.%u:%u: %s", DOTTED(ip), port, tcp_state(c));
	return 0;
}

static void report(const char *dir, struct tcp *c, u64 bytes, u64 tsc)
{
	u64 us = us_of(tsc);

	ok("nettcp", "dir=%s bytes=%lu us=%lu mbit_s=%lu sum=%016lx mtu=%u mss=%u features=0x%lx resent=%u unordered=%u rx=%lu tx=%lu vouched=%lu irqs=%lu", dir, bytes, us,
	   bytes * 8 / (us ? us : 1), sum_end(c), net.mtu, c->mss, net.d->features, c->resent, c->unordered, net.rx_frames, net.tx_frames, net.vouched, net.d->irqs);
}

// up sends bytes, then FIN, and is done when the peer has closed too, which
// it does after the last byte.
static void up(struct tcp *c, u64 bytes)
{
	u64 took;

	c->offered = bytes;
	c->fin = 1;
	while (!tcp_over(c) && !net.broken)
		net_step(&net);
	took = rdtsc() - c->t0;
	if (c->state != TCP_OPEN || net.broken) {
		fail("nettcp", "dir=up after %lu of %lu bytes: %s, resent=%u", c->una, bytes, tcp_state(c), c->resent);
		return;
	}
	sum_start(c);
	for (u64 at = 0, part; at < bytes && opt_number("sum", 1); at += part) {
		part = bytes - at < PERIOD ? bytes - at : PERIOD;
		sum_add(c, stream, part);
	}
	report("up", c, bytes, took);
}

// down takes what comes until the peer closes, or so many bytes.
static void down(struct tcp *c, u64 bytes)
{
	u64 took;

	c->fin = opt("half") != NULL;	// half-closed from the start
	while (!c->rcv_fin && c->state == TCP_OPEN && !net.broken && (!bytes || c->got < bytes))
		net_step(&net);
	took = rdtsc() - c->t0;
	c->fin = 1;
	if (c->rcv_fin)
		while (!tcp_over(c) && !net.broken)
			net_step(&net);
	if (c->state != TCP_OPEN || net.broken || (bytes && c->got < bytes)) {
		fail("nettcp", "dir=down after %lu of %lu bytes: %s", c->got, bytes, tcp_state(c));
		return;
	}
	report("down", c, c->got, took);
	tcp_abort(&net, c);
}

// Times, in tenths of a microsecond below 6.5 ms, and all in tenths of a
// millisecond.
#define TIMES 65536
static u32 *times, *long_times;

static void note(u64 tsc)
{
	u64 t = tsc * 10000 / tsc_khz;

	if (t < TIMES)
		times[t]++;
	long_times[t / 1000 < TIMES ? t / 1000 : TIMES - 1]++;
}

static u64 percentile(u64 count, u64 hundredths)
{
	u64 seen = 0;

	for (u32 i = 0; i < TIMES; i++)
		if ((seen += times[i]) * 10000 >= count * hundredths)
			return i;
	seen = 0;
	for (u32 i = 0; i < TIMES; i++)
		if ((seen += long_times[i]) * 10000 >= count * hundredths)
			return i * 1000;
	return 1000 * TIMES;
}

static void report_times(const char *dir, u64 count, u64 tsc)
{
	u64 p50 = percentile(count, 5000), p99 = percentile(count, 9900), us = us_of(tsc);

	ok("nettcp", "dir=%s count=%lu us=%lu per_s=%lu p50_us=%lu.%lu p99_us=%lu.%lu irqs=%lu", dir, count, us, count * 1000000 / (us ? us : 1), p50 / 10, p50 % 10,
	   p99 / 10, p99 % 10, net.d->irqs);
}

// rr: one byte there, one back.
static void rr(struct tcp *c, u64 count)
{
	u64 t0, done = 0;

	while (done < count) {
		t0 = rdtsc();
		c->offered++;
		tcp_batch(&net);
		while (c->got <= done && c->state == TCP_OPEN && !c->rcv_fin && !net.broken)
			net_step(&net);
		if (c->got != ++done) {
			fail("nettcp", "dir=rr after %lu of %lu: %lu bytes, %s", done, count, c->got, tcp_state(c));
			return;
		}
		note(rdtsc() - t0);
	}
	report_times("rr", count, rdtsc() - c->t0);
	c->fin = 1;
	while (!tcp_over(c) && !net.broken)
		net_step(&net);
}

// conn: connections one after another, each opened and closed.
static void conn(struct tcp *c, u32 ip, u16 port, u64 count)
{
	u64 t0 = rdtsc(), t;

	for (u64 i = 0; i < count; i++) {
		c->fin = 0;
		t = rdtsc();
		if (!connected(c, ip, port))
			return;
		note(rdtsc() - t);
		c->fin = 1;
		while (!tcp_over(c) && !net.broken)
			net_step(&net);
		if (c->state != TCP_OPEN) {
			fail("nettcp", "dir=conn after %lu: %s", i, tcp_state(c));
			return;
		}
	}
	report_times("conn", count, rdtsc() - t0);
}

// serve: the first line of a connection says what becomes of it.
enum { R_COMMAND = 1, R_SINK, R_ECHO, R_SOURCE };

static void take_echo(struct tcp *c, const u8 *p, u32 n)
{
	u32 at = c->offered % RING, part = RING - at < n ? RING - at : n;

	memcpy(c->ring + at, p, part);
	memcpy(c->ring, p + part, n - part);
	c->offered += n;
	c->rcv_wnd = RING - (c->offered - c->una);
}

static void take_command(struct tcp *c, const u8 *p, u32 n)
{
	const char *rest;
	u64 v;

	for (; n && c->nline < sizeof c->line - 1; n--) {
		if ((c->line[c->nline++] = *p++) != '\n')
			continue;
		c->line[c->nline - 1] = 0;
		rest = c->line;
		if (streq(rest, "sink")) {
			c->role = R_SINK;
			c->rcv_wnd = opt_number("wnd", WINDOW);
			c->take = take_sum;
		} else if (streq(rest, "echo")) {
			c->role = R_ECHO;
			c->take = take_echo;
			c->src = (struct source){ c->ring, RING, 0 };
		} else if ((rest = after(c->line, "source ")) && number(&rest, &v) && !*rest) {
			c->role = R_SOURCE;
			c->take = take_only;
			c->offered = v;
			c->fin = 1;
		} else {
			quit = quit || streq(c->line, "quit");
			break;
		}
		c->take(c, p, n - 1);
		return;
	}
	if (n || c->nline == sizeof c->line - 1)
		c->fin = 1;	// not understood: closed
}

static void answer(struct tcp *c)
{
	static const char hex[] = "0123456789abcdef";
	u64 h = sum_end(c), v = c->got;
	u32 n = 0;
	char d[20];

	do
		d[n++] = '0' + v % 10;
	while (v /= 10);
	for (c->nline = 0; n;)
		c->line[c->nline++] = d[--n];
	c->line[c->nline++] = ' ';
	for (int i = 60; i >= 0; i -= 4)
		c->line[c->nline++] = hex[h >> i & 15];
	c->line[c->nline++] = '\n';
	c->src = (struct source){ (u8 *)c->line, sizeof c->line, 0 };
	c->offered = c->nline;
	c->fin = 1;
}

static void fresh(struct tcp *c, u16 port)
{
	c->role = R_COMMAND;
	c->nline = 0;
	c->offered = 0;
	c->fin = 0;
	c->take = take_command;
	c->src = (struct source){ stream, PERIOD, 65536 - 1 };
	c->rcv_wnd = RING;	// until it is known what it is for
	sum_start(c);
	tcp_listen(c, port);
}

static void serve(u16 port)
{
	u32 count = opt_number("conns", 8), served = 0;
	struct tcp *c = first(count);
	u64 wnd;

	for (u32 i = 0; i < count; i++) {
		c[i].ring = heap_raw(RING);
		fresh(&c[i], port);
	}
	net.udp = echo_udp;
	ok("nettcp", "dir=serve ip=%u.%u.%u.%u port=%u mtu=%u conns=%u", DOTTED(net.ip), port, net.mtu, count);
	while (!quit && !net.broken) {
		net_step(&net);
		for (u32 i = 0; i < count; i++) {
			if (c[i].state == TCP_OPEN && c[i].role == R_ECHO) {
				wnd = RING - (c[i].offered - c[i].una);
				if (c[i].rcv_wnd < net.mtu && wnd >= net.mtu)
					c[i].ack_now = 1;	// it has opened again
				c[i].rcv_wnd = wnd;
			}
			if (c[i].rcv_fin && !c[i].fin) {
				if (c[i].role == R_SINK)
					answer(&c[i]);
				c[i].fin = 1;
			}
			if (c[i].state > TCP_LISTEN && tcp_over(&c[i])) {
				served++;
				fresh(&c[i], port);
			}
		}
		tcp_batch(&net);
	}
	net_drain(&net);
	ok("nettcp", "dir=serve served=%u rx=%lu tx=%lu", served, net.rx_frames, net.tx_frames);
}

void mode_nettcp(const char *v)
{
	u64 bytes = opt_number("bytes", 100 << 20), count = opt_number("count", 10000);
	u16 port = opt_number("port", PORT);
	struct tcp *c;
	u32 ip;

	if (!net_one(&net))
		return;
	ip = net.hop;
	if (opt("host") && !dotted(opt("host"), &ip)) {
		fail("nettcp", "host= wants an address");
		return;
	}
	net.spin = opt("poll") != NULL;
	make_stream();
	times = heap(TIMES * sizeof *times);
	long_times = heap(TIMES * sizeof *times);
	if (after(v, "serve"))
		serve(port);
	else {
		c = first(1);
		if (after(v, "conn"))
			conn(c, ip, port, count);
		else if (!after(v, "up") && !after(v, "down") && !after(v, "rr"))
			fail("nettcp", "wants up, down, rr, conn or serve");
		else {
			sum_start(c);
			if (after(v, "down") && opt_number("sum", 1))
				c->take = take_sum;
			if (connected(c, ip, port)) {
				if (after(v, "up"))
					up(c, bytes);
				else if (after(v, "rr"))
					rr(c, count);
				else
					down(c, bytes);
			}
		}
	}
	if (net.lost || net.bad || net.malformed || net.badsum)
		fail("nettcp", "lost=%u bad=%u malformed=%u badsum=%u", net.lost, net.bad, net.malformed, net.badsum);
	net_drain(&net);
	virtio_reset(net.d);
}
