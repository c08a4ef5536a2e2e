// The Intel MP table: CPUs, buses, IOAPIC, interrupt entries
// (Intel MultiProcessor Specification 1.4 §4).

#include "apic.h"

struct mp mp;

struct PACKED pointer { char sig[4]; u32 table; u8 length, revision, sum, feature1, feature2[4]; };
struct PACKED header {
	char sig[4];
	u16 length;
	u8 revision, sum;
	char oem[8], product[12];
	u32 oem_table;
	u16 oem_size, entries;
	u32 lapic;
	u16 ext_length;
	u8 ext_sum, reserved;
};

static u8 sum(u64 at, u64 n)
{
	u8 s = 0;

	while (n--)
		s += rd8(at++);
	return s;
}

static u64 search(u64 from, u64 len)
{
	for (u64 at = (from + 15) & ~15ul; at + 16 <= from + len; at += 16)
		if (rd32(at) == 0x5f504d5f && sum(at, 16) == 0)	// "_MP_"
			return at;
	return 0;
}

static u64 find(void)
{
	u64 bda = 0x400, at = 0, n;

	__asm__("" : "+r"(bda));	// a fixed low address is no null pointer
	n = (u64)rd16(bda + 0x0e) << 4;	// EBDA segment
	if (n >= 0x400 && n < 0xa0000)
		at = search(n, 1024);
	n = (u64)rd16(bda + 0x13) << 10;	// base memory in KiB
	if (!at && n >= 1024 && n <= 0xa0000)
		at = search(n - 1024, 1024);
	if (!at)
		at = search(0x9fc00, 1024);
	if (!at)
		at = search(0xf0000, 0x10000);
	return at;
}

static const char *entries(u64 at, u64 end, u32 n)
{
	static const u8 size[] = { 20, 8, 8, 8, 8 };

	for (; n; n--) {
		u8 type = at < end ? rd8(at) : 255;

		if (type >= COUNT(size))
			return "unknown entry, or fewer than the header says";
		switch (type) {
		case 0:
			if (!(rd8(at + 3) & 1)) {	// EN
				mp.cpus_off++;
				break;
			}
			if (rd8(at + 3) & 2) {	// BP
				mp.nbsp++;
				mp.bsp = rd8(at + 1);
			}
			if (mp.ncpu < MAX_CPUS)
				mp.cpu_id[mp.ncpu] = rd8(at + 1);
			mp.ncpu++;
			break;
		case 1:
			mp.nbus++;
			break;
		case 2:
			if (rd8(at + 3) & 1) {
				mp.nioapic++;
				mp.ioapic_addr = rd32(at + 4);
			}
			break;
		case 3:
			mp.nint++;
			if (rd8(at + 7) < 64)
				mp.pins |= 1ul << rd8(at + 7);
			break;
		case 4:
			mp.nlint++;
			break;
		}
		at += size[type];
	}
	return at == end ? NULL : "length and entry count disagree";
}

const char *mp_read(void)
{
	const struct pointer *p = (void *)find();
	const struct header *h;

	if (!p)
		return "no _MP_ structure with a good checksum";
	if (p->length != 1 || !p->table)
		return "_MP_ structure without a table";
	h = (void *)(u64)p->table;
	map((u64)h, 65536);
	if (memcmp(h->sig, "PCMP", 4))
		return "no PCMP signature";
	if (sum((u64)h, h->length))
		return "bad checksum";
	mp.at = (u64)h;
	mp.end = (u64)h + h->length;
	mp.lapic_addr = h->lapic;
	return entries(mp.at + sizeof *h, mp.end, h->entries);
}
