// The driver: one queue, requests in slots, completions by interrupt.

#include "blk.h"

#define WATCHDOG_US 3000000

struct vdev *blk_device(u32 n)
{
	virtio_find();
	for (u32 i = 0; i < nvdevs; i++)
		if (vdevs[i].id == 2 && n-- == 0)
			return &vdevs[i];
	return NULL;
}

const char *blk_status(u8 s)
{
	switch (s) {
	case ST_OK: return "OK";
	case ST_IOERR: return "IOERR";
	case ST_UNSUPP: return "UNSUPP";
	case ST_UNTOUCHED: return "UNTOUCHED";
	case ST_LOST: return "LOST_INTERRUPT";
	case ST_TIMEOUT: return "TIMEOUT";
	case ST_NEEDS_RESET: return "NEEDS_RESET";
	}
	return "?";
}

int blk_init(struct blk *b, struct vdev *d, u64 features)
{
	u32 max;

	b->d = d;
	b->q = &d->q[0];
	if (!b->ring) {
		b->ring = heap(vq_bytes(RING_MAX));
		b->slots = heap(RING_MAX * sizeof(struct slot));
		b->buf = heap(BUF);
	}
	virtio_reset(d);
	virtio_interrupts(d);
	if (!virtio_negotiate(d, features)) {
		fail("blk", "dev=%u features 0x%lx of 0x%lx refused, status=0x%x", d->n, d->features, d->offered, reg(d, R_STATUS));
		return 0;
	}
	set(d, R_QUEUE_SEL, 0);
	max = reg(d, R_QUEUE_MAX);
	if (max == 0 || max > 32768 || max & (max - 1)) {
		fail("blk", "dev=%u queue of %u", d->n, max);
		return 0;
	}
	b->q->max = max;
	vq_layout(b->q, d, 0, max < RING_MAX ? max : RING_MAX, b->ring);
	if (!vq_enable(b->q)) {
		fail("blk", "dev=%u queue not ready, status=0x%x", d->n, reg(d, R_STATUS));
		return 0;
	}
	b->nslots = d->features & F_INDIRECT ? b->q->size : b->q->size / 4;
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	if (reg(d, R_STATUS) & S_NEEDS_RESET) {
		fail("blk", "dev=%u wants a reset at DRIVER_OK", d->n);
		return 0;
	}
	b->capacity = rd32(d->base + R_CONFIG) | (u64)rd32(d->base + R_CONFIG + 4) << 32;
	return 1;
}

int blk_one(struct blk *b)
{
	struct vdev *d = blk_device(opt_number("dev", 0));

	if (!d) {
		fail("blk", "no disk %lu", opt_number("dev", 0));
		return 0;
	}
	return blk_init(b, d, F_INDIRECT | F_EVENT_IDX | B_FLUSH | B_RO | B_BLK_SIZE | B_SEG_MAX | B_DISCARD | B_WRITE_ZEROES | B_CONFIG_WCE);
}

static u32 put_desc(struct desc *t, u32 n, u32 base, void *addr, u32 len, u16 flags)
{
	t[n] = (struct desc){ (u64)addr, len, flags | D_NEXT, base + n + 1 };
	return n + 1;
}

void blk_fill(struct blk *b, u32 s, u32 type, u64 sector, void *buf, u32 len)
{
	struct slot *r = &b->slots[s];
	int indirect = (b->d->features & F_INDIRECT) != 0;
	u32 base = indirect ? 0 : 4 * s, n;
	u16 data = type == T_IN || type == T_GET_ID ? D_WRITE : 0;
	struct desc *t = indirect ? r->table : (struct desc *)&b->q->desc[base];

	r->hdr = (struct blk_hdr){ type, 0, sector };
	r->status = ST_UNTOUCHED;
	n = put_desc(t, 0, base, &r->hdr, sizeof r->hdr, 0);
	if (b->split && len > 512) {
		n = put_desc(t, n, base, buf, 512, data);
		n = put_desc(t, n, base, buf + 512, len - 512, data);
	} else if (len)
		n = put_desc(t, n, base, buf, len, data);
	n = put_desc(t, n, base, (void *)&r->status, 1, D_WRITE);
	t[n - 1].flags &= ~D_NEXT;
	if (indirect) {
		volatile struct desc *d = &b->q->desc[s];
		d->addr = (u64)t;
		d->len = 16 * n;
		d->flags = D_INDIRECT;
		d->next = 0;
	}
	vq_put(b->q, indirect ? s : base);
}

// blk_wait collects one used buffer. It looks again only after an interrupt of
// the device; what the timer finds used, the interrupt was lost for.
int blk_wait(struct blk *b, u32 *slot)
{
	struct vdev *d = b->d;
	struct vq *q = b->q;
	u64 from = ticks, limit = tick_us ? WATCHDOG_US / tick_us : 1, irqs, config, t0 = rdtsc();
	u32 id, len, armed = 0;

	for (;;) {
		if (vq_get(q, &id, &len)) {
			if (armed)
				timer_set(0, 0);
			*slot = d->features & F_INDIRECT ? id : id / 4;
			return ST_OK;
		}
		vq_want_irq(q);
		if (q->used->idx != q->last_used)
			continue;
		if (!tick_us && !armed++)
			timer_set(WATCHDOG_US, 0);
		irqs = d->irqs;
		config = d->config_irqs;
		while (d->irqs == irqs && d->config_irqs == config) {
			if (ticks - from >= limit && !tick_us && us_of(rdtsc() - t0) < WATCHDOG_US) {
				from = ticks;	// a late tick of an earlier timer
				timer_set(WATCHDOG_US, 0);
			} else if (ticks - from >= limit)
				return q->used->idx != q->last_used ? ST_LOST : reg(d, R_STATUS) & S_NEEDS_RESET ? ST_NEEDS_RESET : ST_TIMEOUT;
			wait_irq();
		}
		if (d->config_irqs != config && reg(d, R_STATUS) & S_NEEDS_RESET) {
			if (armed)
				timer_set(0, 0);
			return ST_NEEDS_RESET;
		}
	}
}

u8 blk_do(struct blk *b, u32 type, u64 sector, void *buf, u32 len)
{
	u32 slot;
	int got;

	blk_fill(b, 0, type, sector, buf, len);
	vq_publish(b->q);
	got = blk_wait(b, &slot);
	if (got != ST_OK)
		return got;
	if (slot != 0) {
		fail("blk", "dev=%u used id %u was not offered", b->d->n, slot);
		return ST_UNTOUCHED;
	}
	return b->slots[0].status;
}

// by_interrupt is a read whose end nothing but an interrupt tells, however
// quick the device was.
static u8 by_interrupt(struct blk *b)
{
	u64 irqs = b->d->irqs, from = ticks;
	u32 id, len;

	blk_fill(b, 0, T_IN, 0, b->buf, 512);
	vq_want_irq(b->q);
	vq_publish(b->q);
	timer_set(10000, 1);
	do {
		for (; b->d->irqs == irqs; wait_irq())
			if (ticks - from > WATCHDOG_US / 10000) {
				timer_set(0, 0);
				return b->q->used->idx != b->q->last_used ? ST_LOST : ST_TIMEOUT;
			}
		irqs = b->d->irqs;
	} while (!vq_get(b->q, &id, &len));	// one of an earlier request
	timer_set(0, 0);
	return b->slots[0].status;
}

void pattern(void *p, u64 n, u64 seed)
{
	for (u64 *q = p, *end = p + n; q < end; q++)
		*q = seed += 0x9e3779b97f4a7c15;
}

static int expect(struct blk *b, const char *what, u8 got, u8 want)
{
	if (got == want)
		return 1;
	fail("blk", "dev=%u %s: %s, expected %s", b->d->n, what, blk_status(got), blk_status(want));
	return 0;
}

// Write, read back, compare.
static int verify(struct blk *b, u64 sector, u32 len, u64 seed)
{
	u8 *out = b->buf, *in = b->buf + BUF / 2;

	pattern(out, len, seed);
	memset(in, 0x11, len);
	if (!expect(b, "write", blk_do(b, T_OUT, sector, out, len), ST_OK) || !expect(b, "read", blk_do(b, T_IN, sector, in, len), ST_OK))
		return 0;
	if (same(out, in, len))
		return 1;
	fail("blk", "dev=%u sector=%lu bytes=%u: read back something else", b->d->n, sector, len);
	return 0;
}

static int all_zero(const u8 *p, u32 n)
{
	return !*(u64 *)p && same(p, p + 8, n - 8);
}

static void ranges(struct blk *b, u64 sector, u32 n)
{
	struct blk_range *r = (void *)(b->buf + BUF - 64);

	if (b->d->features & B_DISCARD) {
		*r = (struct blk_range){ sector, n, 0 };
		if (expect(b, "discard", blk_do(b, T_DISCARD, 0, r, sizeof *r), ST_OK) &&
		    expect(b, "read after discard", blk_do(b, T_IN, sector, b->buf, n * 512), ST_OK))
			ok("blk_discard", "dev=%u sectors=%u zeroes=%d", b->d->n, n, all_zero(b->buf, n * 512));
	}
	if (b->d->features & B_WRITE_ZEROES) {
		pattern(b->buf, n * 512, 3);
		expect(b, "write", blk_do(b, T_OUT, sector, b->buf, n * 512), ST_OK);
		*r = (struct blk_range){ sector, n, 0 };
		if (!expect(b, "write_zeroes", blk_do(b, T_WRITE_ZEROES, 0, r, sizeof *r), ST_OK) ||
		    !expect(b, "read after write_zeroes", blk_do(b, T_IN, sector, b->buf, n * 512), ST_OK))
			return;
		if (!all_zero(b->buf, n * 512))
			fail("blk", "dev=%u not zero after write_zeroes", b->d->n);
		else
			ok("blk_write_zeroes", "dev=%u sectors=%u", b->d->n, n);
	}
}

// The scratch area is the end of the disk; what was there is put back.
#define SCRATCH 32

static void scratch(struct blk *b)
{
	static u8 kept[SCRATCH * 512];
	u32 n = b->capacity < SCRATCH ? b->capacity : SCRATCH;
	u64 at = b->capacity - n;

	if (!expect(b, "read", blk_do(b, T_IN, at, kept, n * 512), ST_OK))
		return;
	b->split = 1;
	if (verify(b, at, 512, 1) && verify(b, at, n * 512, 2))
		ok("blk_verify", "dev=%u bytes=%u sector=%lu", b->d->n, 512 + n * 512, at);
	b->split = 0;
	if (b->d->features & B_FLUSH && expect(b, "flush", blk_do(b, T_FLUSH, 0, NULL, 0), ST_OK))
		ok("blk_flush", "dev=%u", b->d->n);
	ranges(b, at, n);
	expect(b, "write", blk_do(b, T_OUT, at, kept, n * 512), ST_OK);
	if (b->d->features & B_FLUSH)
		expect(b, "flush", blk_do(b, T_FLUSH, 0, NULL, 0), ST_OK);

	// The same without indirect descriptors, EVENT_IDX and FLUSH.
	if (!blk_init(b, b->d, 0))
		return;
	if (verify(b, at, 4096 < n * 512 ? 4096 : n * 512, 4))
		ok("blk_plain", "dev=%u features=0x%lx", b->d->n, b->d->features);
	expect(b, "write", blk_do(b, T_OUT, at, kept, n * 512), ST_OK);
}

void blk_check(struct vdev *d)
{
	struct blk b = { 0 };
	u8 id[24] = { 0 };
	u64 irqs = d->irqs;

	if (!blk_init(&b, d, F_INDIRECT | F_EVENT_IDX | B_FLUSH | B_RO | B_BLK_SIZE | B_SEG_MAX | B_DISCARD | B_WRITE_ZEROES | B_CONFIG_WCE))
		return;
	ok("blk", "dev=%u at=0x%lx pin=%u sectors=%lu ro=%d block=%u seg_max=%u queue=%u features=0x%lx", d->n, d->base, d->pin, b.capacity,
	   !!(d->features & B_RO), rd32(d->base + R_CONFIG + 20), rd32(d->base + R_CONFIG + 12), b.q->max, d->features);
	if (!(d->features & F_INDIRECT) || !(d->features & F_EVENT_IDX))
		fail("blk", "dev=%u offers 0x%lx: not INDIRECT and EVENT_IDX", d->n, d->offered);
	if (expect(&b, "get_id", blk_do(&b, T_GET_ID, 0, b.buf, 20), ST_OK)) {
		memcpy(id, b.buf, 20);
		for (u32 i = 0; i < 20 && id[i]; i++)
			if (id[i] < ' ' || id[i] > '~')
				id[i] = '?';
		ok("blk_id", "dev=%u id=%s", d->n, (char *)id);
	}
	if (b.capacity && expect(&b, "read", by_interrupt(&b), ST_OK))
		ok("blk_read", "dev=%u first=0x%08x", d->n, rd32((u64)b.buf));
	if (expect(&b, "read behind the end", blk_do(&b, T_IN, b.capacity, b.buf, 512), ST_IOERR) &&
	    expect(&b, "unknown request type", blk_do(&b, 0x77, 0, b.buf, 512), ST_UNSUPP))
		ok("blk_refuses", "dev=%u", d->n);
	if (d->features & B_RO) {
		if (expect(&b, "write to a read-only disk", blk_do(&b, T_OUT, 0, b.buf, 512), ST_IOERR))
			ok("blk_read_only", "dev=%u", d->n);
	} else if (b.capacity)
		scratch(&b);
	if (d->irqs == irqs && b.capacity)
		fail("blk_irqs", "dev=%u: no interrupt", d->n);
	else
		ok("blk_irqs", "dev=%u irqs=%lu spurious=%lu", d->n, d->irqs - irqs, d->spurious);
	virtio_reset(d);
}
