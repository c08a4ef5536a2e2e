// What depends on timing, and pokes at random.

#include "hostile.h"

#define ROUNDS 300

// Another CPU rewrites what the device is reading.
static struct blk *victim;
static volatile u32 stop;

static void flip_word(volatile u64 *p, u64 a, u64 b)
{
	for (u32 i = 0; !stop; i++) {
		*p = i & 1 ? b : a;
		barrier();
	}
	*p = a;
}

static void flip_type(u32 n) { (void)n; flip_word((volatile u64 *)&victim->slots[0].hdr, T_IN, 0xffffffff00000055); }
static void flip_sector(u32 n) { (void)n; flip_word(&victim->slots[0].hdr.sector, 0, ~0ul); }
static void flip_address(u32 n) { (void)n; flip_word((volatile u64 *)&victim->q->desc[1].addr, (u64)victim->buf, 1ul << 45); }
static void flip_length(u32 n) { (void)n; flip_word((volatile u64 *)&victim->q->desc[1].len, 512 | (u64)(D_NEXT | D_WRITE) << 32 | 2ul << 48, 0xfffffff0 | (u64)(D_NEXT | D_WRITE) << 32 | 1ul << 48); }
static void flip_table(u32 n) { (void)n; flip_word((volatile u64 *)&victim->q->desc[0].len, 16 | (u64)D_NEXT << 32 | 1ul << 48, 48 | (u64)D_INDIRECT << 32); }

static u32 flipping(struct blk *b, job flip)
{
	u32 o = O_SILENT, rounds;

	if (!smp_start())
		return O_SKIP;
	victim = b;
	stop = 0;
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, D_NEXT, 1);
	at(b, 1, (u64)b->buf, 512, D_NEXT | D_WRITE, 2);
	at(b, 2, STATUS(b), 1, D_WRITE, 0);
	ap_run(1, flip);
	for (rounds = 0; rounds < ROUNDS; rounds++) {
		b->slots[0].status = ST_UNTOUCHED;
		o = send(b, 0);
		if (!(o & (O_OK | O_IOERR | O_UNSUPP)))
			break;
	}
	stop = 1;
	ap_wait(1);
	return o;
}

static u32 header_type(struct blk *b) { return flipping(b, flip_type); }
static u32 header_sector(struct blk *b) { return flipping(b, flip_sector); }
static u32 desc_address(struct blk *b) { return flipping(b, flip_address); }
static u32 desc_length(struct blk *b) { return flipping(b, flip_length); }
static u32 desc_indirect(struct blk *b) { return flipping(b, flip_table); }

static void flip_index(u32 n)
{
	volatile u16 *p = &victim->q->avail->idx;

	(void)n;
	for (u32 i = 0; !stop; i++)
		*p = rnd(&(u64){ i + 1 });
}

static u32 avail_index(struct blk *b)
{
	u32 o = flipping(b, flip_index);

	return o == O_SKIP ? o : O_LIVES;
}

// Reset, or the queue taken away, with requests in flight: afterwards the
// memory is the driver's again, and nothing may be written there.
static u32 in_flight(struct blk *b, int by_reset)
{
	enum { LEN = 512 };
	u32 n = b->nslots;

	for (u32 round = 0; round < 20; round++) {
		struct vdev *d = b->d;

		if (n * LEN > BUF)
			n = BUF / LEN;
		for (u32 i = 0; i < n; i++)
			blk_fill(b, i, T_IN, 0, b->buf + i * LEN, LEN);
		vq_publish(b->q);
		if (!by_reset)
			set(d, R_QUEUE_READY, 0);
		virtio_reset(d);
		memset(b->buf, 0x5a, BUF);
		memset(b->slots, 0x5a, RING_MAX * sizeof(struct slot));
		memset(b->ring, 0x5a, vq_bytes(RING_MAX));
		delay_us(1000);
		if (!same(b->buf, b->buf + 8, BUF - 8) || !same(b->slots, (u8 *)b->slots + 8, RING_MAX * sizeof(struct slot) - 8) ||
		    !same(b->ring, b->ring + 8, (vq_bytes(RING_MAX) & ~7ul) - 8)) {
			fail("hostile", "round %u: the device wrote to memory after its reset", round);
			return O_BAD;
		}
		if (!blk_init(b, d, ALL_FEATURES))
			return O_BAD;
		timer_set(1000, 1);
	}
	return O_LIVES;
}

static u32 reset_in_flight(struct blk *b) { return in_flight(b, 1); }
static u32 unready_in_flight(struct blk *b) { return in_flight(b, 0); }

// Random accesses of all widths to the device's page. The queue's addresses
// point outside RAM or into memory of their own, all zero, so that what the
// device does by the rules hurts nobody.
static u32 random_registers(struct blk *b)
{
	static u8 *own;
	struct vdev *d = b->d;
	u64 seed = opt_number("seed", 1), pokes = opt_number("pokes", 2000);

	if (!own)
		own = heap(1 << 17);
	virtio_reset(d);
	for (u64 i = 0; i < pokes; i++) {
		u64 x = rnd(&seed), y = rnd(&seed), r = x % 0x140, a;
		u32 v = y >> 16 & 1 ? y >> 32 : y >> 32 & 0xff;

		if (x >> 32 & 1)	// half of them where registers are
			r &= ~3ul;
		a = d->base + r;
		if (r + 8 > R_DESC && r < 0xb0) {
			r &= 0xfc;
			set(d, r, r & 4 ? (y & 3 ? 0 : v | 0x100) : (u64)own + (v & 0xffff));
			continue;
		}
		switch (x >> 40 & 15) {
		case 0: rd8(a); break;
		case 1: rd16(a); break;
		case 2: rd32(a); break;
		case 3: rd64(a); break;
		case 4: wr8(a, v); break;
		case 5: wr16(a, v); break;
		case 6: if (r + 8 <= R_DESC || r >= 0xb0) wr64(a, y); break;
		case 7: set(d, R_QUEUE_READY, 1); break;
		case 8: set(d, R_STATUS, v & 15); break;
		case 9: set(d, R_QUEUE_NUM, 1 << (v & 15)); break;
		case 10: set(d, R_QUEUE_SEL, v & 1); break;
		default: wr32(a & ~3ul, v);
		}
		if (i % 100 == 99) {
			for (u64 from = ticks; ticks - from < 2;)
				wait_irq();
			virtio_reset(d);
			memset(own, 0, 1 << 17);
		}
	}
	return O_LIVES;
}

static void pokes(const u16 *ports, u32 n, u64 seed)
{
	for (u32 i = 0; i < 1000; i++) {
		u64 x = rnd(&seed);
		u16 port = ports[x % n];

		switch (x >> 32 & 7) {
		case 0: inb(port); break;
		case 1: inw(port); break;
		case 2: inl(port); break;
		case 3: outw(port, x >> 40); break;
		case 4: outl(port, x >> 24); break;
		default: outb(port, x >> 40);
		}
	}
}

// In loopback nothing reaches the terminal; MCR itself is left so.
static u32 uart(struct blk *b)
{
	static const u16 ports[] = { COM1, COM1 + 1, COM1 + 2, COM1 + 3, COM1 + 5, COM1 + 6, COM1 + 7 };
	u64 seed = opt_number("seed", 1);

	(void)b;
	outb(COM1 + 4, 0x10);
	for (u32 i = 0; i < 1000; i++) {
		u64 x = rnd(&seed);

		if (x & 1)
			inb(ports[(x >> 8) % COUNT(ports)]);
		else
			outb(ports[(x >> 8) % COUNT(ports)], x >> 32);
	}
	console_init();
	return O_LIVES;
}

static u32 rtc(struct blk *b)
{
	static const u16 ports[] = { 0x70, 0x71 };

	(void)b;
	pokes(ports, COUNT(ports), opt_number("seed", 1));
	return O_LIVES;
}

static u32 fwcfg(struct blk *b)
{
	static const u16 ports[] = { 0x510, 0x511 };
	char sig[4];

	(void)b;
	pokes(ports, COUNT(ports), opt_number("seed", 1));
	outw(0x510, 0);
	insb(0x511, sig, 4);
	if (memcmp(sig, "QEMU", 4)) {
		fail("hostile", "fw_cfg signature has become 0x%08x", *(u32 *)sig);
		return O_BAD;
	}
	return O_LIVES;
}

static u32 pit(struct blk *b)
{
	static const u16 ports[] = { 0x40, 0x41, 0x42, 0x43 };

	(void)b;
	pokes(ports, COUNT(ports), opt_number("seed", 1));
	outb(0x43, 0x30);
	return O_LIVES;
}

#define ANSWERED (TOLD | O_OK)

const struct hostile hostile_races[] = {
	{ "flip-type", header_type, ANSWERED, 0 },
	{ "flip-sector", header_sector, ANSWERED, 0 },
	{ "flip-address", desc_address, ANSWERED, 0 },
	{ "flip-length", desc_length, ANSWERED, 0 },
	{ "flip-indirect", desc_indirect, ANSWERED, 0 },
	{ "flip-avail", avail_index, O_LIVES, 0 },
	{ "reset-in-flight", reset_in_flight, O_LIVES, 0 },
	{ "unready-in-flight", unready_in_flight, O_LIVES, 0 },
	{ "random", random_registers, O_LIVES, 0 },
	{ "uart", uart, O_LIVES, 0 },
	{ "rtc", rtc, O_LIVES, 0 },
	{ "fw_cfg", fwcfg, O_LIVES, 0 },
	{ "pit", pit, O_LIVES, 0 },
	{ NULL, NULL, 0, 0 },
};
