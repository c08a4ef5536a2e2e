// The transport and the rings. Interrupts are off except in wait_irq.

#include "virtio.h"

struct vdev vdevs[MAX_DEVICES];
u32 nvdevs;

void virtio_find(void)
{
	static int done;

	if (done++)
		return;
	for (const char *s = boot.cmdline, *v; *s;) {
		u64 size, base, pin;

		while (*s == ' ')
			s++;
		v = after(s, "virtio_mmio.device=");
		while (*s && *s != ' ')
			s++;
		if (!v)
			continue;
		if (!number(&v, &size) || *v++ != '@' || !number(&v, &base) || *v++ != ':' || !number(&v, &pin) || (*v && *v != ' ' && *v != ':')) {
			fail("virtio", "malformed virtio_mmio.device argument");
			continue;
		}
		if (nvdevs == MAX_DEVICES || !base || size < 0x200 || in_ram(base, 1)) {
			fail("virtio", "size=0x%lx at=0x%lx pin=%lu: one too many, or no place for a device", size, base, pin);
			continue;
		}
		struct vdev *d = &vdevs[nvdevs];
		map(base, size);
		d->n = nvdevs;
		d->base = base;
		d->size = size;
		d->pin = pin;
		d->vec = VEC_VIRTIO + nvdevs++;
		if (reg(d, R_MAGIC) != 0x74726976 || reg(d, R_VERSION) != 2) {
			fail("virtio", "at=0x%lx magic=0x%x version=%u", base, reg(d, R_MAGIC), reg(d, R_VERSION));
			nvdevs--;
			continue;
		}
		d->id = reg(d, R_DEVICE);
	}
}

void virtio_reset(struct vdev *d)
{
	u64 t0 = rdtsc();

	set(d, R_STATUS, 0);
	while (reg(d, R_STATUS))
		if (us_of(rdtsc() - t0) > 2000000) {
			fail("virtio", "dev=%u status=0x%x: no end of reset in 2 s", d->n, reg(d, R_STATUS));
			return;
		}
}

u64 virtio_offered(struct vdev *d)
{
	set(d, R_STATUS, S_ACKNOWLEDGE);
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER);
	set(d, R_DEV_SEL, 0);
	d->offered = reg(d, R_DEV_FEATURES);
	set(d, R_DEV_SEL, 1);
	return d->offered |= (u64)reg(d, R_DEV_FEATURES) << 32;
}

int virtio_negotiate(struct vdev *d, u64 want)
{
	virtio_offered(d);
	d->features = d->offered & (want | F_VERSION_1);
	set(d, R_DRV_SEL, 0);
	set(d, R_DRV_FEATURES, d->features);
	set(d, R_DRV_SEL, 1);
	set(d, R_DRV_FEATURES, d->features >> 32);
	set(d, R_STATUS, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	return reg(d, R_STATUS) & S_FEATURES_OK && d->features & F_VERSION_1;
}

// Descriptors, then avail with used_event, then used with avail_event.
static u64 avail_at(u16 size) { return 16ul * size; }
static u64 used_at(u16 size) { return (avail_at(size) + 6 + 2ul * size + 3) & ~3ul; }
u64 vq_bytes(u16 size) { return used_at(size) + 6 + 8ul * size; }

void vq_layout(struct vq *q, struct vdev *d, u16 index, u16 size, void *mem)
{
	memset(mem, 0, vq_bytes(size));
	q->dev = d;
	q->index = index;
	q->size = size;
	q->avail_idx = q->last_used = 0;
	q->desc = mem;
	q->avail = mem + avail_at(size);
	q->used = mem + used_at(size);
}

int vq_enable(struct vq *q)
{
	struct vdev *d = q->dev;

	set(d, R_QUEUE_SEL, q->index);
	set(d, R_QUEUE_NUM, q->size);
	set64(d, R_DESC, (u64)q->desc);
	set64(d, R_AVAIL, (u64)q->avail);
	set64(d, R_USED, (u64)q->used);
	set(d, R_QUEUE_READY, 1);
	return reg(d, R_QUEUE_READY) & 1;
}

// The pin is level-triggered: the device is acknowledged before EOI, or it
// would interrupt again. eoi_delay widens the gap in which the device raises
// the line anew while the IOAPIC still awaits the EOI.
static void virtio_irq(u32 vec)
{
	struct vdev *d = &vdevs[vec - VEC_VIRTIO];
	u32 isr = reg(d, R_ISR);

	if (isr & 1)
		d->irqs++;
	if (isr & 2)
		d->config_irqs++;
	if (isr)
		set(d, R_ACK, isr);
	else
		d->spurious++;
	if (d->eoi_delay)
		for (u64 t0 = rdtsc(); rdtsc() - t0 < d->eoi_delay;)
			pause();
	eoi();
}

void virtio_interrupts(struct vdev *d)
{
	on_vector(d->vec, virtio_irq);
	if (!ioapic_route(d->pin, d->vec, LEVEL))
		fail("virtio", "dev=%u pin=%u: the IOAPIC has %u", d->n, d->pin, ioapic_pins());
}

void vq_put(struct vq *q, u16 head)
{
	q->avail->ring[q->avail_idx++ & (q->size - 1)] = head;
}

void vq_publish(struct vq *q)
{
	u16 old = q->avail->idx;

	barrier();	// stores stay in order on x86
	q->avail->idx = q->avail_idx;
	mb();		// before reading what the device wants
	if (q->dev->features & F_EVENT_IDX) {
		// VirtIO 1.2 §2.7.10: vring_need_event.
		if ((u16)(q->avail_idx - *avail_event(q) - 1) >= (u16)(q->avail_idx - old))
			return;
	} else if (q->used->flags & 1)
		return;
	set(q->dev, R_NOTIFY, q->index);
}

int vq_get(struct vq *q, u32 *id, u32 *len)
{
	volatile struct used_elem *e;

	if (q->used->idx == q->last_used)
		return 0;
	barrier();
	e = &q->used->ring[q->last_used++ & (q->size - 1)];
	*id = e->id;
	*len = e->len;
	return 1;
}

void vq_want_irq(struct vq *q) { vq_want_irq_at(q, 1); }

void vq_want_irq_at(struct vq *q, u16 n)
{
	*used_event(q) = q->last_used + n - 1;
	q->avail->flags = 0;
	mb();
}

void vq_no_irq(struct vq *q)
{
	if (q->dev->features & F_EVENT_IDX)
		*used_event(q) = q->last_used - 1;	// long past (VirtIO 1.2 §2.7.7)
	else
		q->avail->flags = 1;
}
