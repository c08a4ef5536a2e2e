// The IDT, the local APIC (xAPIC, Intel SDM vol. 3A ch. 10) and the IOAPIC
// (Intel 82093AA datasheet §3).

#include "apic.h"

struct PACKED gate { u16 low; u16 sel; u8 ist, type; u16 mid; u32 high, zero; };

static struct gate idt[VECTORS];
static handler handlers[VECTORS];
volatile u64 ticks;
u64 tick_us;

extern char trap_stubs[];
void trap(struct frame *f);

static const char *const names[] = { "divide", "debug", "nmi", "breakpoint", "overflow", "bound", "opcode", "fpu",
	"double-fault", "segment", "tss", "not-present", "stack", "protection", "page-fault", "15", "fpu-error",
	"alignment", "machine-check", "simd" };

static NORETURN void exception(struct frame *f)
{
	u64 cr2;

	__asm__ volatile("mov %%cr2,%0" : "=r"(cr2));
	console_init();
	say("\ndemo: FAIL exception vector=%lu name=%s error=0x%lx rip=0x%lx rsp=0x%lx cr2=0x%lx rax=0x%lx rcx=0x%lx rdx=0x%lx\n",
	    f->vec, f->vec < COUNT(names) ? names[f->vec] : "?", f->err, f->rip, f->rsp, cr2, f->rax, f->rcx, f->rdx);
	end(97);
}

void trap(struct frame *f)
{
	if (f->vec < 32)
		exception(f);
	if (handlers[f->vec])
		handlers[f->vec](f->vec);
	else if (f->vec != VEC_SPURIOUS) {
		eoi();
		fail("interrupt", "vector=%lu nobody asked for", f->vec);
	}
}

void idt_init(void)
{
	struct PACKED { u16 limit; u64 base; } ptr = { sizeof idt - 1, (u64)idt };

	if (!idt[0].type)
		for (u32 i = 0; i < VECTORS; i++) {
			u64 at = (u64)trap_stubs + 16 * i;
			idt[i] = (struct gate){ at, SEL_CODE64, 0, 0x8e, at >> 16, at >> 32, 0 };
		}
	__asm__ volatile("lidt %0" ::"m"(ptr));
}

void on_vector(u32 vec, handler h) { handlers[vec] = h; }

static void tick(u32 vec)
{
	(void)vec;
	ticks++;
	eoi();
}

void lapic_init(void)
{
	map(IOAPIC, LAPIC + 4096 - IOAPIC);
	lapic_set(LAPIC_SVR, 0x100 | VEC_SPURIOUS);
	lapic_set(LAPIC_LINT0, 0x10000);	// no 8259 is needed
	lapic_set(LAPIC_LINT1, 0x400);		// NMI
	lapic_set(LAPIC_DIVIDE, 0xb);		// by one
	on_vector(VEC_TIMER, tick);
	if (!bus_khz) {
		lapic_set(LAPIC_TIMER, 0x10000);
		lapic_set(LAPIC_INITIAL, 0xffffffff);
		delay_us(2000);
		bus_khz = (0xffffffff - lapic(LAPIC_CURRENT)) / 2;
		lapic_set(LAPIC_INITIAL, 0);
	}
}

void timer_set(u64 us, int periodic)
{
	u64 n = us * bus_khz / 1000;

	tick_us = periodic ? us : 0;
	lapic_set(LAPIC_TIMER, us ? VEC_TIMER | (periodic ? 0x20000 : 0) : 0x10000);
	lapic_set(LAPIC_INITIAL, n > 0xffffffff ? 0xffffffff : n);
}

u32 ioapic(u32 reg)
{
	wr32(IOAPIC, reg);
	return rd32(IOAPIC + 0x10);
}

static void ioapic_set(u32 reg, u32 v)
{
	wr32(IOAPIC, reg);
	wr32(IOAPIC + 0x10, v);
}

u32 ioapic_pins(void) { return (ioapic(IOAPIC_VERSION) >> 16 & 0xff) + 1; }
u32 ioapic_low(u32 pin) { return ioapic(0x10 + 2 * pin); }

int ioapic_route(u32 pin, u32 vec, int level)
{
	if (pin >= ioapic_pins())
		return 0;
	ioapic_set(0x11 + 2 * pin, lapic(LAPIC_ID) & 0xff000000);
	ioapic_set(0x10 + 2 * pin, vec | (level ? 1 << 15 : 0));
	return 1;
}

void ioapic_mask(u32 pin) { ioapic_set(0x10 + 2 * pin, 1 << 16); }
