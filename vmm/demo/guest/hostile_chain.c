// Descriptor chains and requests that break the rules (VirtIO 1.2 §2.7.5, §5.2.6).

#include "hostile.h"

#define HOLE 0xD0000000ul
#define N D_NEXT
#define W D_WRITE

// read3 is a read of sector 0 whose parts the caller chooses.
static u32 read3(struct blk *b, u64 hdr, u32 hdr_len, u64 data, u32 data_len, u64 status)
{
	header(b, T_IN, 0);
	at(b, 0, hdr, hdr_len, N, 1);
	at(b, 1, data, data_len, N | W, 2);
	at(b, 2, status, 1, W, 0);
	return send(b, 0);
}

static u32 data_at(struct blk *b, u64 addr, u32 len) { return read3(b, HDR(b), 16, addr, len, STATUS(b)); }

static u32 loop3(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, N, 1);
	at(b, 1, (u64)b->buf, 512, N | W, 2);
	at(b, 2, (u64)b->buf + 512, 512, N | W, 1);
	return send(b, 0);
}

static u32 loop_self(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, N, 0);
	return send(b, 0);
}

static u32 outside(struct blk *b) { return data_at(b, 1ul << 45, 512); }
static u32 outside_top(struct blk *b) { return data_at(b, ram_top() + (1ul << 40), 512); }
static u32 wrap(struct blk *b) { return data_at(b, ~0ul - 511, 4096); }
static u32 wrap_exact(struct blk *b) { return data_at(b, ~0ul - 511, 512); }
static u32 hole(struct blk *b) { return data_at(b, HOLE, 512); }
static u32 apic(struct blk *b) { return data_at(b, LAPIC, 4096); }
static u32 own_registers(struct blk *b) { return data_at(b, b->d->base, 512); }
static u32 straddle(struct blk *b) { return data_at(b, ram_top() - 512, 1024); }
static u32 huge(struct blk *b) { return data_at(b, (u64)b->buf, 0xfffffe00); }
static u32 zero_length(struct blk *b) { return data_at(b, (u64)b->buf, 0); }
static u32 unaligned_length(struct blk *b) { return data_at(b, (u64)b->buf, 513); }
static u32 hdr_outside(struct blk *b) { return read3(b, 1ul << 45, 16, (u64)b->buf, 512, STATUS(b)); }
static u32 hdr_short(struct blk *b) { return read3(b, HDR(b), 8, (u64)b->buf, 512, STATUS(b)); }
static u32 hdr_zero(struct blk *b) { return read3(b, HDR(b), 0, (u64)b->buf, 512, STATUS(b)); }
static u32 status_outside(struct blk *b) { return read3(b, HDR(b), 16, (u64)b->buf, 512, HOLE); }

// Data that lands in the ring itself: the device must survive what it reads
// there, whatever it makes of it.
static u32 ring_target(struct blk *b)
{
	data_at(b, (u64)b->q->desc, 512);
	vq_put(b->q, 0);
	vq_publish(b->q);
	set(b->d, R_NOTIFY, 0);
	outcome(b, 20);
	return O_LIVES;
}

static u32 all_zero(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, 0, 0, 0, 0);
	return send(b, 0);
}

// A header in two halves is allowed: framing is the driver's choice (§2.7.4).
static u32 hdr_split(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 7, N, 1);
	at(b, 1, HDR(b) + 7, 9, N, 2);
	at(b, 2, (u64)b->buf, 512, N | W, 3);
	at(b, 3, STATUS(b), 1, W, 0);
	return send(b, 0);
}

static u32 no_status(struct blk *b)
{
	header(b, T_OUT, 0);
	at(b, 0, HDR(b), 16, N, 1);
	at(b, 1, (u64)b->buf, 512, 0, 0);
	return send(b, 0);
}

static u32 status_zero(struct blk *b)
{
	header(b, T_FLUSH, 0);
	at(b, 0, HDR(b), 16, N, 1);
	at(b, 1, STATUS(b), 0, W, 0);
	return send(b, 0);
}

static u32 write_before_read(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, STATUS(b), 1, N | W, 1);
	at(b, 1, HDR(b), 16, N, 2);
	at(b, 2, (u64)b->buf, 512, W, 0);
	return send(b, 0);
}

static u32 next_beyond(struct blk *b)
{
	header(b, T_IN, 0);
	at(b, 0, HDR(b), 16, N, b->q->size);
	return send(b, 0);
}

static u32 head_beyond(struct blk *b) { return header(b, T_IN, 0), send(b, b->q->size); }
static u32 head_max(struct blk *b) { return header(b, T_IN, 0), send(b, 0xffff); }

// Indirect tables (§2.7.5.3).
static u32 indirect(struct blk *b, u64 table, u32 len, u16 flags)
{
	at(b, 0, table, len, D_INDIRECT | flags, 1);
	at(b, 1, STATUS(b), 1, W, 0);
	return send(b, 0);
}

static struct desc *read_table(struct blk *b)
{
	struct desc *t = b->slots[0].table;

	header(b, T_IN, 0);
	t[0] = (struct desc){ HDR(b), 16, N, 1 };
	t[1] = (struct desc){ (u64)b->buf, 512, N | W, 2 };
	t[2] = (struct desc){ STATUS(b), 1, W, 0 };
	return t;
}

static u32 indirect_nested(struct blk *b)
{
	struct desc *t = read_table(b);

	t[0].flags |= D_INDIRECT;
	return indirect(b, (u64)t, 48, 0);
}

static u32 indirect_uneven(struct blk *b) { return indirect(b, (u64)read_table(b), 40, 0); }
static u32 indirect_empty(struct blk *b) { return indirect(b, (u64)read_table(b), 0, 0); }
static u32 indirect_and_next(struct blk *b) { return indirect(b, (u64)read_table(b), 48, N); }
static u32 indirect_unasked(struct blk *b) { return indirect(b, (u64)read_table(b), 48, 0); }
static u32 indirect_outside(struct blk *b) { return read_table(b), indirect(b, HOLE, 48, 0); }
static u32 indirect_wrap(struct blk *b) { return read_table(b), indirect(b, ~0ul - 15, 48, 0); }
static u32 indirect_huge(struct blk *b) { return indirect(b, (u64)read_table(b), 0xfffffff0, 0); }

static u32 indirect_next_beyond(struct blk *b)
{
	struct desc *t = read_table(b);

	t[1].next = 3;
	return indirect(b, (u64)t, 48, 0);
}

static u32 indirect_loop(struct blk *b)
{
	struct desc *t = read_table(b);

	t[1].next = 1;
	return indirect(b, (u64)t, 48, 0);
}

// More descriptors than any queue has entries.
static u32 overlong(struct blk *b)
{
	enum { LEN = 40000 };
	static struct desc *t;

	if (!t)
		t = heap(LEN * sizeof *t);
	header(b, T_IN, 0);
	for (u32 i = 0; i < LEN; i++)
		t[i] = (struct desc){ (u64)b->buf, 512, N | W, i + 1 };
	t[0] = (struct desc){ HDR(b), 16, N, 1 };
	t[LEN - 1] = (struct desc){ STATUS(b), 1, W, 0 };
	return indirect(b, (u64)t, LEN * 16, 0);
}

// Requests.
static u32 request(struct blk *b, u32 type, u64 sector, u32 len, u16 dir)
{
	header(b, type, sector);
	at(b, 0, HDR(b), 16, N, len ? 1 : 2);
	at(b, 1, (u64)b->buf, len, N | dir, 2);
	at(b, 2, STATUS(b), 1, W, 0);
	return send(b, 0);
}

static u32 types(struct blk *b)
{
	static const u32 unknown[] = { 2, 3, 5, 7, 9, 15, 0x55, 0x80000000, 0xffffffff };
	u32 o = O_UNSUPP;

	for (u32 i = 0; i < COUNT(unknown); i++)
		if ((o = request(b, unknown[i], 0, 512, W)) != O_UNSUPP) {
			fail("hostile", "type 0x%x", unknown[i]);
			return o;
		}
	return o;
}

static u32 sectors(struct blk *b)
{
	const u64 far[] = { b->capacity, b->capacity - 1, ~0ul, ~0ul - 1, 1ul << 55, (1ul << 55) - 1, 1ul << 63, 0x7fffffffffffff };

	for (u32 i = 0; i < COUNT(far); i++) {
		u32 o = request(b, T_IN, far[i], 1024, W);

		if (o != O_IOERR) {
			fail("hostile", "read of two sectors at 0x%lx", far[i]);
			return o;
		}
	}
	return O_IOERR;
}

static u32 write_far(struct blk *b) { return request(b, T_OUT, ~0ul, 512, 0); }
static u32 read_wrong_way(struct blk *b) { return request(b, T_IN, 0, 512, 0); }
static u32 write_wrong_way(struct blk *b) { return request(b, T_OUT, 0, 512, W); }
static u32 id_short(struct blk *b) { return request(b, T_GET_ID, 0, 7, W); }
static u32 flush_with_data(struct blk *b) { return request(b, T_FLUSH, 7, 512, 0); }

static u32 discards(struct blk *b)
{
	static const struct blk_range bad[] = { { ~0ul, 1, 0 }, { 0, ~0u, 0 }, { 1ul << 55, 8, 0 }, { 0, 8, 0xfffffffe } };
	static const u32 type[] = { T_DISCARD, T_WRITE_ZEROES };
	u32 o;

	for (u32 i = 0; i < COUNT(bad); i++)
		for (u32 j = 0; j < 2; j++) {
			memcpy(b->buf, &bad[i], sizeof bad[i]);
			if (!((o = request(b, type[j], 0, sizeof bad[i], 0)) & (O_IOERR | O_UNSUPP))) {
				fail("hostile", "type %u range %u", type[j], i);
				return o;
			}
		}
	if ((o = request(b, T_DISCARD, 0, 15, 0)) & (O_IOERR | O_UNSUPP))
		o = request(b, T_DISCARD, 0, 0, 0);
	return o;
}

const struct hostile hostile_chains[] = {
	{ "loop", loop3, O_RESET, 0 },
	{ "loop-self", loop_self, O_RESET, 0 },
	{ "overlong", overlong, TOLD, 0 },
	{ "outside", outside, TOLD, 0 },
	{ "outside-top", outside_top, TOLD, 0 },
	{ "wrap", wrap, TOLD, 0 },
	{ "wrap-exact", wrap_exact, TOLD, 0 },
	{ "hole", hole, TOLD, 0 },
	{ "apic", apic, TOLD, 0 },
	{ "own-registers", own_registers, TOLD, 0 },
	{ "straddle", straddle, TOLD, 0 },
	{ "huge", huge, TOLD, 0 },
	{ "zero-length", zero_length, TOLD | O_OK, 0 },
	{ "all-zero", all_zero, O_RESET, 0 },
	{ "unaligned-length", unaligned_length, TOLD, 0 },
	{ "header-outside", hdr_outside, TOLD, 0 },
	{ "header-short", hdr_short, TOLD, 0 },
	{ "header-zero", hdr_zero, TOLD, 0 },
	{ "header-split", hdr_split, O_OK, 0 },
	{ "status-outside", status_outside, O_RESET, 0 },
	{ "no-status", no_status, O_RESET | O_USED, 0 },
	{ "status-zero", status_zero, O_RESET, 0 },
	{ "write-before-read", write_before_read, TOLD, 0 },
	{ "next-beyond", next_beyond, O_RESET, 0 },
	{ "head-beyond", head_beyond, O_RESET, 0 },
	{ "head-max", head_max, O_RESET, 0 },
	{ "ring-target", ring_target, O_LIVES, 0 },
	{ "indirect-nested", indirect_nested, TOLD, 0 },
	{ "indirect-uneven", indirect_uneven, TOLD, 0 },
	{ "indirect-empty", indirect_empty, TOLD, 0 },
	{ "indirect-and-next", indirect_and_next, TOLD, 0 },
	{ "indirect-unasked", indirect_unasked, TOLD, F_INDIRECT },
	{ "indirect-outside", indirect_outside, TOLD, 0 },
	{ "indirect-wrap", indirect_wrap, TOLD, 0 },
	{ "indirect-huge", indirect_huge, TOLD, 0 },
	{ "indirect-next-beyond", indirect_next_beyond, TOLD, 0 },
	{ "indirect-loop", indirect_loop, TOLD, 0 },
	{ "types", types, O_UNSUPP, 0 },
	{ "sectors", sectors, O_IOERR, 0 },
	{ "write-far", write_far, TOLD, 0 },
	{ "read-wrong-way", read_wrong_way, TOLD | O_OK, 0 },
	{ "write-wrong-way", write_wrong_way, TOLD | O_OK, 0 },
	{ "id-short", id_short, TOLD | O_OK, 0 },
	{ "flush-with-data", flush_with_data, TOLD | O_OK, 0 },
	{ "discards", discards, TOLD, 0 },
	{ NULL, NULL, 0, 0 },
};
