// The hostile modes: a driver that breaks the rules on purpose.
#ifndef HOSTILE_H
#define HOSTILE_H

#include "blk.h"

// What became of a provocation.
enum {
	O_OK = 1,	// answered as if nothing were wrong
	O_IOERR = 2, O_UNSUPP = 4,
	O_RESET = 8,	// DEVICE_NEEDS_RESET
	O_USED = 16,	// used, the status byte untouched
	O_SILENT = 32,	// nothing within the wait
	O_REFUSED = 64,	// the device did not take the setting
	O_LIVES = 128,	// no single answer was due
	O_BAD = 256,	// reported by the case itself
	O_SKIP = 512,
};
#define TOLD (O_IOERR | O_UNSUPP | O_RESET)

struct hostile {
	const char *name;
	u32 (*run)(struct blk *b);
	u32 allowed;
	u64 without;	// features not to negotiate
};
extern const struct hostile hostile_chains[], hostile_rings[], hostile_races[]; // each ends with name NULL

// The same for a network interface: what follows a provocation is a reset, and
// a ping that must come back.
struct net;
struct hostile_net {
	const char *name;
	u32 (*run)(struct net *n);
	u32 allowed;
	u64 without;
	u32 bare;	// start without buffers to receive into
};
extern const struct hostile_net hostile_frames[], hostile_buffers[], hostile_traffic[]; // each ends with name NULL
u32 hostile_nets(const char *v, int all);	// how many cases were found
u32 net_outcome(struct net *n, struct vq *q, u32 wait_ms);	// O_USED, O_RESET or O_SILENT
u32 net_offer(struct net *n, struct vq *q, u16 head);		// kicks, waits: the outcome
void net_put(struct vq *q, u32 i, u64 addr, u32 len, u16 flags, u16 next);	// descriptor i
struct tx *asking(struct net *n);	// slot 0 with an ARP request, which may be answered
#define FRAME(n) ((u64)&(n)->slots[0].h)
#define HANDLED (O_USED | O_RESET)
#define ANY (O_LIVES | O_RESET)
extern u32 lease_ip, lease_hop;	// the addresses that the interface works with

int chosen(const char *v, int all, const char *name);

// WAIT_MS is far beyond what a device takes, on a busy host too; where silence is
// the right answer, it is waited out.
#define WAIT_MS 1000
#define ALL_FEATURES (F_INDIRECT | F_EVENT_IDX | B_FLUSH | B_RO | B_BLK_SIZE | B_SEG_MAX | B_DISCARD | B_WRITE_ZEROES | B_CONFIG_WCE)

void at(struct blk *b, u32 i, u64 addr, u32 len, u16 flags, u16 next);	// descriptor i of the ring
void header(struct blk *b, u32 type, u64 sector);	// slot 0's, status untouched
u32 send(struct blk *b, u16 head);			// offers, kicks, waits: the outcome
u32 outcome(struct blk *b, u32 wait_ms);
#define HDR(b) ((u64)&(b)->slots[0].hdr)
#define STATUS(b) ((u64)&(b)->slots[0].status)
const char *outcome_name(u32 o);
u64 ram_top(void);	// behind the last RAM below the hole

#endif
