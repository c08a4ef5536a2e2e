// Packets and buffers that break the rules of virtio-vsock (VirtIO 1.2 §5.10.6).
// Each case begins with a working device and ends with a reset, after which a port
// that nobody listens on must answer. Cases that need a connection make it to port
// vport= (1024) of the host's, and are skipped where it is refused.

#include "hostile.h"
#include "vsock.h"

#define HOLE 0xD0000000ul
#define N D_NEXT
#define W D_WRITE
#define FLOOD 5000
#define FLOOD_MS 1000

struct hostile_vsock {
	const char *name;
	u32 (*run)(struct vsock *s);
	u32 allowed;
	u32 bare;	// start without buffers to receive into
};

static struct { u32 op, port, n, rsts; u32 alloc; } heard;

static void hear(struct vsock *s, const struct vs_hdr *h, u8 *p)
{
	(void)s;
	(void)p;
	heard.op = h->op;
	heard.port = h->sport;
	heard.alloc = h->alloc;
	heard.n++;
	heard.rsts += h->op == V_RST;
}

static u32 state(struct vsock *s) { return reg(s->d, R_STATUS) & S_NEEDS_RESET ? O_RESET : O_LIVES; }

// settle lets answers come for a while.
static u32 settle(struct vsock *s, u32 ms)
{
	for (u64 t0 = rdtsc(); us_of(rdtsc() - t0) < ms * 1000ul && !s->broken;)
		vs_step(s);
	return state(s);
}

static void put(struct vq *q, u32 i, u64 addr, u32 len, u16 flags, u16 next) { q->desc[i] = (struct desc){ addr, len, flags, next }; }

// offer makes a chain of the transmit queue known, and waits for it.
static u32 offer(struct vsock *s, u16 head)
{
	u32 id, len;

	vq_put(s->tx, head);
	barrier();
	s->tx->avail->idx = s->tx->avail_idx;
	vq_want_irq(s->tx);
	set(s->d, R_NOTIFY, 1);
	for (u64 from = ticks; ticks - from <= WAIT_MS; wait_irq()) {
		if (reg(s->d, R_STATUS) & S_NEEDS_RESET)
			return O_RESET;
		if (vq_get(s->tx, &id, &len)) {
			if (!len)
				return O_USED;
			fail("hostile", "%u bytes written to a packet that is to be sent", len);
			return O_BAD;
		}
	}
	return O_SILENT;
}

static struct vs_hdr made;

// packet makes the one that the cases begin with: to where nobody listens.
static struct vs_hdr *packet(struct vsock *s, u16 op)
{
	made = (struct vs_hdr){ .src = s->cid, .dst = V_HOST, .sport = 1000, .dport = 0xfffffff0, .type = V_STREAM, .op = op, .alloc = VS_PART };
	return &made;
}

static u32 one(struct vsock *s, u64 addr, u32 len, u16 flags)
{
	packet(s, V_REQUEST);
	put(s->tx, 0, addr, len, flags, 0);
	return offer(s, 0);
}

#define MADE ((u64)&made)
static u32 tx_short(struct vsock *s) { return one(s, MADE, 43, 0); }
static u32 tx_byte(struct vsock *s) { return one(s, MADE, 1, 0); }
static u32 tx_empty(struct vsock *s) { return one(s, MADE, 0, 0); }
static u32 tx_outside(struct vsock *s) { return one(s, 1ul << 45, 44, 0); }
static u32 tx_hole(struct vsock *s) { return one(s, HOLE, 44, 0); }
static u32 tx_wrap(struct vsock *s) { return one(s, -16ul, 44, 0); }
static u32 tx_writable(struct vsock *s) { return one(s, MADE, 44, W); }
static u32 tx_loop(struct vsock *s) { return one(s, MADE, 44, N); }

static u32 tx_write_last(struct vsock *s)
{
	packet(s, V_REQUEST);
	put(s->tx, 0, MADE, 44, N, 1);
	put(s->tx, 1, (u64)s->txmem, 64, W, 0);
	return offer(s, 0);
}

static u32 tx_pieces(struct vsock *s)
{
	u32 before = heard.rsts;

	packet(s, V_REQUEST);
	for (u32 i = 0; i < 44; i++)
		put(s->tx, i, MADE + i, 1, i < 43 ? N : 0, i + 1);
	if (offer(s, 0) != O_USED)
		return O_SILENT;
	settle(s, 20);
	return heard.rsts != before ? O_OK : O_SILENT;
}

static u32 len_beyond(struct vsock *s)
{
	static const u32 lens[] = { 1, 0x7fffffff, 0x80000000, 0xffffffd4, 0xffffffff };
	u32 o = O_USED;

	for (u32 i = 0; i < COUNT(lens) && o == O_USED; i++) {
		packet(s, V_RW)->len = lens[i];
		put(s->tx, 0, MADE, 44, 0, 0);
		o = offer(s, 0);
	}
	return o;
}

// flood sends what next makes, and lets answers in between.
static u32 flood(struct vsock *s, void (*next)(struct vs_hdr *h, u32 i, u64 *seed))
{
	u64 seed = opt_number("seed", 1), t0 = rdtsc();
	struct vs_hdr h;

	for (u32 i = 0; i < FLOOD && us_of(rdtsc() - t0) < opt_number("ms", FLOOD_MS) * 1000 && !s->broken; i++) {
		h = *packet(s, V_REQUEST);
		next(&h, i, &seed);
		u32 len = h.len;
		if (!vs_send(s, &h, NULL, 0)) {
			vs_flush(s);
			vs_step(s);
			continue;
		}
		s->slots[s->free[s->nfree]].h.len = len;	// vs_send says what is there
		if (i % 16 == 15)
			vs_poll(s);
	}
	vs_flush(s);
	return settle(s, 20);
}

static void next_request(struct vs_hdr *h, u32 i, u64 *x) { (void)x; h->sport = i; h->dport = i * 7; }
static void next_rst(struct vs_hdr *h, u32 i, u64 *x) { (void)x; h->op = V_RST; h->sport = i; }
static void next_op(struct vs_hdr *h, u32 i, u64 *x) { (void)x; h->op = i; h->sport = i & 3; }
static void next_spoofed(struct vs_hdr *h, u32 i, u64 *x) { h->src = i & 1 ? rnd(x) : i % 8; h->sport = i; }
static void next_elsewhere(struct vs_hdr *h, u32 i, u64 *x) { h->dst = i & 1 ? rnd(x) : i % 8; h->sport = i; }
static void next_type(struct vs_hdr *h, u32 i, u64 *x) { (void)x; h->type = i; }
static void next_random(struct vs_hdr *h, u32 i, u64 *x)
{
	u64 r = rnd(x);

	h->op = r & 15;
	h->sport = r >> 4 & 3;
	h->dport = r >> 6 & 1 ? opt_number("vport", 1024) : r >> 8 & 0xffff;
	h->flags = r >> 24 & 7;
	h->len = r >> 28 & 1 ? rnd(x) : 0;
	h->alloc = rnd(x);
	h->fwd = rnd(x);
	if (i % 16 == 0)
		h->type = r >> 30;
	if (i % 16 == 1)
		h->src = rnd(x);
}

static u32 requests(struct vsock *s) { return flood(s, next_request); }
static u32 rsts(struct vsock *s)
{
	u32 before = heard.n, o = flood(s, next_rst);

	if (heard.n != before) {
		fail("hostile", "%u answers to RST", heard.n - before);
		return O_BAD;
	}
	return o;
}
static u32 operations(struct vsock *s) { return flood(s, next_op); }
static u32 spoofed(struct vsock *s) { return flood(s, next_spoofed); }
static u32 elsewhere(struct vsock *s) { return flood(s, next_elsewhere); }
static u32 types(struct vsock *s) { return flood(s, next_type); }
static u32 random_packets(struct vsock *s) { return flood(s, next_random); }

// connected makes a connection to the host, where somebody listens.
static int connected(struct vsock *s)
{
	struct vs_hdr *h = packet(s, V_REQUEST);
	u64 t0 = rdtsc();

	h->dport = opt_number("vport", 1024);
	heard.n = 0;
	if (!vs_send(s, h, NULL, 0))
		return 0;
	vs_flush(s);
	while (!heard.n && us_of(rdtsc() - t0) < WAIT_MS * 1000ul && !s->broken)
		vs_step(s);
	return heard.n && heard.op == V_RESPONSE;
}

// provoke sends a packet over the connection, with len bytes said and n there.
static void provoke(struct vsock *s, u16 op, u32 flags, u32 len, u32 n)
{
	struct vs_hdr h = *packet(s, op);

	h.dport = opt_number("vport", 1024);
	h.flags = flags;
	if (!vs_send(s, &h, s->txmem, n))
		return;
	s->slots[s->free[s->nfree]].h.len = len;
	vs_flush(s);
}

// reset_follows: RST is the answer to a broken rule.
static u32 reset_follows(struct vsock *s)
{
	u64 t0 = rdtsc();
	u32 before = heard.rsts;

	while (heard.rsts == before && us_of(rdtsc() - t0) < WAIT_MS * 1000ul && !s->broken)
		vs_step(s);
	return heard.rsts != before ? O_OK : O_SILENT;
}

static u32 conn_len(struct vsock *s)
{
	if (!connected(s))
		return O_SKIP;
	provoke(s, V_RW, 0, 1000, 10);
	return reset_follows(s);
}

static u32 conn_after_shutdown(struct vsock *s)
{
	if (!connected(s))
		return O_SKIP;
	provoke(s, V_SHUTDOWN, V_SEND, 0, 0);
	provoke(s, V_RW, 0, 10, 10);
	return reset_follows(s);
}

static u32 conn_again(struct vsock *s)
{
	if (!connected(s))
		return O_SKIP;
	provoke(s, V_REQUEST, 0, 0, 0);
	return reset_follows(s);
}

static u32 conn_credit(struct vsock *s)
{
	u32 before = heard.rsts;

	if (!connected(s))
		return O_SKIP;
	for (u32 i = 0; i < 200 && heard.rsts == before && !s->broken; i++) {	// 13 MB that nobody takes
		provoke(s, V_RW, 0, VS_PART, VS_PART);
		vs_poll(s);
		if (!vs_room(s))
			vs_step(s);
	}
	return heard.rsts != before ? O_OK : reset_follows(s);
}

static u32 conn_credits(struct vsock *s)
{
	if (!connected(s))
		return O_SKIP;
	for (u32 i = 0; i < 100; i++)
		provoke(s, i & 1 ? V_ASK : V_UPDATE, 0, i << 25, 0);
	return settle(s, 20);
}

// Buffers to receive into: answers have to come for them.
static u32 rx_of(struct vsock *s, u64 addr, u32 len, u16 flags)
{
	for (u32 i = 0; i < s->rx->size; i++) {
		put(s->rx, i, addr + (flags & W && len < 4096 ? i * len : 0), len, flags, i);
		vq_put(s->rx, i);
	}
	barrier();
	s->rx->avail->idx = s->rx->avail_idx;
	set(s->d, R_NOTIFY, 0);
	s->nrx = 0;	// nothing that comes is looked at
	s->input = NULL;
	for (u32 i = 0; i < 10; i++) {
		vs_send(s, packet(s, V_REQUEST), NULL, 0);
		vs_flush(s);
		delay_us(500);
	}
	delay_us(5000);
	return state(s);
}

static u32 rx_read_only(struct vsock *s) { return rx_of(s, (u64)s->rxmem, 2048, 0); }
static u32 rx_byte(struct vsock *s) { return rx_of(s, (u64)s->rxmem, 1, W); }
static u32 rx_short(struct vsock *s) { return rx_of(s, (u64)s->rxmem, 43, W); }
static u32 rx_zero(struct vsock *s) { return rx_of(s, (u64)s->rxmem, 0, W); }
static u32 rx_outside(struct vsock *s) { return rx_of(s, 1ul << 45, 4096, W); }
static u32 rx_hole(struct vsock *s) { return rx_of(s, HOLE, 4096, W); }
static u32 rx_loop(struct vsock *s) { return rx_of(s, (u64)s->rxmem, 4, W | N); }
static u32 rx_ring_target(struct vsock *s) { return rx_of(s, (u64)s->rx->desc, 4096, W); }

static u32 rx_avail_far(struct vsock *s)
{
	s->rx->avail_idx = 0x7f00;
	return rx_of(s, (u64)s->rxmem, 2048, W);
}

// Nothing is taken in while much is asked: afterwards, without a reset, all of it
// is answered.
static u32 rx_none(struct vsock *s)
{
	u64 t0 = rdtsc();
	u32 sent = 0;

	while (vs_send(s, packet(s, V_REQUEST), NULL, 0) && us_of(rdtsc() - t0) < WAIT_MS * 1000ul)
		sent++;
	vs_flush(s);
	delay_us(2000);
	heard.rsts = 0;
	vs_fill(s);
	for (t0 = rdtsc(); heard.rsts < sent && us_of(rdtsc() - t0) < WAIT_MS * 1000ul && !s->broken;)
		vs_step(s);
	if (heard.rsts == sent)
		return O_LIVES;
	fail("hostile", "%u answers to %u packets once there are buffers", heard.rsts, sent);
	return O_BAD;
}

static u32 reset_in_flight(struct vsock *s)
{
	for (u32 i = 0; i < s->ntx; i++)
		vs_send(s, packet(s, V_REQUEST), NULL, 0);
	vs_flush(s);
	virtio_reset(s->d);
	memset(s->rxmem, 0x5a, 4096);
	delay_us(3000);
	for (u32 i = 0; i < 4096; i++)
		if (s->rxmem[i] != 0x5a) {
			fail("hostile", "memory changes after a reset");
			return O_BAD;
		}
	return O_LIVES;
}

static u32 config_writes(struct vsock *s)
{
	for (u32 i = 0; i < 8; i++)
		wr8(s->d->base + R_CONFIG + i, 0xff);
	if (rd64(s->d->base + R_CONFIG) != s->cid) {
		fail("hostile", "the CID has changed");
		return O_BAD;
	}
	return O_LIVES;
}

#define HANDLED (O_USED | O_RESET)
static const struct hostile_vsock hostile_cases[] = {
	{ "vsock-tx-short", tx_short, HANDLED, 0 },
	{ "vsock-tx-byte", tx_byte, HANDLED, 0 },
	{ "vsock-tx-empty", tx_empty, HANDLED, 0 },
	{ "vsock-tx-outside", tx_outside, O_RESET, 0 },
	{ "vsock-tx-hole", tx_hole, O_RESET, 0 },
	{ "vsock-tx-wrap", tx_wrap, O_RESET, 0 },
	{ "vsock-tx-writable", tx_writable, HANDLED, 0 },
	{ "vsock-tx-write-last", tx_write_last, HANDLED, 0 },
	{ "vsock-tx-loop", tx_loop, O_RESET, 0 },
	{ "vsock-tx-pieces", tx_pieces, O_OK, 0 },
	{ "vsock-len", len_beyond, O_USED, 0 },
	{ "vsock-requests", requests, O_LIVES, 0 },
	{ "vsock-rsts", rsts, O_LIVES, 0 },
	{ "vsock-operations", operations, O_LIVES, 0 },
	{ "vsock-spoofed", spoofed, O_LIVES, 0 },
	{ "vsock-elsewhere", elsewhere, O_LIVES, 0 },
	{ "vsock-types", types, O_LIVES, 0 },
	{ "vsock-random", random_packets, O_LIVES, 0 },
	{ "vsock-conn-len", conn_len, O_OK, 0 },
	{ "vsock-conn-after-shutdown", conn_after_shutdown, O_OK, 0 },
	{ "vsock-conn-again", conn_again, O_OK, 0 },
	{ "vsock-conn-credit", conn_credit, O_OK, 0 },
	{ "vsock-conn-credits", conn_credits, O_LIVES, 0 },
	{ "vsock-rx-read-only", rx_read_only, ANY, 1 },
	{ "vsock-rx-byte", rx_byte, ANY, 1 },
	{ "vsock-rx-short", rx_short, ANY, 1 },
	{ "vsock-rx-zero", rx_zero, ANY, 1 },
	{ "vsock-rx-outside", rx_outside, O_RESET, 1 },
	{ "vsock-rx-hole", rx_hole, O_RESET, 1 },
	{ "vsock-rx-loop", rx_loop, O_RESET, 1 },
	{ "vsock-rx-ring-target", rx_ring_target, ANY, 1 },
	{ "vsock-rx-avail-far", rx_avail_far, O_RESET, 1 },
	{ "vsock-rx-none", rx_none, O_LIVES, 1 },
	{ "vsock-reset-in-flight", reset_in_flight, O_LIVES, 0 },
	{ "vsock-config-space", config_writes, O_LIVES, 0 },
	{ NULL, NULL, 0, 0 },
};

static void run_case(struct vsock *s, struct vdev *d, const struct hostile_vsock *h)
{
	u64 config, from;
	u32 o, driving, before = fails;

	if (!vs_start(s, d, F_EVENT_IDX | F_INDIRECT))
		return;
	timer_set(1000, 1);
	s->input = hear;
	if (!h->bare)
		vs_fill(s);
	config = d->config_irqs;
	o = h->run(s);
	// What must break the device has had no time to, where it shares a processor with this guest.
	for (from = ticks; h->allowed == O_RESET && o == O_LIVES && ticks - from < WAIT_MS; o = state(s))
		wait_irq();
	driving = reg(d, R_STATUS) & S_DRIVER_OK;
	if (o == O_RESET && driving)
		for (from = ticks; d->config_irqs == config && ticks - from < WAIT_MS;)
			wait_irq();
	config = d->config_irqs - config;
	if (!vs_start(s, d, F_EVENT_IDX | F_INDIRECT))
		return;
	vs_fill(s);
	if (!vs_refused(s, 0xfffffff0, 3 * WAIT_MS))
		fail("hostile", "name=%s nothing answers after a reset, device status=0x%x", h->name, reg(d, R_STATUS));
	else if (o & O_SKIP)
		skip("hostile", "name=%s needs who listens on port %lu", h->name, opt_number("vport", 1024));
	else if (!(o & h->allowed))
		fail("hostile", "name=%s outcome=%s", h->name, outcome_name(o));
	else if (o == O_RESET && driving && !config)
		fail("hostile", "name=%s NEEDS_RESET without a configuration interrupt", h->name);
	else if (fails == before)
		ok("hostile", "name=%s outcome=%s config_irqs=%lu", h->name, o == O_USED ? "USED" : outcome_name(o), config);
}

u32 hostile_vsocks(const char *v, int all)
{
	static struct vsock s;
	struct vdev *d = vs_device();
	u32 found = 0;

	if (!d)
		return 0;
	for (const struct hostile_vsock *h = hostile_cases; h->name; h++)
		if (chosen(v, all || chosen(v, 0, "vsock"), h->name)) {
			found++;
			run_case(&s, d, h);
		}
	timer_set(0, 0);
	virtio_reset(d);
	return found;
}
