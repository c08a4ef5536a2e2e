// Queues set up wrongly, and registers used out of order (VirtIO 1.2 §3.1, §4.2.2).

#include "hostile.h"

#define HOLE 0xD0000000ul

// again takes the device back to FEATURES_OK.
static int again(struct blk *b)
{
	virtio_reset(b->d);
	return virtio_negotiate(b->d, ALL_FEATURES);
}

// queue enables queue 0 as told: REFUSED or RESET, or OK if the device took it.
static u32 queue(struct blk *b, u32 num, u64 desc, u64 avail, u64 used)
{
	struct vdev *d = b->d;
	u32 ready;

	if (!again(b))
		return O_BAD;
	set(d, R_QUEUE_SEL, 0);
	set(d, R_QUEUE_NUM, num);
	set64(d, R_DESC, desc);
	set64(d, R_AVAIL, avail);
	set64(d, R_USED, used);
	set(d, R_QUEUE_READY, 1);
	ready = reg(d, R_QUEUE_READY) & 1;
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	set(d, R_NOTIFY, 0);
	if (reg(d, R_STATUS) & S_NEEDS_RESET)
		return O_RESET;
	return ready ? O_OK : O_REFUSED;
}

static u32 sized(struct blk *b, u32 num) { return queue(b, num, (u64)b->q->desc, (u64)b->q->avail, (u64)b->q->used); }
static u32 size_zero(struct blk *b) { return sized(b, 0); }
static u32 size_odd(struct blk *b) { return sized(b, 3) | sized(b, 127); }
static u32 size_over(struct blk *b) { return sized(b, 2 * b->q->max); }
static u32 size_65535(struct blk *b) { return sized(b, 65535); }
static u32 size_high_bits(struct blk *b) { return sized(b, 0x10000 + b->q->size) | sized(b, 0xffffffff); }

static u32 placed(struct blk *b, u64 desc, u64 avail, u64 used)
{
	return queue(b, b->q->size, desc ? desc : (u64)b->q->desc, avail ? avail : (u64)b->q->avail, used ? used : (u64)b->q->used);
}

static u32 misaligned_desc(struct blk *b) { return placed(b, (u64)b->q->desc + 8, 0, 0); }
static u32 misaligned_avail(struct blk *b) { return placed(b, 0, (u64)b->q->avail + 1, 0); }
static u32 misaligned_used(struct blk *b) { return placed(b, 0, 0, (u64)b->q->used + 2); }
static u32 rings_outside(struct blk *b) { return placed(b, 1ul << 45, 0, 0) | placed(b, 0, 1ul << 45, 0) | placed(b, 0, 0, 1ul << 45); }
static u32 rings_hole(struct blk *b) { return placed(b, HOLE, 0, 0) | placed(b, 0, HOLE, 0) | placed(b, 0, 0, HOLE); }
static u32 rings_wrap(struct blk *b) { return placed(b, ~15ul, 0, 0) | placed(b, 0, ~1ul, 0) | placed(b, 0, 0, ~3ul); }
static u32 rings_straddle(struct blk *b) { return placed(b, ram_top() - 64, 0, 0) | placed(b, 0, ram_top() - 64, 0) | placed(b, 0, 0, ram_top() - 64); }

static u32 rings_same(struct blk *b)
{
	placed(b, 0, (u64)b->q->desc, (u64)b->q->desc);
	return O_LIVES;
}

static u32 avail_by(struct blk *b, u16 n)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, D_NEXT, 1);
	at(b, 1, STATUS(b), 1, D_WRITE, 0);
	b->q->avail_idx += n - 1;
	return send(b, 0);
}

static u32 avail_ahead(struct blk *b) { return avail_by(b, b->q->size + 1); }
static u32 avail_far(struct blk *b) { return avail_by(b, 0x8000); }
static u32 avail_back(struct blk *b) { return avail_by(b, 0xffff); }

// The same head twice: both are answered, or the device gives up.
static u32 head_twice(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, D_NEXT, 1);
	at(b, 1, (u64)b->buf, 512, D_NEXT | D_WRITE, 2);
	at(b, 2, STATUS(b), 1, D_WRITE, 0);
	vq_put(b->q, 0);
	return send(b, 0) == O_SILENT ? O_SILENT : O_LIVES;
}

// Order.
static u32 a_read(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, D_NEXT, 1);
	at(b, 1, (u64)b->buf, 512, D_NEXT | D_WRITE, 2);
	at(b, 2, STATUS(b), 1, D_WRITE, 0);
	return send(b, 0);
}

static u32 queue_before_features(struct blk *b)
{
	struct vdev *d = b->d;

	virtio_reset(d);
	vq_layout(b->q, d, 0, b->q->size, b->ring);
	vq_enable(b->q);
	virtio_negotiate(d, ALL_FEATURES);
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	a_read(b);
	return O_LIVES;
}

static u32 driver_ok_first(struct blk *b)
{
	virtio_reset(b->d);
	set(b->d, R_STATUS, S_DRIVER_OK);
	set(b->d, R_NOTIFY, 0);
	set(b->d, R_STATUS, 0xff);
	set(b->d, R_STATUS, 0xffffffff);
	return O_LIVES;
}

static u32 driver_ok_without_queue(struct blk *b)
{
	again(b);
	set(b->d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	set(b->d, R_NOTIFY, 0);
	set(b->d, R_QUEUE_READY, 1);
	set(b->d, R_NOTIFY, 0);
	return O_LIVES;
}

static u32 accepted(struct blk *b, u64 features)
{
	struct vdev *d = b->d;

	virtio_reset(d);
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER);
	set(d, R_DRV_SEL, 0);
	set(d, R_DRV_FEATURES, features);
	set(d, R_DRV_SEL, 1);
	set(d, R_DRV_FEATURES, features >> 32);
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	return reg(d, R_STATUS) & S_FEATURES_OK ? O_OK : O_REFUSED;
}

static u32 features_unoffered(struct blk *b) { return accepted(b, ~0ul) | accepted(b, F_VERSION_1 | (~b->d->offered & 0xffffff)); }
static u32 features_legacy(struct blk *b) { return accepted(b, 0); }

static u32 features_selectors(struct blk *b)
{
	for (u32 i = 2; i; i <<= 1) {
		set(b->d, R_DEV_SEL, i);
		set(b->d, R_DRV_SEL, i);
		set(b->d, R_DRV_FEATURES, 0xffffffff);
		if (reg(b->d, R_DEV_FEATURES) && i > 2) {
			fail("hostile", "feature word %u is 0x%x", i, reg(b->d, R_DEV_FEATURES));
			return O_BAD;
		}
	}
	return a_read(b);
}

static u32 late_changes(struct blk *b)
{
	struct vdev *d = b->d;

	set(d, R_DRV_SEL, 0);
	set(d, R_DRV_FEATURES, 0xffffffff);
	set(d, R_QUEUE_NUM, 7);
	set64(d, R_DESC, 1);
	set64(d, R_AVAIL, 1ul << 50);
	set64(d, R_USED, HOLE);
	set(d, R_QUEUE_READY, 1);
	a_read(b);
	return O_LIVES;
}

static u32 status_backwards(struct blk *b)
{
	set(b->d, R_STATUS, S_ACKNOWLEDGE);
	a_read(b);
	set(b->d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
	a_read(b);
	return O_LIVES;
}

static u32 unready(struct blk *b)
{
	for (u32 i = 0; i < b->nslots; i++)
		blk_fill(b, i, T_IN, 0, b->buf, 512);
	vq_publish(b->q);
	set(b->d, R_QUEUE_READY, 0);
	set(b->d, R_NOTIFY, 0);
	return O_LIVES;
}

static u32 absent_queue_select(struct blk *b)
{
	static const u32 none[] = { 1, 2, 3, 255, 0xffff, 0x10000, 0xffffffff };

	for (u32 i = 0; i < COUNT(none); i++) {
		set(b->d, R_QUEUE_SEL, none[i]);
		if (reg(b->d, R_QUEUE_MAX)) {
			fail("hostile", "queue %u has %u entries", none[i], reg(b->d, R_QUEUE_MAX));
			return O_BAD;
		}
		set(b->d, R_QUEUE_NUM, 16);
		set64(b->d, R_DESC, (u64)b->q->desc);
		set(b->d, R_QUEUE_READY, 1);
	}
	return a_read(b);
}

// What follows must not even disturb the device.
static u32 notify_absent(struct blk *b)
{
	static const u32 none[] = { 1, 2, 7, 0xffff, 0x10000, 0xffffffff };

	for (u32 i = 0; i < COUNT(none); i++)
		set(b->d, R_NOTIFY, none[i]);
	return a_read(b);
}

static u32 notify_early(struct blk *b)
{
	again(b);
	for (u32 i = 0; i < 10; i++)
		set(b->d, R_NOTIFY, 0);
	return O_LIVES;
}

static u32 notify_storm(struct blk *b)
{
	for (u32 i = 0; i < 1000; i++)
		set(b->d, R_NOTIFY, 0);
	return a_read(b);
}

static u32 ack_garbage(struct blk *b)
{
	set(b->d, R_ACK, 0xffffffff);
	set(b->d, R_ACK, 0);
	return a_read(b);
}

static u32 read_only_registers(struct blk *b)
{
	static const u32 ro[] = { R_MAGIC, R_VERSION, R_DEVICE, R_VENDOR, R_DEV_FEATURES, R_QUEUE_MAX, R_ISR, R_GENERATION, 0x0b0, 0x0b4, 0x0b8, 0x0bc };

	for (u32 i = 0; i < COUNT(ro); i++)
		set(b->d, ro[i], 0xffffffff);
	if (reg(b->d, R_MAGIC) != 0x74726976 || reg(b->d, R_VERSION) != 2 || reg(b->d, R_DEVICE) != 2) {
		fail("hostile", "magic=0x%x version=%u type=%u", reg(b->d, R_MAGIC), reg(b->d, R_VERSION), reg(b->d, R_DEVICE));
		return O_BAD;
	}
	return a_read(b);
}

static u32 write_only_reads(struct blk *b)
{
	static const u32 wo[] = { R_DEV_SEL, R_DRV_FEATURES, R_DRV_SEL, R_QUEUE_SEL, R_QUEUE_NUM, R_NOTIFY, R_ACK, R_DESC, R_USED + 4, 0x0c0, 0x048 };

	for (u32 i = 0; i < COUNT(wo); i++)
		reg(b->d, wo[i]);
	return a_read(b);
}

// Registers are 32 bits wide and aligned (§4.2.2.2); all else is the driver's
// mistake.
static u32 widths(struct blk *b)
{
	for (u64 r = 0; r < 0x110; r++) {
		u64 a = b->d->base + r;

		rd8(a);
		rd16(a);
		rd32(a);
		rd64(a);
		if (r == R_STATUS || r % 4)
			wr8(a, 0);
		if (r < R_DESC || r >= R_CONFIG) {
			wr16(a, 0xffff);
			wr64(a, ~0ul);
		}
	}
	return O_LIVES;
}

static u32 config_space(struct blk *b)
{
	u64 a = b->d->base + R_CONFIG, n = b->d->size - R_CONFIG;

	for (u64 i = 0; i < n; i++) {
		rd8(a + i);
		if (i + 4 <= n)
			rd32(a + i);
		if (i != 32)	// writeback is the driver's to write
			wr8(a + i, 0xff);
		if (i + 8 <= n && i >= 40)
			wr64(a + i, ~0ul);
	}
	if (b->capacity != (rd32(a) | (u64)rd32(a + 4) << 32)) {
		fail("hostile", "capacity has become %lu", rd32(a) | (u64)rd32(a + 4) << 32);
		return O_BAD;
	}
	return a_read(b);
}

static u32 resets(struct blk *b)
{
	for (u32 i = 0; i < 50; i++) {
		set(b->d, R_STATUS, 0);
		set(b->d, R_STATUS, i);
	}
	return O_LIVES;
}

#define NO (O_REFUSED | O_RESET)

const struct hostile hostile_rings[] = {
	{ "size-zero", size_zero, NO, 0 },
	{ "size-odd", size_odd, NO, 0 },
	{ "size-over", size_over, NO, 0 },
	{ "size-65535", size_65535, NO, 0 },
	{ "size-high-bits", size_high_bits, NO, 0 },
	{ "misaligned-desc", misaligned_desc, NO, 0 },
	{ "misaligned-avail", misaligned_avail, NO, 0 },
	{ "misaligned-used", misaligned_used, NO, 0 },
	{ "rings-outside", rings_outside, NO, 0 },
	{ "rings-hole", rings_hole, NO, 0 },
	{ "rings-wrap", rings_wrap, NO, 0 },
	{ "rings-straddle", rings_straddle, NO, 0 },
	{ "rings-same", rings_same, O_LIVES, 0 },
	{ "avail-ahead", avail_ahead, O_RESET, 0 },
	{ "avail-far", avail_far, O_RESET, 0 },
	{ "avail-back", avail_back, O_RESET, 0 },
	{ "head-twice", head_twice, O_LIVES, 0 },
	{ "queue-before-features", queue_before_features, O_LIVES, 0 },
	{ "driver-ok-first", driver_ok_first, O_LIVES, 0 },
	{ "driver-ok-without-queue", driver_ok_without_queue, O_LIVES, 0 },
	{ "features-unoffered", features_unoffered, O_REFUSED, 0 },
	{ "features-legacy", features_legacy, O_REFUSED, 0 },
	{ "features-selectors", features_selectors, O_OK, 0 },
	{ "late-changes", late_changes, O_LIVES, 0 },
	{ "status-backwards", status_backwards, O_LIVES, 0 },
	{ "unready", unready, O_LIVES, 0 },
	{ "absent-queue", absent_queue_select, O_OK, 0 },
	{ "notify-absent", notify_absent, O_OK, 0 },
	{ "notify-early", notify_early, O_LIVES, 0 },
	{ "notify-storm", notify_storm, O_OK, 0 },
	{ "ack-garbage", ack_garbage, O_OK, 0 },
	{ "read-only-registers", read_only_registers, O_OK, 0 },
	{ "write-only-reads", write_only_reads, O_OK, 0 },
	{ "widths", widths, O_LIVES, 0 },
	{ "config-space", config_space, O_OK, 0 },
	{ "resets", resets, O_LIVES, 0 },
	{ NULL, NULL, 0, 0 },
};
