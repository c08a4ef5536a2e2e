// Time is the TSC; its rate comes from CPUID leaf 0x40000010 (EAX = TSC kHz,
// EBX = APIC bus kHz), else from the i8254.

#include "guest.h"

#define PIT_HZ 1193182

u64 tsc_khz, bus_khz;

void time_init(void)
{
	u32 r[4];
	u64 t0, ticks;
	u16 last, now;

	cpuid(0x40000000, r);
	if (r[0] >= 0x40000010 && r[0] < 0x40010000) {
		cpuid(0x40000010, r);
		tsc_khz = r[0];
		bus_khz = r[1];
	}
	if (tsc_khz)
		return;
	// Channel 0 down from 0xFFFF in mode 0; 10 ms of it against the TSC.
	outb(0x43, 0x30);
	outb(0x40, 0xff);
	outb(0x40, 0xff);
	ticks = 0;
	outb(0x43, 0);
	last = inb(0x40);
	last |= inb(0x40) << 8;
	t0 = rdtsc();
	while (ticks < PIT_HZ / 100) {
		outb(0x43, 0);
		now = inb(0x40);
		now |= inb(0x40) << 8;
		ticks += (u16)(last - now);
		last = now;
	}
	tsc_khz = (rdtsc() - t0) * PIT_HZ / ticks / 1000;
}

u64 us_of(u64 tsc)
{
	return tsc * 1000 / tsc_khz;
}

void delay_us(u64 us)
{
	u64 t0 = rdtsc(), n = us * tsc_khz / 1000;

	while (rdtsc() - t0 < n)
		pause();
}

u64 phase(const char *name, u64 since)
{
	u64 now = rdtsc();

	say("demo: time %s us=%lu\n", name, us_of(now - since));
	return rdtsc();
}
