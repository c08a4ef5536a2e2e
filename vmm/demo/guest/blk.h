// A driver for virtio-blk (VirtIO 1.2 §5.2).
#ifndef BLK_H
#define BLK_H

#include "virtio.h"

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { ST_OK = 0, ST_IOERR = 1, ST_UNSUPP = 2, ST_UNTOUCHED = 0xee,
	ST_LOST = 0xfc,	// used, but no interrupt said so
	ST_TIMEOUT = 0xfd, ST_NEEDS_RESET = 0xfe };
enum { B_SEG_MAX = 1 << 2, B_RO = 1 << 5, B_BLK_SIZE = 1 << 6, B_FLUSH = 1 << 9, B_CONFIG_WCE = 1 << 11, B_DISCARD = 1 << 13, B_WRITE_ZEROES = 1 << 14 };

struct blk_hdr { u32 type, reserved; u64 sector; };
struct blk_range { u64 sector; u32 count, flags; };

struct slot {	// one request, 128 bytes
	struct blk_hdr hdr;
	volatile u8 status;
	u8 pad[15];
	struct desc table[4];
	u64 user[4];
};

struct blk {
	struct vdev *d;
	struct vq *q;
	u64 capacity;	// sectors of 512 bytes
	u32 nslots, split;
	struct slot *slots;
	void *ring;
	u8 *buf;	// BUF bytes
};
#define BUF 65536

int blk_init(struct blk *b, struct vdev *d, u64 features);	// 0: reported, unusable
struct vdev *blk_device(u32 n);	// the n-th disk, or NULL
int blk_one(struct blk *b);	// the disk of option dev=, ready for work, or 0 (reported)

// A chain in slot s: header, data (len may be 0), status.
void blk_fill(struct blk *b, u32 s, u32 type, u64 sector, void *buf, u32 len);
int blk_wait(struct blk *b, u32 *slot);	// ST_OK, ST_LOST, ST_TIMEOUT or ST_NEEDS_RESET
u8 blk_do(struct blk *b, u32 type, u64 sector, void *buf, u32 len);	// status of one request
void blk_check(struct vdev *d);
const char *blk_status(u8 s);

void pattern(void *p, u64 n, u64 seed);

#endif
