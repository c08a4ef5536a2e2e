// The few library functions that the compiler and the modes need.

#include "guest.h"

void *memcpy(void *d, const void *s, u64 n)
{
	void *r = d;
	u64 q = n >> 3;

	n &= 7;
	__asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(q)::"memory");
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
	return r;
}

void *memset(void *d, int c, u64 n)
{
	void *r = d;
	u64 q = n >> 3;

	n &= 7;
	__asm__ volatile("rep stosq" : "+D"(d), "+c"(q) : "a"((u8)c * 0x0101010101010101ul) : "memory");
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return r;
}

int memcmp(const void *a, const void *b, u64 n)
{
	const u8 *p = a, *q = b;

	for (; n; n--, p++, q++)
		if (*p != *q)
			return *p < *q ? -1 : 1;
	return 0;
}

int same(const void *a, const void *b, u64 n)
{
	u8 equal;

	n >>= 3;
	__asm__ volatile("cmpq %%rax,%%rax; repe cmpsq; sete %0"
			 : "=q"(equal), "+S"(a), "+D"(b), "+c"(n)::"memory", "cc");
	return equal;
}

u64 strlen(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

int streq(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

const char *after(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return NULL;
	return s;
}

int number(const char **sp, u64 *v)
{
	const char *s = *sp;
	u64 n = 0;
	u32 base = 10, digits = 0;

	if (s[0] == '0' && (s[1] | 32) == 'x') {
		base = 16;
		s += 2;
	}
	for (;; s++, digits++) {
		u32 c = *(const u8 *)s;
		if (c >= '0' && c <= '9')
			n = n * base + (c - '0');
		else if (base == 16 && (c | 32) >= 'a' && (c | 32) <= 'f')
			n = n * 16 + ((c | 32) - 'a' + 10);
		else
			break;
	}
	if (!digits)
		return 0;
	switch (*s | 32) {
	case 'k': n <<= 10; s++; break;
	case 'm': n <<= 20; s++; break;
	case 'g': n <<= 30; s++; break;
	}
	*sp = s;
	*v = n;
	return 1;
}

// xorshift64: Marsaglia, "Xorshift RNGs" (2003).
u64 rnd(u64 *state)
{
	u64 x = *state ? *state : 0x9e3779b97f4a7c15ul;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}
