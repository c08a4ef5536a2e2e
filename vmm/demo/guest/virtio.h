// VirtIO 1.2: the MMIO transport (§4.2.2) and split virtqueues (§2.7).
#ifndef VIRTIO_H
#define VIRTIO_H

#include "apic.h"

enum {	// registers
	R_MAGIC = 0x000, R_VERSION = 0x004, R_DEVICE = 0x008, R_VENDOR = 0x00c,
	R_DEV_FEATURES = 0x010, R_DEV_SEL = 0x014, R_DRV_FEATURES = 0x020, R_DRV_SEL = 0x024,
	R_QUEUE_SEL = 0x030, R_QUEUE_MAX = 0x034, R_QUEUE_NUM = 0x038, R_QUEUE_READY = 0x044,
	R_NOTIFY = 0x050, R_ISR = 0x060, R_ACK = 0x064, R_STATUS = 0x070,
	R_DESC = 0x080, R_AVAIL = 0x090, R_USED = 0x0a0, R_GENERATION = 0x0fc, R_CONFIG = 0x100,
};

enum { S_ACKNOWLEDGE = 1, S_DRIVER = 2, S_DRIVER_OK = 4, S_FEATURES_OK = 8, S_NEEDS_RESET = 64, S_FAILED = 128 };
enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };

#define F_INDIRECT (1ul << 28)
#define F_EVENT_IDX (1ul << 29)
#define F_VERSION_1 (1ul << 32)

#define MAX_DEVICES 16
#define RING_MAX 128 // what this driver uses of a queue; a power of two

struct desc { u64 addr; u32 len; u16 flags, next; };
struct avail { u16 flags, idx, ring[]; };
struct used_elem { u32 id, len; };
struct used { u16 flags, idx; struct used_elem ring[]; };

struct vdev;

struct vq {
	struct vdev *dev;
	u16 index, size, max;
	u16 avail_idx, last_used;
	volatile struct desc *desc;
	volatile struct avail *avail;
	volatile struct used *used;
};

struct vdev {
	u64 base, size;
	u32 pin, vec, id, n;
	u64 offered, features;
	struct vq q[3];	// blk uses 1, net 2, vsock 3
	volatile u64 irqs, spurious, config_irqs;
	u64 eoi_delay;	// TSC between acknowledging the device and EOI
};

extern struct vdev vdevs[MAX_DEVICES];
extern u32 nvdevs;

void virtio_find(void);	// from virtio_mmio.device=… arguments
static inline u32 reg(const struct vdev *d, u32 r) { return rd32(d->base + r); }
static inline void set(const struct vdev *d, u32 r, u32 v) { wr32(d->base + r, v); }
static inline void set64(const struct vdev *d, u32 r, u64 v) { set(d, r, v); set(d, r + 4, v >> 32); }

void virtio_reset(struct vdev *d);
u64 virtio_offered(struct vdev *d);		// up to DRIVER; the device's features
int virtio_negotiate(struct vdev *d, u64 want);	// up to FEATURES_OK; 0 if refused
void vq_layout(struct vq *q, struct vdev *d, u16 index, u16 size, void *mem); // memory of vq_bytes
u64 vq_bytes(u16 size);
int vq_enable(struct vq *q);			// tells the device; 0 if it is not ready
void virtio_interrupts(struct vdev *d);		// routes its pin, level-triggered

// Buffers: take descriptors, fill them in, publish, kick, collect.
void vq_put(struct vq *q, u16 head);		// into the avail ring, not yet visible
void vq_publish(struct vq *q);			// visible; kicks when the device wants that
static inline volatile u16 *used_event(struct vq *q) { return &q->avail->ring[q->size]; }
static inline volatile u16 *avail_event(struct vq *q) { return (volatile u16 *)&q->used->ring[q->size]; }
int vq_get(struct vq *q, u32 *id, u32 *len);	// 0 when nothing is used
void vq_want_irq(struct vq *q);			// at the next used buffer
void vq_want_irq_at(struct vq *q, u16 n);	// at the n-th from now, where EVENT_IDX can tell
void vq_no_irq(struct vq *q);			// at none for now

#endif
