// A driver for virtio-vsock (VirtIO 1.2 §5.10) and streams on it.
#ifndef VSOCK_H
#define VSOCK_H

#include "virtio.h"

enum { V_REQUEST = 1, V_RESPONSE, V_RST, V_SHUTDOWN, V_RW, V_UPDATE, V_ASK };	// op (§5.10.6)
enum { V_RECEIVE = 1, V_SEND = 2 };	// flags of SHUTDOWN
enum { V_STREAM = 1, V_HOST = 2 };	// type; the host's CID

struct PACKED vs_hdr { u64 src, dst; u32 sport, dport, len; u16 type, op; u32 flags, alloc, fwd; };
#define VS_HDR sizeof(struct vs_hdr)
#define VS_PART 65536	// payload of one packet
#define VS_BATCH 16

struct vs_slot { struct vs_hdr h; u8 pad[20]; };

struct vsock;
typedef void (*vs_handler)(struct vsock *s, const struct vs_hdr *h, u8 *p);

struct vsock {
	struct vdev *d;
	struct vq *rx, *tx, *ev;
	u64 cid;
	u32 rxbuf, nrx, ntx;
	u8 *rxmem, *txmem;	// txmem: VS_PART bytes a slot
	struct vs_slot *slots;
	u16 free[RING_MAX], nfree;
	vs_handler input;	// takes each packet
	void (*idle)(struct vsock *s);	// after each batch: what can be sent now
	u32 starved, lost, bad, broken, resets;
	u64 rx_packets, tx_packets;
};

struct vdev *vs_device(void);			// or NULL
int vs_start(struct vsock *s, struct vdev *d, u64 want);	// 0: reported; no buffers to receive into yet
void vs_fill(struct vsock *s);			// gives it those
u32 vs_poll(struct vsock *s);			// takes in what has come: packets
u32 vs_step(struct vsock *s);			// the same, and sleeps first if there is nothing, a tick at most
int vs_room(struct vsock *s);			// slots that are free now
// A packet with len bytes at p, which do not change until they are gone; 0 without a slot.
int vs_send(struct vsock *s, const struct vs_hdr *h, const void *p, u32 len);
u8 *vs_buffer(struct vsock *s);			// VS_PART bytes for the next packet, if there is a slot
void vs_flush(struct vsock *s);
void vs_reply(struct vsock *s, const struct vs_hdr *h, u16 op);	// to a packet's sender
void vs_check(struct vdev *d);
int vs_refused(struct vsock *s, u32 port, u32 ms);	// a port of the host's answers, with RST

// hostile_vsock.c
u32 hostile_vsocks(const char *v, int all);

#endif
