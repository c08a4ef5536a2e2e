// Modes that go on for a while: count, touch, blkbench, irqstorm.

#include "blk.h"

#define TICK_US 10000

// What count keeps in memory, all of it checked each round, so that a machine
// paused, copied or restored in the middle shows any change.
#define PLACES 64
static struct {
	u64 n, inverse;
	u64 last[PLACES];	// which round last wrote this place of the disk
} counted = { 0, ~0ul, { 0 } };

static int round_on_disk(struct blk *b, u64 n)
{
	u64 at = b->capacity - PLACES, old = (n * 7 + 3) % PLACES;
	u8 *out = b->buf, *in = b->buf + 4096, st;

	pattern(out, 512, n);
	if ((st = blk_do(b, T_OUT, at + n % PLACES, out, 512)) != ST_OK) {
		fail("count", "n=%lu write: %s", n, blk_status(st));
		return 0;
	}
	counted.last[n % PLACES] = n;
	if (!counted.last[old])
		return 1;
	if ((st = blk_do(b, T_IN, at + old, in, 512)) != ST_OK) {
		fail("count", "n=%lu read: %s", n, blk_status(st));
		return 0;
	}
	pattern(out, 512, counted.last[old]);
	if (same(in, out, 512))
		return 1;
	fail("count", "n=%lu sector=%lu does not hold what round %lu wrote", n, at + old, counted.last[old]);
	return 0;
}

// count[=N][,every=K]: rounds of counting, each with a write and the read of
// an older one on the first disk, if that can be written. 0: for ever.
void mode_count(const char *v)
{
	struct blk b = { 0 };
	struct vdev *d = blk_device(opt_number("dev", 0));
	u64 rounds = 0, every = opt_number("every", 256), tsc = rdtsc(), now, t;
	int disk = d && blk_init(&b, d, F_INDIRECT | F_EVENT_IDX | B_RO) && !(d->features & B_RO) && b.capacity >= PLACES;

	number(&v, &rounds);
	timer_set(TICK_US, 1);
	ok("count", "disk=%d", disk);
	while (!rounds || counted.n < rounds) {
		counted.n++;
		counted.inverse--;
		barrier();
		if (counted.n != ~counted.inverse) {
			fail("count", "n=%lu inverse=%lu in memory", counted.n, ~counted.inverse);
			return;
		}
		now = rdtsc();
		if (now < tsc) {
			fail("count", "TSC went back from %lu to %lu", tsc, now);
			return;
		}
		tsc = now;
		if (disk && !round_on_disk(&b, counted.n))
			return;
		if (!disk)
			for (t = ticks; ticks == t;)
				wait_irq();
		if (every && counted.n % every == 0)
			say("demo: count n=%lu ticks=%lu\n", counted.n, ticks);
	}
	timer_set(0, 0);
	ok("count", "n=%lu ticks=%lu", counted.n, ticks);
}

// touch=N[,wait]: a word into every page of N MiB of RAM.
void mode_touch(const char *v)
{
	u64 mib = 1, left, done = 0;

	number(&v, &mib);
	left = mib << 8;	// pages
	for (u32 i = 0; i < boot.nmap && left; i++) {
		const struct range *r = &boot.map[i];
		u64 from = (r->base + 4095) & ~4095ul, to = (r->base + r->len) & ~4095ul;

		if (r->type != RAM || to <= heap_at)
			continue;
		if (from < heap_at)
			from = heap_at;
		map(from, to - from);
		for (; left && from < to; from += 4096, left--, done++)
			*(volatile u64 *)from = from;
	}
	if (left)
		fail("touch", "mib=%lu but only %lu pages of RAM", mib, done);
	else
		ok("touch", "mib=%lu pages=%lu", mib, done);
	if (opt("wait"))
		for (;;)
			__asm__ volatile("cli; hlt");
}

static int next(const char **v, u64 *n)
{
	return number(v, n) && (**v != ',' || (*v)++);
}

// blkbench=qd,bs,rw,count: rw is r, w (in sequence), rr or rw (random).
void mode_blkbench(const char *v)
{
	struct blk b = { 0 };
	u64 qd, bs, count, t0, us, places, seed = 1, sent = 0, got = 0, irqs;
	u32 type, random, slot;
	const char *what;
	u8 *data;
	int st;

	if (!next(&v, &qd) || !next(&v, &bs)) {
		fail("blkbench", "wants qd,bs,rw,count");
		return;
	}
	what = v;
	random = v[0] == 'r' && (v[1] == 'r' || v[1] == 'w');
	type = v[random] == 'w' ? T_OUT : T_IN;
	while (*v && *v++ != ',')
		;
	if (!next(&v, &count) || (*what != 'r' && *what != 'w') || !qd || bs % 512 || !bs || bs > 1 << 20) {
		fail("blkbench", "wants qd,bs,rw,count");
		return;
	}
	if (!blk_one(&b))
		return;
	if (qd > b.nslots || bs >> 9 > b.capacity || (type == T_OUT && b.d->features & B_RO)) {
		fail("blkbench", "qd=%lu of %u, bs=%lu, sectors=%lu ro=%d", qd, b.nslots, bs, b.capacity, !!(b.d->features & B_RO));
		return;
	}
	data = heap(qd * bs);
	places = b.capacity / (bs >> 9);
	irqs = b.d->irqs;
	t0 = rdtsc();
	for (; sent < qd && sent < count; sent++)
		blk_fill(&b, sent, type, (random ? rnd(&seed) : sent) % places * (bs >> 9), data + sent * bs, bs);
	vq_publish(b.q);
	while (got < count) {
		if ((st = blk_wait(&b, &slot)) != ST_OK || slot >= qd || b.slots[slot].status != ST_OK) {
			fail("blkbench", "after %lu: wait %s, status %s", got, blk_status(st), slot < qd ? blk_status(b.slots[slot].status) : "?");
			return;
		}
		got++;
		if (sent < count) {
			blk_fill(&b, slot, type, (random ? rnd(&seed) : sent) % places * (bs >> 9), data + slot * bs, bs);
			sent++;
		}
		// Publish when the used ring is drained: one doorbell for all.
		if (b.q->used->idx == b.q->last_used && (u16)b.q->avail->idx != b.q->avail_idx)
			vq_publish(b.q);
	}
	us = us_of(rdtsc() - t0);
	ok("blkbench", "qd=%lu bs=%lu op=%s%s count=%lu us=%lu iops=%lu kib_s=%lu irqs=%lu", qd, bs, random ? "random-" : "",
	   type == T_OUT ? "write" : "read", count, us, count * 1000000 / (us ? us : 1), count * bs * 1000000 / 1024 / (us ? us : 1), b.d->irqs - irqs);
	virtio_reset(b.d);
}

static void storm_one(struct blk *b, u32 slot, u64 n)
{
	blk_fill(b, slot, T_IN, n % b->capacity, b->buf + slot * 512, 512);
	vq_publish(b->q);
}

// irqstorm=N[,qd=4]: N reads, each completion told by interrupt only, the EOI
// put off by random times: a completion then comes while the pin awaits its
// EOI, which a pulse instead of a level would lose.
void mode_irqstorm(const char *v)
{
	struct blk b = { 0 };
	u64 n = 10000, qd = opt_number("qd", 4), sent = 0, got = 0, seed = opt_number("seed", 1), t0 = rdtsc();
	u32 slot;

	number(&v, &n);
	// Without EVENT_IDX the device interrupts for every buffer it uses.
	if (!blk_one(&b) || !blk_init(&b, b.d, B_RO))
		return;
	if (!qd || qd > b.nslots || !b.capacity) {
		fail("irqstorm", "qd=%lu of %u, sectors=%lu", qd, b.nslots, b.capacity);
		return;
	}
	for (slot = 0; slot < qd && sent < n; slot++, sent++)
		storm_one(&b, slot, sent);
	timer_set(TICK_US, 1);
	while (got < n) {
		static const u16 delays[8] = { 0, 0, 0, 5, 20, 40, 80, 150 };	// µs
		u64 irqs = b.d->irqs, from = ticks;
		u32 id, len;
		u16 told;

		b.d->eoi_delay = delays[rnd(&seed) % 8] * tsc_khz / 1000;
		// Nothing but an interrupt leads to the used ring.
		while (b.d->irqs == irqs) {
			if (ticks - from > 300) {
				fail("irqstorm", "n=%lu %s: avail=%u used=%u seen=%u isr=%u irqs=%lu pin=0x%x", got,
				     b.q->used->idx != b.q->last_used ? "interrupt lost" : "no answer", b.q->avail->idx, b.q->used->idx,
				     b.q->last_used, reg(b.d, R_ISR), irqs, ioapic_low(b.d->pin));
				return;
			}
			wait_irq();
		}
		// What comes from here on needs an interrupt of its own.
		for (told = b.q->used->idx; b.q->last_used != told; got++) {
			vq_get(b.q, &id, &len);
			if (id % 4 || id / 4 >= qd || b.slots[id / 4].status != ST_OK) {
				fail("irqstorm", "n=%lu id=%u status=%s", got, id, id / 4 < qd ? blk_status(b.slots[id / 4].status) : "?");
				return;
			}
			if (sent < n)
				storm_one(&b, id / 4, sent++);
		}
	}
	timer_set(0, 0);
	b.d->eoi_delay = 0;
	if (got != n)
		fail("irqstorm", "%lu answers to %lu requests", got, n);
	else
		ok("irqstorm", "n=%lu irqs=%lu spurious=%lu us=%lu", got, b.d->irqs, b.d->spurious, us_of(rdtsc() - t0));
	virtio_reset(b.d);
}
