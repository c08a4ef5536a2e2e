// The other CPUs: started by INIT and start-up IPI, given work, asleep between.

#include "apic.h"

struct cpu cpus[MAX_CPUS];
volatile u32 aps_here;

static u64 count_for;

extern char ap_begin[], ap_end[];
void ap_main(u32 n);

static void woken(u32 vec)
{
	(void)vec;
	eoi();
}

static u32 own_id(void)
{
	u32 r[4];

	cpuid(1, r);
	return r[1] >> 24;
}

// ap_main is where ap.S leads; n counts from 0 in order of arrival.
void ap_main(u32 n)
{
	struct cpu *c = &cpus[n + 1];

	if (n + 1 >= MAX_CPUS)
		return;
	idt_init();
	lapic_set(LAPIC_SVR, 0x100 | VEC_SPURIOUS);
	c->apic_id = lapic(LAPIC_ID) >> 24;
	c->cpuid_id = own_id();
	fetch_add(&aps_here, 1);
	for (;;) {
		job todo = c->todo;

		if (!todo) {
			wait_irq();
			continue;
		}
		todo(n + 1);
		mb();
		c->todo = NULL;
	}
}

static void ipi(u32 id, u32 what)
{
	lapic_set(LAPIC_ICR_HIGH, id << 24);
	lapic_set(LAPIC_ICR, what);
	while (lapic(LAPIC_ICR) & 1 << 12)	// delivery status
		pause();
}

u32 cpus_expected(void)
{
	return opt_number("cpus", mp.ncpu ? mp.ncpu : 1);
}

u32 smp_start(void)
{
	static u32 started;
	u32 self = lapic(LAPIC_ID) >> 24, want = cpus_expected() - 1;
	u64 t0;

	if (want > MAX_CPUS - 1)
		want = MAX_CPUS - 1;
	if (started++ || !want)
		return aps_here;
	if (mp.at < AP_PAGE + 4096 && mp.end > AP_PAGE) {
		fail("smp", "the MP table lies in the start-up page 0x%x", AP_PAGE);
		return 0;
	}
	on_vector(VEC_AP, woken);
	cpus[0].apic_id = self;
	cpus[0].cpuid_id = own_id();
	memcpy((void *)(u64)AP_PAGE, ap_begin, ap_end - ap_begin);
	for (u32 i = 0; i <= want; i++)
		if ((mp.ncpu ? mp.cpu_id[i] : i) != self)
			ipi(mp.ncpu ? mp.cpu_id[i] : i, 0xc500);	// INIT, level, assert
	delay_us(1000);
	for (u32 i = 0; i <= want; i++)
		if ((mp.ncpu ? mp.cpu_id[i] : i) != self)
			ipi(mp.ncpu ? mp.cpu_id[i] : i, 0x4600 | AP_PAGE >> 12);	// start-up
	for (t0 = rdtsc(); aps_here < want && us_of(rdtsc() - t0) < 5000000;)
		pause();
	return aps_here;
}

void ap_run(u32 n, job todo)
{
	cpus[n].todo = todo;
	mb();
	ipi(cpus[n].apic_id, 0x4000 | VEC_AP);
}

void ap_wait(u32 n)
{
	while (cpus[n].todo)
		pause();
}

static void counting(u32 n)
{
	u64 t0 = rdtsc();

	do
		cpus[n].count++;
	while (rdtsc() - t0 < count_for);
}

void smp_count(const char *what)
{
	u32 n = smp_start();

	if (n + 1 != cpus_expected())
		fail(what, "cpus=%u of %u", n + 1, cpus_expected());
	count_for = opt_number("ms", 5) * tsc_khz;
	for (u32 i = 1; i <= n; i++)
		ap_run(i, counting);
	cpus[0].cpuid_id = own_id();
	cpus[0].apic_id = lapic(LAPIC_ID) >> 24;
	counting(0);
	for (u32 i = 0; i <= n; i++) {
		const struct cpu *c = &cpus[i];

		if (i)
			ap_wait(i);
		if (!c->count)
			fail("cpu", "n=%u apic=%u did not count", i, c->apic_id);
		else if (c->apic_id != c->cpuid_id)
			fail("cpu", "n=%u apic=%u but CPUID leaf 1 says %u", i, c->apic_id, c->cpuid_id);
		else
			ok("cpu", "n=%u apic=%u count=%lu", i, c->apic_id, c->count);
	}
	ok(what, "cpus=%u", n + 1);
}
