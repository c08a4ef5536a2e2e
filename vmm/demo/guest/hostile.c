// hostile=<case> or hostile=all: each case starts with a healthy device and
// ends with a reset and a read that must work. In between the device has to
// say what is wrong: IOERR, UNSUPP, or DEVICE_NEEDS_RESET (VirtIO 1.2 §2.1.2).

#include "hostile.h"
#include "net.h"
#include "vsock.h"

void at(struct blk *b, u32 i, u64 addr, u32 len, u16 flags, u16 next)
{
	volatile struct desc *d = &b->q->desc[i];

	d->addr = addr;
	d->len = len;
	d->flags = flags;
	d->next = next;
}

void header(struct blk *b, u32 type, u64 sector)
{
	b->slots[0].hdr = (struct blk_hdr){ type, 0, sector };
	b->slots[0].status = ST_UNTOUCHED;
}

u64 ram_top(void)
{
	u64 top = 0;

	for (u32 i = 0; i < boot.nmap; i++) {
		u64 end = boot.map[i].base + boot.map[i].len;

		if (boot.map[i].type == RAM && end <= 0xC0000000 && end > top)
			top = end;
	}
	return top;
}

// outcome waits for one used buffer, or for the device to give up. The clock
// ticks, so that interrupts are taken too.
u32 outcome(struct blk *b, u32 wait_ms)
{
	u32 id, len;

	for (u64 from = ticks; ticks - from <= wait_ms; wait_irq()) {
		if (reg(b->d, R_STATUS) & S_NEEDS_RESET)
			return O_RESET;
		if (!vq_get(b->q, &id, &len))
			continue;
		switch (b->slots[0].status) {
		case ST_OK: return O_OK;
		case ST_IOERR: return O_IOERR;
		case ST_UNSUPP: return O_UNSUPP;
		case ST_UNTOUCHED:
			if (!len)	// given back unwritten: that says it too
				return O_USED;
			fail("hostile", "%u bytes written, but not the status", len);
			return O_BAD;
		}
		fail("hostile", "status byte 0x%02x", b->slots[0].status);
		return O_BAD;
	}
	return O_SILENT;
}

u32 send(struct blk *b, u16 head)
{
	vq_put(b->q, head);
	barrier();
	b->q->avail->idx = b->q->avail_idx;
	vq_want_irq(b->q);
	set(b->d, R_NOTIFY, 0);
	return outcome(b, WAIT_MS);
}

const char *outcome_name(u32 o)
{
	switch (o) {
	case O_OK: return "OK";
	case O_IOERR: return "IOERR";
	case O_UNSUPP: return "UNSUPP";
	case O_RESET: return "NEEDS_RESET";
	case O_USED: return "USED_WITHOUT_STATUS";
	case O_SILENT: return "SILENT";
	case O_REFUSED: return "REFUSED";
	case O_LIVES: return "LIVES";
	}
	return "?";
}

// sound: after a reset the device reads sector 0 as it did before.
static int sound(struct blk *b, struct vdev *d, const char *name, const u8 *first)
{
	u8 st;

	timer_set(0, 0);
	d->eoi_delay = 0;
	if (!blk_init(b, d, ALL_FEATURES))
		return 0;
	memset(b->buf, 0x77, 512);
	st = blk_do(b, T_IN, 0, b->buf, 512);
	if (st != ST_OK) {
		fail("hostile", "name=%s the read after a reset: %s, device status=0x%x", name, blk_status(st), reg(d, R_STATUS));
		return 0;
	}
	if (!same(b->buf, first, 512)) {
		fail("hostile", "name=%s the read after a reset gave something else", name);
		return 0;
	}
	return 1;
}

int chosen(const char *v, int all, const char *name)
{
	const char *rest = after(v, name);

	return all || (rest && (!*rest || *rest == ',' || *rest == ' '));
}

static void run(struct blk *b, struct vdev *d, const struct hostile *h, const u8 *first)
{
	u64 config, irq_wait;
	u32 o, fails_before = fails, driving;

	if (!blk_init(b, d, ALL_FEATURES & ~h->without))
		return;
	timer_set(1000, 1);
	config = d->config_irqs;
	o = h->run(b);
	driving = reg(d, R_STATUS) & S_DRIVER_OK;
	if (o == O_RESET && driving)
		for (irq_wait = ticks; d->config_irqs == config && ticks - irq_wait < WAIT_MS;)
			wait_irq();
	config = d->config_irqs - config;
	if (!sound(b, d, h->name, first))
		return;
	if (o & O_SKIP)
		skip("hostile", "name=%s needs another CPU", h->name);
	else if (!(o & h->allowed))
		fail("hostile", "name=%s outcome=%s", h->name, outcome_name(o));
	else if (o == O_RESET && driving && !config)
		fail("hostile", "name=%s NEEDS_RESET without a configuration interrupt", h->name);
	else if (fails == fails_before)
		ok("hostile", "name=%s outcome=%s config_irqs=%lu", h->name, outcome_name(o), config);
}

// disk tries the cases of v on the disk d: how many there are.
static u32 disk(const char *v, int all, struct vdev *d)
{
	static const struct hostile *const families[] = { hostile_chains, hostile_rings, hostile_races };
	static u8 first[512];
	struct blk b = { 0 };
	u32 found = 0;
	u8 st;

	if (!blk_init(&b, d, ALL_FEATURES)) {
		fail("hostile", "no disk");
		finish();
	}
	st = blk_do(&b, T_IN, 0, b.buf, 512);
	if (st != ST_OK) {
		fail("hostile", "reading sector 0: %s", blk_status(st));
		finish();
	}
	memcpy(first, b.buf, 512);
	for (u32 i = 0; i < COUNT(families); i++)
		for (const struct hostile *h = families[i]; h->name; h++)
			if (chosen(v, all, h->name)) {
				found++;
				run(&b, d, h, first);
			}
	virtio_reset(d);
	return found;
}

void mode_hostile(const char *v)
{
	struct vdev *d = blk_device(opt_number("dev", 0));
	u32 found = 0;
	int all = after(v, "all") != NULL;

	mp_read();
	if (!d && !net_device(0) && !vs_device()) {
		fail("hostile", "no disk");
		return;
	}
	if (d)
		found += disk(v, all, d);
	if (net_device(opt_number("net", 0)))
		found += hostile_nets(v, all);
	found += hostile_vsocks(v, all);
	if (!found)
		fail("hostile", "no such case: %s", v);
}
