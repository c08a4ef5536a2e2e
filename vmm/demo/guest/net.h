// A driver for virtio-net (VirtIO 1.2 §5.1) and a small IPv4 host on it.
#ifndef NET_H
#define NET_H

#include "virtio.h"

enum {	// feature bits (§5.1.3)
	N_CSUM = 1 << 0, N_GUEST_CSUM = 1 << 1, N_MTU = 1 << 3, N_MAC = 1 << 5, N_GUEST_TSO4 = 1 << 7, N_GUEST_TSO6 = 1 << 8, N_HOST_TSO4 = 1 << 11,
	N_MRG_RXBUF = 1 << 15, N_STATUS = 1 << 16, N_CTRL_VQ = 1 << 17, N_CTRL_RX = 1 << 18, N_CTRL_MAC_ADDR = 1 << 23,
};
enum { NH_NEEDS_CSUM = 1, NH_DATA_VALID = 2, NH_TCPV4 = 1 };	// flags and gso_type (§5.1.6)
enum { C_MAC = 0, C_STATUS = 6, C_PAIRS = 8, C_MTU = 10 };	// configuration space (§5.1.4)
enum { CTRL_RX = 0, CTRL_MAC = 1, CTRL_OK = 0, CTRL_ERR = 1, CTRL_UNTOUCHED = 0xee };	// §5.1.6.5

struct PACKED net_hdr { u8 flags, gso_type; u16 hdr_len, gso_size, csum_start, csum_offset, num_buffers; };
#define NET_HDR sizeof(struct net_hdr)

#define NET_RING 256
#define ETH 14
#define FRAME_MAX (ETH + 65535)
#define BATCH 16		// frames, or
#define BATCH_BYTES (128 << 10)	// so much, before the other side is told
#define TICK 10000	// µs between timer interrupts while a network is up

struct tx {	// one frame under way: header here, payload elsewhere
	struct net_hdr h;
	u8 frame[116];
	struct desc table[3];
	u64 pad[2];
};

struct net;
struct tcp;

// udp_handler takes a datagram that came for the address, the port aside.
typedef void (*udp_handler)(struct net *n, u32 src, u16 sport, u16 dport, u8 *p, u32 len);

struct net {
	struct vdev *d;
	struct vq *rx, *tx, *ctl;
	int split;		// the header in a descriptor of its own
	int spin;		// wait without sleeping
	u8 mac[6];
	u32 mtu, rxbuf, nrx, stride, ntx;
	u8 *rxmem, *txmem, *whole;
	struct tx *slots;
	u16 free[NET_RING], nfree, cur;
	u32 lost, bad, broken;	// interrupts that did not come; used buffers that make no sense; it needs a reset
	u32 malformed, badsum;	// what others sent
	u32 merged, foreign, starved;
	u64 rx_frames, tx_frames, rx_bytes, tx_bytes, vouched;	// vouched: the device knows that the sum is right

	u32 ip, mask, gw, dns;	// host order; ip 0: none yet
	u32 hop;		// the gateway, or the host on a link without one
	u8 gw_mac[6];		// hop's: where all goes that is not an answer
	u32 arp_want, pings;	// the last answer that came
	u64 arp_got;
	u8 arp_mac[6];
	u16 ping_id, ping_seq;
	u32 ping_from, ping_len;
	u8 from[6];		// sender of the frame at hand
	udp_handler udp;
	struct tcp *conns;
	u32 nconns;
};

// net.c
struct vdev *net_device(u32 n);			// the n-th interface, or NULL
u64 net_features(void);				// what the driver can use, less what options switch off
int net_init(struct net *n, struct vdev *d, u64 want, u32 rxbuf); // rxbuf 0: a whole frame; 0: reported, unusable
int net_start(struct net *n, struct vdev *d, u64 want, u32 rxbuf);	// the same, without buffers to receive into
void net_fill(struct net *n);			// gives it those
u32 net_poll(struct net *n);			// takes in what has come: frames
u32 net_step(struct net *n);			// the same, and sleeps first if there is nothing, a tick at most
struct tx *net_slot(struct net *n);		// for the next frame, NULL if the device is broken
int net_room(struct net *n);			// slots that are free now
void net_send(struct net *n, struct tx *t, u32 len, const void *more, u32 more_len);	// len bytes of t->frame and more
void net_send_copy(struct net *n, struct tx *t, u32 len, const void *more, u32 more_len);	// more may change after
void net_flush(struct net *n);			// tells the device of all that was sent
void net_drain(struct net *n);			// waits until it has gone out
u8 net_command(struct net *n, u8 class, u8 cmd, const void *data, u32 len);
u8 net_status(struct net *n);			// link up?

// ip.c
u64 sum_of(const void *p, u64 n, u64 s);	// ones' complement sum, not folded (RFC 1071)
u16 fold(u64 s);
void net_input(struct net *n, const struct net_hdr *h, u8 *f, u32 len);
u8 *ip_frame(struct net *n, struct tx *t, const u8 *mac, u32 dst, u8 proto, u32 l4_len);	// → where layer 4 goes
void l4_sum(struct net *n, struct tx *t, u32 hlen, u32 at, const void *more, u32 more_len);	// fills in the checksum at l4+at
void udp_send(struct net *n, const u8 *mac, u32 dst, u16 dport, u16 sport, const void *p, u32 len);
void arp_send(struct net *n, const u8 *to, u16 op, u32 ip, const u8 *mac);
void arp_ask(struct net *n, u32 ip);
int arp_find(struct net *n, u32 ip, u32 ms, u8 mac[6]);
int ping(struct net *n, u32 ip, u32 len, u32 ms, u64 *us);
static inline u16 get16(const void *p) { return be16(*(const u16 *)p); }
static inline void copy6(u8 *to, const u8 *p) { *(u32 *)to = *(const u32 *)p; *(u16 *)(to + 4) = *(const u16 *)(p + 4); }
static inline u32 get32(const void *p) { return be32(*(const u32 *)p); }
static inline void put16(void *p, u16 v) { *(u16 *)p = be16(v); }
static inline void put32(void *p, u32 v) { *(u32 *)p = be32(v); }
extern const u8 broadcast[6];

// netcheck.c
int net_one(struct net *n);			// the interface of option net=, with an address, or 0 (reported)
int net_address(struct net *n);			// by DHCP, or the usual one; 1 if DHCP gave it
int net_gateway(struct net *n, u32 ms);		// finds its MAC
void net_check(struct vdev *d);
void echo_udp(struct net *n, u32 src, u16 sport, u16 dport, u8 *p, u32 len);
extern int quit;				// a datagram said so

#define IP4(a, b, c, d) ((u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))
#define DOTTED(ip) (ip) >> 24, (ip) >> 16 & 255, (ip) >> 8 & 255, (ip) & 255

#endif
