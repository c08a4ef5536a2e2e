// What the monitor hands over: start_info, memory map, modules, command line
// (Xen public/arch-x86/hvm/start_info.h). It is copied out at once, since
// low memory is ours afterwards.

#include "guest.h"

struct boot boot;
u64 heap_at, heap_end;

extern char _begin[], _end[];
extern u64 boot_pdpt[512];
extern u8 boot_gigapages;

struct PACKED start_info {
	u32 magic, version, flags, nr_modules;
	u64 modlist, cmdline, rsdp;
	u64 memmap;	// from version 1 on
	u32 memmap_entries, reserved;
};
struct PACKED memmap_entry { u64 addr, size; u32 type, reserved; };
struct PACKED modlist_entry { u64 paddr, size, cmdline, reserved; };

// map makes addresses usable one to one, where 1 GiB pages have not done so
// already for all below 4 GiB.
void map(u64 at, u64 len)
{
	for (u64 page = at >> 21; len && page <= (at + len - 1) >> 21 && page < 512 * 512; page++) {
		u64 *pd, flags = page >= 0xC0000000 >> 21 && page < 1 << 11 ? PTE_PAGE | PTE_UNCACHED : PTE_PAGE;

		if (boot_gigapages) {
			if (!boot_pdpt[page >> 9])
				boot_pdpt[page >> 9] = page >> 9 << 30 | flags;
			continue;
		}
		if (!boot_pdpt[page >> 9])
			boot_pdpt[page >> 9] = (u64)heap(4096) | PTE_TABLE;
		pd = (u64 *)(boot_pdpt[page >> 9] & ~4095ul);
		if (!pd[page & 511])
			pd[page & 511] = page << 21 | flags;
	}
}

static const char *take_map(u64 at, u32 n)
{
	const struct memmap_entry *e = (void *)at;

	map(at, n * sizeof *e);
	if (n == 0)
		return "memory map without entries";
	if (n > COUNT(boot.map))
		return "memory map over 64 entries";
	for (u32 i = 0; i < n; i++) {
		boot.map[i].base = e[i].addr;
		boot.map[i].len = e[i].size;
		boot.map[i].type = e[i].type;
	}
	boot.nmap = n;
	return NULL;
}

const char *boot_read(u64 at)
{
	const struct start_info *s = (void *)at;
	const struct modlist_entry *m;
	const char *wrong;
	u32 i;

	boot.start_info = at;
	map(at, sizeof *s);
	if (s->magic != 0x336ec578)
		return "start_info: bad magic";
	boot.version = s->version;
	boot.flags = s->flags;
	boot.cmdline_at = s->cmdline;
	if (!s->cmdline)
		return "start_info: no command line";
	map(s->cmdline, sizeof boot.cmdline);
	for (i = 0; ((const char *)s->cmdline)[i]; i++) {
		if (i == sizeof boot.cmdline - 1)
			return "command line over 4095 bytes";
		boot.cmdline[i] = ((const char *)s->cmdline)[i];
	}
	if (s->version < 1)
		return "start_info: version 0 has no memory map";
	boot.map_at = s->memmap;
	wrong = take_map(s->memmap, s->memmap_entries);
	if (wrong)
		return wrong;
	m = (void *)s->modlist;
	if (m)
		map((u64)m, COUNT(boot.mod) * sizeof *m);
	for (i = 0; m && i < s->nr_modules && i < COUNT(boot.mod); i++) {
		boot.mod[i].base = m[i].paddr;
		boot.mod[i].len = m[i].size;
	}
	boot.nmod = s->nr_modules;
	return NULL;
}

// boot_option finds the last "name=value" on the command line.
const char *boot_option(const char *name)
{
	const char *found = NULL, *v;

	for (const char *s = boot.cmdline; *s;) {
		while (*s == ' ')
			s++;
		v = after(s, name);
		if (v && *v == '=')
			found = v + 1;
		while (*s && *s != ' ')
			s++;
	}
	return found;
}

int in_ram(u64 addr, u64 len)
{
	for (u32 i = 0; i < boot.nmap; i++) {
		const struct range *r = &boot.map[i];
		if (r->type == RAM && addr >= r->base && addr - r->base <= r->len && len <= r->len - (addr - r->base))
			return 1;
	}
	return 0;
}

// The heap is what lies between the kernel and the end of its RAM range, or
// the first module there.
void heap_init(void)
{
	heap_at = ((u64)_end + 4095) & ~4095ul;
	for (u32 i = 0; i < boot.nmap; i++) {
		const struct range *r = &boot.map[i];
		if (r->type == RAM && (u64)_begin >= r->base && heap_at - r->base <= r->len)
			heap_end = r->base + r->len;
	}
	for (u32 i = 0; i < boot.nmod && i < COUNT(boot.mod); i++)
		if (boot.mod[i].base >= heap_at && boot.mod[i].base < heap_end)
			heap_end = boot.mod[i].base;
	if (heap_end > 0xC0000000)
		heap_end = 0xC0000000;
}

void *heap_raw(u64 size)
{
	void *p = (void *)heap_at;

	size = (size + 4095) & ~4095ul;
	if (size > heap_end - heap_at || heap_end <= heap_at) {
		fail("heap", "no memory for %lu bytes at 0x%lx", size, heap_at);
		finish();
	}
	heap_at += size;
	map((u64)p, size);
	return p;
}

void *heap(u64 size)
{
	return memset(heap_raw(size), 0, (size + 4095) & ~4095ul);
}

// demo=mode[=value][,word…]: the words.
static const char *words(void)
{
	const char *s = boot_option("demo");

	while (s && *s && *s != ' ' && *s != ',')
		s++;
	return s ? s : "";
}

const char *opt(const char *name)
{
	const char *s = words(), *v;

	while (*s == ',') {
		v = after(++s, name);
		if (v && *v == '=')
			return v + 1;
		if (v && (*v == ',' || *v == ' ' || !*v))
			return "";
		while (*s && *s != ' ' && *s != ',')
			s++;
	}
	return NULL;
}

u64 opt_number(const char *name, u64 otherwise)
{
	const char *s = opt(name);
	u64 v;

	return s && number(&s, &v) ? v : otherwise;
}

const char *arg(u32 i, char *buf, u64 n)
{
	const char *s = words();
	u64 k = 0;

	for (; *s == ','; i--) {
		s++;
		if (i == 0)
			for (; s[k] && s[k] != ' ' && s[k] != ',' && k < n - 1; k++)
				buf[k] = s[k];
		while (*s && *s != ' ' && *s != ',')
			s++;
		if (i == 0)
			break;
	}
	buf[k] = 0;
	return buf;
}
