// demo=check: everything the machine shows besides its devices.

#include "apic.h"
#include "check.h"

static void start_info(void)
{
	u64 ram = 0;

	for (u32 i = 0; i < boot.nmap; i++) {
		const struct range *r = &boot.map[i];

		if (r->base + r->len < r->base)
			fail("map", "entry %u wraps: base=0x%lx len=0x%lx", i, r->base, r->len);
		if (r->type != RAM)
			continue;
		ram += r->len;
		for (u32 j = 0; j < i; j++)
			if (boot.map[j].type == RAM && r->base < boot.map[j].base + boot.map[j].len && boot.map[j].base < r->base + r->len)
				fail("map", "entries %u and %u overlap", j, i);
		if (r->base < 0x100000 && r->base + r->len > 0xa0000)
			fail("map", "RAM in the BIOS hole: base=0x%lx len=0x%lx", r->base, r->len);
		if (r->base < 1ul << 32 && r->base + r->len > 0xfec00000)
			fail("map", "RAM at the APICs: base=0x%lx len=0x%lx", r->base, r->len);
	}
	ok("start_info", "version=%u at=0x%lx cmdline=%lu modules=%u", boot.version, boot.start_info, strlen(boot.cmdline), boot.nmod);
	if (!in_ram((u64)start_info, 1))
		fail("map", "the kernel is not in RAM");
	ok("map", "entries=%u ram_kib=%lu", boot.nmap, ram >> 10);
	for (u32 i = 0; i < boot.nmod && i < COUNT(boot.mod); i++) {
		const struct range *m = &boot.mod[i];
		u32 h = 2166136261;	// FNV-1a of the first 256 bytes

		if (!in_ram(m->base, m->len)) {
			fail("module", "n=%u at=0x%lx size=%lu is outside RAM", i, m->base, m->len);
			continue;
		}
		map(m->base, 256);
		for (u64 j = 0; j < m->len && j < 256; j++)
			h = (h ^ rd8(m->base + j)) * 16777619;
		ok("module", "n=%u at=0x%lx size=%lu fnv=%08x", i, m->base, m->len, h);
	}
}

static void memory(void)
{
	// The last eight bytes of every range of RAM hold what is put there.
	for (u32 i = 0; i < boot.nmap; i++) {
		const struct range *r = &boot.map[i];
		volatile u64 *p = (volatile u64 *)(r->base + r->len - 8);
		u64 was;

		if (r->type != RAM || r->len < 4096 || r->base + r->len > 1ul << 39)
			continue;
		map((u64)p, 8);
		was = *p;
		*p = 0x5a5aa5a500ff0000 ^ (u64)p;
		barrier();
		if (*p != (0x5a5aa5a500ff0000 ^ (u64)p))
			fail("memory", "end of RAM at 0x%lx does not hold a word", (u64)p);
		*p = was;
	}
}

static void mp_table(void)
{
	const char *wrong = mp_read();

	if (wrong && lax) {
		skip("mp", "%s", wrong);
		return;
	}
	if (wrong)
		fail("mp", "%s", wrong);
	if (mp.nbsp != 1 || mp.bsp != lapic(LAPIC_ID) >> 24)
		fail("mp", "bsp entries=%u id=%u, this CPU is %u", mp.nbsp, mp.bsp, lapic(LAPIC_ID) >> 24);
	if (mp.nioapic != 1 || mp.ioapic_addr != IOAPIC || mp.lapic_addr != LAPIC)
		fail("mp", "ioapics=%u at=0x%x lapic=0x%x", mp.nioapic, mp.ioapic_addr, mp.lapic_addr);
	if (!(mp.pins & 1 << 4))
		fail("mp", "no interrupt entry for pin 4, the UART's");
	if (!wrong)
		ok("mp", "cpus=%u off=%u buses=%u ioapics=%u ints=%u lints=%u at=0x%lx", mp.ncpu, mp.cpus_off, mp.nbus, mp.nioapic, mp.nint, mp.nlint, mp.at);
}

static void processor(void)
{
	u32 r[4], brand[13];
	char sig[13];

	cpuid(1, r);
	if (!(r[2] >> 31))
		fail("cpuid", "no hypervisor bit in leaf 1");
	cpuid(0x40000000, r);
	memcpy(sig, &r[1], 12);
	sig[12] = 0;
	if (!memcmp(sig, "XenVMM", 6))
		fail("cpuid", "says it is Xen: a PVH kernel would make hypercalls");
	ok("hypervisor", "leaf=0x%x signature=%s", r[0], sig);
	if (r[0] >= 0x40000010 && r[0] < 0x40010000) {
		cpuid(0x40000010, r);
		if (r[0] && r[1])
			ok("frequencies", "tsc_khz=%u bus_khz=%u", r[0], r[1]);
		else
			fail("frequencies", "leaf 0x40000010: tsc_khz=%u bus_khz=%u", r[0], r[1]);
	} else if (lax)
		skip("frequencies", "no leaf 0x40000010");
	else
		fail("frequencies", "no leaf 0x40000010");
	cpuid(0x80000000, r);
	if (r[0] >= 0x80000004) {
		for (u32 i = 0; i < 3; i++)
			cpuid(0x80000002 + i, &brand[4 * i]);
		brand[12] = 0;
		if (*(char *)brand)
			ok("brand", "%s", (char *)brand);
		else
			skip("brand", "CPUID 0x80000002 is empty");
	}
	if (r[0] >= 0x80000007) {
		cpuid(0x80000007, r);
		if (r[3] >> 8 & 1)
			ok("invariant_tsc", "edx=0x%x", r[3]);
		else
			skip("invariant_tsc", "CPUID 0x80000007 EDX bit 8 is clear");
	}
}

static void tsc(void)
{
	u64 last = rdtsc(), now, first = last;

	for (u32 i = 0; i < 100; i++, last = now)
		if ((now = rdtsc()) < last) {
			fail("tsc", "went back from %lu to %lu", last, now);
			return;
		}
	if (last == first)
		fail("tsc", "stands at %lu", last);
	else
		ok("tsc", "now=%lu khz=%lu", last, tsc_khz);
}

static u16 pit_count(u64 *before, u64 *behind)
{
	u16 n;

	*before = rdtsc();
	outb(0x43, 0);	// latch channel 0
	*behind = rdtsc();
	n = inb(0x40);
	return n | inb(0x40) << 8;
}

// The i8254 counts at 1,193,182 Hz. The bounds come from when the counter was
// surely read, so a monitor that is put off for a while fails nothing.
static void pit(void)
{
	u64 a0, a1, b0, b1, ticks_min, ticks_max;
	u16 from, to, n;

	outb(0x43, 0x34);	// rate generator
	outb(0x40, 0xff);
	outb(0x40, 0xff);
	delay_us(100);
	from = pit_count(&a0, &a1);
	delay_us(5000);
	to = pit_count(&b0, &b1);
	outb(0x43, 0x30);	// one shot: silent afterwards
	outb(0x40, 0xff);
	outb(0x40, 0xff);
	n = from - to;
	ticks_min = us_of(b0 - a1) * 1193 / 1000 * 98 / 100 - 3;
	ticks_max = us_of(b1 - a0) * 1194 / 1000 * 102 / 100 + 3;
	if (ticks_max > 0xffff)
		skip("pit", "put off for %lu us, the counter wraps", us_of(b1 - a0));
	else if (n < ticks_min || n > ticks_max)
		fail("pit", "ticks=%u expected %lu to %lu", n, ticks_min, ticks_max);
	else
		ok("pit", "ticks=%u us=%lu", n, us_of(b0 - a1));
}

static u8 cmos(u8 reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

// MC146818: registers 0–9 hold the time, A the update bit, B the format.
static void rtc(void)
{
	u8 a = cmos(0x0a), b = cmos(0x0b), v[6];
	static const u8 reg[6] = { 9, 8, 7, 4, 2, 0 }, max[6] = { 99, 12, 31, 23, 59, 59 };
	u64 t0 = rdtsc();

	while (cmos(0x0a) & 0x80)	// UIP
		if (us_of(rdtsc() - t0) > 3000000) {
			fail("rtc", "update in progress for 3 s, A=0x%02x", a);
			return;
		}
	for (u32 i = 0; i < 6; i++) {
		v[i] = cmos(reg[i]);
		if (!(b & 4))
			v[i] = (v[i] >> 4) * 10 + (v[i] & 15);
		if (v[i] > max[i]) {
			fail("rtc", "register %u = %u", reg[i], v[i]);
			return;
		}
	}
	if (!lax && cmos(0x0e))
		fail("rtc", "diagnostics register 0x0e = 0x%02x", cmos(0x0e));
	ok("rtc", "20%02u-%02u-%02uT%02u:%02u:%02uZ b=0x%02x", v[0], v[1], v[2], v[3], v[4], v[5], b);
}

static void lapic_timer(void)
{
	u64 before = ticks, t0 = rdtsc(), us;

	timer_set(1000, 0);
	while (ticks == before)
		wait_irq();
	us = us_of(rdtsc() - t0);
	if (us < 900)
		fail("lapic_timer", "asked for 1000 us, came after %lu", us);
	else
		ok("lapic_timer", "asked_us=1000 took_us=%lu version=0x%x", us, lapic(LAPIC_VERSION));
}

void check_all(const char *v)
{
	u64 t = rdtsc();

	(void)v;
	start_info();
	memory();
	mp_table();
	processor();
	t = phase("platform", t);
	tsc();
	pit();
	rtc();
	lapic_timer();
	t = phase("clocks", t);
	check_uart();
	t = phase("uart", t);
	check_fwcfg();
	t = phase("fw_cfg", t);
	check_devices();
	t = phase("devices", t);
	smp_count("smp");
	t = phase("smp", t);
}
