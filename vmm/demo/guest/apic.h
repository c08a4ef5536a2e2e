// Interrupts: the IDT, the local APIC, the IOAPIC, the other CPUs.
#ifndef APIC_H
#define APIC_H

#include "guest.h"

struct frame { u64 r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, vec, err, rip, cs, rflags, rsp, ss; };

#define LAPIC 0xFEE00000ul
#define LAPIC_ID 0x20
#define LAPIC_VERSION 0x30
#define LAPIC_EOI 0xB0
#define LAPIC_SVR 0xF0
#define LAPIC_ICR 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_TIMER 0x320
#define LAPIC_LINT0 0x350
#define LAPIC_LINT1 0x360
#define LAPIC_INITIAL 0x380
#define LAPIC_CURRENT 0x390
#define LAPIC_DIVIDE 0x3E0

#define IOAPIC 0xFEC00000ul
#define IOAPIC_VERSION 1
#define EDGE 0
#define LEVEL 1

static inline u32 lapic(u32 reg) { return rd32(LAPIC + reg); }
static inline void lapic_set(u32 reg, u32 v) { wr32(LAPIC + reg, v); }
static inline void eoi(void) { lapic_set(LAPIC_EOI, 0); }

// A handler is called with interrupts off and does its own eoi().
typedef void (*handler)(u32 vec);
void idt_init(void);
void on_vector(u32 vec, handler h);
void lapic_init(void);

extern volatile u64 ticks;                  // timer interrupts since the start
extern u64 tick_us;                         // the period, 0 when it is not periodic
void timer_set(u64 us, int periodic);       // 0 stops it

u32 ioapic(u32 reg);
u32 ioapic_pins(void);
int ioapic_route(u32 pin, u32 vec, int level); // 0: no such pin
void ioapic_mask(u32 pin);
u32 ioapic_low(u32 pin);                    // redirection entry, low word

// mp.c: Intel MultiProcessor Specification 1.4 §4.
struct mp {
	u32 ncpu, nbus, nioapic, nint, nlint;
	u8 cpu_id[MAX_CPUS];
	u32 cpus_off, ioapic_addr, lapic_addr, nbsp;
	u8 bsp;
	u64 pins;	// IOAPIC pins that an I/O interrupt entry names
	u64 at, end;
};
extern struct mp mp;
const char *mp_read(void); // NULL, or what is wrong

// smp.c: the BSP is cpus[0], APs count from 1 in the order they came.
typedef void (*job)(u32 n);
struct cpu {
	volatile u32 apic_id, cpuid_id;
	volatile u64 count;
	job volatile todo;
	u64 pad[5]; // a cache line each
};
extern struct cpu cpus[MAX_CPUS];
extern volatile u32 aps_here;
u32 smp_start(void);            // starts every AP of the MP table once, returns how many came
void ap_run(u32 n, job todo);   // gives CPU n a job
void ap_wait(u32 n);            // until it is done
u32 cpus_expected(void);        // enabled CPUs in the MP table, or option cpus=
void smp_count(const char *what); // every CPU counts for a while; prints each counter

#endif
