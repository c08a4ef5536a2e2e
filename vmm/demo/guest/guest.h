// What every file of the guest shares: types, instructions, boot data, console.
#ifndef GUEST_H
#define GUEST_H

#include "layout.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef __builtin_va_list va_list;

#define NULL ((void *)0)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define PACKED __attribute__((packed))
#define NORETURN __attribute__((noreturn))

// Instructions. Only plain integer ones appear in this guest: no mfence, no
// SSE, nothing that an emulating KVM would not know.
static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 v) { __asm__ volatile("outw %0,%1" ::"a"(v), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 v) { __asm__ volatile("outl %0,%1" ::"a"(v), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1,%0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline void outsb(u16 port, const void *p, u64 n) { __asm__ volatile("rep outsb" : "+S"(p), "+c"(n) : "d"(port) : "memory"); }
static inline void insb(u16 port, void *p, u64 n) { __asm__ volatile("rep insb" : "+D"(p), "+c"(n) : "d"(port) : "memory"); }
static inline void cli(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void sti(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }
// wait_irq sleeps until an interrupt has been handled. Call it with interrupts
// off, after the check: STI's shadow leaves no gap. They are off again after.
static inline void wait_irq(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void mb(void) { __asm__ volatile("lock; orl $0,-4(%%rsp)" ::: "memory", "cc"); }
static inline u64 rdtsc(void) { u32 lo, hi; __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi)); return (u64)hi << 32 | lo; }
static inline u64 rdmsr(u32 msr) { u32 lo, hi; __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr)); return (u64)hi << 32 | lo; }
static inline void cpuid(u32 leaf, u32 r[4]) {
	__asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}
static inline u32 fetch_add(volatile u32 *p, u32 v) { __asm__ volatile("lock; xaddl %0,%1" : "+r"(v), "+m"(*p)::"memory", "cc"); return v; }

static inline u8 rd8(u64 a) { return *(volatile u8 *)a; }
static inline u16 rd16(u64 a) { return *(volatile u16 *)a; }
static inline u32 rd32(u64 a) { return *(volatile u32 *)a; }
static inline void wr8(u64 a, u8 v) { *(volatile u8 *)a = v; }
static inline void wr16(u64 a, u16 v) { *(volatile u16 *)a = v; }
static inline void wr32(u64 a, u32 v) { *(volatile u32 *)a = v; }
static inline u64 rd64(u64 a) { return *(volatile u64 *)a; }
static inline void wr64(u64 a, u64 v) { *(volatile u64 *)a = v; }
static inline u32 be32(u32 v) { return __builtin_bswap32(v); }
static inline u16 be16(u16 v) { return v << 8 | v >> 8; }

// lib.c
void *memcpy(void *d, const void *s, u64 n);
void *memset(void *d, int c, u64 n);
int memcmp(const void *a, const void *b, u64 n);
int same(const void *a, const void *b, u64 n); // n a multiple of 8
u64 strlen(const char *s);
int streq(const char *a, const char *b);
const char *after(const char *s, const char *prefix); // rest of s, or NULL
int number(const char **s, u64 *v);                   // decimal or 0x…, [KMG]; 0 if none
u64 rnd(u64 *state);

// console.c: output is gathered into lines and leaves 16 bytes at a time.
void console_init(void);
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ok(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void fail(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void skip(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void raw_out(const char *p, u64 n);
extern u32 oks, fails, skips;

// boot.c: what the monitor handed over, copied out of low memory.
struct range { u64 base, len; u32 type; };
#define RAM 1
struct boot {
	u32 version, flags;
	u64 start_info, cmdline_at, map_at;
	char cmdline[4096];
	struct range map[64];
	u32 nmap;
	struct range mod[8];
	u32 nmod;
};
extern struct boot boot;
const char *boot_read(u64 start_info); // NULL or what is wrong
const char *boot_option(const char *name);
int in_ram(u64 addr, u64 len);
void map(u64 at, u64 len); // before anything outside the first 16 MiB is touched
void heap_init(void);
void *heap(u64 size); // zeroed pages; ends the guest when there are none
void *heap_raw(u64 size); // the same, as they are
extern u64 heap_at, heap_end;

// The mode that demo=… asks for.
struct mode { const char *name; void (*run)(const char *value); };
const char *opt(const char *name);        // value of ",name=…", "" for ",name", else NULL
u64 opt_number(const char *name, u64 otherwise);
const char *arg(u32 i, char *buf, u64 n); // the i-th word between commas after the mode

// main.c
NORETURN void end(u8 status);
NORETURN void finish(void); // end with 1 if a check failed, else 0
extern int lax;             // under other monitors: what only smolvmm has is skipped

// time.c
extern u64 tsc_khz, bus_khz;
void time_init(void);
u64 us_of(u64 tsc);
void delay_us(u64 us);
u64 phase(const char *name, u64 since); // prints the µs since then, gives now

#define COM1 0x3f8

// modes, each in the file of its name
void check_all(const char *), mode_print(const char *), mode_echo(const char *);
void mode_count(const char *), mode_touch(const char *), mode_blkbench(const char *), mode_irqstorm(const char *);
void mode_hostile(const char *), mode_netecho(const char *), mode_nettcp(const char *);
void mode_vsock(const char *);
void mode_exit(const char *), mode_reboot(const char *), mode_triple(const char *), mode_hlt(const char *);
void mode_spin(const char *), mode_fault(const char *), mode_badop(const char *), mode_mmioabsent(const char *);

#endif
