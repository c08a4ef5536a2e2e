// The driver: a queue of buffers to receive into, one of packets to send, one of
// events.

#include "vsock.h"

#define LOST_US 300000		// used buffers that no interrupt tells of for so long
#define TICK 10000		// µs between timer interrupts
#define EVENTS 4

struct vdev *vs_device(void)
{
	virtio_find();
	for (u32 i = 0; i < nvdevs; i++)
		if (vdevs[i].id == 19)
			return &vdevs[i];
	return NULL;
}

static int queue(struct vsock *s, u16 index, void *mem)
{
	struct vdev *d = s->d;
	struct vq *q = &d->q[index];
	u32 max;

	set(d, R_QUEUE_SEL, index);
	max = reg(d, R_QUEUE_MAX);
	if (max == 0 || max > 32768 || max & (max - 1)) {
		fail("vsock", "dev=%u queue %u of %u", d->n, index, max);
		return 0;
	}
	q->max = max;
	vq_layout(q, d, index, max < RING_MAX ? max : RING_MAX, mem);
	if (!vq_enable(q)) {
		fail("vsock", "dev=%u queue %u not ready, status=0x%x", d->n, index, reg(d, R_STATUS));
		return 0;
	}
	return 1;
}

int vs_start(struct vsock *s, struct vdev *d, u64 want)
{
	static u8 *rings, *rxmem, *txmem, *events;
	static struct vs_slot *slots;
	u64 ring = (vq_bytes(RING_MAX) + 4095) & ~4095ul;
	u32 rxbuf = opt_number("rxbuf", 4096);

	if (rxbuf < 64 || rxbuf > VS_PART)
		rxbuf = 4096;
	if (!rings) {
		rings = heap(3 * ring);
		slots = heap(RING_MAX * sizeof(struct vs_slot));
		events = heap(4096);
		rxmem = heap_raw(RING_MAX * (u64)rxbuf);
		txmem = heap_raw(RING_MAX / 2 * (u64)VS_PART);
	}
	*s = (struct vsock){ .d = d, .rx = &d->q[0], .tx = &d->q[1], .ev = &d->q[2], .rxmem = rxmem, .txmem = txmem, .slots = slots, .rxbuf = rxbuf };
	virtio_reset(d);
	virtio_interrupts(d);
	if (!virtio_negotiate(d, want)) {
		fail("vsock", "dev=%u features 0x%lx of 0x%lx refused, status=0x%x", d->n, d->features, d->offered, reg(d, R_STATUS));
		return 0;
	}
	s->cid = rd64(d->base + R_CONFIG);
	for (u32 i = 0; i < 3; i++)
		if (!queue(s, i, rings + i * ring))
			return 0;
	s->nrx = s->rx->size;
	s->ntx = s->tx->size / 2;
	for (u32 i = 0; i < s->ntx; i++)
		s->free[s->nfree++] = s->ntx - 1 - i;
	for (u32 i = 0; i < EVENTS; i++) {
		s->ev->desc[i] = (struct desc){ (u64)events + 8 * i, 4, D_WRITE, 0 };
		vq_put(s->ev, i);
	}
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	if (reg(d, R_STATUS) & S_NEEDS_RESET) {
		fail("vsock", "dev=%u wants a reset at DRIVER_OK", d->n);
		return 0;
	}
	vq_no_irq(s->tx);
	vq_want_irq(s->ev);
	vq_publish(s->ev);
	timer_set(TICK, 1);
	return 1;
}

void vs_fill(struct vsock *s)
{
	for (u32 i = 0; i < s->nrx; i++) {
		s->rx->desc[i] = (struct desc){ (u64)s->rxmem + (u64)i * s->rxbuf, s->rxbuf, D_WRITE, 0 };
		vq_put(s->rx, i);
	}
	vq_want_irq(s->rx);
	vq_publish(s->rx);
}

static void reclaim(struct vsock *s)
{
	u32 id, len;

	while (vq_get(s->tx, &id, &len)) {
		if (id & 1 || id / 2 >= s->ntx || s->nfree >= s->ntx || len)
			s->bad++;
		else
			s->free[s->nfree++] = id / 2;
	}
}

int vs_room(struct vsock *s)
{
	if (s->nfree <= s->ntx / 2) {
		reclaim(s);
		if (!s->nfree) {	// then an interrupt is wanted
			s->starved = 1;
			vq_want_irq_at(s->tx, s->ntx / 4);
			reclaim(s);
		}
	}
	if (s->nfree && s->starved) {
		s->starved = 0;
		vq_no_irq(s->tx);
	}
	return s->nfree;
}

u8 *vs_buffer(struct vsock *s) { return s->txmem + (u64)s->free[s->nfree - 1] * VS_PART; }

int vs_send(struct vsock *s, const struct vs_hdr *h, const void *p, u32 len)
{
	u32 i;

	if (!vs_room(s))
		return 0;
	i = s->free[--s->nfree];
	s->slots[i].h = *h;
	s->slots[i].h.len = len;
	s->tx->desc[2 * i] = (struct desc){ (u64)&s->slots[i].h, VS_HDR, len ? D_NEXT : 0, 2 * i + 1 };
	if (len)
		s->tx->desc[2 * i + 1] = (struct desc){ (u64)p, len, 0, 0 };
	vq_put(s->tx, 2 * i);
	s->tx_packets++;
	return 1;
}

void vs_flush(struct vsock *s)
{
	if ((u16)s->tx->avail->idx != s->tx->avail_idx)
		vq_publish(s->tx);
}

void vs_reply(struct vsock *s, const struct vs_hdr *h, u16 op)
{
	struct vs_hdr a = { .src = s->cid, .dst = h->src, .sport = h->dport, .dport = h->sport, .type = h->type, .op = op };

	vs_send(s, &a, NULL, 0);	// one that finds no slot is missed: its connection is reset later
}

// events takes in that all connections are gone (§5.10.6.7).
static void events(struct vsock *s)
{
	u32 id, len;

	while (vq_get(s->ev, &id, &len)) {
		if (id >= EVENTS || len != 4 || rd32(s->ev->desc[id].addr)) {
			s->bad++;
			continue;
		}
		s->resets++;
		s->cid = rd64(s->d->base + R_CONFIG);
		vq_put(s->ev, id);
		vq_publish(s->ev);
	}
	vq_want_irq(s->ev);
}

u32 vs_poll(struct vsock *s)
{
	u32 got = 0, id, len;
	struct vs_hdr h;
	u8 *at;

	events(s);
	while (got < 1024 && vq_get(s->rx, &id, &len)) {
		if (!got)
			vq_no_irq(s->rx);
		at = s->rxmem + (u64)id * s->rxbuf;
		if (id >= s->nrx || len > s->rxbuf || len < VS_HDR) {
			s->bad++;
			continue;
		}
		h = *(struct vs_hdr *)at;
		if (h.len != len - VS_HDR || h.dst != s->cid)
			s->bad++;
		else if (s->input)
			s->input(s, &h, at + VS_HDR);
		vq_put(s->rx, id);
		s->rx_packets++;
		if (++got % VS_BATCH == 0) {
			vq_publish(s->rx);
			if (s->idle)
				s->idle(s);
			vs_flush(s);
		}
	}
	if ((u16)s->rx->avail->idx != s->rx->avail_idx)
		vq_publish(s->rx);
	if (s->idle)
		s->idle(s);
	vs_flush(s);
	return got;
}

static int waits(struct vq *q) { return q->used->idx != q->last_used; }

// vs_step looks again only after an interrupt of the device or a tick without
// anything to see; what lies there for long without an interrupt was lost.
u32 vs_step(struct vsock *s)
{
	struct vdev *d = s->d;
	u64 irqs, config, from, t0;
	u32 got = vs_poll(s);

	if (got)
		return got;
	vq_want_irq(s->rx);
	if (waits(s->rx) || waits(s->ev) || (s->starved && vs_room(s)))
		return vs_poll(s);
	irqs = d->irqs;
	config = d->config_irqs;
	from = ticks;
	t0 = rdtsc();
	while (d->irqs == irqs) {
		if (d->config_irqs != config) {
			s->broken = (reg(d, R_STATUS) & S_NEEDS_RESET) != 0;
			return 0;
		}
		if (ticks != from) {
			if (!waits(s->rx) && !waits(s->ev))
				break;
			if (us_of(rdtsc() - t0) > LOST_US) {
				s->lost++;
				break;
			}
		}
		wait_irq();
	}
	return vs_poll(s);
}

// What check does: a port that nobody listens on answers, and so does a packet
// of a type that nobody knows.
static struct { u32 op, type, sport; u64 n; } answer;

static void take_answer(struct vsock *s, const struct vs_hdr *h, u8 *p)
{
	(void)s;
	(void)p;
	answer.op = h->op;
	answer.type = h->type;
	answer.sport = h->sport;
	answer.n++;
}

static int ask(struct vsock *s, u32 port, u16 type, u16 op, u32 ms)
{
	struct vs_hdr h = { .src = s->cid, .dst = V_HOST, .sport = 1023, .dport = port, .type = type, .op = op, .alloc = VS_PART };
	u64 t0 = rdtsc();

	s->input = take_answer;
	answer.n = 0;
	if (!vs_send(s, &h, NULL, 0))
		return 0;
	vs_flush(s);
	while ((!answer.n || answer.sport != port) && us_of(rdtsc() - t0) < ms * 1000ul && !s->broken)
		vs_step(s);
	return answer.n && answer.op == V_RST && answer.type == type && answer.sport == port;
}

int vs_refused(struct vsock *s, u32 port, u32 ms) { return ask(s, port, V_STREAM, V_REQUEST, ms); }

void vs_check(struct vdev *d)
{
	static struct vsock s;

	for (u32 plain = 0; plain < 2; plain++) {
		if (!vs_start(&s, d, plain ? 0 : F_EVENT_IDX | F_INDIRECT))
			return;
		vs_fill(&s);
		if (s.cid < 3 || s.cid >= 0xffffffff)
			fail("vsock", "dev=%u guest_cid=%lu", d->n, s.cid);
		if (!vs_refused(&s, 0xfffffff0, 3000))
			fail("vsock", "dev=%u a connection to where nobody listens: answers=%lu op=%u", d->n, answer.n, answer.op);
		else if (!ask(&s, 0xfffffff1, 7, V_RW, 3000))
			fail("vsock", "dev=%u a packet of an unknown type: answers=%lu op=%u", d->n, answer.n, answer.op);
		else if (s.lost || s.bad || s.broken)
			fail("vsock", "dev=%u lost=%u bad=%u broken=%u", d->n, s.lost, s.bad, s.broken);
		else
			ok("vsock", "dev=%u cid=%lu features=0x%lx of 0x%lx rx=%u tx=%u ev=%u", d->n, s.cid, d->features, d->offered, s.rx->max, s.tx->max, s.ev->max);
	}
	timer_set(0, 0);
	virtio_reset(d);
}
