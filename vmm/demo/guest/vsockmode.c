// vsock=…: what streams over virtio-vsock carry, and how fast; see README.md.

#include "vsock.h"

#define PERIOD 65521	// of the stream that is sent, as nettcp's
#define PORT 52
#define WINDOW (256 << 10)

enum { FREE, CALLING, OPEN, LEAVING };	// LEAVING: SHUTDOWN both ways is out
enum { R_COMMAND, R_SINK, R_ECHO, R_SOURCE, R_ANSWER };

struct vc {
	u32 state, role, port, host;
	u32 sent, alloc, fwd;	// bytes to the host; its credit
	u32 got, took, told;	// bytes from it; what has been used of them, what it knows of that
	u32 shut, refused, owed;	// its SHUTDOWN flags; it said RST; a packet is due
	u32 taken;	// the host has taken the call
	u64 offered, out;	// of the stream that is sent
	u32 fin, fin_sent;
	u64 sum, word, count;	// of what comes
	u8 *ring;		// R_ECHO: WINDOW bytes
	char line[64];
	u32 nline;
};

static struct vsock vs;
static struct vc *conns;
static u32 nconns, listening, quit, served;
static u8 *stream;

static void sum_start(struct vc *c)
{
	c->sum = 14695981039346656037ul;
	c->count = c->word = 0;
}

// FNV-1a over words of 64 bits, as nettcp's.
static void sum_add(struct vc *c, const u8 *p, u32 n)
{
	u64 h = c->sum;

	for (; n && c->count & 7; n--, p++, c->count++) {
		c->word |= (u64)*p << 8 * (c->count & 7);
		if ((c->count & 7) == 7) {
			h = (h ^ c->word) * 1099511628211ul;
			c->word = 0;
		}
	}
	c->count += n;
	for (; n >= 8; n -= 8, p += 8)
		h = (h ^ *(const u64 *)p) * 1099511628211ul;
	for (u32 i = 0; i < n; i++)
		c->word |= (u64)p[i] << 8 * i;
	c->sum = h;
}

static u64 sum_end(const struct vc *c) { return c->count & 7 ? (c->sum ^ c->word) * 1099511628211ul : c->sum; }

static int packet(struct vc *c, u16 op, u32 flags, const void *p, u32 len)
{
	struct vs_hdr h = { .src = vs.cid, .dst = V_HOST, .sport = c->port, .dport = c->host, .type = V_STREAM, .op = op, .flags = flags, .alloc = WINDOW, .fwd = c->took };

	if (!vs_send(&vs, &h, p, len))
		return 0;
	c->told = c->took;
	return 1;
}

static void answer_sum(struct vc *c)
{
	static const char hex[] = "0123456789abcdef";
	u64 h = sum_end(c), v = c->count;
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
	c->role = R_ANSWER;
	c->offered = c->nline;
	c->out = 0;
	c->fin = 1;
}

static void take(struct vc *c, const u8 *p, u32 n)
{
	const char *rest;
	u64 v;

	switch (c->role) {
	case R_SINK:
		if (opt_number("sum", 1))
			sum_add(c, p, n);
		else
			c->count += n;
		c->took += n;
		return;
	case R_ECHO: {	// what fits is certain: it is the credit
		u32 at = c->offered % WINDOW, part = WINDOW - at < n ? WINDOW - at : n;

		memcpy(c->ring + at, p, part);
		memcpy(c->ring, p + part, n - part);
		c->offered += n;
		return;
	}
	case R_COMMAND:
		for (; n && c->nline < sizeof c->line - 1; n--) {
			c->took++;
			if ((c->line[c->nline++] = *p++) != '\n')
				continue;
			c->line[c->nline - 1] = 0;
			rest = c->line;
			if (streq(rest, "sink")) {
				c->role = R_SINK;
			} else if (streq(rest, "echo")) {
				c->role = R_ECHO;
			} else if ((rest = after(c->line, "source ")) && number(&rest, &v) && !*rest) {
				c->role = R_SOURCE;
				c->offered = v;
				c->fin = 1;
			} else {
				quit = quit || streq(c->line, "quit");
				c->fin = 1;
				c->role = R_SOURCE;
			}
			take(c, p, n - 1);
			return;
		}
		if (n) {
			c->fin = 1;	// not understood: closed
			c->role = R_SOURCE;
			c->took += n;
		}
		return;
	default:
		c->took += n;
	}
}

static struct vc *find(u32 port, u32 host)
{
	for (u32 i = 0; i < nconns; i++)
		if (conns[i].state != FREE && conns[i].port == port && conns[i].host == host)
			return &conns[i];
	return NULL;
}

static struct vc *fresh(u32 port, u32 host)
{
	for (u32 i = 0; i < nconns; i++)
		if (conns[i].state == FREE) {
			struct vc *c = &conns[i];
			u8 *ring = c->ring;

			*c = (struct vc){ .port = port, .host = host, .ring = ring };
			sum_start(c);
			return c;
		}
	return NULL;
}

static void input(struct vsock *s, const struct vs_hdr *h, u8 *p)
{
	struct vc *c = find(h->dport, h->sport);

	if (!c) {
		if (h->op == V_REQUEST && listening && h->dport == listening && (c = fresh(h->dport, h->sport))) {
			c->state = OPEN;
			c->alloc = h->alloc;
			c->fwd = h->fwd;
			if (!c->ring)
				c->ring = heap_raw(WINDOW);
			c->owed = V_RESPONSE;
		} else if (h->op != V_RST)
			vs_reply(s, h, V_RST);
		return;
	}
	c->alloc = h->alloc;
	c->fwd = h->fwd;
	switch (h->op) {
	case V_RESPONSE:
		c->state = OPEN;
		c->taken = 1;
		break;
	case V_RST:
		c->refused = !(c->fin_sent && c->shut & V_SEND) && c->state != LEAVING;
		c->state = FREE;
		served++;
		break;
	case V_SHUTDOWN:
		c->shut |= h->flags;
		break;
	case V_RW:
		if (c->got + h->len - c->took > WINDOW) {
			fail("vsock", "%u bytes beyond the credit", c->got + h->len - c->took - WINDOW);
			vs_reply(s, h, V_RST);
			c->state = FREE;
			break;
		}
		c->got += h->len;
		take(c, p, h->len);
		break;
	case V_ASK:
		c->owed = V_UPDATE;
	}
}

// feed sends what credit and slots allow of one connection's stream.
static void feed(struct vc *c)
{
	while (c->out < c->offered && !(c->shut & V_RECEIVE)) {
		u32 room = c->alloc - (c->sent - c->fwd), n = VS_PART, at;
		u64 left = c->offered - c->out;
		const u8 *p;

		if (c->sent - c->fwd >= c->alloc || !vs_room(&vs))
			return;
		n = n < room ? n : room;
		n = n < left ? n : left;
		switch (c->role) {
		case R_ECHO:
			at = c->out % WINDOW;
			n = n < WINDOW - at ? n : WINDOW - at;
			p = vs_buffer(&vs);
			memcpy((u8 *)p, c->ring + at, n);
			c->took += n;
			break;
		case R_ANSWER:
			p = (u8 *)c->line + c->out;
			break;
		default:
			p = stream + c->out % PERIOD;
			n = n < 65535 ? n : 65535;
		}
		if (!packet(c, V_RW, 0, p, n))
			return;
		c->out += n;
		c->sent += n;
	}
}

static void idle(struct vsock *s)
{
	if (s->resets) {	// all that was is no more
		s->resets = 0;
		for (u32 i = 0; i < nconns; i++)
			conns[i].state = FREE;
		ok("vsock", "reset cid=%lu", s->cid);
	}
	for (u32 i = 0; i < nconns; i++) {
		struct vc *c = &conns[i];

		if (c->state != OPEN)
			continue;
		if (c->owed && packet(c, c->owed, 0, NULL, 0))
			c->owed = 0;
		if (c->owed)
			continue;
		feed(c);
		if (c->shut & V_SEND && !c->fin) {
			if (c->role == R_SINK)
				answer_sum(c);
			c->fin = 1;
			feed(c);
		}
		if (c->shut == (V_RECEIVE | V_SEND)) {
			if (packet(c, V_RST, 0, NULL, 0)) {
				c->refused = 0;
				c->state = FREE;
				served++;
			}
		} else if (c->fin && (c->out == c->offered || c->shut & V_RECEIVE) && (!c->fin_sent || c->shut & V_SEND)) {
			u32 flags = c->shut & V_SEND ? V_RECEIVE | V_SEND : V_SEND;

			if (packet(c, V_SHUTDOWN, flags, NULL, 0)) {
				c->fin_sent = 1;
				if (flags & V_RECEIVE)
					c->state = LEAVING;
			}
		} else if (c->took - c->told >= WINDOW / 4)
			packet(c, V_UPDATE, 0, NULL, 0);
	}
}

// dial connects; role is what is done with what comes, which may be there, up to the
// connection's end, as soon as the answer is.
static int dial(struct vc *c, u32 role)
{
	c->role = role;
	packet(c, V_REQUEST, 0, NULL, 0);
	c->state = CALLING;
	while (c->state == CALLING && !vs.broken)
		vs_step(&vs);
	if (c->taken)
		return 1;
	fail("vsock", "port %u of the host: %s", c->host, vs.broken ? "the device is broken" : "refused");
	return 0;
}

static void report(const char *dir, const struct vc *c, u64 bytes, u64 tsc)
{
	u64 us = us_of(tsc);

	ok("vsock", "dir=%s bytes=%lu us=%lu mbit_s=%lu sum=%016lx rx=%lu tx=%lu irqs=%lu", dir, bytes, us, bytes * 8 / (us ? us : 1), sum_end(c),
	   vs.rx_packets, vs.tx_packets, vs.d->irqs);
}

static void up(struct vc *c, u64 bytes)
{
	u64 t0 = rdtsc();

	c->offered = bytes;
	c->fin = 1;
	while (c->state != FREE && !vs.broken)
		vs_step(&vs);
	t0 = rdtsc() - t0;
	if (c->refused || c->out != bytes || vs.broken) {
		fail("vsock", "dir=up after %lu of %lu bytes", c->out, bytes);
		return;
	}
	for (u64 at = 0, part; at < bytes && opt_number("sum", 1); at += part) {
		part = bytes - at < PERIOD ? bytes - at : PERIOD;
		sum_add(c, stream, part);
	}
	report("up", c, bytes, t0);
}

static void down(struct vc *c)
{
	u64 t0 = rdtsc(), count;

	while (c->state != FREE && !(c->shut & V_SEND) && !vs.broken)
		vs_step(&vs);
	t0 = rdtsc() - t0;
	count = c->count;
	while (c->state != FREE && !vs.broken)
		vs_step(&vs);
	if (c->refused || vs.broken)
		fail("vsock", "dir=down after %lu bytes: reset", count);
	else
		report("down", c, count, t0);
}

// rr: one byte there, one back.
static void rr(struct vc *c, u64 count)
{
	u64 t0 = rdtsc(), us;

	for (u64 done = 0; done < count;) {
		packet(c, V_RW, 0, stream, 1);
		c->sent++;
		vs_flush(&vs);
		while (c->count <= done && c->state == OPEN && !c->shut && !vs.broken)
			vs_step(&vs);
		if (c->count != ++done) {
			fail("vsock", "dir=rr after %lu of %lu: %lu bytes", done, count, c->count);
			return;
		}
	}
	us = us_of(rdtsc() - t0);
	ok("vsock", "dir=rr count=%lu us=%lu mean_us=%lu.%lu irqs=%lu", count, us, us / (count ? count : 1), us * 10 / (count ? count : 1) % 10, vs.d->irqs);
	c->fin = 1;
	while (c->state != FREE && !vs.broken)
		vs_step(&vs);
}

static void serve(u32 port)
{
	listening = port;
	ok("vsock", "dir=serve cid=%lu port=%u conns=%u", vs.cid, port, nconns);
	while (!quit && !vs.broken)
		vs_step(&vs);
	ok("vsock", "dir=serve served=%u rx=%lu tx=%lu irqs=%lu", served, vs.rx_packets, vs.tx_packets, vs.d->irqs);
}

void mode_vsock(const char *v)
{
	struct vdev *d = vs_device();
	int serving = after(v, "serve") != NULL;
	u32 port = opt_number("port", PORT);
	struct vc *c;

	if (!d) {
		fail("vsock", "no such device");
		return;
	}
	nconns = serving ? opt_number("conns", 16) : 1;
	conns = heap(nconns * sizeof *conns);
	stream = heap_raw(PERIOD + 65536);
	for (u32 i = 0; i < PERIOD; i++)
		stream[i] = i * 167 + (i >> 8) * 13 + 7;
	memcpy(stream + PERIOD, stream, PERIOD);
	if (!vs_start(&vs, d, opt_number("event", 1) ? F_EVENT_IDX : 0))
		return;
	vs.input = input;
	vs.idle = idle;
	vs_fill(&vs);
	if (serving)
		serve(port);
	else if (!after(v, "up") && !after(v, "down") && !after(v, "rr"))
		fail("vsock", "wants up, down, rr or serve");
	else if (c = fresh(opt_number("from", 1024), port), dial(c, after(v, "up") ? R_SOURCE : R_SINK)) {
		if (after(v, "up"))
			up(c, opt_number("bytes", 100 << 20));
		else if (after(v, "rr"))
			rr(c, opt_number("count", 1000));
		else
			down(c);
	}
	if (vs.lost || vs.bad || vs.broken)
		fail("vsock", "lost=%u bad=%u broken=%u", vs.lost, vs.bad, vs.broken);
	timer_set(0, 0);
	virtio_reset(d);
}
