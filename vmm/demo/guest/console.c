// Lines out of COM1, a 16550A with a 16-byte transmit FIFO, and the words the
// host side parses: "demo: ok|FAIL|skip <what> …".

#include "guest.h"

u32 oks, fails, skips;

static char line[512];
static u32 used;

void console_init(void)
{
	outb(COM1 + 1, 0);	// no interrupts
	outb(COM1 + 3, 0x83);	// divisor latch: 115,200 baud
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x03);	// 8n1
	outb(COM1 + 2, 0x07);	// FIFOs on and empty
	outb(COM1 + 4, 0x0b);	// DTR, RTS, OUT2 (gates the interrupt)
}

void raw_out(const char *p, u64 n)
{
	while (n) {
		u64 burst = n < 16 ? n : 16;

		while (!(inb(COM1 + 5) & 0x20))	// THRE: the FIFO is empty
			pause();
		outsb(COM1, p, burst);
		p += burst;
		n -= burst;
	}
}

static void put(char c)
{
	line[used++] = c;
	if (c == '\n' || used == sizeof line) {
		raw_out(line, used);
		used = 0;
	}
}

static void digits(u64 v, u32 base, u32 width, char pad)
{
	char b[24];
	u32 n = 0;

	do {
		b[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n < width && n < sizeof b)
		b[n++] = pad;
	while (n)
		put(b[--n]);
}

// %s %c %d %u %x, with l, a width and a leading 0.
static void vsay(const char *f, va_list ap)
{
	for (; *f; f++) {
		u32 width = 0, is_long = 0;
		char pad = ' ';
		u64 v;

		if (*f != '%') {
			put(*f);
			continue;
		}
		f++;
		if (*f == '0') {
			pad = '0';
			f++;
		}
		while (*f >= '0' && *f <= '9')
			width = width * 10 + (*f++ - '0');
		if (*f == 'l') {
			is_long = 1;
			f++;
		}
		switch (*f) {
		case 's':
			for (const char *s = __builtin_va_arg(ap, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)__builtin_va_arg(ap, int));
			break;
		case 'd':
		case 'u':
		case 'x':
			if (is_long)
				v = __builtin_va_arg(ap, u64);
			else if (*f == 'd')
				v = (u64)(long)__builtin_va_arg(ap, int);
			else
				v = __builtin_va_arg(ap, u32);
			if (*f == 'd' && (long)v < 0) {
				put('-');
				v = -v;
			}
			digits(v, *f == 'x' ? 16 : 10, width, pad);
			break;
		default:
			put(*f);
		}
	}
}

void say(const char *fmt, ...)
{
	va_list ap;

	__builtin_va_start(ap, fmt);
	vsay(fmt, ap);
	__builtin_va_end(ap);
}

static void verdict(const char *word, const char *what, const char *fmt, va_list ap)
{
	say("demo: %s %s", word, what);
	if (*fmt)
		put(' ');
	vsay(fmt, ap);
	put('\n');
}

void ok(const char *what, const char *fmt, ...)
{
	va_list ap;

	oks++;
	__builtin_va_start(ap, fmt);
	verdict("ok", what, fmt, ap);
	__builtin_va_end(ap);
}

void fail(const char *what, const char *fmt, ...)
{
	va_list ap;

	fails++;
	__builtin_va_start(ap, fmt);
	verdict("FAIL", what, fmt, ap);
	__builtin_va_end(ap);
}

void skip(const char *what, const char *fmt, ...)
{
	va_list ap;

	skips++;
	__builtin_va_start(ap, fmt);
	verdict("skip", what, fmt, ap);
	__builtin_va_end(ap);
}
