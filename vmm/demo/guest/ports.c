// The 16550A's and fw_cfg's own checks, and the modes print and echo.

#include "apic.h"
#include "check.h"

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR };	// 16550A registers
#define LSR_DR 0x01
#define LSR_THRE 0x20
#define UART_PIN 4

static volatile u32 thre_irqs, other_irqs;
static char input[256];
static volatile u32 in_head, in_tail;
static volatile u32 in_lost;

static void uart_irq(u32 vec)
{
	u8 iir;

	(void)vec;
	while (!((iir = inb(COM1 + IIR)) & 1))
		switch (iir & 0x0f) {
		case 0x02:	// THR empty; reading IIR has cleared it
			thre_irqs++;
			outb(COM1 + IER, inb(COM1 + IER) & ~2);
			break;
		case 0x04:	// data, or data that waits below the trigger
		case 0x0c:
			while (inb(COM1 + LSR) & LSR_DR) {
				char c = inb(COM1 + RBR);
				if (in_head - in_tail == sizeof input)
					in_lost++;
				else
					input[in_head++ % sizeof input] = c;
			}
			break;
		default:
			other_irqs++;
			inb(COM1 + LSR);
			inb(COM1 + MSR);
		}
	eoi();
}

void check_uart(void)
{
	static const char probe[] = { 0x55, 0x2a, 0x00, 0x7f };
	u8 iir = inb(COM1 + IIR), msr;
	u64 t0;

	if ((iir & 0xc0) != 0xc0)
		fail("uart", "IIR=0x%02x: no FIFO after FCR=7", iir);
	outb(COM1 + SCR, 0xa5);
	if (inb(COM1 + SCR) != 0xa5)
		fail("uart", "the scratch register does not hold 0xa5");

	// Loopback (MCR bit 4): what is sent comes back, and OUT2, OUT1, RTS,
	// DTR show as DCD, RI, CTS, DSR.
	while (!(inb(COM1 + LSR) & LSR_THRE))
		pause();
	outb(COM1 + MCR, 0x1f);
	msr = inb(COM1 + MSR);
	if ((msr & 0xf0) != 0xf0)
		fail("uart", "loopback: MSR=0x%02x", msr);
	outb(COM1 + 2, 0x07);	// what the terminal sent meanwhile is not ours
	for (u32 i = 0; i < sizeof probe; i++) {
		u8 got;

		outb(COM1, probe[i]);
		for (t0 = rdtsc(); !(inb(COM1 + LSR) & LSR_DR);)
			if (us_of(rdtsc() - t0) > 1000000) {
				outb(COM1 + MCR, 0x0b);
				fail("uart", "loopback: 0x%02x did not come back", probe[i]);
				return;
			}
		got = inb(COM1);
		if (got != (u8)probe[i]) {
			outb(COM1 + MCR, 0x0b);
			fail("uart", "loopback: sent 0x%02x, got 0x%02x", probe[i], got);
			return;
		}
	}
	outb(COM1 + MCR, 0x0b);
	ok("uart", "iir=0x%02x loopback=%u", iir, (u32)sizeof probe);

	on_vector(VEC_UART, uart_irq);
	ioapic_route(UART_PIN, VEC_UART, EDGE);
	timer_set(1000000, 0);
	t0 = ticks;
	outb(COM1 + IER, 2);
	while (!thre_irqs && ticks == t0)
		wait_irq();
	timer_set(0, 0);
	if (!thre_irqs)
		fail("uart_irq", "no THRE interrupt by pin 4 within 1 s");
	else
		ok("uart_irq", "thre=%u other=%u", thre_irqs, other_irqs);
	outb(COM1 + IER, 0);
	ioapic_mask(UART_PIN);
}

// fw_cfg: QEMU docs/specs/fw_cfg. Selector 0x510, data 0x511.
void fwcfg_read(u16 key, void *buf, u64 n)
{
	outw(0x510, key);
	insb(0x511, buf, n);
}

void check_fwcfg(void)
{
	struct PACKED { u32 size; u16 select, reserved; char name[56]; } *dir;
	char sig[4], text[64];
	u32 n, demos = 0;

	fwcfg_read(0x0000, sig, 4);
	if (memcmp(sig, "QEMU", 4)) {
		fail("fw_cfg", "signature 0x%08x", *(u32 *)sig);
		return;
	}
	fwcfg_read(0x0019, &n, 4);
	n = be32(n);
	if (n > 1024) {
		fail("fw_cfg", "directory of %u entries", n);
		return;
	}
	ok("fw_cfg", "files=%u", n);
	dir = heap(n * sizeof *dir);
	insb(0x511, dir, n * sizeof *dir);
	for (u32 i = 0; i < n; i++) {
		u32 size, len;

		dir[i].name[55] = 0;
		if (!after(dir[i].name, "opt/demo/"))
			continue;
		demos++;
		size = be32(dir[i].size);
		len = size < sizeof text - 1 ? size : sizeof text - 1;
		fwcfg_read(be16(dir[i].select), text, len);
		text[len] = 0;
		for (u32 j = 0; j < len; j++)
			if (text[j] < ' ' || text[j] > '~')
				text[j] = '.';
		ok("fw_cfg_file", "name=%s size=%u text=%s", dir[i].name, size, text);
	}
	if (!demos)
		skip("fw_cfg_file", "no opt/demo/ file to read");
}

// print=N: N bytes at the best speed the UART allows, and no other word.
void mode_print(const char *v)
{
	static char text[1024];
	u64 n = 1 << 20;

	number(&v, &n);
	for (u32 i = 0; i < sizeof text; i++)
		text[i] = i % 64 == 63 ? '\n' : 'A' + (i + i / 64) % 26;
	while (n) {
		u64 part = n < sizeof text ? n : sizeof text;

		raw_out(text, part);
		n -= part;
	}
	end(0);
}

// echo: what is typed comes back, line by line, until the line "quit".
void mode_echo(const char *v)
{
	char line[128];
	u32 n = 0, lines = 0, bytes = 0;

	(void)v;
	on_vector(VEC_UART, uart_irq);
	ioapic_route(UART_PIN, VEC_UART, EDGE);
	outb(COM1 + IER, 1);
	ok("echo", "ready");
	for (;;) {
		char c;

		if (in_head == in_tail) {
			wait_irq();
			continue;
		}
		c = input[in_tail++ % sizeof input];
		bytes++;
		if (c == '\r')
			c = '\n';
		raw_out(&c, 1);
		if (c != '\n') {
			if (n < sizeof line - 1)
				line[n++] = c;
			continue;
		}
		line[n] = 0;
		n = 0;
		lines++;
		if (streq(line, "quit"))
			break;
	}
	outb(COM1 + IER, 0);
	if (in_lost)
		fail("echo", "bytes=%u lines=%u lost=%u", bytes, lines, in_lost);
	else
		ok("echo", "bytes=%u lines=%u", bytes, lines);
}
