// The ways a machine ends, or fails to.

#include "apic.h"

#define ABSENT 0xD0000000ul // in the hole below 4 GiB, where nothing answers

void mode_exit(const char *v)
{
	u64 n = 0;

	number(&v, &n);
	end(n);
}

// The resets that a PC kernel tries, one by one (NetBSD: all of them in turn).
void mode_reboot(const char *v)
{
	if (after(v, "kbd"))
		outb(0x64, 0xfe);	// i8042: pulse the reset line
	else if (after(v, "cf9")) {
		outb(0xcf9, 0x02);
		outb(0xcf9, 0x06);	// reset control register: hard reset
	} else if (after(v, "p92"))
		outb(0x92, inb(0x92) | 1);	// system control port A: fast reset
	else {
		fail("reboot", "which: kbd, cf9 or p92");
		return;
	}
	delay_us(1000000);
	fail("reboot", "still here after 1 s");
}

void mode_triple(const char *v)
{
	struct PACKED { u16 limit; u64 base; } none = { 0, 0 };

	(void)v;
	__asm__ volatile("lidt %0" ::"m"(none));
	wr8(1ul << 40, 0);	// a page fault that finds no gate
	for (;;)
		__asm__ volatile("cli; hlt");
}

void mode_hlt(const char *v)
{
	(void)v;
	ok("hlt", "for ever");
	for (;;)
		__asm__ volatile("cli; hlt");
}

void mode_spin(const char *v)
{
	(void)v;
	ok("spin", "for ever");
	for (;;)
		pause();
}

// fault shows that an exception is reported, with its place, status 97.
void mode_fault(const char *v)
{
	(void)v;
	wr8(1ul << 40, 0);
	fail("fault", "a write to an unmapped page went through");
}

// badop executes where only a device could answer: KVM cannot emulate it.
void mode_badop(const char *v)
{
	void (*nowhere)(void) = (void *)ABSENT;

	(void)v;
	map(ABSENT, 4096);
	ok("badop", "at=0x%lx", ABSENT);
	nowhere();
	fail("badop", "came back");
}

void mode_mmioabsent(const char *v)
{
	(void)v;
	map(ABSENT, 4096);
	wr32(ABSENT, 0x12345678);
	if (rd32(ABSENT) != 0xffffffff || rd8(ABSENT + 1) != 0xff || rd16(ABSENT + 2) != 0xffff)
		fail("mmioabsent", "at=0x%lx reads 0x%08x", ABSENT, rd32(ABSENT));
	else
		ok("mmioabsent", "at=0x%lx value=0xffffffff", ABSENT);
	outb(0x2f0, 0x12);
	if (inb(0x2f0) != 0xff || inl(0x2f0) != 0xffffffff)
		fail("portabsent", "port=0x2f0 reads 0x%02x", inb(0x2f0));
	else
		ok("portabsent", "port=0x2f0 value=0xff");
}
